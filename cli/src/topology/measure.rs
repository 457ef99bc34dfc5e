//! `--measure`: how fast each node's memory is, from the processors that are next to it.
//!
//! *Latency*: one thread follows a chain through all cache lines of a buffer, in an order that no prefetcher guesses; each load waits for the
//! one before. *Bandwidth*: the node's processors, at most [`THREADS`], read a buffer each and then write it, for a fixed time. The
//! buffers lie on the node that is measured, which is looked at and not assumed, and are larger than the caches.
//!
//! Time is that of the threads, so that others who want the processors do not lengthen it.
//!
//! *Limits:* plain loads and stores, so what a machine can do with wide or non-temporal ones may be more. Without huge pages the
//! latency has misses of the TLB in it.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hetmem_core::policy::Random;
use hetmem_core::units::{ByteLen, PageCount};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::HugePages;
use hetmem_sys::numa::{self, Place};
use hetmem_sys::thread::processor_time;
use hetmem_sys::yardstick::Buffer;
use hetmem_topology::Topology;
use hetmem_topology::model::{FigureSource, Known, Node, Performance};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::figures::size;

/// The least and the most memory that is walked over, in bytes.
const LEAST: u64 = 64 << 20;
const MOST: u64 = 1 << 30;
/// Without this much a figure would be that of a cache.
const USEFUL: u64 = 16 << 20;
/// How long each of the [`ROUNDS`] takes; their median counts.
const ROUND: Duration = Duration::from_millis(100);
/// How many rounds' time may pass while others have the processor.
const PATIENCE: u32 = 10;
const ROUNDS: usize = 3;
/// The most threads that read and write at once.
const THREADS: usize = 16;
/// Words of a cache line, and lines between two looks at the clock.
const LINE: usize = 8;
const STEPS: usize = 1 << 14;

/// Measures each node with memory, and adds what was found, or why there is nothing.
pub(super) fn measure(found: &mut Topology) {
    let nodes: Vec<_> =
        found.nodes.iter().filter(|node| node.online && node.memory_bytes != Some(0)).cloned().collect();
    if nodes.is_empty() {
        found.measurement_notes.push("no node with memory is known".to_owned());
    }
    for node in &nodes {
        match of_node(&nodes, node) {
            Ok(figures) => found.add_measurement(node.node, figures),
            Err(why) => found.measurement_notes.push(format!("node {}: {why}", node.node)),
        }
    }
}

/// The figures of `node`, or why there are none.
fn of_node(nodes: &[Node], node: &Node) -> Result<Performance, String> {
    let target = numa::Node::new(node.node).ok_or("no kernel can have that many nodes")?;
    let (from, cpus) = initiator(nodes, node).ok_or("this process may use no processor of any node")?;
    let bytes = working_set(node.free_bytes.unwrap_or(0), cache_size())?;
    // On threads of their own: where this one runs is nobody's concern.
    let latency = std::thread::scope(|scope| {
        scope.spawn(|| latency(target, bytes, &cpus)).join().map_err(|_| "the measuring thread ended early".to_owned())
    })??;
    let (read, write) = bandwidth(target, bytes, &cpus)?;
    Ok(Performance {
        source: FigureSource::Measured,
        from_node: Some(from),
        from_processors: Known::Yes,
        read_latency_ns: Some(latency),
        write_latency_ns: None,
        read_bandwidth_mb_s: Some(read),
        write_bandwidth_mb_s: Some(write),
    })
}

/// The node with processors that this process may use and that is nearest to `node`, and those processors.
fn initiator(nodes: &[Node], node: &Node) -> Option<(u32, Vec<usize>)> {
    let allowed = sched_getaffinity(None).ok()?;
    let usable = nodes.iter().enumerate().filter_map(|(place, from)| {
        let cpus: Vec<_> = cpu_list(&from.cpus).into_iter().filter(|cpu| allowed.is_set(*cpu)).collect();
        let distance = node.distances.get(place).copied().unwrap_or(u64::MAX);
        (!cpus.is_empty()).then_some((distance, from.node, cpus))
    });
    usable.min_by_key(|(distance, from, _)| (*distance, *from)).map(|(_, from, cpus)| (from, cpus))
}

/// The numbers of `0-3,8`.
fn cpu_list(text: &str) -> Vec<usize> {
    let ends = text.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?.min(CpuSet::MAX_CPU - 1)))
    });
    ends.flat_map(|(first, last)| first..=last).collect()
}

