//! Nodes: which proximity domain is which, and how fast their memory is.
//!
//! Linux numbers nodes in the order in which it meets proximity domains in SRAT. Where memory blocks show which node a
//! domain's memory became, they decide.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::acpi::hmat::Kind;
use crate::facts::Facts;
use crate::model::{Disagreement, FigureSource, Known, Node, Performance};
use crate::source::SourceId;
use crate::span::Span;

/// Which node each proximity domain is.
#[derive(Debug, Default)]
pub(super) struct Domains {
    nodes: BTreeMap<u32, u32>,
}

impl Domains {
    pub(super) fn of(facts: &Facts) -> Self {
        let mut nodes: BTreeMap<u32, u32> =
            (0..).zip(&facts.srat.domains).map(|(node, domain)| (*domain, node)).collect();
        for memory in &facts.srat.memory {
            let shown: BTreeSet<_> = facts
                .blocks
                .runs
                .iter()
                .filter(|run| memory.span.intersect(run.span).is_some())
                .filter_map(|run| run.node)
                .collect();
            if let (1, Some(node)) = (shown.len(), shown.first()) {
                nodes.insert(memory.domain, *node);
            }
        }
        Self { nodes }
    }

    pub(super) fn node(&self, domain: u32) -> Option<u32> {
        self.nodes.get(&domain).copied()
    }
}

/// The node of `at`: by its memory block, by the DAX device on it, by SRAT, or by the PCI device whose it is.
pub(super) fn node_of(facts: &Facts, domains: &Domains, at: Span, is_ram: bool) -> Option<u32> {
    let block = || facts.blocks.runs.iter().find(|run| run.span.contains(at)).and_then(|run| run.node);
    let dax = || super::claim::dax_device(facts, at).and_then(|device| device.target_node);
    let srat = || {
        let memory = facts.srat.memory.iter().find(|memory| memory.span.contains(at))?;
        domains.node(memory.domain)
    };
    let pci = || facts.bars.iter().find(|bar| bar.span.contains(at)).and_then(|bar| bar.node);
    // A block is as large as 2 GiB, and may reach past the memory in it.
    (if is_ram { block() } else { None }).or_else(dax).or_else(srat).or_else(pci)
}

/// Whether an initiator's node has processors: by the system, by SRAT.
fn has_processors(facts: &Facts, node: Option<u32>, domain: Option<u32>) -> Known {
    let system = facts.nodes.iter().find(|found| Some(found.id) == node).map(|found| !found.cpus.is_empty());
    match (system, domain) {
        (Some(true), _) => Known::Yes,
        (_, Some(domain)) if facts.srat.processors.contains(&domain) => Known::Yes,
        (None, None) => Known::Unknown,
        _ => Known::No,
    }
}

/// Figures that hold for processors before those that don't.
fn for_devices_alone(found: &Performance) -> bool {
    found.from_processors == Known::No
}

/// What HMAT says of the memory of `node`: from processors, if there is a figure of some; from the initiator that it is attached to, else from the
/// quickest.
fn by_hmat(facts: &Facts, domains: &Domains, node: u32) -> Option<Performance> {
    let mut from: BTreeMap<u32, Performance> = BTreeMap::new();
    for figure in facts.hmat.figures.iter().filter(|figure| domains.node(figure.target) == Some(node)) {
        let found = from.entry(figure.initiator).or_insert(Performance {
            source: FigureSource::Hmat,
            from_node: domains.node(figure.initiator),
            from_processors: has_processors(facts, domains.node(figure.initiator), Some(figure.initiator)),
            read_latency_ns: None,
            write_latency_ns: None,
            read_bandwidth_mb_s: None,
            write_bandwidth_mb_s: None,
        });
        let field = match figure.kind {
            Kind::ReadLatency => &mut found.read_latency_ns,
            Kind::WriteLatency => &mut found.write_latency_ns,
            Kind::ReadBandwidth => &mut found.read_bandwidth_mb_s,
            Kind::WriteBandwidth => &mut found.write_bandwidth_mb_s,
        };
        *field = Some(figure.value);
    }
    let is_attached = |initiator: &u32| {
        facts.hmat.attached.iter().any(|(memory, near)| domains.node(*memory) == Some(node) && near == initiator)
    };
    let rank = |(initiator, p): &(&u32, &Performance)| {
        let speed = (p.read_latency_ns.unwrap_or(u64::MAX), Reverse(p.read_bandwidth_mb_s.unwrap_or(0)));
        (for_devices_alone(p), !is_attached(initiator), speed, p.from_node)
    };
    from.iter().min_by_key(rank).map(|(_, best)| *best)
}

