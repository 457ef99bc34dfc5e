//! Events: what a context reports.
//!
//! The reader's thread owns the descriptors of the children that fork events bring: they land in *its* descriptor
//! table, so a buffer is read, taken from and dropped on one thread wherever threads have tables of their own.
#![expect(unsafe_code, reason = "a descriptor that arrives as a number becomes an owned one")]

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use hetmem_core::units::{ByteLen, PageRange, VirtAddr};

use super::abi::{self, MSG_SIZE, UffdMsg};
use super::fd::Userfaultfd;
use crate::errno::Errno;
use crate::flags::flags;

/// Messages that one read takes at most.
const CAPACITY: usize = 64;

flags! {
    /// What kind of touch was trapped (`UFFD_PAGEFAULT_FLAG_*`).
    FaultFlags {
        /// It was a write.
        WRITE = abi::UFFD_PAGEFAULT_FLAG_WRITE,
        /// The page is there and write-protected.
        WP = abi::UFFD_PAGEFAULT_FLAG_WP,
        /// The page is in the page cache and not mapped.
        MINOR = abi::UFFD_PAGEFAULT_FLAG_MINOR,
    }
}

/// Something that happened in a registered range.
#[derive(Debug)]
pub enum Event {
    /// A thread touched a page and waits.
    PageFault {
        /// Where: to the byte with `EXACT_ADDRESS`, else the page.
        addr: VirtAddr,
        /// How.
        flags: FaultFlags,
        /// The thread (with `THREAD_ID`, else 0).
        thread: u32,
    },
    /// The process forked; this is the child's context.
    Fork {
        /// The child's descriptor, for [`Userfaultfd::from_fork`].
        fd: OwnedFd,
    },
    /// Memory was moved by `mremap(2)`, with the contents; an `Unmap` of the old place may follow.
    Remap {
        /// The old start.
        from: VirtAddr,
        /// The new start.
        to: VirtAddr,
        /// The length moved.
        len: ByteLen,
    },
    /// The contents of a range are about to be dropped; the caller waits until this is read.
    Remove {
        /// The range.
        range: PageRange,
    },
    /// A range has been unmapped.
    Unmap {
        /// The range.
        range: PageRange,
    },
}

/// Room for the events of one read. A fork's descriptor that nobody takes is closed with the buffer or at the next
/// read into it.
pub struct EventBuffer {
    // Invariants: `taken..filled` are messages as the kernel wrote them, and the descriptors of the fork messages among
    // them are owned by this buffer and by nobody else.
    bytes: [u8; CAPACITY * MSG_SIZE],
    filled: usize,
    taken: usize,
}

impl EventBuffer {
    /// An empty buffer.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; CAPACITY * MSG_SIZE], filled: 0, taken: 0 }
    }

    /// Takes the events out, in the order in which they happened. What is left when the iterator is dropped stays for
    /// the next call.
    pub fn take(&mut self) -> Events<'_> {
        Events { buffer: self }
    }

    fn next_message(&mut self) -> Option<UffdMsg> {
        let at = self.taken * MSG_SIZE;
        let message = self.bytes[..self.filled * MSG_SIZE].get(at..at + MSG_SIZE)?;
        let message: &[u8; MSG_SIZE] = message.try_into().ok()?;
        let message = UffdMsg::from_bytes(message);
        // INVARIANT: the message now belongs to the caller, which turns a fork's descriptor into an owned one.
        self.taken += 1;
        Some(message)
    }

    fn next_event(&mut self) -> Option<Event> {
        loop {
            let message = self.next_message()?;
            let [first, second, third] = message.arg;
            let event = match message.event {
                abi::UFFD_EVENT_PAGEFAULT => Some(Event::PageFault {
                    flags: FaultFlags::from_bits(first),
                    addr: VirtAddr::new(second),
                    thread: message.low(2),
                }),
                abi::UFFD_EVENT_FORK => Some(Event::Fork {
                    // SAFETY: the kernel put this descriptor into this thread's table for the reader of the message,
                    // and by the buffer's invariant each message is turned into an event once.
                    fd: unsafe { OwnedFd::from_raw_fd(message.low(0).cast_signed()) },
                }),
                abi::UFFD_EVENT_REMAP => Some(Event::Remap {
                    from: VirtAddr::new(first),
                    to: VirtAddr::new(second),
                    len: ByteLen::new(third),
                }),
                abi::UFFD_EVENT_REMOVE => whole_pages(first, second).map(|range| Event::Remove { range }),
                abi::UFFD_EVENT_UNMAP => whole_pages(first, second).map(|range| Event::Unmap { range }),
                // A kernel sends no event that wasn't asked for, and there is no name to ask for others by.
                _ => None,
            };
            if event.is_some() {
                return event;
            }
        }
    }
}

