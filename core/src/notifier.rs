//! Interval notifiers: who mirrors a range of the program's memory is told before what it mirrors changes.
//!
//! A device that uses the program's pages keeps a table of its own of where they are. The table may be filled without stopping the
//! world, because of one rule about a sequence number, which is the kernel's (`mm/mmu_notifier.c`):
//!
//! ```text
//! who fills the table                          who changes pages of the range
//! -----------------------------------------    ------------------------------------------
//! seq = read_begin()   (sleeps meanwhile) ···  start: the sequence becomes odd, and for each subscription
//! collect: ask where the pages are                 its callback: lock the table, set_seq, erase, unlock
//! lock the table                               change pages
//! read_retry(seq)? unlock, start over          end: the last one makes the sequence even, wakes who sleeps
//! fill, unlock
//! ```
//!
//! Key types: [`Notifiers`] has the subscriptions of an address space; a [`Subscription`] is one range and its callback, and ends on drop;
//! [`Notice`] is what a callback is given; an [`Invalidation`] lasts from start to end.
//!
//! # What a callback may do
//!
//! It takes the lock of the table, calls [`Notice::set_seq`], makes sure that nobody uses what it erases, and returns. It runs in the thread
//! that changes pages, with the gate held where events are applied, so it calls nothing of hetmem but [`Notice`]'s methods, and touches
//! no managed memory. The lock that it takes is one under which nobody touches managed memory, or calls hetmem except for
//! [`Subscription::read_retry`]. No callback ever runs in a signal handler ([`crate::fault`]).
//!
//! # Changes while an invalidation runs
//!
//! Subscriptions come and go while pages are changed. While the sequence is odd the set of intervals stays as it is, so that it can be walked with
//! its lock let go for each callback: insertions and removals wait in a list, which the end of the last invalidation works off. A new
//! subscription starts with the odd sequence, so its first reader waits for all invalidations that it knows nothing of. A removal
//! returns when no callback of the subscription runs or will run.
//!
//! *Limits:* a callback that drops a subscription waits for itself.

mod intervals;

use std::fmt;

use crate::physmap::Owner;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Condvar, Mutex, lock};
use crate::units::PageRange;
use intervals::{Cursor, Intervals};

/// Why pages are about to be something else (`enum mmu_notifier_event`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// The addresses end to be mapped, or are mapped to something else (`munmap`, `mremap`).
    Unmap,
    /// The contents are dropped (`MADV_DONTNEED`, `MADV_FREE`).
    Clear,
    /// What the mapping allows changes (`mprotect`).
    ProtectionVma,
    /// What pages allow changes, and the mapping's protection stays (`fork`).
    ProtectionPage,
    /// Nothing is managed any more; the last event of a subscription.
    Release,
    /// The pages move. Whoever asked for that said whose the request is, and knows where its own pages go.
    Migrate(Option<Owner>),
    /// Somebody takes the pages for itself (its owner), or they are given back to all (none).
    Exclusive(Option<Owner>),
}

/// A state of a subscription's range, from [`Subscription::read_begin`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seq(u64);

impl Seq {
    /// The state that [`Seq::get`] gave.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The state as a number, which means nothing, for who can't keep it as it is.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A range without a page can't be subscribed to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a subscription needs a range of at least one page")]
pub struct EmptyRange;

type Callback = Box<dyn Fn(&Notice<'_>) + Send + Sync>;

pub(crate) struct Subscriber {
    range: PageRange,
    /// The sequence of the last invalidation that the callback accepted; always odd.
    seq: AtomicU64,
    callback: Callback,
}

/// What a callback is told.
pub struct Notice<'a> {
    subscriber: &'a Subscriber,
    seq: u64,
    range: PageRange,
    event: Event,
    may_wait: bool,
}

impl fmt::Debug for Notice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notice").field("range", &self.range()).field("event", &self.event).finish_non_exhaustive()
    }
}

