//! The handler thread: reads what the kernel reports of the program's memory and serves it.
//!
//! ```text
//! poll ── gate.events(): read ──┬── fault           → queue
//!                               └── unmap, remap, … → slots, at once, before the gate is let go
//!         queue: engine.begin_fault() ─┬─ page in place: the toucher is awake
//!                                      ├─ the device copies: others are served meanwhile, and engine.end_faults() does the rest
//!                                      └─ events pending, no memory: back into the queue
//! ```
//!
//! It touches no memory of the program but through the kernel, and takes no lock that anybody holds while doing so.

use std::time::{Duration, Instant};

use hetmem_core::engine::Engine;
use hetmem_core::fault::{Ended, FaultResolution};
use hetmem_core::port::{FaultPath, Host};
use hetmem_core::space::Events;
use hetmem_core::stats::Counters;
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::access;
use hetmem_sys::errno::Errno;
use hetmem_sys::uffd::{Event, EventBuffer, FaultFlags, Userfaultfd, WriteProtect};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::delegate::Delegated;
use crate::host::UserMemory;
use crate::inner::Inner;
use crate::rest::Clearing;
use crate::{children, forks};

/// How long a fault may wait for memory before the program is stopped.
pub(crate) const MEMORY_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait before a fault that could not be served is tried again.
const RETRY_AFTER: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000 };

#[derive(Clone, Copy)]
struct Fault {
    addr: VirtAddr,
    write_protected: bool,
    path: FaultPath,
    /// Nanoseconds from when this thread began until the fault was read.
    read_at: u64,
    yields: u8,
}

/// When this thread began.
#[derive(Clone, Copy)]
struct Start(Instant);

impl Start {
    fn now(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn since(self, read_at: u64) -> Duration {
        Duration::from_nanos(self.now().saturating_sub(read_at))
    }
}

/// Serves until `stop` is readable.
pub(crate) fn run(inner: &Inner, stop: &OwnedFd) {
    let mut buffer = EventBuffer::new();
    let mut queue: Vec<Fault> = Vec::with_capacity(256);
    let mut later: Vec<Fault> = Vec::with_capacity(256);
    let mut room = Vec::new();
    let host = inner.engine.host();
    let start = Start(Instant::now());
    let mut descriptors = Descriptors::new(inner, stop);
    let mut stopping = None;
    let mut clearing = Clearing::default();
    // Whoever started this thread may fork from here on: it can read the fork's event.
    inner.engine.host().events.advance();
    loop {
        // After whatever has cleared the descriptor that is written to when one begins, and before the next wait for that.
        if inner.forks.are_under_way() {
            park(inner, start, &mut room, &mut queue);
        }
        let timeout = if queue.is_empty() { clearing.within(inner) } else { Some(RETRY_AFTER) };
        let Woken { anything, asked_to_stop, delegated } = descriptors.wait(timeout.as_ref());
        if anything {
            // With the gate held alone, for which migrations have to wait.
            for (uffd, path) in inner.engine.host().program_contexts() {
                read(inner, uffd, path, start, &mut buffer, &mut queue);
            }
        }
        if delegated {
            Delegated::serve(inner);
        }
        inner.engine.end_faults(&mut |Ended { addr, token, resolution }| {
            let fault = Fault { addr, write_protected: false, path: FaultPath::Thread, read_at: token, yields: 0 };
            later.extend(resolve(inner, start, fault, resolution));
        });
        for fault in queue.drain(..) {
            later.extend(serve(inner, start, fault));
        }
        std::mem::swap(&mut queue, &mut later);
        if queue.is_empty() {
            clearing.go_on(inner);
        }
        if queue.iter().any(|fault| fault.yields < 32) {
            queue.iter_mut().for_each(|fault| fault.yields += 1);
            hetmem_sys::thread::yield_now();
        }
        // What was announced before this thread ends is read, where the program does not go on announcing.
        if asked_to_stop
            && stopping.get_or_insert_with(Instant::now).elapsed() < MEMORY_PATIENCE
            && host.program_contexts().any(|(_, path)| host.contexts.is_changing(path))
        {
            hetmem_sys::thread::yield_now();
            continue;
        }
        if asked_to_stop && queue.is_empty() && inner.engine.faults_under_way() == 0 {
            inner.forks.end();
            return;
        }
    }
}

/// What has woken the thread.
struct Woken {
    /// Not only that its time was over.
    anything: bool,
    asked_to_stop: bool,
    delegated: bool,
}

/// All that the thread waits for.
struct Descriptors<'a>(Vec<PollFd<'a>>);

