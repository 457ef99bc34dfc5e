//! Starting the agent: in the program's first moment, and again in a forked child.
//!
//! ```text
//! program's thread            handler thread                worker
//! ----------------            --------------                ------
//! start(): spawn ───────────► own descriptor table
//! waits                       opens userfaultfd, ledger
//!                             makes devices and pool
//!                             spawn ──────────────────────► (shares the table)
//!          ◄───────────────── ready
//! main() runs                 serves faults                 adopts, carries out the policy
//! ```
#![expect(unsafe_code, reason = "threads on stacks of their own")]

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use hetmem_core::engine::CountersAt;
use hetmem_core::sync::{Condvar, Mutex, lock};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_devices::spec::Backend;
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{Arena, ArenaOptions, HugePages};
use hetmem_sys::thread::{current_tid, dtv_extent, spawn_on, unshare_files};

use super::config::{Config, Policy};
use super::ledger::Ledger;
use super::work::{self, Mailbox, Stacks};
use crate::host::Contexts;
use crate::inner::Inner;
use crate::runtime::{DEFAULT_STOCK, make_devices};
use crate::service;

/// Pages of each of the agent's stacks.
const STACK: PageCount = PageCount::new(128);

pub(super) struct Agent {
    pub(super) inner: Inner,
    mailbox: Mailbox,
    stacks: Stacks,
    policy: Policy,
}

/// The agent of this process; null where there is none. Never freed: its threads run until the process ends.
static AGENT: AtomicPtr<Agent> = AtomicPtr::new(ptr::null_mut());
/// The ledger, for the last word of an agent that must stop the program.
static LEDGER: AtomicPtr<Ledger> = AtomicPtr::new(ptr::null_mut());
/// The process that the agent runs in.
static PID: AtomicU32 = AtomicU32::new(0);

pub(super) fn agent() -> Option<&'static Agent> {
    // SAFETY: null or a leaked agent. Acquire pairs with the Release in `serve`.
    unsafe { AGENT.load(Ordering::Acquire).as_ref() }
}

/// What the handler thread tells the thread that started it.
#[derive(Default)]
struct Startup {
    config: Option<Config>,
    result: Mutex<Option<Result<(), String>>>,
    told: Condvar,
}

impl Startup {
    fn tell(&self, result: Result<(), String>) {
        *lock(&self.result) = Some(result);
        self.told.notify_all();
    }
}

/// Starts the agent as `config` says.
///
/// # Errors
///
/// One line that says what is missing and what would fix it; the program is unmanaged then.
pub fn start(config: Config) -> Result<(), String> {
    if config.devices.iter().any(|spec| matches!(spec.backend, Backend::Node(_))) {
        // Before the program has threads. Where it is refused, strays are found and counted.
        let _ = hetmem_sys::numa::keep_from_balancing();
    }
    let startup: &'static Startup = Box::leak(Box::new(Startup { config: Some(config), ..Startup::default() }));
    let arg = ptr::from_ref(startup).cast_mut().cast::<c_void>();
    spawn_thread(0, serve, arg).map_err(|errno| format!("the agent's thread can't be started: {errno}"))?;
    let mut result = lock(&startup.result);
    loop {
        if let Some(result) = result.take() {
            return result;
        }
        result = startup.told.wait(result).expect("no thread panicked while it held this lock");
    }
}

/// The stacks of the two threads, by their starts. A forked child has its parent's stacks, and nobody on them.
static STACKS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

fn spawn_thread(which: usize, entry: extern "C" fn(*mut c_void) -> *mut c_void, arg: *mut c_void) -> Result<(), Errno> {
    let known = VirtAddr::new(STACKS[which].load(Ordering::Relaxed));
    let range = match PageRange::new(known, STACK).filter(|_| known != VirtAddr::default()) {
        Some(range) => range,
        None => {
            let options =
                ArenaOptions { huge_pages: HugePages::Never, name: Some(c"hetmem:stack"), ..ArenaOptions::default() };
            // The stack is never unmapped: its thread ends with the process.
            let stack = std::mem::ManuallyDrop::new(Arena::reserve(STACK, &options)?);
            STACKS[which].store(stack.range().start().get(), Ordering::Relaxed);
            stack.range()
        }
    };
    // SAFETY: the stack is readable and writable and stays; a process starts each of its two threads once, and a child is
    // forked without them. Both entries take what they are given here.
    unsafe { spawn_on(range, entry, arg) }
}

/// The handler thread.
extern "C" fn serve(arg: *mut c_void) -> *mut c_void {
    // SAFETY: `start` passes a leaked `Startup`.
    let startup = unsafe { &*arg.cast_const().cast::<Startup>() };
    match prepare(startup) {
        Ok((agent, stop)) => {
            startup.tell(Ok(()));
            service::run(&agent.inner, &stop);
        }
        Err(message) => startup.tell(Err(message)),
    }
    ptr::null_mut()
}

