//! Sizes, times and rates, in few characters.

use hetmem_topology::model::{Known, Performance};

/// A size in the largest unit of which there is one, with a decimal if it is not whole: `639 KiB`, `2.9 GiB`.
pub(super) fn size(bytes: u64) -> String {
    for (shift, unit) in [(50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        let whole = bytes >> shift;
        if whole == 0 {
            continue;
        }
        let tenths = ((bytes - (whole << shift)) * 10) >> shift;
        return if tenths == 0 || whole >= 100 {
            format!("{whole} {unit}")
        } else {
            format!("{whole}.{tenths} {unit}")
        };
    }
    format!("{bytes} B")
}

/// Reads, and writes where they differ: `80 ns, 120.0 GB/s (HMAT, from node 0)`.
pub(super) fn performance(found: &Performance) -> String {
    let pair = |read: Option<u64>, write: Option<u64>, print: fn(u64) -> String| match (read, write) {
        (Some(read), Some(write)) if read != write => Some(format!("{} read, {} write", print(read), print(write))),
        (Some(figure), _) | (None, Some(figure)) => Some(print(figure)),
        (None, None) => None,
    };
    let latency = pair(found.read_latency_ns, found.write_latency_ns, |ns| format!("{ns} ns"));
    let bandwidth = pair(found.read_bandwidth_mb_s, found.write_bandwidth_mb_s, rate);
    let kind = if found.from_processors == Known::No { ", which has no CPUs" } else { "" };
    let from = found.from_node.map_or_else(String::new, |node| format!(" from node {node}{kind}"));
    let figures: Vec<_> = [latency, bandwidth].into_iter().flatten().collect();
    format!("{} ({}{from})", figures.join(", "), found.source.label())
}

fn rate(mb_s: u64) -> String {
    if mb_s < 1000 { format!("{mb_s} MB/s") } else { format!("{}.{} GB/s", mb_s / 1000, mb_s % 1000 / 100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal_at_most() {
        let shown: Vec<_> = [0, 639 << 10, (3 << 30) - (100 << 20), 64 << 30, u64::MAX].into_iter().map(size).collect();
        assert_eq!(shown, ["0 B", "639 KiB", "2.9 GiB", "64 GiB", "16383 PiB"]);
    }

    #[test]
    fn rates_have_one_decimal_from_a_gigabyte_on() {
        assert_eq!((rate(999), rate(12_345)), ("999 MB/s".to_owned(), "12.3 GB/s".to_owned()));
    }
}
