//! The agent's life: it starts in the program's first moment and in a forked child, leaves when the program needs to be alone, and may come back.
//!
//! ```text
//! program's thread            handler thread                worker
//! ----------------            --------------                ------
//! start() ──────────────────► own descriptors, directories
//! waits                       opens userfaultfd, ledger, …
//!                             makes devices and pool
//!                             gives up its privileges
//!                             starts ─────────────────────► (shares what the handler has)
//!          ◄───────────────── ready, confined               confined
//! main() runs                 serves faults                 adopts, carries out the policy
//!
//! leave(), waits ─────────────────────────────────────────► brings everything home
//!                             reads its last events ◄────── stops it, ends
//!                             gives memory back, ends
//! goes on alone
//! ```
//!
//! The threads are none of the C library's ([`Stack`]): it does not count them when the program's last thread ends, and does not ask them to
//! change their ids. They open all that they will need at the start, and can do next to nothing else from then on ([`confine`]).
#![expect(unsafe_code, reason = "threads on stacks of their own, and what they share with the program's")]

use std::cell::Cell;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use hetmem_core::engine::CountersAt;
use hetmem_core::sync::{Condvar, Mutex, lock};
use hetmem_core::units::{PageCount, PageRange};
use hetmem_devices::spec::Backend;
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::wiped_on_fork;
use hetmem_sys::maps::MapsFile;
use hetmem_sys::process::{MemoryUse, SignalMask};
use hetmem_sys::thread::{
    Stack, backoff_sleep, confine, control_block, futex_wait, futex_wake, give_up_privileges, is_dumpable,
    unshare_directories, unshare_files, unused_id,
};

use super::config::{Config, Policy};
use super::ends;
use super::ledger::Ledger;
use super::removal::thread_is_known;
use super::work::{self, Departure, Mailbox, Stacks};
use crate::host::Contexts;
use crate::inner::Inner;
use crate::runtime::{DEFAULT_STOCK, make_devices};
use crate::service;

/// Pages of each of the agent's stacks.
const STACK: PageCount = PageCount::new(128);
/// How long to sleep, in nanoseconds, before it is looked again whether the program's threads are done with an agent that leaves.
const LOOK_AGAIN_AFTER: u32 = 50_000;

/// See the module.
pub(super) struct Agent {
    pub(super) inner: Inner,
    pub(super) mailbox: Mailbox,
    pub(super) stacks: Stacks,
    pub(super) policy: Policy,
    pub(super) memory: MemoryUse,
    /// The user and group that its threads become.
    id: u32,
    /// Whether the process was dumpable before that.
    dumpable: bool,
    /// 1 once the worker has given up its privileges. Who asks not to be dumped waits until then.
    renounced: AtomicU32,
    /// How the process is to end, whose program has no thread left; `i32::MAX` while it has.
    alone: AtomicI32,
    /// Readable when the handler is to end. A descriptor of the agent's table, as all of an agent's are.
    stop: OwnedFd,
}

/// The stacks of the handler and of the worker: made once, and used again by whatever agent comes next, also in a forked child.
static THREADS: [AtomicPtr<Stack>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];
/// The two words below; null before the first agent. In a forked child, however it was made, they are zero.
static WORDS: AtomicPtr<[AtomicU64; 4]> = AtomicPtr::new(ptr::null_mut());
/// The address of the agent of this process; 0 where there is none.
const AGENT: usize = 0;
/// How many threads of the program use the agent at this moment, and [`CLOSED`].
const USERS: usize = 1;
/// Nobody uses the agent, nor does anybody come to use it: it ends, if it can.
const CLOSED: u64 = 1 << 63;
/// 1 while the agent leaves or comes, by one thread: until everything is home its word is not to be had, nor is there none, and where it comes back what
/// begins meanwhile waits, to be known to it.
const CHANGING: usize = 2;
/// How many threads fork in a process without an agent: none comes meanwhile.
const FORKS: usize = 3;
/// The ledger, which outlives agents.
static LEDGER: AtomicPtr<Ledger> = AtomicPtr::new(ptr::null_mut());
/// The process that the agent is in.
static PID: AtomicU32 = AtomicU32::new(0);

