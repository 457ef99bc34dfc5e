//! Children that were forked without anybody's having brought pages home: they get what was away, or would read zeros.
//!
//! A child's context comes with the fork's event, and its pages are copied in by that. From the event on the child runs, and what it does to its
//! memory meanwhile is reported by *its* context, on which it waits, and the kernel accepts no page (`EAGAIN`) until that was read:
//!
//! | the child | its page |
//! | --- | --- |
//! | moves memory (`mremap`) | goes to the new place |
//! | unmaps or drops it | is of no use any more |
//! | forks itself | is owed to the grandchild, too |
//!
//! *Limits:* a child that is not filled after [`PATIENCE`] stops the program.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use hetmem_core::port::Host as _;
use hetmem_core::space::Events;
use hetmem_core::stats::Counters;
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::uffd::{CopyFlags, Event, EventBuffer, Userfaultfd};

use crate::inner::Inner;
use crate::service::MEMORY_PATIENCE;

/// How long the copy of one page may be put off, while everybody waits.
const PATIENCE: Duration = MEMORY_PATIENCE;

/// Gives `child` all that its parent had away at that moment. The parent can't change those pages meanwhile: they are missing, and this thread is the
/// one that would bring them home.
pub(crate) fn fill(inner: &Inner, events: &Events<'_>, child: Userfaultfd) {
    let host = inner.engine.host();
    let mut family = vec![Descendant { context: child, lives: true, changes: Vec::new() }];
    let copy = |range: PageRange, from: VirtAddr| {
        let page = range.start();
        let mut i = 0;
        // It grows.
        while i < family.len() {
            let given = give(inner.engine.counters(), PATIENCE, || {
                family[i].lives.then(|| attempt(&mut family, i, page, from))
            });
            match given {
                Ok(lives) => family[i].lives = lives,
                Err(why) => host.stop_the_program(page, why),
            }
            i += 1;
        }
    };
    if inner.engine.for_each_unmapped(events, copy).is_err() {
        host.stop_the_program(VirtAddr::default(), "a device does not give pages back that a forked child needs");
    }
    // Closing their contexts ends their registrations: from here on they are ordinary processes. A fork of theirs that is unread has all pages: while
    // one was, none was accepted.
    drop(family);
}

/// A child, or one of its children.
struct Descendant {
    context: Userfaultfd,
    lives: bool,
    /// What it has done to its memory since its parent forked, in order.
    changes: Vec<Change>,
}

#[derive(Clone, Copy)]
enum Change {
    Moved { from: PageRange, to: PageRange },
    Gone(PageRange),
}

/// Where the page is now that was at `page`, if anywhere.
fn place(changes: &[Change], page: VirtAddr) -> Option<VirtAddr> {
    changes.iter().try_fold(page, |page, change| match *change {
        Change::Moved { from, to } if from.contains(page) => Some(to.start().add_pages(page.pages_since(from.start()))),
        Change::Moved { to, .. } if to.contains(page) => None,
        Change::Gone(range) if range.contains(page) => None,
        Change::Moved { .. } | Change::Gone(_) => Some(page),
    })
}

/// Tries once to copy what is at `from` to where descendant `i` has the page that was at `page`. Says why it could not.
#[expect(unsafe_code, reason = "copies pages into another process")]
fn attempt(family: &mut Vec<Descendant>, i: usize, page: VirtAddr, from: VirtAddr) -> Option<Errno> {
    let Some(to) = place(&family[i].changes, page) else { return Some(Errno::NOENT) };
    let context = &family[i].context;
    // SAFETY: the child's page is a hole where its parent's page is away, and holds the same bytes afterwards; the source is a frame whose page can't
    // change while the gate is held.
    let copy = || unsafe { context.copy(to, from, PageCount::ONE, CopyFlags::NONE) }.stop;
    let stop = match copy() {
        // The kernel looks for changes under way, waits for them, and finds no mapping then. So it is asked once more.
        Some(Errno::NOENT) => copy(),
        stop => stop,
    };
    if stop == Some(Errno::AGAIN) {
        note_changes(family, i);
    }
    stop
}

