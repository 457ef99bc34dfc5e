//! The tree: nodes with the memory on them, then what belongs to no node.

use std::fmt::Write as _;

use hetmem_topology::Topology;
use hetmem_topology::model::{Claim, ClaimKind, DaxDevice, Node, Performance, Range};

use super::figures::{performance, size};

/// A line, and what hangs below it.
#[derive(Default)]
struct Branch {
    line: String,
    below: Vec<Branch>,
}

impl Branch {
    fn new(line: String) -> Self {
        Self { line, below: Vec::new() }
    }

    fn draw(&self, text: &mut String, indent: &str) {
        for (i, branch) in self.below.iter().enumerate() {
            let last = i + 1 == self.below.len();
            let (twig, more) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let _infallible = writeln!(text, "{indent}{twig}{}", branch.line);
            branch.draw(text, &format!("{indent}{more}"));
        }
    }
}

/// Draws it.
pub(super) fn tree(found: &Topology, name: &str) -> String {
    let mut root = Branch::new(name.to_owned());
    root.below.extend(found.nodes.iter().map(|node| of_node(found, node)));
    let mut elsewhere = Branch::new("on no node that is known".to_owned());
    elsewhere.below = groups(found.ranges.iter().filter(|range| range.node.is_none() && is_shown(range)));
    elsewhere.below.extend(unlocated(found, None));
    if !elsewhere.below.is_empty() {
        root.below.push(elsewhere);
    }
    for memory in &found.cxl_memories {
        let capacity = |bytes: Option<u64>, kind| bytes.filter(|b| *b > 0).map(|b| format!(", {} {kind}", size(b)));
        let mut line = format!("CXL memory device {}", memory.name);
        line.extend(capacity(memory.volatile_bytes, "volatile"));
        line.extend(capacity(memory.persistent_bytes, "persistent"));
        line.extend(memory.node.map(|node| format!(", near node {node}")));
        root.below.push(Branch::new(line));
    }
    if root.below.is_empty() {
        root.below.push(Branch::new("nothing is known of its memory: no source could be read".to_owned()));
    }
    let mut text = format!("{}\n", root.line);
    root.draw(&mut text, "");
    text
}

fn of_node(found: &Topology, node: &Node) -> Branch {
    let mut line = format!("node {}", node.node);
    match (node.online, node.cpus.as_str()) {
        (false, _) => line.push_str(" (not in the system yet)"),
        (true, "") => line.push_str(": no CPUs"),
        (true, cpus) => {
            let _infallible = write!(line, ": CPUs {cpus}");
        }
    }
    line.extend(node.memory_bytes.map(|bytes| format!(", {}", size(bytes))));
    line.extend(node.free_bytes.map(|bytes| format!(" ({} free)", size(bytes))));
    line.extend(node.memory_side_cache_bytes.map(|bytes| format!(", behind a cache of {}", size(bytes))));
    let mut branch = Branch::new(line);
    // What the kernel made of the table is the same again, if all is well.
    let figures = node.performance.iter().enumerate();
    let new = figures.filter(|(i, one)| !node.performance[..*i].iter().any(|other| same_figures(one, other)));
    branch.below.extend(new.map(|(_, figures)| Branch::new(performance(figures))));
    branch.below.extend(groups(found.ranges.iter().filter(|r| r.node == Some(node.node) && is_shown(r))));
    branch.below.extend(unlocated(found, Some(node.node)));
    branch.below.extend(node.spec.iter().map(|spec| Branch::new(format!("→ --device {spec}"))));
    branch
}

fn same_figures(a: &Performance, b: &Performance) -> bool {
    *a == Performance { source: a.source, ..*b }
}

/// Whether a range is memory, or could be.
fn is_shown(range: &Range) -> bool {
    let kind = range.claim.kind;
    let other = matches!(
        kind,
        ClaimKind::PciWindow | ClaimKind::HotPlugWindow | ClaimKind::Acpi | ClaimKind::Platform | ClaimKind::Reserved
    );
    let small = kind == ClaimKind::PciDevice && !super::table::is_large(range);
    let unnamed = kind == ClaimKind::Nobody && range.firmware.is_none();
    !(other || small || unnamed)
}

/// A branch for each holder: what it holds, and what can be done with that.
fn groups<'a>(ranges: impl Iterator<Item = &'a Range>) -> Vec<Branch> {
    let mut held: Vec<(&Claim, Vec<&Range>)> = Vec::new();
    for range in ranges {
        match held.iter_mut().find(|(claim, _)| **claim == range.claim) {
            Some((_, ranges)) => ranges.push(range),
            None => held.push((&range.claim, vec![range])),
        }
    }
    held.into_iter().map(|(claim, ranges)| group(claim, &ranges)).collect()
}

fn group(claim: &Claim, ranges: &[&Range]) -> Branch {
    let bytes: u64 = ranges.iter().map(|range| range.size_bytes).sum();
    let mut line = format!("{}: {}", super::table::holder(claim), size(bytes));
    match ranges {
        [only] => line.extend(only.span().map(|span| format!(" at {span}"))),
        more => {
            let _infallible = write!(line, " in {} ranges", more.len());
        }
    }
    if claim.inferred {
        line.push_str(" (inferred)");
    }
    let mut branch = Branch::new(line);
    // What uses a node is told once, at the node.
    let specs = ranges.first().map_or(&[][..], |range| &range.specs);
    if !claim.kind.is_ram() {
        branch.below.extend(specs.iter().map(|spec| Branch::new(format!("→ --device {spec}"))));
    }
    let hinted = ranges.iter().find(|range| range.hint.is_some());
    branch.below.extend(hinted.and_then(|range| {
        // Offline blocks, say, of memory that is online otherwise.
        let of_all = ranges.iter().all(|other| other.hint == range.hint);
        let place = if of_all { String::new() } else { format!("{}: ", range.span()?) };
        Some(Branch::new(format!("{place}{}", range.hint.as_ref()?)))
    }));
    branch
}

/// DAX devices of which no source says where they are.
fn unlocated(found: &Topology, node: Option<u32>) -> impl Iterator<Item = Branch> {
    let hidden = found.dax_devices.iter().filter(move |device| !device.addresses_known && device.node == node);
    hidden.map(|device: &DaxDevice| {
        let mut line = format!("{}, {}", device.name, device.driver.as_deref().unwrap_or("no driver"));
        line.extend(device.size_bytes.map(|bytes| format!(", {}", size(bytes))));
        line.push_str(", at addresses that are not shown");
        let specs = device.specs.iter().map(|spec| format!("→ --device {spec}"));
        let below = specs.chain(device.hint.clone()).map(Branch::new).collect();
        Branch { line, below }
    })
}