/// The size of the largest cache of a processor, as far as the system says.
fn cache_size() -> u64 {
    let sizes = (0..8).filter_map(|index| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        std::fs::read_to_string(path).ok()?.trim().strip_suffix('K')?.parse::<u64>().ok()
    });
    sizes.max().unwrap_or(0) << 10
}

/// How much memory to walk over: more than the caches hold, and not more than a quarter of what is free.
fn working_set(free: u64, cache: u64) -> Result<ByteLen, String> {
    let bytes = cache.saturating_mul(2).clamp(LEAST, MOST).min(free / 4) & !((2 << 20) - 1);
    if bytes < USEFUL.max(cache) {
        let need = size(USEFUL.max(cache).saturating_mul(4));
        return Err(format!("{} are free, and at least {need} are needed", size(free)));
    }
    Ok(ByteLen::new(bytes))
}

/// Memory of `node`, on which all of it is.
fn buffer(node: numa::Node, bytes: u64) -> Result<Buffer, String> {
    let pages = PageCount::new(bytes >> 12);
    let made = Buffer::on_node(pages, HugePages::Prefer, node);
    // A kernel without huge pages refuses to prefer them.
    let made = made.or_else(|errno| match errno {
        Errno::INVAL => Buffer::on_node(pages, HugePages::System, node),
        other => Err(other),
    });
    let buffer = made.map_err(|errno| format!("memory of it can't be had: {errno}"))?;
    let mut elsewhere = 0;
    numa::nodes_of(buffer.range(), |_, place| elsewhere += u64::from(place != Place::On(node)))
        .map_err(|errno| format!("the kernel doesn't say where pages are: {errno}"))?;
    if elsewhere > 0 {
        return Err(format!("{elsewhere} of {} pages came from elsewhere", pages.get()));
    }
    Ok(buffer)
}

fn stay_on(cpus: &[usize]) -> Result<(), String> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    sched_setaffinity(None, &set).map_err(|errno| format!("a thread can't be kept on its processors: {errno}"))
}

/// Nanoseconds for a load that waits for the one before.
fn latency(node: numa::Node, bytes: ByteLen, cpus: &[usize]) -> Result<u64, String> {
    stay_on(&cpus[..1])?;
    let buffer = buffer(node, bytes.get())?;
    let words = buffer.words();
    chain(words);
    let mut at = 0;
    let mut rounds = [0.0; ROUNDS];
    for round in &mut rounds {
        let (stopwatch, mut steps) = (Stopwatch::start(), 0_u32);
        let took = loop {
            at = follow(words, at, STEPS);
            steps += 1;
            if let Some(took) = stopwatch.past(ROUND) {
                break took;
            }
        };
        *round = took.as_secs_f64() * 1e9 / f64::from(steps) / STEPS as f64;
    }
    std::hint::black_box(at);
    rounds.sort_by(f64::total_cmp);
    Ok(whole(rounds[ROUNDS / 2]))
}

/// How long this thread has run since.
struct Stopwatch {
    thread: Duration,
    wall: Instant,
}

impl Stopwatch {
    fn start() -> Self {
        Self { thread: processor_time(), wall: Instant::now() }
    }

    /// The time run, if it is `enough` or others have had the processor for too long.
    fn past(&self, enough: Duration) -> Option<Duration> {
        let took = processor_time().saturating_sub(self.thread);
        (took >= enough || self.wall.elapsed() >= enough * PATIENCE).then_some(took)
    }
}

/// Makes the first word of each line name that of another, in one ring through all of them (Sattolo's algorithm).
fn chain(words: &[AtomicU64]) {
    let lines = words.len() / LINE;
    let mut order: Vec<u32> = (0..).take(lines).collect();
    let mut random = Random::new(0x7069_636b);
    for i in (1..lines).rev() {
        let j = usize::try_from(random.below(i as u64)).unwrap_or(0);
        order.swap(i, j);
    }
    for (from, to) in order.iter().zip(order.iter().cycle().skip(1)) {
        words[*from as usize * LINE].store(u64::from(*to) * LINE as u64, Relaxed);
    }
}

fn follow(words: &[AtomicU64], from: usize, steps: usize) -> usize {
    let mut at = from;
    for _ in 0..steps {
        at = usize::try_from(words[at].load(Relaxed)).unwrap_or(0);
    }
    at
}

