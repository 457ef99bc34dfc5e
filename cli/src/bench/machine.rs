//! What the measurements were made on.

use serde::Serialize;

use crate::host;

/// The host, as far as it matters for times.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) kernel: String,
    pub(super) cpus: usize,
    pub(super) cpu_model: String,
    pub(super) memory_mib: u64,
    pub(super) transparent_huge_pages: String,
    pub(super) load_average_1min: Option<f64>,
}

impl Machine {
    /// Asks the host. What it doesn't tell is called unknown.
    pub(super) fn look() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let unknown = || "unknown".to_owned();
        Self {
            kernel: read("/proc/sys/kernel/osrelease").map_or_else(unknown, |text| text.trim().to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
            cpu_model: read("/proc/cpuinfo").as_deref().and_then(cpu_model).unwrap_or_else(unknown),
            memory_mib: host::meminfo("MemTotal").map_or(0, |len| len.get() >> 20),
            transparent_huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled")
                .as_deref()
                .and_then(chosen)
                .unwrap_or_else(unknown),
            load_average_1min: read("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok()),
        }
    }
}

/// The word in brackets of `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name") || line.starts_with("CPU part"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_of_huge_pages_is_the_word_in_brackets() {
        assert_eq!(chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen("always"), None);
    }

    #[test]
    fn the_processor_is_named() {
        assert_eq!(cpu_model("processor : 0\nmodel name\t: A B\n").as_deref(), Some("A B"));
    }
}
