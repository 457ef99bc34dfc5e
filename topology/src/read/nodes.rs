//! NUMA nodes: `/sys/devices/system/node`.

use crate::read::optional;
use crate::root::{Root, Unreadable, numbered};
use crate::source::{MAX_ENTRIES, Problems, Source, SourceId, SourceState, count};

/// What sysfs says of the way from the best initiators of a class to a node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Access {
    /// 1: processors; 0: initiators of whatever kind (`hmat_register_target_initiators`, drivers/acpi/numa/hmat.c).
    pub(crate) class: u32,
    pub(crate) initiators: Vec<u32>,
    pub(crate) read_latency: Option<u64>,
    pub(crate) write_latency: Option<u64>,
    pub(crate) read_bandwidth: Option<u64>,
    pub(crate) write_bandwidth: Option<u64>,
}

impl Access {
    fn has_figures(&self) -> bool {
        let figures = [self.read_latency, self.write_latency, self.read_bandwidth, self.write_bandwidth];
        figures.iter().any(Option::is_some)
    }
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Node {
    pub(crate) id: u32,
    /// As in `0-3,8`; empty if it has none.
    pub(crate) cpus: String,
    pub(crate) total: Option<u64>,
    pub(crate) free: Option<u64>,
    pub(crate) distances: Vec<u64>,
    /// That of processors, if there is one: Linux has it from 5.10 on. Only firmware with an HMAT has figures.
    pub(crate) access: Option<Access>,
    /// The memory-side cache in front of it.
    pub(crate) cache: Option<u64>,
}

/// Reads them.
pub(crate) fn read(root: &Root) -> (Source, Vec<Node>) {
    let id = SourceId::Nodes;
    let names = match root.names(id.path()) {
        Ok(names) => names,
        Err(why) => return (Source::unreadable(id, &why), Vec::new()),
    };
    let mut problems = Problems::default();
    let numbers = names.iter().filter_map(|name| numbered(name, "node"));
    let nodes: Vec<_> = numbers.take(MAX_ENTRIES).map(|id| node(root, id, &mut problems)).collect();
    if nodes.is_empty() {
        return (Source::stated(id, SourceState::Absent, "no nodes".to_owned(), problems), nodes);
    }
    (Source::read(id, count(nodes.len(), "node", "nodes"), problems), nodes)
}

fn node(root: &Root, id: u32, problems: &mut Problems) -> Node {
    let dir = format!("{}/node{id}", SourceId::Nodes.path());
    let mut text = |file: &str| match root.text(&format!("{dir}/{file}")) {
        Ok(text) => Some(text),
        Err(Unreadable::Absent) => None,
        Err(why) => {
            problems.add(format!("{dir}/{file}: {}", why.words()));
            None
        }
    };
    let cpus = text("cpulist").unwrap_or_default();
    let meminfo = text("meminfo").unwrap_or_default();
    let distances = text("distance").unwrap_or_default();
    let distances = distances.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Node {
        id,
        cpus,
        total: figure(&meminfo, "MemTotal"),
        free: figure(&meminfo, "MemFree"),
        distances,
        access: [1, 0].into_iter().filter_map(|class| access(root, &dir, class, problems)).find(Access::has_figures),
        cache: optional(root, &format!("{dir}/memory_side_cache/index1/size"), problems),
    }
}

/// A figure of `Node 0 MemTotal:  16000 kB`.
fn figure(meminfo: &str, key: &str) -> Option<u64> {
    let found = meminfo.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(2);
        (words.next()?.strip_suffix(':')? == key).then(|| words.next())?
    })?;
    found.parse::<u64>().ok()?.checked_mul(1024)
}

fn access(root: &Root, dir: &str, class: u32, problems: &mut Problems) -> Option<Access> {
    let dir = format!("{dir}/access{class}/initiators");
    let initiators = root.names(&dir).ok()?;
    let mut field = |name: &str| optional(root, &format!("{dir}/{name}"), problems).filter(|value| *value > 0);
    Some(Access {
        class,
        initiators: initiators.iter().filter_map(|name| numbered(name, "node")).collect(),
        read_latency: field("read_latency"),
        write_latency: field("write_latency"),
        read_bandwidth: field("read_bandwidth"),
        write_bandwidth: field("write_bandwidth"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_by_their_whole_name() {
        let text = "Node 1 MemTotal:       16 kB\nNode 1 MemFree:        4 kB\nNode 1 HugePages_Total:     0\n";
        assert_eq!(figure(text, "MemTotal"), Some(16 << 10));
        assert_eq!(figure(text, "MemFree"), Some(4 << 10));
        assert_eq!(figure(text, "Mem"), None);
        assert_eq!(figure("Node", "MemFree"), None);
    }
}
