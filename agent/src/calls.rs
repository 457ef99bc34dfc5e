//! What the program's threads ask of the agent, from within the functions that stand in front of the C library's.
//!
//! Where there is no agent, each does nothing: in a program that it has left, and in a child that was forked past the C library.

use hetmem::for_agent::Managed;
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::access;
use hetmem_sys::thread::current_tid;

use super::mailbox::Look;
use super::presence::{Use, fork_alone, forked_alone, is_here};
use super::removal::thread_is_known;

/// In a thread that is about to fork: brings every page home and keeps the agent still.
pub fn before_fork() {
    loop {
        if let Some(agent) = Use::begin() {
            agent.mailbox.quiesce();
            return agent.hold();
        }
        if fork_alone() {
            return;
        }
    }
}

/// In the parent, after a fork or an attempt at one: lets the agent go on.
pub fn after_fork_in_parent() {
    match Use::held() {
        Some(agent) => agent.mailbox.resume(),
        None => forked_alone(),
    }
}

/// Whether this process is managed.
#[must_use]
pub fn is_running() -> bool {
    is_here()
}

/// Keeps the calling thread's stack, with the control block at its end, from ever leaving: the kernel writes there when the
/// thread ends, and can't wait for a page then.
pub fn protect_thread(stack: PageRange) {
    let Some(agent) = Use::begin() else { return };
    thread_is_known();
    agent.stacks.add(&agent.managed, stack, current_tid());
    // What left before the exclusion comes home now, and stays. Two pages cover the control block.
    let last = stack.slice(stack.pages() - PageCount::ONE, PageCount::ONE).start();
    for page in [last, VirtAddr::new(last.get().saturating_sub(4096))] {
        if stack.contains(page) {
            bring(PageRange::page_of(page));
        }
    }
}

/// Keeps `range` where it is until it is [`let_go`]: the kernel is about to hold its pages by reference, beyond what it tells userfaultfd.
pub fn keep_in_place(range: PageRange) {
    if let Some(agent) = Use::begin() {
        agent.managed.exclude(range);
    }
}

/// Ends what [`keep_in_place`] began.
pub fn let_go(range: PageRange) {
    if let Some(agent) = Use::begin() {
        agent.managed.include(range);
    }
}

/// Keeps `range` where it is for good, and what is away of it comes home at once: the kernel is about to look at it by itself, and can't wait for a
/// page then.
pub fn keep_at_home(range: PageRange) {
    if let Some(agent) = Use::begin() {
        agent.managed.exclude_for_good(range);
        bring(range);
    }
}

/// Before a thread is made at whose end the kernel writes to `page`.
pub fn begin_thread(page: PageRange) {
    if let Some(agent) = Use::begin() {
        agent.managed.exclude(page);
        bring(page);
    }
}

/// After that: the thread's number, if there is one.
pub fn thread_began(page: PageRange, tid: Option<u32>) {
    if let Some(agent) = Use::begin() {
        agent.stacks.follow(&agent.managed, page, tid);
    }
}

/// Has the kernel touch each page of `range` for the calling thread: who excludes a range from migration needs what is away of it.
fn bring(range: PageRange) {
    for page in range.iter() {
        // What can't be read was never away.
        let _ = access::read_checked(page, &mut [0]);
    }
}

/// Runs `f` while every page is home and no mapping that touches `range` is registered: the kernel holds together what a
/// registration would divide.
pub fn undivided<R>(range: PageRange, f: impl FnOnce() -> R) -> R {
    standing_still(|agent| agent.mailbox.quiesce_for(Some(range)), f)
}

/// Runs `f` while every page is home: the kernel is about to take pages of the program's away by itself.
pub fn all_home<R>(f: impl FnOnce() -> R) -> R {
    standing_still(|agent| agent.mailbox.quiesce(), f)
}

fn standing_still<R>(stop: impl FnOnce(&Use), f: impl FnOnce() -> R) -> R {
    let Some(agent) = Use::begin() else { return f() };
    stop(&agent);
    // Also where the call is unwound through.
    let _still = Still(&agent);
    f()
}

struct Still<'a>(&'a Use);

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.0.mailbox.resume();
    }
}

/// Runs `f` while no agent comes or leaves.
pub fn undisturbed<R>(f: impl FnOnce() -> R) -> R {
    let _stays = Use::begin();
    f()
}

/// Lets go of `range` for good: its pages are home, and the program may watch it with a userfaultfd of its own.
pub fn release_range(range: PageRange) {
    if let Some(agent) = Use::begin() {
        // A program that watches memory may move holes of other memory there: then those are to be holes still.
        agent.managed.fill_no_neighbours();
        agent.mailbox.release(range);
    }
}

/// As `mincore(2)` of `range` would say if nothing of it were away: a byte for each page. `None` where there is no agent, or the kernel refuses.
#[must_use]
pub fn residency(range: PageRange) -> Option<Vec<u8>> {
    look(range, Managed::residency)
}

/// Where the pages of `range` are, a byte for each, as [`Managed::each_place`] says. `None` where there is no agent.
#[must_use]
pub fn places(range: PageRange) -> Option<Vec<u8>> {
    look(range, Managed::each_place)
}

/// Has the worker look, on whose stack no page is away: with locks held that a touch needs.
fn look(range: PageRange, look: Look) -> Option<Vec<u8>> {
    let seen = Use::begin()?.mailbox.look(range, look);
    (!seen.is_empty()).then_some(seen)
}
