//! The handler threads: read what the kernel reports of the program's memory and serve it.
//!
//! ```text
//! poll ── gate.events(): read ──┬── fault           → queue
//!                               └── unmap, remap, … → slots, at once, before the gate is let go
//!         queue: engine.begin_fault() ─┬─ page in place: the toucher is awake
//!                                      ├─ the device copies: others are served meanwhile, and engine.end_faults() does the rest
//!                                      └─ events pending, no memory: back into the queue
//! ```
//!
//! There may be several ([`crew`]), each with a queue of its own, which serve at the same time. They read one after the other, as each holds the gate
//! alone from before it reads until it has applied what it read: so whatever one of them serves, no event is read that is not in the slots. The first of
//! them does besides what only one is needed for: it parks for forks, asks devices that complete late, clears what rests.
//!
//! They touch no memory of the program but through the kernel, and take no lock that anybody holds while doing so.

pub(crate) mod crew;
pub(crate) mod late;

use std::time::{Duration, Instant};

use hetmem_core::engine::Engine;
use hetmem_core::fault::{Ended, FaultResolution};
use hetmem_core::frames::Keep;
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
use crew::Load;

/// How long a fault may wait for memory before the program is stopped.
pub(crate) const MEMORY_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait before a fault that could not be served is tried again.
const RETRY_AFTER: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000 };

/// How long to wait, in nanoseconds, before an event is read again that could not be.
const READ_AGAIN_AFTER: u32 = 1_000_000;

#[derive(Clone, Copy)]
struct Fault {
    addr: VirtAddr,
    write_protected: bool,
    path: FaultPath,
    /// Nanoseconds from [`Start`] until the fault was read.
    read_at: u64,
    yields: u8,
}

/// When the threads began that serve, or are about to.
#[derive(Clone, Copy)]
pub(crate) struct Start(Instant);

impl Start {
    pub(crate) fn begin() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn since(self, read_at: u64) -> Duration {
        Duration::from_nanos(self.now().saturating_sub(read_at))
    }
}

/// Serves until `stop` is readable: the first of the threads that do. The others are told to end when it returns.
pub(crate) fn run(inner: &Inner, stop: &OwnedFd) {
    let mut server = Server::new(inner);
    let mut room = Vec::new();
    let host = inner.engine.host();
    let mut descriptors = Descriptors::new(inner, stop);
    let mut stopping = None;
    let (mut clearing, mut load) = (Clearing::default(), Load::default());
    inner.crew.take_place(0);
    // Whoever started this thread may fork from here on: it can read the fork's event.
    inner.engine.host().events.advance();
    loop {
        // After whatever has cleared the descriptor that is written to when one begins, and before the next wait for that.
        if inner.forks.are_under_way() {
            park(inner, &mut room, &mut server.queue);
        }
        let timeout = server.retry_after().or_else(|| clearing.within(inner));
        let Woken { anything, asked_to_stop, delegated } = descriptors.wait(timeout.as_ref());
        if anything {
            // With the gate held alone, for which migrations have to wait.
            for (uffd, path) in host.program_contexts() {
                server.read(uffd, path);
            }
        }
        if delegated {
            // It may take long.
            inner.crew.set_alone(false);
            Delegated::serve(inner);
        }
        server.end_faults();
        let (touches, began) = (server.queue.len(), inner.started.now());
        server.serve_queue();
        if touches > 0 {
            inner.crew.set_alone(load.after(touches, inner.started.since(began)));
        }
        if server.queue.is_empty() {
            clearing.go_on(inner);
        }
        // What was announced before this thread ends is read, where the program does not go on announcing.
        if asked_to_stop
            && stopping.get_or_insert_with(Instant::now).elapsed() < MEMORY_PATIENCE
            && host.program_contexts().any(|(_, path)| host.contexts.is_changing(path))
        {
            hetmem_sys::thread::yield_now();
            continue;
        }
        if asked_to_stop && server.queue.is_empty() && inner.engine.faults_under_way() == 0 {
            inner.forks.end();
            inner.crew.end();
            return;
        }
    }
}

/// Serves beside the thread that [runs](run), as number `number` of the threads that serve, until that one has ended.
pub(crate) fn help(inner: &Inner, number: usize) {
    let mut server = Server::new(inner);
    let (crew, uffd) = (&inner.crew, &inner.engine.host().contexts.thread);
    let poll_of = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
    let mut beside = [&crew.ended, &crew.together].map(|fd| poll_of(fd.as_fd()));
    let mut serving = [crew.ended.as_fd(), uffd.as_fd()].map(poll_of);
    crew.take_place(number);
    loop {
        let is_beside = crew.is_alone();
        let descriptors = if is_beside { &mut beside } else { &mut serving };
        let woken = poll(descriptors, server.retry_after().as_ref());
        if woken != Ok(0) && !is_beside {
            server.read(uffd, FaultPath::Thread);
        }
        server.serve_queue();
        // The first of the threads clears what pages leave, and may be asleep.
        inner.tell_of_resting();
        if woken.is_ok() && descriptors[0].revents().contains(PollFlags::IN) && server.queue.is_empty() {
            return;
        }
    }
}

