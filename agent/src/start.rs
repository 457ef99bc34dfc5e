//! The agent's life: it starts in the program's first moment and in a forked child, leaves when the program needs to be alone, and may come back.
//!
//! ```text
//! program's thread            handler thread                worker, helpers
//! ----------------            --------------                ---------------
//! start() ──────────────────► own descriptors, directories
//! waits                       opens userfaultfd, ledger, …
//!                             makes devices and pool
//!                             gives up its privileges
//!                             starts ─────────────────────► (share what the handler has)
//!          ◄───────────────── ready, confined               confined
//! main() runs                 serves faults                 adopts, carries out the policy
//!
//! leave(), waits ─────────────────────────────────────────► brings everything home
//!                             reads its last events ◄────── stops it, ends
//!                             waits for its helpers
//!                             gives memory back, ends
//! goes on alone
//! ```
//!
//! The threads are none of the C library's ([`Stack`]): it does not count them when the program's last thread ends, and does not ask them to
//! change their ids. They open all that they will need at the start, and can do next to nothing else from then on ([`confine`]).
#![expect(unsafe_code, reason = "threads on stacks of their own, and what they share with the program's")]

use std::ffi::c_void;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering};

use hetmem_core::engine::CountersAt;
use hetmem_core::heat::Sources;
use hetmem_core::policy::PolicySpec;
use hetmem_core::sync::{Condvar, Mutex, lock};
use hetmem_core::units::{ByteLen, DeviceId, PageCount, PageRange};
use hetmem_devices::spec::DeviceSpec;
use hetmem_sys::errno::Errno;
use hetmem_sys::process::MemoryUse;
use hetmem_sys::thread::{
    OF_LEASES, Stack, confine, control_block, futex_wait, futex_wake, give_up_privileges, is_dumpable,
    unshare_directories, unshare_files, unused_id,
};

use super::budget::{Good, Membership, Part, Shared};
use super::config::Config;
use super::ends;
use super::files::{self, Desk};
use super::housekeeping::Stacks;
use super::ledger::Seat;
use super::mailbox::Mailbox;
use super::notes::{PID, is_this_process, last_word, ledger, rings};
use super::presence::{self, Changing, Closed};
use super::removal::thread_is_known;
use super::work::{self, Departure};
use hetmem::for_agent::{Advised, MOST_HELPERS, Managed, useful_helpers};

/// Pages of each of the agent's stacks.
const STACK: PageCount = PageCount::new(128);

/// What the agent's threads share, and what the program's threads ask it by.
pub(super) struct Agent {
    pub(super) managed: Managed,
    pub(super) mailbox: Mailbox,
    pub(super) stacks: Stacks,
    pub(super) policy: PolicySpec,
    /// What that goes by.
    pub(super) heat: Sources,
    pub(super) memory: MemoryUse,
    /// What it shares with the other processes of the run; `None` if it shares nothing.
    pub(super) run: Option<Part>,
    /// The process that it was forked from, with which it shares pages.
    pub(super) parent: Option<Membership>,
    /// What the supervisor wants of it; `None` where there is no statistics memory, or no room in it.
    pub(super) seat: Option<Seat<'static>>,
    /// The user and group that its threads become.
    id: u32,
    /// Whether the process was dumpable before that.
    dumpable: bool,
    /// How many of the threads that the handler has started have given up their privileges. Who asks not to be dumped waits until all have.
    renounced: AtomicU32,
    /// How many helpers the handler has started, and how many of them have their number.
    helpers: AtomicU32,
    places: AtomicU32,
    /// What is asked of the keeper, and whether there is one.
    pub(super) desk: Desk,
    keeper: AtomicBool,
    /// How the process is to end, whose program has no thread left; `i32::MAX` while it has.
    alone: AtomicI32,
    /// Readable when the handler is to end. A descriptor of the agent's table, as all of an agent's are.
    stop: OwnedFd,
}

/// The stacks of the handler, of the worker and of the helpers: made once, and used again by whatever agent comes next, also in a forked child.
static THREADS: [AtomicPtr<Stack>; OPENER + 1] = [const { AtomicPtr::new(ptr::null_mut()) }; OPENER + 1];
const HANDLER: usize = 0;
const WORKER: usize = 1;
const FIRST_HELPER: usize = 2;
/// The thread that gives up leases on files, where files are managed.
const KEEPER: usize = FIRST_HELPER + MOST_HELPERS;
/// One of the program's, which opens files for that.
const OPENER: usize = KEEPER + 1;

