//! What the program's threads, and who looks on, say of the use of the program's memory.
//!
//! The books of it are changed by the worker, on whose stack no page is away: a touch needs the locks that are held then. And it looks first what the
//! program has mapped since it looked last, if what is named is not managed yet.
#![expect(unsafe_code, reason = "discards memory that is named by number")]

use std::collections::VecDeque;

use hetmem_core::advice::{Advice, AdviceError, DiscardError};
use hetmem_core::units::{BLOCK_PAGES, PageCount, PageRange};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::discard_locked_too;

use super::housekeeping::Housekeeping;
use super::presence::Use;
use super::removal::removal_returned;
use hetmem::for_agent::Managed;

/// How much is brought at a time (16 MiB): the program's threads may ask for something meanwhile.
const AT_ONCE: PageCount = PageCount::new(8 * BLOCK_PAGES);

/// Takes advice on `range`; `None` where there is no agent. On return it holds; what is used soon is brought in the background.
///
/// # Errors
///
/// If a device is named that is not there, or a part of the range can't be managed: the others have the advice then.
#[must_use]
pub fn advise(range: PageRange, advice: Advice) -> Option<Result<(), AdviceError>> {
    Some(Use::begin()?.mailbox.advise(range, Some(advice)))
}

/// Gives the contents of `range` up: it reads as zeros on return, and takes no memory. `None` where there is no agent.
///
/// # Errors
///
/// If a part of the range can't be managed, and nothing is discarded then; or what the kernel says, and parts may be.
///
/// # Safety
///
/// Nobody counts on what is there.
#[must_use]
pub unsafe fn discard(range: PageRange) -> Option<Result<(), DiscardError<Errno>>> {
    let agent = Use::begin()?;
    if let Err(AdviceError::Unmanaged(part)) = agent.mailbox.advise(range, None) {
        return Some(Err(DiscardError::Unmanaged(part)));
    }
    // The program's own removals are heard of in the same way. No device's memory is mapped over that of a program that doesn't know of it.
    // SAFETY: the caller's.
    let dropped = unsafe { discard_locked_too(range) };
    removal_returned();
    Some(dropped.map_err(DiscardError::Host))
}

/// Advice that the worker has taken, and what is to be done of it.
#[derive(Default)]
pub(super) struct Advised {
    /// What is used soon and is not brought yet.
    soon: VecDeque<PageRange>,
    /// What was found to be managed while advice was taken.
    found: Option<Vec<PageRange>>,
    /// How often advice was taken.
    times: u64,
}

impl Advised {
    /// Takes advice on `range`, or says only, if none is given, what of it is not managed.
    pub(super) fn take(
        &mut self,
        managed: &Managed,
        house: &mut Housekeeping<'_>,
        range: PageRange,
        advice: Option<Advice>,
    ) -> Result<(), AdviceError> {
        if managed.unmanaged_in(range).is_some() {
            self.found = Some(house.look());
        }
        let Some(advice) = advice else {
            return managed.unmanaged_in(range).map_or(Ok(()), |part| Err(AdviceError::Unmanaged(part)));
        };
        self.times += 1;
        let taken = managed.advise(range, advice);
        if advice == Advice::Soon {
            self.soon.push_back(range);
        }
        taken
    }

    /// What was found to be managed since this was asked last, if it was looked.
    pub(super) const fn take_found(&mut self) -> Option<Vec<PageRange>> {
        self.found.take()
    }

    /// How often advice was taken: what could not be done before may be possible.
    pub(super) const fn times(&self) -> u64 {
        self.times
    }

    /// Brings some of what is used soon; whether there was any.
    pub(super) fn bring_some(&mut self, managed: &Managed) -> bool {
        let Some(next) = self.soon.front_mut() else { return false };
        // What is managed of a range may be little of it.
        let managed_parts = managed.managed_in(*next);
        let Some(first) = managed_parts.first() else {
            self.soon.pop_front();
            return true;
        };
        let part = first.slice(PageCount::ZERO, AT_ONCE);
        match PageRange::between(part.end(), next.end()).filter(|rest| !rest.is_empty()) {
            Some(rest) => *next = rest,
            None => _ = self.soon.pop_front(),
        }
        managed.bring_to_best_places(part);
        true
    }
}
