//! Signals that end the program with a core dump: what the dump would miss comes home before.
//!
//! Where the kernel would end the program by default, a handler of hetmem's stands: it has everything brought home (`agent::dump`), puts the default
//! back, and sends the signal again, as it was. The kernel delivers it as the handler returns, at the instruction that was interrupted:
//!
//! ```text
//! program's thread           kernel                           agent's worker
//! ----------------           ------                           --------------
//! faults ──────────────────► calls the handler
//! gather(), waits ──────────────────────────────────────────► brings everything home, stands still
//! SIG_DFL, sends again
//! returns ─────────────────► delivers at the fault: dumps, ends
//! ```
//!
//! The program is not told: who asks what is done on such a signal hears of the default that it last set ([`translate`]), and where it sets the
//! default the handler is put in its place again ([`cover`]). So does the kernel where a handler of the program's is called once (`SA_RESETHAND`):
//! before such a one comes [`on_once`]. Each is done by single calls of the kernel's that swap, and no lock: `sigaction` may be called anywhere.
//!
//! A handler that is the program's own is none of hetmem's business, nor is a signal that it ignores. Left alone, too, are a process whose calls a
//! filter decides on ([`disarm`]), and the first of a process namespace, which no signal ends by default. The kernel itself puts the default back in
//! a program that is executed.
//!
//! *Limits:* none of this where a thread faults that has the signal blocked, or has no room on its stack for a handler and no alternate one
//! (sigaltstack(2)): the kernel then ends the process at once. Nor after what passes these functions by: a default that is set by an instruction of
//! the program's own, or by abort(3) once a handler has returned to it; nor in the moment that setting a default takes.

use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use agent::config::Config;
use hetmem_interpose::cancel::uncancelled;
use hetmem_interpose::errno::{errno, set_errno};
use hetmem_interpose::next::Next;
use hetmem_sys::errno::Errno;
use hetmem_sys::fatal::{DUMPING, Disposition, dumps_are_piped, end_as_by, is_dumped, send_again};

use super::direct::Arguments;

/// Whether defaults are covered. Relaxed, as all below: what the kernel has is what counts.
static ARMED: AtomicBool = AtomicBool::new(false);
/// Whether dumps go to a program.
static PIPED: AtomicBool = AtomicBool::new(false);
/// The default that the program has set, by signal, where it is covered.
static TOLD: [Told; SIGNALS] = [const { Told::new() }; SIGNALS];

/// The program's handlers that are called once, by signal, where [`on_once`] is in their place.
static ONCE: [AtomicUsize; SIGNALS] = [const { AtomicUsize::new(0) }; SIGNALS];

/// Beyond the last of [`DUMPING`].
const SIGNALS: usize = 32;

struct Told {
    flags: AtomicU64,
    restorer: AtomicUsize,
    mask: AtomicU64,
}

impl Told {
    const fn new() -> Self {
        Self { flags: AtomicU64::new(0), restorer: AtomicUsize::new(0), mask: AtomicU64::new(0) }
    }

    fn set(&self, default: Disposition) {
        self.flags.store(default.flags, Relaxed);
        self.restorer.store(default.restorer, Relaxed);
        self.mask.store(default.mask, Relaxed);
    }

    fn get(&self) -> Disposition {
        let (flags, restorer) = (self.flags.load(Relaxed), self.restorer.load(Relaxed));
        Disposition { handler: libc::SIG_DFL, flags, restorer, mask: self.mask.load(Relaxed) }
    }
}

/// Where in the tables a signal is; there are more in them than any caller names.
fn place(signal: c_int) -> usize {
    usize::try_from(signal).unwrap_or(0) % SIGNALS
}

/// What the program has set where it has set the default on `signal`.
fn told(signal: c_int) -> Disposition {
    TOLD[place(signal)].get()
}

fn is_ours(handler: usize) -> bool {
    handler == (on_fatal as *const c_void).addr()
}

fn is_once(handler: usize) -> bool {
    handler == (on_once as *const c_void).addr()
}

/// What the program knows of what is done on `signal`.
fn seen(signal: c_int, now: Disposition) -> Disposition {
    match now.handler {
        ours if is_ours(ours) => told(signal),
        once if is_once(once) => Disposition { handler: ONCE[place(signal)].load(Relaxed), ..now },
        _ => now,
    }
}

/// Whether a call about `signal` is of concern.
fn is_watched(signal: c_int) -> bool {
    ARMED.load(Relaxed) && DUMPING.contains(&signal)
}