/// What the handler thread tells the thread that started it.
struct Startup {
    config: &'static Config,
    /// How many helpers there may be.
    helpers: usize,
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

/// The agent has left; until this is dropped, the program's other threads wait where they ask for it. The calling thread would wait for itself.
pub struct Away(Changing);

impl Away {
    /// Has the agent come back.
    ///
    /// # Errors
    ///
    /// As [`start`].
    pub fn come_back(self, config: &'static Config) -> Result<(), String> {
        self.0.await_forks();
        start(config)
    }
}

/// Starts the agent in a process that has none and may have forks under way.
///
/// # Errors
///
/// As [`start`].
pub fn start_again(config: &'static Config) -> Result<(), String> {
    match Changing::begin() {
        Some(changing) => {
            changing.await_forks();
            start(config)
        }
        None => start(config),
    }
}

/// Starts the agent as `config` says, in a process that has none.
///
/// # Errors
///
/// One line that says what is missing and what would fix it; the program is unmanaged then.
pub fn start(config: &'static Config) -> Result<(), String> {
    if config.devices.iter().any(|spec| spec.backend.kind().is_balanced()) {
        // Before the program has threads. Where it is refused, strays are found and counted.
        let _ = hetmem_sys::numa::keep_from_balancing();
    }
    thread_is_known();
    let no_memory = |errno: Errno| format!("the agent's memory can't be set up: {errno}");
    let [handler, worker] = [HANDLER, WORKER].map(stack);
    let (handler, _worker) = (handler.map_err(no_memory)?, worker.map_err(no_memory)?);
    // Without room for them the others serve what they would have.
    let helpers = (0..useful_helpers()).take_while(|number| stack(FIRST_HELPER + number).is_ok()).count();
    if config.files {
        stack(KEEPER).map_err(no_memory)?;
        stack(OPENER).map_err(no_memory)?;
        files::expect();
    }
    presence::make_words().map_err(no_memory)?;
    let startup = Box::leak(Box::new(Startup {
        config,
        helpers,
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

/// The stack of the handler, the worker, or a helper.
fn stack(which: usize) -> Result<&'static Stack, Errno> {
    // SAFETY: null, or a leaked stack. Acquire pairs with the Release below: the agent may come back by another thread of the program's.
    if let Some(stack) = unsafe { THREADS[which].load(Ordering::Acquire).as_ref() } {
        return Ok(stack);
    }
    let stack: &'static Stack = Box::leak(Box::new(Stack::new(STACK)?));
    THREADS[which].store(ptr::from_ref(stack).cast_mut(), Ordering::Release);
    Ok(stack)
}

/// The stack of who opens files ([`files`]).
pub(super) fn opener_stack() -> Result<&'static Stack, Errno> {
    stack(OPENER)
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
    agent.managed.serve(&agent.stop);
    let keeper = agent.keeper.load(Ordering::Relaxed).then_some(KEEPER);
    let others = (WORKER..FIRST_HELPER + agent.helpers()).chain(keeper).filter_map(|which| stack(which).ok());
    others.for_each(Stack::wait_ended);
    let alone = agent.alone.load(Ordering::Acquire);
    if alone != i32::MAX {
        hetmem_sys::process::end_last_thread(alone);
    }
    // The thread that had it leave may not have its answer yet.
    presence::await_opened();
    *lock(&REMOVALS) = agent.managed.removals();
    // SAFETY: leaked by `prepare`; the worker has ended, and so have all uses, by `leave`.
    drop(unsafe { Box::from_raw(ptr::from_ref(agent).cast_mut()) });
}

fn prepare(startup: &Startup) -> Result<&'static Agent, String> {
    let config = startup.config;
    // SAFETY: this thread has used no descriptor yet, and none is handed to it.
    unsafe { unshare_files(None) }.map_err(|errno| format!("the agent can't have descriptors of its own: {errno}"))?;
    unshare_directories().map_err(|errno| format!("the agent can't have directories of its own: {errno}"))?;
    PID.store(std::process::id(), Ordering::Relaxed);
    let ledger = ledger(config);
    let counters = match ledger {
        Some(ledger) => CountersAt::Shared(ledger.claim(std::process::id())),
        // The supervisor has ended, or the program has changed its user: it is managed, and nobody counts.
        None => CountersAt::Own(Box::default()),
    };
    // SAFETY: this thread is none of the C library's, and has begun just now.
    let run = ledger.filter(|_| !config.per_process).map(|ledger| unsafe { ledger.join() });
    let seat = ledger.and_then(|ledger| ledger.seat(std::process::id()));
    let mut managed =
        Managed::open(&config.devices, config.stock, counters, last_word).map_err(|error| whole(&error))?;
    if let Some(ring) = rings(config).and_then(|rings| rings.claim(std::process::id())) {
        managed.record_in(ring);
    }
    if let Some(part) = run {
        share_devices(&managed, &config.devices, part);
    }
    let parent = PARENT.try_lock().ok().and_then(|parent| *parent);
    // In a forked child a thread that is not here may have it.
    if let Ok(heritage) = HERITAGE.try_lock() {
        heritage.iter().for_each(|range| managed.exclude_for_good(*range));
    }
    if let Ok(advice) = ADVICE.try_lock() {
        advice.iter().for_each(|(range, advised)| managed.manage_as(*range, *advised));
    }
    if let Ok(removals) = REMOVALS.try_lock() {
        removals.iter().for_each(|range| managed.add_removal(*range));
    }
    // This thread began without hetmem, or before an agent left.
    startup.control.iter().for_each(|block| managed.exclude_for_good(*block));
    let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
        .map_err(|errno| format!("the agent has no descriptor to stop by: {errno}"))?;
    let memory = MemoryUse::open().map_err(|errno| format!("the agent can't read /proc: {errno}"))?;
    managed.enclose_caller();
    let (mailbox, stacks) = (Mailbox::default(), Stacks::default());
    let agent = Agent {
        managed,
        mailbox,
        stacks,
        policy: config.policy.clone(),
        heat: config.heat,
        memory,
        seat,
        run,
        parent,
        id: unused_id(),
        dumpable: is_dumpable(),
        renounced: AtomicU32::new(0),
        helpers: AtomicU32::new(0),
        places: AtomicU32::new(0),
        desk: Desk::default(),
        keeper: AtomicBool::new(false),
        alone: AtomicI32::new(i32::MAX),
        stop,
    };
    let agent: &'static Agent = Box::leak(Box::new(agent));
    let worker = stack(WORKER).map_err(|errno| format!("the agent's memory can't be set up: {errno}"))?;
    let arg = ptr::from_ref(agent).cast_mut().cast();
    // SAFETY: `worker_main` takes a leaked agent, which the handler does not free before the worker has ended.
    unsafe { worker.start(worker_main, arg) }
        .map_err(|errno| format!("the agent's second thread can't be started: {errno}"))?;
    for number in 0..startup.helpers {
        let Ok(helper) = stack(FIRST_HELPER + number) else { break };
        // SAFETY: as above.
        if unsafe { helper.start(helper_main, arg) }.is_err() {
            break;
        }
        agent.helpers.fetch_add(1, Ordering::Relaxed);
    }
    if config.files {
        agent.managed.expect_files();
        let keeper = stack(KEEPER).map_err(|errno| format!("the agent's memory can't be set up: {errno}"))?;
        // SAFETY: as above.
        unsafe { keeper.start(keeper_main, arg) }
            .map_err(|errno| format!("the agent's thread for files can't be started: {errno}"))?;
        agent.keeper.store(true, Ordering::Relaxed);
    }
    give_up_privileges(agent.id, agent.dumpable);
    let started = 1 + agent.helpers.load(Ordering::Relaxed) + u32::from(config.files);
    loop {
        let renounced = agent.renounced.load(Ordering::Acquire);
        if renounced == started {
            break;
        }
        // Woken or not, it is looked at again.
        let _ = futex_wait(&agent.renounced, renounced, None);
    }
    confine_thread(&[]);
    presence::come(agent);
    Ok(agent)
}

/// Counts the frames of devices that have one size for the run together with those of the others, and so the memory that they pack pages into.
fn share_devices(managed: &Managed, devices: &[DeviceSpec], part: Part) {
    for (id, spec) in (0..).map(DeviceId::new).zip(devices) {
        if spec.backend.kind().shares_size() {
            let share = |good, size: ByteLen| Box::new(Shared::new(part, good, size.pages_down()));
            managed.share_device(id, share(Good::Frames(id), spec.size), share(Good::Memory(id), spec.memory()));
        }
    }
}

/// An error with all that is behind it.
fn whole(error: &dyn std::error::Error) -> String {
    let behind = std::iter::successors(error.source(), |error| error.source());
    behind.fold(error.to_string(), |text, error| format!("{text}: {error}"))
}

/// All is open: what else the thread may do it gives up.
fn confine_thread(also: &[libc::c_long]) {
    // A kernel without filters for system calls has none for the program's threads either.
    let _ = confine(also);
}

/// The worker.
extern "C" fn worker_main(arg: *mut c_void) {
    // SAFETY: `prepare` passes a leaked agent.
    let agent = unsafe { &*arg.cast_const().cast::<Agent>() };
    agent.renounce(&[]);
    // Pages that it moves are waited for.
    let _ = hetmem_sys::thread::ask_for_short_slices();
    if let Departure::Alone(first) = work::run(agent) {
        // Before the handler is stopped, which looks at it.
        agent.alone.store(ends::status(first), Ordering::Release);
    }
    if agent.keeper.load(Ordering::Relaxed) {
        agent.desk.close();
    }
    // An eventfd takes eight bytes at a time and is never full of ones.
    let _ = rustix::io::write(&agent.stop, &1u64.to_ne_bytes());
}

/// The keeper.
extern "C" fn keeper_main(arg: *mut c_void) {
    // SAFETY: `prepare` passes a leaked agent.
    let agent = unsafe { &*arg.cast_const().cast::<Agent>() };
    agent.renounce(OF_LEASES);
    agent.desk.keep(&agent.managed);
}

/// A helper.
extern "C" fn helper_main(arg: *mut c_void) {
    // SAFETY: `prepare` passes a leaked agent.
    let agent = unsafe { &*arg.cast_const().cast::<Agent>() };
    let number = agent.places.fetch_add(1, Ordering::Relaxed) + 1;
    agent.renounce(&[]);
    agent.managed.help(number as usize);
}

impl Agent {
    /// How many threads it has.
    pub(super) fn threads(&self) -> usize {
        FIRST_HELPER + self.helpers() + usize::from(self.keeper.load(Ordering::Relaxed))
    }

    fn helpers(&self) -> usize {
        self.helpers.load(Ordering::Relaxed) as usize
    }

    /// The calling thread, which the handler has started, gives up what it does not need, but for the calls of `also`.
    fn renounce(&self, also: &[libc::c_long]) {
        give_up_privileges(self.id, self.dumpable);
        self.renounced.fetch_add(1, Ordering::Release);
        // The only error is a bad address.
        let _ = futex_wake(&self.renounced, 1);
        confine_thread(also);
    }
}

/// Ends the agent: everything is home, nothing registered, its threads have ended and its memory is given back. `None` if there is none, or if
/// pages can't come home; then it stays. The caller has blocked all signals.
#[must_use]
pub fn leave() -> Option<Away> {
    // A child that shares the memory (vfork, or worse) is a process of its own, and has no agent; and who is in the middle of a fork, of which a
    // handler of a signal asks this, would wait for himself.
    if !is_this_process() || presence::is_in_use_here() {
        return None;
    }
    let changing = Changing::begin()?;
    leave_alone().then_some(Away(changing))
}

fn leave_alone() -> bool {
    let Some(leaving) = Closed::close() else { return false };
    *lock(&HERITAGE) = leaving.managed.exclusions();
    *lock(&ADVICE) = leaving.managed.try_advice().unwrap_or_default();
    let granted = leaving.mailbox.leave();
    if granted {
        leaving.end();
        if let Ok(handler) = stack(HANDLER) {
            handler.wait_ended();
        }
    }
    granted
}

/// What the last agent of this process, or of the process that this one was forked from, kept in place: the next one does so for good.
static HERITAGE: Mutex<Vec<PageRange>> = Mutex::new(Vec::new());
/// What was said to it of the use of memory, which the next one goes by, too.
static ADVICE: Mutex<Vec<(PageRange, Advised)>> = Mutex::new(Vec::new());
/// Removals that were announced to the last agent of this process and are not known to be over: a thread may be in the middle of one still, and take
/// away what the next agent leaves to it, but not what that has moved elsewhere.
static REMOVALS: Mutex<Vec<PageRange>> = Mutex::new(Vec::new());

/// The process that this one was forked from, if it has executed nothing since and both share with others of the run.
static PARENT: Mutex<Option<Membership>> = Mutex::new(None);

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
    files::forget_in_child();
    let parents = presence::forget_in_child();
    if let Ok(mut parent) = PARENT.try_lock() {
        *parent = parents.and_then(|parents| parents.run?.membership());
    }
    let Some(parents) = parents else { return false };
    for shadow in parents.managed.shadows() {
        // SAFETY: of the parent's agent, and this process has none of its threads.
        let _ = unsafe { hetmem_sys::lease::unmap(shadow) };
    }
    // A thread that does not exist here may have been changing them; then nothing is known, and what the kernel looks at by itself may be away one
    // day.
    if let (Some(kept), Ok(mut heritage)) = (parents.managed.try_exclusions(), HERITAGE.try_lock()) {
        *heritage = kept;
    }
    if let (Some(said), Ok(mut advice)) = (parents.managed.try_advice(), ADVICE.try_lock()) {
        *advice = said;
    }
    true
}
