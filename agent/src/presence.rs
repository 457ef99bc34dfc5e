//! Whether this process has an agent, and who uses it: so that it can end while the program's threads go on.
//!
//! Four words say it, in memory that the kernel clears in every child, however that is forked:
//!
//! | word | |
//! | --- | --- |
//! | `AGENT` | where the agent is; 0 without one |
//! | `USERS` | how many threads use it at this moment, and whether it is closed to more |
//! | `CHANGING` | whether one thread has it leave or come |
//! | `FORKS` | how many threads fork without one |
#![expect(unsafe_code, reason = "the agent is found by its address, and freed when nobody uses it")]

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::wiped_on_fork;
use hetmem_sys::process::SignalMask;
use hetmem_sys::thread::backoff_sleep;

use super::notes::is_this_process;
use super::start::Agent;

/// How long to sleep, in nanoseconds, before it is looked again whether the program's threads are done with an agent that leaves.
const LOOK_AGAIN_AFTER: u32 = 50_000;

/// The four words below; null before the first agent. In a forked child, however it was made, they are zero.
static WORDS: AtomicPtr<[AtomicU64; 4]> = AtomicPtr::new(ptr::null_mut());
/// The address of the agent of this process; 0 where there is none.
const AGENT: usize = 0;
/// How many threads of the program use the agent at this moment, and [`CLOSED`].
const USERS: usize = 1;
/// Nobody uses the agent, nor does anybody come to use it: it ends, if it can.
const CLOSED: u64 = 1 << 63;
/// 1 while the agent leaves or comes, by one thread: until everything is home its word is not to be had, nor is there none, and where it comes back
/// what begins meanwhile waits, to be known to it.
const CHANGING: usize = 2;
/// How many threads fork in a process without an agent: none comes meanwhile.
const FORKS: usize = 3;

/// Makes the words, before the process has a thread that asks for them.
pub(super) fn make_words() -> Result<(), Errno> {
    if WORDS.load(Ordering::Relaxed).is_null() {
        let words = wiped_on_fork()?;
        WORDS.store(ptr::from_ref(words).cast_mut(), Ordering::Release);
    }
    Ok(())
}

/// From now on `agent` is the process's.
pub(super) fn come(agent: &'static Agent) {
    if let Some(word) = word(AGENT) {
        word.store(ptr::from_ref(agent).expose_provenance() as u64, Ordering::Release);
    }
}

fn word(which: usize) -> Option<&'static AtomicU64> {
    // SAFETY: null, or words that are never unmapped. Acquire pairs with the Release in `make_words`.
    unsafe { WORDS.load(Ordering::Acquire).as_ref() }.map(|words| &words[which])
}

/// The agent, which does not end while this lives. All signals are blocked: a handler that asks for the agent, or never returns, would find its locks
/// taken by the thread that it has interrupted.
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
            // SeqCst, here and in `close`: either this thread sees that the agent is closed, or the agent sees this thread.
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

/// The agent of this process, which does not end any more: for a handler of a signal that ends the process. Unlike [`Use`] it has no thread-local
/// storage, which the C library may allocate at its first use; the handler has all signals blocked.
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

/// An agent that nobody uses, nor comes to use until this is dropped.
pub(super) struct Closed {
    agent: &'static Agent,
    users: &'static AtomicU64,
}

impl Closed {
    /// Closes the agent; `None` if there is none.
    pub(super) fn close() -> Option<Self> {
        let (agent, users) = (word(AGENT)?, word(USERS)?);
        let at = usize::try_from(agent.load(Ordering::SeqCst)).unwrap_or(0);
        if at == 0 {
            return None;
        }
        // Whoever began before is served by the worker, which goes on until it is asked to end.
        while users.compare_exchange(0, CLOSED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            backoff_sleep(LOOK_AGAIN_AFTER);
        }
        // SAFETY: an agent, which is not freed while it is closed.
        Some(Self { agent: unsafe { &*ptr::with_exposed_provenance::<Agent>(at) }, users })
    }

    /// It is the process's agent no longer, and frees itself once this is dropped.
    pub(super) fn end(self) {
        if let Some(agent) = word(AGENT) {
            agent.store(0, Ordering::SeqCst);
        }
    }
}

impl Deref for Closed {
    type Target = Agent;
    fn deref(&self) -> &Agent {
        self.agent
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.users.fetch_and(!CLOSED, Ordering::SeqCst);
    }
}

/// Returns once the agent is open, or none is there.
pub(super) fn await_opened() {
    while word(USERS).is_some_and(|users| users.load(Ordering::SeqCst) & CLOSED != 0) {
        backoff_sleep(LOOK_AGAIN_AFTER);
    }
}

/// Whether the calling thread is in the middle of a use, or of a fork.
pub(super) fn is_in_use_here() -> bool {
    DEPTH.get() > 0 || HELD.get().1 > 0
}

/// In a forked child, which has no agent, so that there are no users to count. The parent's, if it knew of the fork.
pub(super) fn forget_in_child() -> Option<&'static Agent> {
    DEPTH.set(0);
    ALONE.set(0);
    let (held, times) = HELD.replace((None, 0));
    held.filter(|_| times > 0)
}

/// Before a fork in a process that has no agent: none comes until [`forked_alone`]. `false` if there is one by now.
pub(super) fn fork_alone() -> bool {
    let (Some(agent), Some(changing), Some(forks)) = (word(AGENT), word(CHANGING), word(FORKS)) else { return true };
    // SeqCst, here and in `Changing::await_forks`: either this thread sees that an agent is about to come, or that thread sees this fork.
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
pub(super) struct Changing(&'static AtomicU64);

impl Changing {
    /// Waits for it; `None` in a process that never had an agent.
    pub(super) fn begin() -> Option<Self> {
        let changing = word(CHANGING)?;
        while changing.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            backoff_sleep(LOOK_AGAIN_AFTER);
        }
        Some(Self(changing))
    }

    /// Returns once no fork is under way that knows of no agent.
    pub(super) fn await_forks(&self) {
        while word(FORKS).is_some_and(|forks| forks.load(Ordering::SeqCst) > 0) {
            backoff_sleep(LOOK_AGAIN_AFTER);
        }
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.store(0, Ordering::SeqCst);
    }
}