fn prepare(startup: &Startup) -> Result<(&'static Agent, std::os::fd::OwnedFd), String> {
    let config = startup.config.as_ref().ok_or("the agent got no configuration")?;
    // SAFETY: this thread has used no descriptor yet, and none is handed to it.
    unsafe { unshare_files(None) }.map_err(|errno| format!("the agent can't have descriptors of its own: {errno}"))?;
    // Messages of the agent's, if any, must not end up in what it opens first.
    let counters = match Ledger::open(&config.ledger) {
        Ok(ledger) => {
            let ledger: &'static Ledger = Box::leak(Box::new(ledger));
            LEDGER.store(ptr::from_ref(ledger).cast_mut(), Ordering::Release);
            PID.store(std::process::id(), Ordering::Relaxed);
            CountersAt::Shared(ledger.claim(std::process::id()))
        }
        // The supervisor has ended, or the program has changed its user: it is managed, and nobody counts.
        Err(_) => CountersAt::Own(Box::default()),
    };
    let contexts = Contexts::open(false).map_err(|error| error.to_string())?;
    let devices = make_devices(&config.devices).map_err(|error| error.to_string())?;
    let inner = Inner::new(contexts, devices, DEFAULT_STOCK, counters, last_word)
        .map_err(|errno| format!("the agent's memory can't be set up: {errno}"))?;
    let agent = Agent { inner, mailbox: Mailbox::default(), stacks: Stacks::default(), policy: config.policy };
    let agent: &'static Agent = Box::leak(Box::new(agent));
    let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
        .map_err(|errno| format!("the agent has no descriptor to stop by: {errno}"))?;
    exclude_own_storage(agent);
    AGENT.store(ptr::from_ref(agent).cast_mut(), Ordering::Release);
    spawn_thread(1, labour, ptr::from_ref(agent).cast_mut().cast())
        .map_err(|errno| format!("the agent's second thread can't be started: {errno}"))?;
    Ok((agent, stop))
}

/// The worker.
extern "C" fn labour(arg: *mut c_void) -> *mut c_void {
    // SAFETY: `prepare` passes a leaked agent.
    let agent = unsafe { &*arg.cast_const().cast::<Agent>() };
    exclude_own_storage(agent);
    work::run(&agent.inner, &agent.mailbox, &agent.stacks, agent.policy)
}

/// The C library keeps a table of each thread's storage on the program's heap: the agent's threads use it, so it stays.
fn exclude_own_storage(agent: &Agent) {
    if let Some(table) = dtv_extent() {
        agent.inner.engine.space.exclude(table);
    }
}

/// Leaves `line` to the supervisor, which prints it: the agent is about to stop the program.
pub fn last_word(line: &str) {
    // SAFETY: null or a leaked ledger. Acquire pairs with the Release in `prepare`.
    if let Some(ledger) = unsafe { LEDGER.load(Ordering::Acquire).as_ref() } {
        ledger.refuse(PID.load(Ordering::Relaxed), line);
    }
}

/// In a thread that is about to fork: brings every page home and keeps the agent still.
pub fn before_fork() {
    if let Some(agent) = agent() {
        agent.mailbox.quiesce();
    }
}

/// In the parent, after a fork or an attempt at one: lets the agent go on.
pub fn after_fork_in_parent() {
    if let Some(agent) = agent() {
        agent.mailbox.resume();
    }
}

/// In the child: there is no agent here. What its memory held stays where it is, unused. Says whether there was one.
pub fn after_fork_in_child() -> bool {
    LEDGER.store(ptr::null_mut(), Ordering::Release);
    hetmem_sys::mapping::forget_omitted();
    !AGENT.swap(ptr::null_mut(), Ordering::AcqRel).is_null()
}

/// Whether this process is managed.
#[must_use]
pub fn is_running() -> bool {
    agent().is_some()
}

/// Keeps the calling thread's stack, with the control block at its end, from ever leaving: the kernel writes there when the
/// thread ends, and can't wait for a page then.
pub fn protect_thread(stack: PageRange) {
    let Some(agent) = agent() else { return };
    agent.stacks.add(&agent.inner, stack, current_tid());
    // What left before the exclusion comes home now, and stays. Two pages cover the control block.
    let last = stack.slice(stack.pages() - PageCount::ONE, PageCount::ONE).start();
    for page in [last, VirtAddr::new(last.get().saturating_sub(4096))] {
        if stack.contains(page)
            && let Ok(address) = usize::try_from(page.get())
        {
            // SAFETY: the calling thread's own stack, which is readable.
            unsafe { ptr::with_exposed_provenance::<u8>(address).read_volatile() };
        }
    }
}

/// Keeps `range` where it is from now on: the kernel is about to hold its pages by reference, beyond what it tells userfaultfd.
pub fn keep_in_place(range: PageRange) {
    if let Some(agent) = agent() {
        agent.inner.engine.space.exclude(range);
    }
}

/// Runs `f` while every page is home and no mapping that touches `range` is registered: the kernel holds together what a
/// registration would divide.
pub fn undivided<R>(range: PageRange, f: impl FnOnce() -> R) -> R {
    let Some(agent) = agent() else { return f() };
    agent.mailbox.quiesce_for(Some(range));
    let result = f();
    agent.mailbox.resume();
    result
}

/// Lets go of `range` for good: its pages are home, and the program may watch it with a userfaultfd of its own.
pub fn release_range(range: PageRange) {
    if let Some(agent) = agent() {
        agent.mailbox.release(range);
    }
}