/// Before anything else: what stands in front of functions that a handler of signals may call finds them now.
pub(super) fn find_next() {
    for next in [&NEXT_SIGACTION, &NEXT_SIGNAL, &NEXT_SYSV_SIGNAL, &NEXT_SIGSET] {
        let _looked_up = next.get();
    }
}

/// Once an agent was started: covers the defaults that there are.
pub(super) fn arm(config: &Config) {
    if agent::dump::may_miss_pages(config) && !is_first_of_namespace() {
        PIPED.store(dumps_are_piped(), Relaxed);
        ARMED.store(true, Relaxed);
        DUMPING.into_iter().for_each(cover);
    }
}

/// In a forked child, once it has an agent of its own.
pub(super) fn arm_child() {
    if !ARMED.load(Relaxed) {
        return;
    }
    if is_first_of_namespace() {
        disarm();
    } else {
        // Another thread of the parent's may have been about to end it.
        DUMPING.into_iter().for_each(cover);
    }
}

fn is_first_of_namespace() -> bool {
    std::process::id() == 1
}

/// Puts what the program has set in the handlers' place, for good: the agent leaves for good, or a filter is about to decide on the calls that
/// [`on_fatal`] makes.
pub(super) fn disarm() {
    if !ARMED.load(Relaxed) {
        return;
    }
    // A child that shares this memory (vfork) has dispositions of its own.
    if agent::is_this_process() {
        ARMED.store(false, Relaxed);
    }
    for signal in DUMPING {
        if let Ok(now) = Disposition::of(signal)
            && now != seen(signal, now)
        {
            let _unless_refused = replace(signal, seen(signal, now), |before| before == now);
        }
    }
}

/// Sets `new` on `signal`, unless another thread has set meanwhile what is not `expected`, which is set again: `false` then. The call has an error
/// only where a filter makes one.
fn replace(signal: c_int, new: Disposition, expected: impl Fn(Disposition) -> bool) -> Result<bool, Errno> {
    let before = new.set(signal)?;
    let as_expected = expected(before);
    if !as_expected {
        before.set(signal)?;
    }
    Ok(as_expected)
}

/// Puts the handler where the default is, if it is, and [`on_once`] where it will be.
fn cover(signal: c_int) {
    let Ok(now) = Disposition::of(signal) else { return };
    let (default, once) = (now.is_default(), now.is_once() && !is_once(now.handler));
    // What a child sets that shares this memory (vfork) is for a program that it executes.
    if !(default || once) || !agent::is_this_process() {
        return;
    }
    if default {
        TOLD[place(signal)].set(now);
        let expected = |before: Disposition| before.is_default() || is_ours(before.handler);
        let _unless_refused = replace(signal, Disposition::call(on_fatal), expected);
    } else {
        ONCE[place(signal)].store(now.handler, Relaxed);
        let handler = (on_once as *const c_void).expose_provenance();
        let expected = |before: Disposition| before == now || is_once(before.handler);
        let _unless_refused = replace(signal, Disposition { handler, ..now }, expected);
    }
}

/// In a handler's place that the program wants to be called once: the kernel has put the default back.
unsafe extern "C-unwind" fn on_once(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    if ARMED.load(Relaxed) {
        cover(signal);
    }
    let handler = std::ptr::with_exposed_provenance::<c_void>(ONCE[place(signal)].load(Relaxed));
    type Once = unsafe extern "C-unwind" fn(c_int, *mut libc::siginfo_t, *mut c_void);
    // SAFETY: the program gave this address as a handler of this form, or of one with fewer arguments, which the kernel calls alike.
    let handler = unsafe { std::mem::transmute::<*const c_void, Once>(handler) };
    // SAFETY: as the kernel calls it.
    unsafe { handler(signal, info, context) };
}

/// The handler. In the thread that is to end, with all signals blocked.
unsafe extern "C" fn on_fatal(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    let left = errno();
    let gathered = is_dumped(PIPED.load(Relaxed)) && agent::dump::gather();
    // A handler that another thread has set meanwhile is called, as if the signal had come a little later.
    let ends = replace(signal, told(signal), |before| before.is_default() || is_ours(before.handler));
    // SAFETY: the kernel's description of the signal, which this is the handler of.
    let sent = unsafe { send_again(signal, info) };
    // Where a filter that nobody has told of refuses either, the program would go on, or come here for ever.
    if ends.is_err() || sent.is_err() {
        end_as_by(signal);
    }
    if gathered && ends == Ok(false) {
        agent::dump::disperse();
    }
    set_errno(left);
}

/// After a call that asked, or set, what is done on `signal`, and was successful: `old` is where it has written what was done before, `set` whether
/// it has set anything.
fn attend(signal: c_int, old: *mut libc::sigaction, set: bool) {
    if !old.is_null() {
        // SAFETY: written by the call.
        translate(signal, unsafe { &mut *old });
    }
    if set {
        cover(signal);
    }
}