/// MB/s that the processors read, and that they write.
fn bandwidth(node: numa::Node, bytes: ByteLen, cpus: &[usize]) -> Result<(u64, u64), String> {
    let cpus = &cpus[..cpus.len().min(THREADS)];
    let share = (bytes.get() / cpus.len() as u64).max(2 << 20) & !((2 << 20) - 1);
    let buffers = cpus.iter().map(|_| buffer(node, share)).collect::<Result<Vec<_>, _>>()?;
    let together = Barrier::new(cpus.len());
    let of_thread = |cpu: usize, buffer: &Buffer| {
        let kept = stay_on(&[cpu]);
        let words = buffer.words();
        let mut rates = [0.0; 2];
        for (rate, pass) in rates.iter_mut().zip([read as fn(&[AtomicU64]), write]) {
            // Also those that can't be kept on their processor take part: the others wait for them.
            together.wait();
            *rate = passes(words, pass);
        }
        kept.map(|()| rates)
    };
    let of_thread = &of_thread;
    let rates = std::thread::scope(|scope| {
        let threads: Vec<_> =
            cpus.iter().zip(&buffers).map(|(cpu, buffer)| scope.spawn(move || of_thread(*cpu, buffer))).collect();
        let ended =
            threads.into_iter().map(|thread| thread.join().map_err(|_| "a measuring thread ended early".to_owned()));
        ended.map(|rates| rates?).collect::<Result<Vec<_>, String>>()
    })?;
    let sum = |which: usize| whole(rates.iter().map(|rates| rates[which]).sum());
    Ok((sum(0), sum(1)))
}

/// MB/s of `pass` over all of `words`, again and again for the time of three rounds.
fn passes(words: &[AtomicU64], pass: fn(&[AtomicU64])) -> f64 {
    const CHUNK: usize = 1 << 17;
    let (stopwatch, mut done) = (Stopwatch::start(), 0);
    for chunk in words.chunks(CHUNK).cycle() {
        pass(chunk);
        done += chunk.len() * 8;
        if let Some(took) = stopwatch.past(ROUND * 3) {
            return done as f64 / took.as_secs_f64() / 1e6;
        }
    }
    0.0
}

fn read(words: &[AtomicU64]) {
    // Four sums, so that no addition waits for another.
    let mut sums = [0_u64; 4];
    for words in words.as_chunks::<4>().0 {
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = sum.wrapping_add(word.load(Relaxed));
        }
    }
    std::hint::black_box(sums);
}

fn write(words: &[AtomicU64]) {
    for word in words {
        word.store(1, Relaxed);
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures are positive and far from 2^64")]
fn whole(figure: f64) -> u64 {
    figure.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_read_from_the_kernels_list() {
        assert_eq!(cpu_list("0-2,8"), [0, 1, 2, 8]);
        assert_eq!(cpu_list(""), [0; 0]);
        assert!(cpu_list("0-99999999999").len() <= CpuSet::MAX_CPU);
    }

    #[test]
    fn the_chain_goes_through_every_line_once() {
        let words: Vec<_> = (0..64 * LINE).map(|_| AtomicU64::new(u64::MAX)).collect();
        chain(&words);
        let mut at = 0;
        for _ in 1..64 {
            at = follow(&words, at, 1);
            assert!(at != 0 && at % LINE == 0);
        }
        assert_eq!(follow(&words, at, 1), 0);
    }

    #[test]
    fn the_working_set_is_larger_than_the_caches_or_refused() {
        assert_eq!(working_set(8 << 30, 64 << 20), Ok(ByteLen::new(128 << 20)));
        assert_eq!(working_set(8 << 30, 0), Ok(ByteLen::new(LEAST)));
        let said = working_set(100 << 20, 64 << 20).unwrap_err();
        assert!(said.contains("100 MiB are free") && said.contains("256 MiB"), "{said}");
    }

    #[test]
    fn the_nearest_processors_measure() {
        let node = |node, cpus: &str, distances: &[u64]| Node {
            node,
            online: true,
            cpus: cpus.to_owned(),
            memory_bytes: Some(1),
            free_bytes: Some(1),
            distances: distances.to_vec(),
            memory_side_cache_bytes: None,
            performance: Vec::new(),
            spec: None,
        };
        let cpus = format!("0-{}", CpuSet::MAX_CPU - 1);
        let nodes = [node(0, &cpus, &[10, 20, 30]), node(1, &cpus, &[20, 10, 15]), node(2, "", &[30, 15, 10])];
        let from: Vec<_> = nodes.iter().map(|node| initiator(&nodes, node).unwrap().0).collect();
        assert_eq!(from, [0, 1, 1]);
        assert_eq!(initiator(&nodes[2..], &nodes[2]), None);
    }
}