fn word(which: usize) -> Option<&'static AtomicU64> {
    // SAFETY: null, or words that are never unmapped. Acquire pairs with the Release in `start`.
    unsafe { WORDS.load(Ordering::Acquire).as_ref() }.map(|words| &words[which])
}

/// The agent, which does not end while this lives. All signals are blocked: a handler that asks for the agent, or never returns, would find its locks taken
/// by the thread that it has interrupted.
pub(super) struct Use {
    agent: &'static Agent,
    signals: SignalMask,
}

impl Use {
    /// The agent of this process, if it has one.
    pub(super) fn begin() -> Option<Self> {
        let (agent, users) = (word(AGENT)?, word(USERS)?);
        while is_here() {
            let signals = SignalMask::block_all();
            DEPTH.set(DEPTH.get() + 1);
            // SeqCst, here and in `leave`: either this thread sees that the agent is closed, or the agent sees this thread.
            if users.fetch_add(1, Ordering::SeqCst) & CLOSED == 0 {
                let at = usize::try_from(agent.load(Ordering::SeqCst)).unwrap_or(0);
                // SAFETY: null, or an agent that is not closed, and so not freed, while it has users.
                if let Some(agent) = unsafe { ptr::with_exposed_provenance::<Agent>(at).as_ref() } {
                    return Some(Self { agent, signals });
                }
            }
            users.fetch_sub(1, Ordering::SeqCst);
            DEPTH.set(DEPTH.get() - 1);
            signals.restore();
            backoff_sleep(LOOK_AGAIN_AFTER);
        }
        None
    }
}

/// Whether this process has an agent. Holds nothing.
pub(super) fn is_here() -> bool {
    let (Some(agent), Some(changing)) = (word(AGENT), word(CHANGING)) else { return false };
    loop {
        let (is_here, is_changing) = (agent.load(Ordering::SeqCst) != 0, changing.load(Ordering::SeqCst) != 0);
        // An agent that is about to leave waits for the uses that this thread is in the middle of.
        if !is_changing || (is_here && DEPTH.get() > 0) {
            return is_here;
        }
        // What is away is not the kernel's yet: who forks now, or asks what is there, waits until it is.
        backoff_sleep(LOOK_AGAIN_AFTER);
    }
}