impl Notice<'_> {
    /// The pages that are about to change, as far as the subscription's range has them.
    #[must_use]
    pub fn range(&self) -> PageRange {
        self.range.intersect(self.subscriber.range).unwrap_or(self.range)
    }

    /// What is about to change them.
    #[must_use]
    pub const fn event(&self) -> Event {
        self.event
    }

    /// Whether the callback may wait for whoever accesses the program's memory by its address: such an access may wait for a fault, and
    /// faults may be served by the very thread that runs the callback. If not, the program's change has been made already.
    #[must_use]
    pub const fn may_wait(&self) -> bool {
        self.may_wait
    }

    /// Makes every reader that began before this start over. To be called with the lock held under which [`Subscription::read_retry`] is
    /// asked; a callback that leaves it out says that the change does not concern it.
    pub fn set_seq(&self) {
        // Relaxed: the lock that both sides hold orders it against `read_retry`.
        self.subscriber.seq.store(self.seq, Ordering::Relaxed);
    }
}

enum Deferred {
    Insert(Arc<Subscriber>),
    Remove(Arc<Subscriber>),
}

struct State {
    /// Odd while a subscribed range is being invalidated.
    seq: u64,
    /// Invalidations between their start and their end.
    active: usize,
    intervals: Intervals,
    deferred: Vec<Deferred>,
}

impl State {
    const fn is_invalidating(&self) -> bool {
        self.active > 0 && self.seq & 1 == 1
    }
}

/// Those who are told of changes; clones are of the same ones.
#[derive(Clone, Default)]
pub struct Notifiers {
    shared: Arc<Shared>,
}

struct Shared {
    subscriptions: AtomicUsize,
    state: Mutex<State>,
    /// The sequence became even.
    quiet: Condvar,
}

impl Default for Shared {
    fn default() -> Self {
        let state = State { seq: 2, active: 0, intervals: Intervals::default(), deferred: Vec::new() };
        Self { subscriptions: AtomicUsize::new(0), state: Mutex::new(state), quiet: Condvar::new() }
    }
}

impl Notifiers {
    /// Whether nobody is subscribed to anything. An answer from before a subscription stays right until [`Notifiers::subscribe`]'s caller has
    /// seen to it that whoever acts upon it is done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        // Relaxed: the gate orders this against insertions (`Engine::subscribe`).
        self.shared.subscriptions.load(Ordering::Relaxed) == 0
    }

    /// Whether somebody is subscribed to a page of `range`.
    #[must_use]
    pub fn any_in(&self, range: PageRange) -> bool {
        if self.is_empty() {
            return false;
        }
        let state = lock(&self.shared.state);
        let waits = |d: &Deferred| matches!(d, Deferred::Insert(s) if s.range.overlaps(range));
        state.intervals.next(range, Cursor::default()).is_some() || state.deferred.iter().any(waits)
    }

    /// Subscribes `callback` to changes in `range`.
    ///
    /// # Errors
    ///
    /// If the range has no page.
    pub fn subscribe(
        &self,
        range: PageRange,
        callback: impl Fn(&Notice<'_>) + Send + Sync + 'static,
    ) -> Result<Subscription, EmptyRange> {
        if range.is_empty() {
            return Err(EmptyRange);
        }
        self.shared.subscriptions.fetch_add(1, Ordering::Relaxed);
        let mut state = lock(&self.shared.state);
        // What runs now may concern the range and does not know of it: the first reader waits for its end. What does not run can't
        // be waited for: then the sequence is any odd number but the current one.
        let unknown = state.active > 0;
        let seq = if unknown { state.seq | 1 } else { state.seq - 1 };
        let subscriber = Arc::new(Subscriber { range, seq: AtomicU64::new(seq), callback: Box::new(callback) });
        if state.is_invalidating() {
            state.deferred.push(Deferred::Insert(Arc::clone(&subscriber)));
        } else {
            state.seq |= u64::from(unknown);
            state.intervals.insert(Arc::clone(&subscriber));
        }
        drop(state);
        Ok(Subscription { notifiers: self.clone(), subscriber })
    }

    /// Tells all who are subscribed to pages of `range` that these are about to change, and why. They have changed when the result is
    /// dropped. `may_wait`: see [`Notice::may_wait`].
    pub fn start(&self, range: PageRange, event: Event, may_wait: bool) -> Invalidation<'_> {
        let (seq, concerned) = {
            let mut state = lock(&self.shared.state);
            state.active += 1;
            let concerned = state.intervals.next(range, Cursor::default()).is_some();
            state.seq |= u64::from(concerned);
            (state.seq, concerned)
        };
        let invalidation = Invalidation { notifiers: self };
        let mut cursor = Cursor::default();
        // The intervals stay as they are if the sequence is odd, which it is if one of them is concerned.
        let next = |cursor| lock(&self.shared.state).intervals.next(range, cursor).filter(|_| concerned);
        while let Some((subscriber, next)) = next(cursor) {
            (subscriber.callback)(&Notice { subscriber: &subscriber, seq, range, event, may_wait });
            cursor = next;
        }
        invalidation
    }

    /// [`Notifiers::start`], if anybody is subscribed to anything.
    pub(crate) fn start_if_any(&self, range: PageRange, event: Event, may_wait: bool) -> Option<Invalidation<'_>> {
        (!self.is_empty()).then(|| self.start(range, event, may_wait))
    }

    fn end(&self) {
        let state = &mut *lock(&self.shared.state);
        state.active -= 1;
        if state.active > 0 || state.seq & 1 == 0 {
            return;
        }
        state.seq += 1;
        for edit in state.deferred.drain(..) {
            match edit {
                Deferred::Insert(subscriber) => state.intervals.insert(subscriber),
                Deferred::Remove(subscriber) => state.intervals.remove(&subscriber),
            }
        }
        self.shared.quiet.notify_all();
    }

    fn remove(&self, subscriber: &Arc<Subscriber>) {
        let mut state = lock(&self.shared.state);
        let waits = |d: &Deferred| matches!(d, Deferred::Insert(s) if Arc::ptr_eq(s, subscriber));
        if !state.is_invalidating() {
            state.intervals.remove(subscriber);
        } else if let Some(at) = state.deferred.iter().position(waits) {
            // Nobody has heard of it.
            state.deferred.swap_remove(at);
        } else {
            state.deferred.push(Deferred::Remove(Arc::clone(subscriber)));
            let seq = state.seq;
            drop(self.wait_for_other(state, seq));
        }
        self.shared.subscriptions.fetch_sub(1, Ordering::Relaxed);
    }

    /// Sleeps while the sequence is `seq`.
    fn wait_for_other<'a>(
        &self,
        mut state: crate::sync::MutexGuard<'a, State>,
        seq: u64,
    ) -> crate::sync::MutexGuard<'a, State> {
        while state.seq == seq {
            state = self.shared.quiet.wait(state).expect("no thread panicked while it held this lock");
        }
        state
    }
}

