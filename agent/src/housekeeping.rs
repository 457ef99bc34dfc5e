//! What the worker looks after from time to time, whatever the policy: what is managed, whose stacks are in use, where pages really are, what is
//! registered for nothing.

use std::time::Instant;

use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{BlockNo, PageRange};
use hetmem_sys::thread::thread_exists;

use super::adopt;
use super::pace::Paced;
use hetmem::for_agent::Managed;

/// Stacks of the program's threads, kept from migration while the threads live. Those of threads that have ended may overlap those of threads that
/// live: a program that makes them itself cuts them anew. So each counts by itself.
#[derive(Default)]
pub(super) struct Stacks(Mutex<Vec<(PageRange, u32)>>);

impl Stacks {
    pub(super) fn add(&self, managed: &Managed, stack: PageRange, tid: u32) {
        managed.exclude(stack);
        lock(&self.0).push((stack, tid));
    }

    /// `memory` is excluded, and is included again when thread `tid` has ended; at once if there is none.
    pub(super) fn follow(&self, managed: &Managed, memory: PageRange, tid: Option<u32>) {
        match tid {
            Some(tid) => lock(&self.0).push((memory, tid)),
            None => managed.include(memory),
        }
    }

    /// Ends the exclusion of stacks whose threads have ended, in the kernel's sense: it writes to them no more.
    fn prune(&self, managed: &Managed) {
        lock(&self.0).retain(|(stack, tid)| {
            let lives = thread_exists(*tid);
            if !lives {
                managed.include(*stack);
            }
            lives
        });
    }
}

/// What the worker must remember from one look to the next.
pub(super) struct Housekeeping<'a> {
    managed: &'a Managed,
    stacks: &'a Stacks,
    /// Ranges that the program wants to itself.
    kept_alone: Vec<PageRange>,
    looks: Paced,
    /// Up to where the books were compared with where pages are.
    audited: Option<BlockNo>,
}

impl<'a> Housekeeping<'a> {
    pub(super) const fn new(managed: &'a Managed, stacks: &'a Stacks) -> Self {
        Self { managed, stacks, kept_alone: Vec::new(), looks: Paced::new(), audited: None }
    }

    /// The program has shown that it has done something.
    pub(super) const fn program_was_busy(&mut self) {
        self.looks.something_happened();
    }

    /// Whether it costs nothing that shows to look now.
    pub(super) fn is_due(&self) -> bool {
        self.looks.is_due(Instant::now())
    }

    /// Brings everything up to date; what is managed now, in order of address.
    pub(super) fn look(&mut self) -> Vec<PageRange> {
        let (managed, kept_alone) = (self.managed, &self.kept_alone);
        self.stacks.prune(managed);
        let ranges = self.looks.run(|| {
            let ranges = adopt::refresh(managed);
            kept_alone.iter().for_each(|alone| managed.forget(*alone));
            ranges
        });
        managed.release_idle();
        managed.look_at_packing();
        self.audited = managed.audit(self.audited);
        ranges
    }

    /// Lets go of `range` for good. One of which something can't come home stays hetmem's, and the kernel refuses it to others.
    pub(super) fn let_go(&mut self, range: PageRange) {
        if self.managed.let_go(range) {
            self.kept_alone.push(range);
        }
    }
}
