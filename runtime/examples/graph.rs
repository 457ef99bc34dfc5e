//! A breadth-first traversal of a graph whose edges live on a private device and whose levels stay with the CPU.
//!
//! The edges are the large part: the device's kernels read them in its frames. The levels are small and belong to the program, whose closures
//! the kernels are. No page moves during the traversal. Afterwards the CPU does the same with the same pointers, and its touches bring the
//! edges home.
//!
//! ```sh
//! cargo run --release -p hetmem --example graph
//! ```
#![expect(clippy::print_stdout, reason = "an example prints what it found")]

use std::error::Error;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use hetmem::accelerator::{AccessError, InPlace, Options};
use hetmem::{ByteLen, DeviceId, FaultPath, Request, Runtime, Target, VirtAddr};

const DEVICE: DeviceId = DeviceId::new(0);
const NODES: usize = 1 << 17;
/// Edges of each node.
const DEGREE: usize = 8;
const UNSEEN: u64 = u64::MAX;

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = Runtime::builder().device("private:emulated,size=64M".parse()?).start()?;

    // Edge k of a node n is word n * DEGREE + k.
    let mapping = runtime.map(ByteLen::new((NODES * DEGREE * 8) as u64), FaultPath::Thread)?;
    let edges = mapping.words();
    (0..).zip(edges).for_each(|(i, edge)| edge.store(scattered(i) % NODES as u64, Relaxed));
    runtime.migrate(mapping.range(), Request::all_to(Target::Device(DEVICE)));
    let home = || runtime.statistics().pages_migrated_to_system;
    let pages = mapping.range().pages().get();
    println!("{NODES} nodes, {} edges in {pages} pages", edges.len());
    println!("{:<24} {:>8} {:>8} {:>12} {:>14}", "", "levels", "nodes", "ms", "pages moved");

    let device = mapping.accelerator(DEVICE, Options { in_place: InPlace::Direct, ..Options::default() })?;
    let first = mapping.range().start().get();
    let (before, start) = (home(), Instant::now());
    let on_device = traverse(|frontier, visit| {
        device.launch(frontier.len(), |view, i| {
            let node = frontier[i] * DEGREE;
            (node..node + DEGREE).try_for_each(|edge| {
                visit(view.load(VirtAddr::new(first + edge as u64 * 8))?);
                Ok(())
            })
        })
    })?;
    let moved = home() - before;
    row("edges on the device", &on_device, start.elapsed().as_millis(), moved);

    let (before, start) = (home(), Instant::now());
    let on_cpu = traverse(|frontier, visit| {
        for node in frontier {
            edges[node * DEGREE..][..DEGREE].iter().for_each(|edge| visit(edge.load(Relaxed)));
        }
        Ok(())
    })?;
    row("by the CPU afterwards", &on_cpu, start.elapsed().as_millis(), home() - before);

    if moved > 0 || on_device != on_cpu {
        return Err("the two traversals differ, or one on the device moved pages".into());
    }
    Ok(())
}

/// A number that looks like chance, for each `i` another (the finisher of SplitMix64).
fn scattered(i: u64) -> u64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The level of each node, as it is seen from node 0. `expand` calls its second argument with the end of each edge of the nodes in the first.
fn traverse(
    expand: impl Fn(&[usize], &(dyn Fn(u64) + Sync)) -> Result<(), AccessError>,
) -> Result<Vec<u64>, AccessError> {
    let levels: Vec<AtomicU64> = (0..NODES).map(|_| AtomicU64::new(UNSEEN)).collect();
    let found: Vec<AtomicUsize> = (0..NODES).map(|_| AtomicUsize::new(0)).collect();
    levels[0].store(0, Relaxed);
    let (mut frontier, mut level) = (vec![0], 0);
    while !frontier.is_empty() {
        level += 1;
        let count = AtomicUsize::new(0);
        expand(&frontier, &|node| {
            let node = usize::try_from(node).unwrap_or(0);
            // Whoever sees a node first puts it into the next frontier.
            if levels[node].compare_exchange(UNSEEN, level, Relaxed, Relaxed).is_ok() {
                found[count.fetch_add(1, Relaxed)].store(node, Relaxed);
            }
        })?;
        frontier = found[..count.into_inner()].iter().map(|node| node.load(Relaxed)).collect();
    }
    Ok(levels.into_iter().map(AtomicU64::into_inner).collect())
}

fn row(name: &str, levels: &[u64], ms: u128, moved: u64) {
    let seen = || levels.iter().filter(|level| **level != UNSEEN);
    println!("{name:<24} {:>8} {:>8} {ms:>12} {moved:>14}", seen().max().unwrap_or(&0), seen().count());
}