fn whole_pages(start: u64, end: u64) -> Option<PageRange> {
    PageRange::between(VirtAddr::new(start), VirtAddr::new(end))
}

impl Default for EventBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for EventBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventBuffer").field("filled", &self.filled).field("taken", &self.taken).finish()
    }
}

impl Drop for EventBuffer {
    fn drop(&mut self) {
        self.take().for_each(drop);
    }
}

/// The events of a buffer; see [`EventBuffer::take`].
#[derive(Debug)]
pub struct Events<'a> {
    buffer: &'a mut EventBuffer,
}

impl Iterator for Events<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.buffer.next_event()
    }
}

impl Userfaultfd {
    /// Reads the events that are there into `buffer`, dropping what it still held; returns how many, 0 if there are
    /// none. Never waits.
    pub fn read_events(&self, buffer: &mut EventBuffer) -> Result<usize, Errno> {
        buffer.take().for_each(drop);
        (buffer.filled, buffer.taken) = (0, 0);
        match rustix::io::retry_on_intr(|| rustix::io::read(self.as_fd(), &mut buffer.bytes[..])) {
            Ok(bytes) => {
                // INVARIANT: the kernel wrote whole messages, and their descriptors are this reader's.
                buffer.filled = bytes / MSG_SIZE;
                Ok(buffer.filled)
            }
            Err(Errno::AGAIN) => Ok(0),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    fn buffer_with(messages: &[(u8, [u64; 3])]) -> EventBuffer {
        let mut buffer = EventBuffer::new();
        for (slot, (event, arg)) in buffer.bytes.chunks_exact_mut(MSG_SIZE).zip(messages) {
            slot[0] = *event;
            for (word, value) in slot[8..].chunks_exact_mut(8).zip(arg) {
                word.copy_from_slice(&value.to_ne_bytes());
            }
        }
        buffer.filled = messages.len();
        buffer
    }

    fn pipe_end() -> (OwnedFd, u64) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let raw = u64::try_from(writer.into_raw_fd()).unwrap();
        (reader, raw)
    }

    /// Whether the write end of the pipe is closed: then a read says so in place of "nothing yet".
    fn is_closed(reader: &OwnedFd) -> bool {
        rustix::fs::fcntl_setfl(reader, rustix::fs::OFlags::NONBLOCK).unwrap();
        rustix::io::read(reader, &mut [0u8; 1][..]) == Ok(0)
    }

    #[test]
    fn messages_become_events_in_order_and_unknown_ones_are_passed_over() {
        let mut buffer = buffer_with(&[
            (abi::UFFD_EVENT_PAGEFAULT, [3, 0x1234, 77]),
            (0x7f, [0; 3]),
            (abi::UFFD_EVENT_REMAP, [0x1000, 0x5000, 0x2000]),
            (abi::UFFD_EVENT_REMOVE, [0x1000, 0x3000, 0]),
            (abi::UFFD_EVENT_UNMAP, [0x3000, 0x4000, 0]),
        ]);
        let events: Vec<_> = buffer.take().map(|event| format!("{event:?}")).collect();
        assert_eq!(
            events,
            [
                "PageFault { addr: 0x1234, flags: FaultFlags(WRITE|WP), thread: 77 }",
                "Remap { from: 0x1000, to: 0x5000, len: ByteLen(8192) }",
                "Remove { range: [0x1000, 0x3000) }",
                "Unmap { range: [0x3000, 0x4000) }",
            ]
        );
        assert!(buffer.take().next().is_none());
    }

    #[test]
    fn a_forks_descriptor_is_closed_with_an_unread_buffer_and_kept_by_its_taker() {
        let (reader, raw) = pipe_end();
        drop(buffer_with(&[(abi::UFFD_EVENT_FORK, [raw, 0, 0])]));
        assert!(is_closed(&reader));

        let (reader, raw) = pipe_end();
        let mut buffer = buffer_with(&[(abi::UFFD_EVENT_FORK, [raw, 0, 0])]);
        let Some(Event::Fork { fd }) = buffer.take().next() else { panic!("a fork event") };
        drop(buffer);
        assert_eq!(u64::try_from(fd.as_raw_fd()), Ok(raw));
        assert!(!is_closed(&reader));
    }
}