impl<'a> Descriptors<'a> {
    fn new(inner: &'a Inner, stop: &'a OwnedFd) -> Self {
        let contexts = &inner.engine.host().contexts;
        let mut all = vec![stop.as_fd(), inner.delegated.posted.as_fd(), contexts.thread.as_fd()];
        all.extend(contexts.sigbus.as_ref().map(AsFd::as_fd));
        all.extend(inner.engine.devices().iter().filter_map(|device| device.completion_descriptor()));
        Self(all.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect())
    }

    /// Waits for something to read.
    fn wait(&mut self, timeout: Option<&Timespec>) -> Woken {
        let woken = poll(&mut self.0, timeout);
        // After an error it doesn't say what is readable.
        let is_readable = |fd: &PollFd<'_>| woken.is_ok() && fd.revents().contains(PollFlags::IN);
        Woken { anything: woken != Ok(0), asked_to_stop: is_readable(&self.0[0]), delegated: is_readable(&self.0[1]) }
    }
}

/// Reads what is there, applies events, and queues faults.
fn read(
    inner: &Inner,
    uffd: &Userfaultfd,
    path: FaultPath,
    start: Start,
    buffer: &mut EventBuffer,
    queue: &mut Vec<Fault>,
) {
    let events = inner.engine.events();
    if !matches!(uffd.read_events(buffer), Ok(1..)) {
        return;
    }
    let changed = apply(inner, &events, path, start, buffer, queue);
    drop(events);
    if changed {
        inner.engine.host().events.advance();
    }
}

/// Applies what was read, and queues faults. Says whether the program has changed anything.
fn apply(
    inner: &Inner,
    events: &Events<'_>,
    path: FaultPath,
    start: Start,
    buffer: &mut EventBuffer,
    queue: &mut Vec<Fault>,
) -> bool {
    let engine = &inner.engine;
    let read_at = start.now();
    let mut changed = false;
    for event in buffer.take() {
        match event {
            Event::PageFault { addr, flags, thread: _ } => {
                let write_protected = flags.contains(FaultFlags::WP);
                queue.push(Fault { addr, write_protected, path, read_at, yields: 0 });
                continue;
            }
            Event::Remove { range } if range == inner.guards.bell() => inner.serve_guards(events),
            Event::Remove { range } => engine.removed(events, range),
            // The end of the address that a lifted block came from: nothing was there, and somebody's mapping may be by now.
            Event::Unmap { range } if engine.host().traps.was_spare(range) => {}
            Event::Unmap { range } => {
                engine.unmapped(events, range);
                engine.host().traps.unmapped(range);
            }
            Event::Remap { from, to, len } => {
                if let Some(from) = len.whole_pages().and_then(|pages| PageRange::new(from, pages)) {
                    engine.remapped(events, from, to);
                    match PageRange::new(to, from.pages()).filter(|to| engine.is_own_change(*to)) {
                        Some(lifted) => engine.host().traps.lifted(from, lifted, path),
                        None => engine.host().traps.remapped(from, to),
                    }
                }
            }
            Event::Fork { fd } => {
                engine.forked(events);
                children::fill(inner, events, Userfaultfd::from_fork(fd));
            }
        }
        changed = true;
    }
    changed
}

/// While forks are under way: reads what is there, and does no more ([`crate::forks`]). Then applies it all. The gate is held alone from before the
/// first read to the end, so that nothing is put in or taken out between an event and its effect.
fn park(inner: &Inner, start: Start, room: &mut Vec<(EventBuffer, FaultPath)>, queue: &mut Vec<Fault>) {
    room.resize_with(forks::ROOM, || (EventBuffer::new(), FaultPath::Thread));
    let contexts = &inner.engine.host().contexts;
    let second = contexts.sigbus.as_ref().unwrap_or(&contexts.thread);
    let events = inner.engine.events();
    inner.forks.park();
    let mut filled = 0;
    loop {
        // Cleared before the look, so that no end goes unnoticed.
        let _ = rustix::io::read(&inner.delegated.posted, &mut [0; 8]);
        if inner.forks.unpark() {
            break;
        }
        for (uffd, path) in inner.engine.host().program_contexts() {
            while let Some((buffer, of)) = room.get_mut(filled) {
                if !matches!(uffd.read_events(buffer), Ok(1..)) {
                    break;
                }
                *of = path;
                filled += 1;
            }
        }
        let mut fds = [
            PollFd::new(&inner.delegated.posted, PollFlags::IN),
            PollFd::new(&contexts.thread, PollFlags::IN),
            PollFd::new(second, PollFlags::IN),
        ];
        let n = if filled < room.len() { 3 } else { 1 };
        let _ = poll(&mut fds[..n], None);
    }
    for (buffer, path) in &mut room[..filled] {
        apply(inner, &events, *path, start, buffer, queue);
    }
    drop(events);
    inner.engine.host().events.advance();
    // Somebody else may have posted meanwhile.
    inner.delegated.wake();
}