/// Says of hetmem's handlers what they stand for.
fn translate(signal: c_int, old: &mut libc::sigaction) {
    let now = Disposition { handler: old.sa_sigaction, ..Disposition::default() };
    if is_once(now.handler) {
        old.sa_sigaction = seen(signal, now).handler;
    }
    if !is_ours(now.handler) {
        return;
    }
    let Disposition { handler, flags, restorer, mask } = told(signal);
    old.sa_sigaction = handler;
    old.sa_flags = int(flags);
    // SAFETY: null, or a function of the C library's, as it has given it to the kernel.
    old.sa_restorer = unsafe { std::mem::transmute::<usize, Option<extern "C" fn()>>(restorer) };
    // The kernel's part of the set.
    // SAFETY: inside the set.
    unsafe { (&raw mut old.sa_mask).cast::<u64>().write(mask) };
}

/// The low half, which holds all flags there are.
#[expect(clippy::cast_possible_truncation, reason = "flags are an int")]
const fn int(word: u64) -> c_int {
    word as u32 as c_int
}

/// After `rt_sigaction(2)` by number, which was successful.
pub(super) fn attend_number(args: &Arguments) {
    let [signal, new, old, ..] = *args;
    let signal = c_int::try_from(signal).unwrap_or(0);
    if !is_watched(signal) {
        return;
    }
    let old = std::ptr::with_exposed_provenance_mut::<Disposition>(old);
    if !old.is_null() {
        // SAFETY: the kernel has written to it.
        let now = unsafe { old.read_unaligned() };
        // SAFETY: as above.
        unsafe { old.write_unaligned(seen(signal, now)) };
    }
    if new != 0 {
        cover(signal);
    }
}

static NEXT_SIGACTION: Next = Next::new(c"sigaction");
static NEXT_SIGNAL: Next = Next::new(c"signal");
static NEXT_SYSV_SIGNAL: Next = Next::new(c"sysv_signal");
static NEXT_SIGSET: Next = Next::new(c"sigset");

type SigactionFn = unsafe extern "C-unwind" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;
type SignalFn = unsafe extern "C-unwind" fn(c_int, usize) -> usize;

/// `sigaction(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, SigactionFn>(NEXT_SIGACTION.get()) };
    let set = !new.is_null();
    // SAFETY: as the caller promised.
    let result = unsafe { next(signal, new, old) };
    if result == 0 && is_watched(signal) {
        uncancelled(|| attend(signal, old, set));
    }
    result
}

/// Another name of [`sigaction`].
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn __sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { sigaction(signal, new, old) }
}

/// Sets `handler` on `signal` by `next`, one of the functions that return the handler before.
#[inline(always)]
unsafe fn set_by(next: &Next, signal: c_int, handler: usize) -> usize {
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, SignalFn>(next.get()) };
    // SAFETY: as the caller promised.
    let before = unsafe { next(signal, handler) };
    if before != libc::SIG_ERR && is_watched(signal) {
        uncancelled(|| cover(signal));
    }
    seen(signal, Disposition { handler: before, ..Disposition::default() }).handler
}

/// `signal(2)`, of BSD.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn signal(signal: c_int, handler: usize) -> usize {
    // SAFETY: as the caller promised.
    unsafe { set_by(&NEXT_SIGNAL, signal, handler) }
}

/// Another name of [`signal()`].
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn bsd_signal(signal: c_int, handler: usize) -> usize {
    // SAFETY: as the caller promised.
    unsafe { set_by(&NEXT_SIGNAL, signal, handler) }
}

/// Another name of [`signal()`].
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn ssignal(signal: c_int, handler: usize) -> usize {
    // SAFETY: as the caller promised.
    unsafe { set_by(&NEXT_SIGNAL, signal, handler) }
}

/// `signal(2)`, of System V: a handler is called once.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn sysv_signal(signal: c_int, handler: usize) -> usize {
    // SAFETY: as the caller promised.
    unsafe { set_by(&NEXT_SYSV_SIGNAL, signal, handler) }
}

/// Another name of [`sysv_signal`], by which programs in strict ISO C know `signal`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn __sysv_signal(signal: c_int, handler: usize) -> usize {
    // SAFETY: as the caller promised.
    unsafe { set_by(&NEXT_SYSV_SIGNAL, signal, handler) }
}

/// `sigset(3)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn sigset(signal: c_int, handler: usize) -> usize {
    // SAFETY: as the caller promised.
    unsafe { set_by(&NEXT_SIGSET, signal, handler) }
}