/// Reads what descendant `i` has done.
fn note_changes(family: &mut Vec<Descendant>, i: usize) {
    let mut buffer = EventBuffer::new();
    while matches!(family[i].context.read_events(&mut buffer), Ok(1..)) {
        for event in buffer.take() {
            match event {
                Event::Fork { fd } => {
                    let changes = family[i].changes.clone();
                    family.push(Descendant { context: Userfaultfd::from_fork(fd), lives: true, changes });
                }
                Event::Remap { from, to, len } => {
                    let moved = len.whole_pages().and_then(|pages| {
                        Some(Change::Moved { from: PageRange::new(from, pages)?, to: PageRange::new(to, pages)? })
                    });
                    family[i].changes.extend(moved);
                }
                Event::Unmap { range } | Event::Remove { range } => family[i].changes.push(Change::Gone(range)),
                // Whoever touches a page that is away is woken by its copy, all others by the end of the context.
                Event::PageFault { .. } => {}
            }
        }
    }
}

/// Tries to `copy` a page until that succeeds, for `patience` at most. It answers why it could not, or `None` where there is nobody to copy it to.
/// Says whether there still is.
fn give(
    counters: &Counters,
    patience: Duration,
    mut copy: impl FnMut() -> Option<Option<Errno>>,
) -> Result<bool, &'static str> {
    let start = Instant::now();
    loop {
        let why = match copy() {
            None | Some(Some(Errno::SRCH | Errno::NOSPC)) => return Ok(false),
            // There already; or of a mapping of the runtime's other context.
            Some(None | Some(Errno::EXIST | Errno::NOENT)) => return Ok(true),
            Some(Some(Errno::AGAIN)) => {
                hetmem_sys::thread::yield_now();
                "a forked child goes on changing its mappings"
            }
            Some(Some(Errno::NOMEM)) => {
                counters.errors.fetch_add(1, Relaxed);
                hetmem_sys::thread::backoff_sleep(1_000_000);
                "the host has no memory for a forked child's copy of it"
            }
            Some(Some(_)) => return Err("the kernel does not accept a forked child's copy of it"),
        };
        if start.elapsed() >= patience {
            return Err(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// What the kernel says of the copies of one page into a child, one after the other, the last for ever.
    fn given(answers: &[Option<Errno>], patience: Duration) -> (Result<bool, &'static str>, usize) {
        let asked = Cell::new(0);
        let copy = || {
            let at = asked.replace(asked.get() + 1);
            Some(answers[at.min(answers.len() - 1)])
        };
        (give(&Counters::default(), patience, copy), asked.get())
    }

    #[test]
    fn a_page_is_tried_until_it_is_there_but_not_for_ever() {
        let (again, no_memory) = (Some(Errno::AGAIN), Some(Errno::NOMEM));
        assert_eq!(given(&[again, no_memory, again, None], PATIENCE), (Ok(true), 4));
        assert_eq!(given(&[Some(Errno::EXIST)], PATIENCE), (Ok(true), 1));
        assert_eq!(given(&[Some(Errno::NOENT)], PATIENCE), (Ok(true), 1));
        for gone in [Errno::SRCH, Errno::NOSPC] {
            assert_eq!(given(&[again, Some(gone)], PATIENCE), (Ok(false), 2));
        }
        for (answer, why) in [(again, "goes on"), (no_memory, "no memory"), (Some(Errno::FAULT), "does not accept")] {
            let (result, asked) = given(&[answer], Duration::ZERO);
            assert!(result.is_err_and(|said| said.contains(why)), "{answer:?} for ever ends, and never in zeros");
            assert_eq!(asked, 1);
        }
    }

    #[test]
    fn a_page_is_looked_for_where_the_child_has_put_it() {
        let pages = |first: u64, count| PageRange::new(VirtAddr::new(first << 12), PageCount::new(count)).unwrap();
        let at = |page: u64| VirtAddr::new(page << 12);
        let changes = [
            Change::Moved { from: pages(10, 4), to: pages(20, 4) },
            Change::Gone(pages(21, 1)),
            Change::Moved { from: pages(22, 1), to: pages(50, 1) },
        ];
        assert_eq!(place(&changes, at(10)), Some(at(20)));
        assert_eq!(place(&changes, at(11)), None, "moved, then dropped");
        assert_eq!(place(&changes, at(12)), Some(at(50)), "moved twice");
        assert_eq!(place(&changes, at(50)), None, "another has taken its place");
        assert_eq!(place(&changes, at(30)), Some(at(30)));
    }
}