/// One of the threads that serve.
struct Server<'a> {
    inner: &'a Inner,
    buffer: EventBuffer,
    /// Faults that it has read, and has not served yet.
    queue: Vec<Fault>,
    /// Those of them that must wait.
    later: Vec<Fault>,
    /// Since when an event can't be read.
    unreadable: Option<Instant>,
}

impl<'a> Server<'a> {
    fn new(inner: &'a Inner) -> Self {
        let (queue, later) = (Vec::with_capacity(256), Vec::with_capacity(256));
        Self { inner, buffer: EventBuffer::new(), queue, later, unreadable: None }
    }

    /// Reads what is there, applies events, and queues faults.
    fn read(&mut self, uffd: &Userfaultfd, path: FaultPath) {
        let inner = self.inner;
        let contexts = &inner.engine.host().contexts;
        let events = inner.engine.events();
        match contexts.read_events(uffd, &mut self.buffer) {
            Ok(read) => {
                self.unreadable = None;
                if read == 0 {
                    return;
                }
            }
            Err(errno) => {
                drop(events);
                return wait_for_descriptors(inner, &mut self.unreadable, errno);
            }
        }
        let changed = apply(inner, &events, path, &mut self.buffer, &mut self.queue);
        contexts.keep_reserve();
        drop(events);
        if changed {
            inner.engine.host().events.advance();
        }
    }

    /// How long it may wait for something to read; `None` if there is nothing that it looks at again by itself.
    fn retry_after(&self) -> Option<Timespec> {
        (self.awaits_unmappings() || !self.queue.is_empty()).then_some(RETRY_AFTER)
    }

    /// Whether moves are noted whose unmappings may still come. Those are forgotten of which none will.
    fn awaits_unmappings(&self) -> bool {
        if self.inner.moves.is_empty() {
            return false;
        }
        // So that nobody has read an unmapping and not looked for its move.
        let _events = self.inner.engine.events();
        let host = self.inner.engine.host();
        let changing = host.program_contexts().any(|(_, path)| host.contexts.is_changing(path));
        if !changing {
            self.inner.moves.settle();
        }
        changing
    }

    /// Ends those faults under way whose device has done, whoever began them.
    fn end_faults(&mut self) {
        let (inner, later) = (self.inner, &mut self.later);
        inner.engine.end_faults(&mut |Ended { addr, token, resolution }| {
            let fault = Fault { addr, write_protected: false, path: FaultPath::Thread, read_at: token, yields: 0 };
            later.extend(resolve(inner, fault, resolution));
        });
    }

    /// Serves each fault that waits, once; lets others run if one must wait.
    fn serve_queue(&mut self) {
        for fault in self.queue.drain(..) {
            self.later.extend(serve(self.inner, fault));
        }
        std::mem::swap(&mut self.queue, &mut self.later);
        if self.queue.iter().any(|fault| fault.yields < 32) {
            self.queue.iter_mut().for_each(|fault| fault.yields = fault.yields.saturating_add(1));
            hetmem_sys::thread::yield_now();
        }
    }
}