thread_local! {
    /// The agent that this thread holds from before a fork until after it, and how often: a handler of a signal may fork in the middle.
    static HELD: Cell<(Option<&'static Agent>, u32)> = const { Cell::new((None, 0)) };
    /// How often this thread forks without an agent.
    static ALONE: Cell<u32> = const { Cell::new(0) };
    /// How many uses this thread is in the middle of.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

impl Use {
    /// Goes on after this returns, until [`Use::held`], with signals as they were: no lock is held over a fork.
    pub(super) fn hold(self) {
        let held = ManuallyDrop::new(self);
        HELD.set((Some(held.agent), HELD.get().1 + 1));
        held.signals.restore();
    }

    /// What this thread holds, if anything.
    pub(super) fn held() -> Option<Self> {
        let (agent, times) = HELD.get();
        let agent = agent.filter(|_| times > 0)?;
        let signals = SignalMask::block_all();
        HELD.set((Some(agent), times - 1));
        Some(Self { agent, signals })
    }
}

/// The agent of this process, which does not end any more: for a handler of a signal that ends the process. Unlike [`Use`] it has no thread-local storage, which the
/// C library may allocate at its first use; the handler has all signals blocked.
pub(super) fn stay() -> Option<&'static Agent> {
    let (agent, users) = (word(AGENT)?, word(USERS)?);
    while is_this_process() && agent.load(Ordering::SeqCst) != 0 {
        // SeqCst, as in `Use::begin`.
        if users.fetch_add(1, Ordering::SeqCst) & CLOSED == 0 {
            let at = usize::try_from(agent.load(Ordering::SeqCst)).unwrap_or(0);
            // SAFETY: null, or an agent that is not closed, and so not freed, while it has users.
            if let Some(agent) = unsafe { ptr::with_exposed_provenance::<Agent>(at).as_ref() } {
                return Some(agent);
            }
        }
        users.fetch_sub(1, Ordering::SeqCst);
        // It is about to leave, with everything home.
        backoff_sleep(LOOK_AGAIN_AFTER);
    }
    None
}

/// Ends what [`stay`] began.
pub(super) fn may_leave() {
    if let Some(users) = word(USERS) {
        users.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether the calling thread is one of the process that the last agent was started in, and not of a child that shares its memory (vfork).
pub fn is_this_process() -> bool {
    PID.load(Ordering::Relaxed) == std::process::id()
}

impl Deref for Use {
    type Target = Agent;
    fn deref(&self) -> &Agent {
        self.agent
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        // In a child that was forked meanwhile there is nothing to count down.
        if let Some(users) = word(USERS) {
            let _ = users.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            DEPTH.set(DEPTH.get().saturating_sub(1));
        }
        self.signals.restore();
    }
}

/// What the handler thread tells the thread that started it.
struct Startup {
    config: &'static Config,
    /// The control block of the thread that waits.
    control: Option<PageRange>,
    result: Mutex<Option<Result<(), String>>>,
    told: Condvar,
}

impl Startup {
    fn tell(&self, result: Result<(), String>) {
        *lock(&self.result) = Some(result);
        self.told.notify_all();
    }
}

/// Before a fork in a process that has no agent: none comes until [`forked_alone`]. `false` if there is one by now.
pub(super) fn fork_alone() -> bool {
    let (Some(agent), Some(changing), Some(forks)) = (word(AGENT), word(CHANGING), word(FORKS)) else { return true };
    // SeqCst, here and in `Changing::start`: either this thread sees that an agent is about to come, or that thread sees this fork.
    forks.fetch_add(1, Ordering::SeqCst);
    if agent.load(Ordering::SeqCst) == 0 && changing.load(Ordering::SeqCst) == 0 {
        ALONE.set(ALONE.get() + 1);
        return true;
    }
    forks.fetch_sub(1, Ordering::SeqCst);
    false
}

/// After it, in the parent.
pub(super) fn forked_alone() {
    if ALONE.get() > 0
        && let Some(forks) = word(FORKS)
    {
        ALONE.set(ALONE.get() - 1);
        forks.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The right to have the agent leave or come, which one thread has at a time.
struct Changing(&'static AtomicU64);

impl Changing {
    /// Waits for it; `None` in a process that never had an agent.
    fn begin() -> Option<Self> {
        let changing = word(CHANGING)?;
        while changing.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            backoff_sleep(LOOK_AGAIN_AFTER);
        }
        Some(Self(changing))
    }

    /// Starts the agent, once no fork is under way.
    fn start(&self, config: &'static Config) -> Result<(), String> {
        while word(FORKS).is_some_and(|forks| forks.load(Ordering::SeqCst) > 0) {
            backoff_sleep(LOOK_AGAIN_AFTER);
        }
        start(config)
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

/// The agent has left; until this is dropped, the program's other threads wait where they ask for it. The calling thread would wait for itself.
pub struct Away(Changing);

impl Away {
    /// It comes back.
    ///
    /// # Errors
    ///
    /// As [`start`].
    pub fn come_back(self, config: &'static Config) -> Result<(), String> {
        self.0.start(config)
    }
}

/// Starts the agent in a process that has none and may have forks under way.
///
/// # Errors
///
/// As [`start`].
pub fn start_again(config: &'static Config) -> Result<(), String> {
    match Changing::begin() {
        Some(changing) => changing.start(config),
        None => start(config),
    }
}

/// Starts the agent as `config` says, in a process that has none.
///
/// # Errors
///
/// One line that says what is missing and what would fix it; the program is unmanaged then.
pub fn start(config: &'static Config) -> Result<(), String> {
    if config.devices.iter().any(|spec| matches!(spec.backend, Backend::Node(_))) {
        // Before the program has threads. Where it is refused, strays are found and counted.
        let _ = hetmem_sys::numa::keep_from_balancing();
    }
    thread_is_known();
    let no_memory = |errno: Errno| format!("the agent's memory can't be set up: {errno}");
    let [handler, worker] = [0, 1].map(stack);
    let (handler, _worker) = (handler.map_err(no_memory)?, worker.map_err(no_memory)?);
    if WORDS.load(Ordering::Relaxed).is_null() {
        let words = wiped_on_fork().map_err(no_memory)?;
        WORDS.store(ptr::from_ref(words).cast_mut(), Ordering::Release);
    }
    let startup = Box::leak(Box::new(Startup {
        config,
        control: control_block(),
        result: Mutex::default(),
        told: Condvar::new(),
    }));
    let arg = ptr::from_mut(startup).cast::<c_void>();
    // SAFETY: `serve` takes a leaked `Startup`, and does what a thread without the C library may do.
    unsafe { handler.start(serve, arg) }.map_err(|errno| format!("the agent's thread can't be started: {errno}"))?;
    // SAFETY: never freed; the handler reads and locks it from here on, as this thread does.
    let startup: &'static Startup = unsafe { &*arg.cast_const().cast::<Startup>() };
    let mut result = lock(&startup.result);
    loop {
        if let Some(result) = result.take() {
            return result;
        }
        result = startup.told.wait(result).expect("no thread panicked while it held this lock");
    }
}

/// The stack of the handler (0) or the worker (1).
fn stack(which: usize) -> Result<&'static Stack, Errno> {
    // SAFETY: null, or a leaked stack. Relaxed: written before the process has any thread that asks.
    if let Some(stack) = unsafe { THREADS[which].load(Ordering::Relaxed).as_ref() } {
        return Ok(stack);
    }
    let stack: &'static Stack = Box::leak(Box::new(Stack::new(STACK)?));
    THREADS[which].store(ptr::from_ref(stack).cast_mut(), Ordering::Relaxed);
    Ok(stack)
}

/// The handler thread.
extern "C" fn serve(arg: *mut c_void) {
    // SAFETY: `start` passes a leaked `Startup`.
    let startup = unsafe { &*arg.cast_const().cast::<Startup>() };
    let agent = match prepare(startup) {
        Ok(agent) => agent,
        Err(message) => return startup.tell(Err(message)),
    };
    startup.tell(Ok(()));
    service::run(&agent.inner, &agent.stop);
    if let Ok(worker) = stack(1) {
        worker.wait_ended();
    }
    let alone = agent.alone.load(Ordering::Acquire);
    if alone != i32::MAX {
        hetmem_sys::process::end_last_thread(alone);
    }
    // The thread that had it leave may not have its answer yet.
    while word(USERS).is_some_and(|users| users.load(Ordering::SeqCst) & CLOSED != 0) {
        backoff_sleep(LOOK_AGAIN_AFTER);
    }
    *lock(&REMOVALS) = agent.inner.engine.space.removals();
    // SAFETY: leaked by `prepare`; the worker has ended, and so have all uses, by `leave`.
    drop(unsafe { Box::from_raw(ptr::from_ref(agent).cast_mut()) });
}

fn prepare(startup: &Startup) -> Result<&'static Agent, String> {
    let config = startup.config;
    // SAFETY: this thread has used no descriptor yet, and none is handed to it.
    unsafe { unshare_files(None) }.map_err(|errno| format!("the agent can't have descriptors of its own: {errno}"))?;
    unshare_directories().map_err(|errno| format!("the agent can't have directories of its own: {errno}"))?;
    PID.store(std::process::id(), Ordering::Relaxed);
    let counters = match ledger(config) {
        Some(ledger) => CountersAt::Shared(ledger.claim(std::process::id())),
        // The supervisor has ended, or the program has changed its user: it is managed, and nobody counts.
        None => CountersAt::Own(Box::default()),
    };
    let no_proc = |errno: Errno| format!("the agent can't read /proc: {errno}");
    let maps = MapsFile::open().map_err(no_proc)?;
    let contexts = Contexts::open(false, maps).map_err(|error| whole(&error))?;
    let devices = make_devices(&config.devices).map_err(|error| whole(&error))?;
    let no_memory = |errno: Errno| format!("the agent's memory can't be set up: {errno}");
    let inner = Inner::new(contexts, devices, DEFAULT_STOCK, counters, last_word).map_err(no_memory)?;
    // In a forked child a thread that is not here may have it.
    if let Ok(heritage) = HERITAGE.try_lock() {
        heritage.iter().for_each(|range| inner.engine.space.exclude_for_good(*range));
    }
    if let Ok(removals) = REMOVALS.try_lock() {
        removals.iter().for_each(|range| inner.engine.space.add_removal(*range));
    }
    // This thread began without hetmem, or before an agent left.
    startup.control.iter().for_each(|block| inner.engine.space.exclude_for_good(*block));
    let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
        .map_err(|errno| format!("the agent has no descriptor to stop by: {errno}"))?;
    let memory = MemoryUse::open().map_err(no_proc)?;
    inner.engine.host.tasks.enclose_caller();
    let (mailbox, stacks) = (Mailbox::default(), Stacks::default());
    let agent = Agent {
        inner,
        mailbox,
        stacks,
        policy: config.policy,
        memory,
        id: unused_id(),
        dumpable: is_dumpable(),
        renounced: AtomicU32::new(0),
        alone: AtomicI32::new(i32::MAX),
        stop,
    };
    let agent: &'static Agent = Box::leak(Box::new(agent));
    let worker = stack(1).map_err(no_memory)?;
    let arg = ptr::from_ref(agent).cast_mut().cast();
    // SAFETY: `labour` takes a leaked agent, which the handler does not free before the worker has ended.
    unsafe { worker.start(labour, arg) }
        .map_err(|errno| format!("the agent's second thread can't be started: {errno}"))?;
    give_up_privileges(agent.id, agent.dumpable);
    while agent.renounced.load(Ordering::Acquire) == 0 {
        // Woken or not, it is looked at again.
        let _ = futex_wait(&agent.renounced, 0, None);
    }
    confine_thread();
    if let Some(word) = word(AGENT) {
        word.store(arg.expose_provenance() as u64, Ordering::Release);
    }
    Ok(agent)
}

/// An error with all that is behind it.
fn whole(error: &dyn std::error::Error) -> String {
    let behind = std::iter::successors(error.source(), |error| error.source());
    behind.fold(error.to_string(), |text, error| format!("{text}: {error}"))
}

/// The ledger, opened once: a process that can't reach its path any more still has it, and so have its children.
fn ledger(config: &Config) -> Option<&'static Ledger> {
    // SAFETY: null or a leaked ledger. Acquire pairs with the Release below.
    if let Some(ledger) = unsafe { LEDGER.load(Ordering::Acquire).as_ref() } {
        return Some(ledger);
    }
    let ledger: &'static Ledger = Box::leak(Box::new(Ledger::open(&config.ledger).ok()?));
    LEDGER.store(ptr::from_ref(ledger).cast_mut(), Ordering::Release);
    Some(ledger)
}

/// All is open: what else the thread may do it gives up.
fn confine_thread() {
    // A kernel without filters for system calls has none for the program's threads either.
    let _ = confine();
}

/// The worker.
extern "C" fn labour(arg: *mut c_void) {
    // SAFETY: `prepare` passes a leaked agent.
    let agent = unsafe { &*arg.cast_const().cast::<Agent>() };
    give_up_privileges(agent.id, agent.dumpable);
    agent.renounced.store(1, Ordering::Release);
    // The only error is a bad address.
    let _ = futex_wake(&agent.renounced, 1);
    confine_thread();
    if let Departure::Alone(first) = work::run(agent) {
        // Before the handler is stopped, which looks at it.
        agent.alone.store(ends::status(first), Ordering::Release);
    }
    // An eventfd takes eight bytes at a time and is never full of ones.
    let _ = rustix::io::write(&agent.stop, &1u64.to_ne_bytes());
}

/// Ends the agent: everything is home, nothing registered, its threads have ended and its memory is given back. `None` if there is none, or if
/// pages can't come home; then it stays. The caller has blocked all signals.
#[must_use]
pub fn leave() -> Option<Away> {
    // A child that shares the memory (vfork, or worse) is a process of its own, and has no agent; and who is in the middle of a fork, of which a handler of a
    // signal asks this, would wait for himself.
    if !is_this_process() || DEPTH.get() > 0 || HELD.get().1 > 0 {
        return None;
    }
    let changing = Changing::begin()?;
    leave_alone(word(AGENT)?, word(USERS)?).then_some(Away(changing))
}

fn leave_alone(agent: &AtomicU64, users: &AtomicU64) -> bool {
    let at = usize::try_from(agent.load(Ordering::SeqCst)).unwrap_or(0);
    if at == 0 {
        return false;
    }
    // Whoever began before is served by the worker, which goes on until it is asked to end.
    while users.compare_exchange(0, CLOSED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        backoff_sleep(LOOK_AGAIN_AFTER);
    }
    // SAFETY: an agent, which is not freed while it is closed.
    let leaving = unsafe { &*ptr::with_exposed_provenance::<Agent>(at) };
    *lock(&HERITAGE) = leaving.inner.engine.space.exclusions();
    let granted = leaving.mailbox.leave();
    if granted {
        agent.store(0, Ordering::SeqCst);
    }
    users.fetch_and(!CLOSED, Ordering::SeqCst);
    if granted && let Ok(handler) = stack(0) {
        handler.wait_ended();
    }
    granted
}

/// What the last agent of this process, or of the process that this one was forked from, kept in place: the next one does so for good.
static HERITAGE: Mutex<Vec<PageRange>> = Mutex::new(Vec::new());
/// Removals that were announced to the last agent of this process and are not known to be over: a thread may be in the middle of one still, and take away what
/// the next agent leaves to it, but not what that has moved elsewhere.
static REMOVALS: Mutex<Vec<PageRange>> = Mutex::new(Vec::new());

/// Leaves `line` to the supervisor of this process, which has no agent: what became of the management of this process, in words that follow its name.
pub fn note(config: &Config, line: &str) {
    if let Some(ledger) = ledger(config) {
        ledger.refuse(std::process::id(), line);
    }
}

/// Whether no agent was ever in this process, before an `execve(2)` perhaps; as far as the ledger can be asked.
#[must_use]
pub fn is_first(config: &Config) -> bool {
    ledger(config).is_some_and(|ledger| ledger.counters_of(std::process::id()).is_none())
}

/// Leaves `line` to the supervisor, which prints it: what became of the management of this process.
pub fn last_word(line: &str) {
    // SAFETY: null or a leaked ledger. Acquire pairs with the Release in `ledger`.
    if let Some(ledger) = unsafe { LEDGER.load(Ordering::Acquire).as_ref() } {
        ledger.refuse(PID.load(Ordering::Relaxed), line);
    }
}

/// In a forked child, before anything of the agent's is used. Says whether its parent had an agent, and knew of the fork.
#[must_use]
pub fn after_fork_in_child() -> bool {
    for stack in &THREADS {
        // SAFETY: null or a leaked stack.
        if let Some(stack) = unsafe { stack.load(Ordering::Relaxed).as_ref() } {
            stack.forget_thread();
        }
    }
    hetmem_sys::mapping::forget_omitted();
    ends::forget_in_child();
    // There is no agent here, so there are no users to count.
    DEPTH.set(0);
    ALONE.set(0);
    let (held, times) = HELD.replace((None, 0));
    let Some(parents) = held.filter(|_| times > 0) else { return false };
    // A thread that does not exist here may have been changing them; then nothing is known, and what the kernel looks at by itself may be away one day.
    if let (Some(kept), Ok(mut heritage)) = (parents.inner.engine.space.try_exclusions(), HERITAGE.try_lock()) {
        *heritage = kept;
    }
    true
}