/// From the start of a change to its end, which is its drop.
#[must_use]
pub struct Invalidation<'a> {
    notifiers: &'a Notifiers,
}

impl Drop for Invalidation<'_> {
    fn drop(&mut self) {
        self.notifiers.end();
    }
}

/// A subscribed range. Its drop waits for callbacks that run, and none runs afterwards.
#[must_use]
pub struct Subscription {
    notifiers: Notifiers,
    subscriber: Arc<Subscriber>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subscription").field(&self.range()).finish()
    }
}

impl Subscription {
    /// The pages of whose changes it is told.
    #[must_use]
    pub fn range(&self) -> PageRange {
        self.subscriber.range
    }

    /// Waits until nothing of the range is being changed, and names the state that it is in.
    #[must_use]
    pub fn read_begin(&self) -> Seq {
        let state = lock(&self.notifiers.shared.state);
        // Relaxed: what a callback under way may store is this very number, or comes after and is then seen by `read_retry`.
        let seq = self.subscriber.seq.load(Ordering::Relaxed);
        drop(self.notifiers.wait_for_other(state, seq));
        Seq(seq)
    }

    /// Whether the range may have changed since. Asked with the lock held that the callback takes.
    #[must_use]
    pub fn read_retry(&self, seq: Seq) -> bool {
        // Relaxed: ordered by that lock against `Notice::set_seq`.
        self.subscriber.seq.load(Ordering::Relaxed) != seq.0
    }

    /// Whether somebody may be told of changes, asked without the lock: an answer of no may be wrong, so it only spares work that would be in vain.
    #[must_use]
    pub fn check_retry(&self, seq: Seq) -> bool {
        self.read_retry(seq)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.notifiers.remove(&self.subscriber);
    }
}