/// An event can't be read, `since` a while: that of a fork, for whose descriptor the process has no room. The forking thread waits, and so do all whose
/// pages can't be brought while there is an event.
fn wait_for_descriptors(inner: &Inner, since: &mut Option<Instant>, errno: Errno) {
    if since.get_or_insert_with(Instant::now).elapsed() > MEMORY_PATIENCE {
        let host = inner.engine.host();
        host.note_refusal(errno);
        host.stop_the_program(
            VirtAddr::default(),
            "there is no descriptor by which a forked child would get its pages",
        );
    }
    hetmem_sys::thread::backoff_sleep(READ_AGAIN_AFTER);
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

/// Applies what was read, and queues faults. Says whether the program has changed anything.
fn apply(
    inner: &Inner,
    events: &Events<'_>,
    path: FaultPath,
    buffer: &mut EventBuffer,
    queue: &mut Vec<Fault>,
) -> bool {
    let engine = &inner.engine;
    let read_at = inner.started.now();
    let mut changed = false;
    for event in buffer.take() {
        match event {
            Event::PageFault { addr, flags, thread: _ } => {
                let write_protected = flags.contains(FaultFlags::WP);
                queue.push(Fault { addr, write_protected, path, read_at, yields: 0 });
                continue;
            }
            Event::Remove { range } if range == inner.guards.bell() => inner.serve_guards(events),
            Event::Remove { range } => {
                engine.removed(events, range);
                inner.recorder.iter().for_each(|recorder| recorder.gone(range));
            }
            // The end of the address that a lifted block came from: nothing was there, and somebody's mapping may be by now.
            Event::Unmap { range } if engine.host().traps.was_spare(range) => {}
            Event::Unmap { range } => {
                for part in inner.moves.unmapped(range) {
                    engine.unmapped(events, part);
                    engine.host().traps.unmapped(part);
                    inner.recorder.iter().for_each(|recorder| recorder.gone(part));
                }
            }
            Event::Remap { from, to, len } => {
                if let Some(from) = len.whole_pages().and_then(|pages| PageRange::new(from, pages)) {
                    engine.remapped(events, from, to);
                    match PageRange::new(to, from.pages()).filter(|to| engine.is_own_change(*to)) {
                        Some(part) if engine.is_of_a_file(part.start()) => engine.host().traps.stood_in(from),
                        Some(lifted) => engine.host().traps.lifted(from, lifted, path),
                        None => {
                            inner.recorder.iter().for_each(|recorder| recorder.renamed(from, to));
                            engine.host().traps.remapped(from, to);
                            if let Some(to) = PageRange::new(to, from.pages()) {
                                inner.moves.moved(from, to);
                            }
                        }
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
fn park(inner: &Inner, room: &mut Vec<(EventBuffer, FaultPath)>, queue: &mut Vec<Fault>) {
    room.resize_with(forks::ROOM, || (EventBuffer::new(), FaultPath::Thread));
    let contexts = &inner.engine.host().contexts;
    let second = contexts.sigbus.as_ref().unwrap_or(&contexts.thread);
    let events = inner.engine.events();
    inner.forks.park();
    let (mut filled, mut unreadable) = (0, None);
    loop {
        // Cleared before the look, so that no end goes unnoticed.
        let _ = rustix::io::read(&inner.delegated.posted, &mut [0; 8]);
        if inner.forks.unpark() {
            break;
        }
        for (uffd, path) in inner.engine.host().program_contexts() {
            while let Some((buffer, of)) = room.get_mut(filled) {
                match contexts.read_events(uffd, buffer) {
                    Ok(1..) => unreadable = None,
                    Ok(0) => break,
                    Err(errno) => {
                        wait_for_descriptors(inner, &mut unreadable, errno);
                        break;
                    }
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
        apply(inner, &events, *path, buffer, queue);
    }
    contexts.keep_reserve();
    drop(events);
    inner.engine.host().events.advance();
    // Somebody else may have posted meanwhile.
    inner.delegated.wake();
}

/// Serves one fault; hands it back if it must wait.
fn serve(inner: &Inner, fault: Fault) -> Option<Fault> {
    let engine = &inner.engine;
    let page = PageRange::page_of(fault.addr);
    if inner.probe.places().contains(page.start()) {
        let uffd = engine.host().contexts.program(fault.path);
        let since = || inner.started.since(fault.read_at);
        return match inner.probe.serve(uffd, fault.addr, since) {
            true => None,
            false if since() > MEMORY_PATIENCE => {
                engine.host().stop_the_program(page.start(), "the host has no memory for it")
            }
            false => Some(fault),
        };
    }
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
    resolve(inner, fault, resolution)
}

/// What is to be done about a fault of which that became; hands it back if it must wait.
fn resolve(inner: &Inner, fault: Fault, resolution: FaultResolution) -> Option<Fault> {
    let engine = &inner.engine;
    match resolution {
        FaultResolution::Home(pages) | FaultResolution::Back(pages) => {
            let now = inner.started.now();
            let served = Duration::from_nanos(now.saturating_sub(fault.read_at));
            record_latency(engine.counters(), served + inner.probe.beside());
            inner.probe.ring(now);
            match &inner.recorder {
                Some(recorder) if matches!(resolution, FaultResolution::Back(_)) => {
                    recorder.sample(fault.addr.page_down(), pages, fault.read_at);
                }
                Some(recorder) => recorder.fault(fault.addr.page_down(), pages, fault.read_at),
                None => {}
            }
            None
        }
        FaultResolution::Present | FaultResolution::Waiting | FaultResolution::UnderWay => None,
        FaultResolution::EventsPending | FaultResolution::Mirrored | FaultResolution::NoRoom => Some(fault),
        FaultResolution::NoMemory if inner.started.since(fault.read_at) > MEMORY_PATIENCE => {
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
            | FaultResolution::Back(PageCount::ZERO)
            | FaultResolution::EventsPending
            | FaultResolution::Waiting
            // A thread that waits itself has the device wait, too.
            | FaultResolution::UnderWay
            | FaultResolution::NoRoom => engine.host().await_events(),
            FaultResolution::Home(_) | FaultResolution::Back(_) => {
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
                engine.trim_pool(Keep::Limit);
                engine.host().await_events();
            }
        }
    }
}

#[cfg(test)]
mod tests;