fn by_sysfs(facts: &Facts, node: u32) -> Option<Performance> {
    let access = facts.nodes.iter().find(|found| found.id == node)?.access.as_ref()?;
    let has = |initiator: Option<u32>| match access.class {
        1 => Known::Yes,
        _ => has_processors(facts, initiator, None),
    };
    let initiators = access.initiators.iter().copied().map(Some);
    let initiator = initiators.min_by_key(|initiator| has(*initiator) != Known::Yes).flatten();
    Some(Performance {
        source: FigureSource::Sysfs,
        from_node: initiator,
        from_processors: has(initiator),
        read_latency_ns: access.read_latency,
        write_latency_ns: access.write_latency,
        read_bandwidth_mb_s: access.read_bandwidth,
        write_bandwidth_mb_s: access.write_bandwidth,
    })
}

/// The nodes of the system, and those that firmware tables and DAX devices name.
pub(super) fn nodes(facts: &Facts, domains: &Domains) -> Vec<Node> {
    let with_memory = facts.srat.memory.iter().filter_map(|memory| domains.node(memory.domain));
    let mut numbers: BTreeSet<u32> = facts.nodes.iter().map(|node| node.id).collect();
    numbers.extend(with_memory.chain(facts.dax.iter().filter_map(|device| device.target_node)));
    let report = |number: u32| {
        let system = facts.nodes.iter().find(|node| node.id == number);
        let tables = facts.hmat.caches.iter().find(|(domain, _)| domains.node(*domain) == Some(number));
        let free = system.and_then(|node| node.free);
        let mut performance: Vec<_> =
            [by_hmat(facts, domains, number), by_sysfs(facts, number)].into_iter().flatten().collect();
        performance.sort_by_key(for_devices_alone);
        Node {
            node: number,
            online: system.is_some(),
            cpus: system.map(|node| node.cpus.clone()).unwrap_or_default(),
            memory_bytes: system.and_then(|node| node.total),
            free_bytes: free,
            distances: system.map(|node| node.distances.clone()).unwrap_or_default(),
            memory_side_cache_bytes: system.and_then(|node| node.cache).or(tables.map(|(_, size)| *size)),
            performance,
            spec: free.and_then(|free| super::usage::node_spec(number, free)),
        }
    };
    numbers.into_iter().map(report).collect()
}

/// Where HMAT and sysfs, which is made from it, give different figures; and where blocks and SRAT give different nodes.
pub(super) fn disagreements(facts: &Facts, domains: &Domains) -> Vec<Disagreement> {
    let mut found = Vec::new();
    for node in &facts.nodes {
        let (Some(table), Some(sysfs)) = (by_hmat(facts, domains, node.id), by_sysfs(facts, node.id)) else { continue };
        // What a device gets, and what processors get, are two things.
        if for_devices_alone(&table) != for_devices_alone(&sysfs) {
            continue;
        }
        for (what, unit, a, b) in [
            ("read latency", "ns", table.read_latency_ns, sysfs.read_latency_ns),
            ("write latency", "ns", table.write_latency_ns, sysfs.write_latency_ns),
            ("read bandwidth", "MB/s", table.read_bandwidth_mb_s, sysfs.read_bandwidth_mb_s),
            ("write bandwidth", "MB/s", table.write_bandwidth_mb_s, sysfs.write_bandwidth_mb_s),
        ] {
            if let (Some(a), Some(b)) = (a, b)
                && a != b
            {
                let text = format!("node {}: {what} is {a} {unit} in HMAT and {b} {unit} in sysfs", node.id);
                let sources = vec![SourceId::Hmat, SourceId::Nodes];
                found.push(Disagreement { sources, start: None, end: None, text });
            }
        }
    }
    for memory in &facts.srat.memory {
        for run in &facts.blocks.runs {
            let (Some(told), Some(shown)) = (domains.node(memory.domain), run.node) else { continue };
            // A block may reach into its neighbour; one that lies in the range as a whole may not.
            let Some(both) = memory.span.intersect(run.span) else { continue };
            if told != shown && facts.blocks.block_size.is_some_and(|block| both.len().get() >= block) {
                let text = format!(
                    "proximity domain {}, which is node {told}, by SRAT, and memory blocks of node {shown}",
                    memory.domain
                );
                let sources = vec![SourceId::Srat, SourceId::MemoryBlocks];
                let (start, end) = (Some(both.start()), Some(both.end()));
                found.push(Disagreement { sources, start, end, text });
            }
        }
    }
    found
}