/// Serves one fault; hands it back if it must wait.
fn serve(inner: &Inner, start: Start, fault: Fault) -> Option<Fault> {
    let engine = &inner.engine;
    let page = PageRange::page_of(fault.addr);
    if fault.write_protected {
        if engine.host().is_shared(page) {
            engine.copied_on_write(page.start());
        }
        let resolved = engine.host().contexts.program(fault.path).write_protect(page, WriteProtect::Resolve);
        // Any error but this one means that the range is gone, and with it the toucher's wait.
        return (resolved == Err(Errno::AGAIN)).then_some(fault);
    }
    let resolution = match fault.path {
        FaultPath::Thread => engine.begin_fault(fault.addr, fault.read_at),
        FaultPath::Sigbus => engine.fault(fault.addr, FaultPath::Sigbus),
    };
    resolve(inner, start, fault, resolution)
}

/// What is to be done about a fault of which that became; hands it back if it must wait.
fn resolve(inner: &Inner, start: Start, fault: Fault, resolution: FaultResolution) -> Option<Fault> {
    let engine = &inner.engine;
    match resolution {
        FaultResolution::Home(_) => {
            record_latency(engine.counters(), start.since(fault.read_at));
            None
        }
        FaultResolution::Present | FaultResolution::Waiting | FaultResolution::UnderWay => None,
        FaultResolution::EventsPending | FaultResolution::Mirrored | FaultResolution::NoRoom => Some(fault),
        FaultResolution::NoMemory if start.since(fault.read_at) > MEMORY_PATIENCE => {
            engine.host().stop_the_program(fault.addr.page_down(), "the host has no memory for it")
        }
        FaultResolution::NoMemory => Some(fault),
    }
}

pub(crate) fn record_latency(counters: &Counters, took: Duration) {
    counters.fault_latency.record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
}

/// Whether `addr` lies in a block of a device's memory and can't be read: the device is gone, or the memory broken, and the touch would end here
/// again and again.
fn is_gone(engine: &Engine<UserMemory>, addr: VirtAddr) -> bool {
    if !engine.has_overlays() {
        return false;
    }
    // While a block is lifted it is in the books still, and its pages can't be read by a system call.
    let page = PageRange::page_of(addr.page_down());
    let exchanges = engine.await_exchanges(page);
    engine.is_laid(addr) && access::read_checked(addr, &mut [0]).is_err() && engine.await_exchanges(page) == exchanges
}

/// In a forked child, where a page is that its parent has not copied yet: the touch is tried again, but not for ever.
fn await_parent() -> bool {
    const PAUSE: Duration = Duration::from_millis(1);
    static PAUSES: AtomicU32 = AtomicU32::new(0);
    hetmem_sys::thread::backoff_sleep(PAUSE.subsec_nanos());
    // Relaxed: only the number counts.
    PAUSE * PAUSES.fetch_add(1, Relaxed) < MEMORY_PATIENCE
}

/// Serves a SIGBUS at `addr` in the thread that touched it; `false` if the page is not this runtime's business.
pub(crate) fn serve_sigbus(inner: &Inner, addr: VirtAddr) -> bool {
    let engine = &inner.engine;
    let ours = engine.region_at(addr.page_down()).is_some_and(|(_, region)| region.path == FaultPath::Sigbus);
    if !ours {
        return false;
    }
    if !inner.is_of_this_process() {
        return await_parent();
    }
    let start = Instant::now();
    loop {
        match engine.fault_in_signal(addr) {
            FaultResolution::Mirrored => {
                let before = engine.host().events.count();
                inner.delegated.post(addr);
                engine.host().events.wait_after(before);
            }
            FaultResolution::Home(PageCount::ZERO)
            | FaultResolution::EventsPending
            | FaultResolution::Waiting
            // A thread that waits itself has the device wait, too.
            | FaultResolution::UnderWay
            | FaultResolution::NoRoom => engine.host().await_events(),
            FaultResolution::Home(_) => {
                record_latency(engine.counters(), start.elapsed());
                inner.tell_of_resting();
                return true;
            }
            FaultResolution::Present => {
                inner.tell_of_resting();
                return !is_gone(engine, addr);
            }
            FaultResolution::NoMemory if start.elapsed() > MEMORY_PATIENCE => {
                engine.host().stop_the_program(addr.page_down(), "the host has no memory for it")
            }
            FaultResolution::NoMemory => {
                engine.trim_pool();
                engine.host().await_events();
            }
        }
    }
}

#[cfg(test)]
mod tests;
