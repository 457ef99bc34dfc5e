//! Reads that are under way: what is known of each until it has ended.

use hetmem_core::port::{Ticket, Transfer};
use hetmem_core::sync::{Mutex, lock};
use hetmem_sys::aio::Queue;
use hetmem_sys::errno::Errno;
use hetmem_sys::scratch::Piece;

use super::stretch::Stretch;

/// So many at a time; what comes then is read at once, by who asks.
pub(super) const MOST: usize = 64;

/// A read under way: of whole transfers, each of which is one of its pieces.
pub(super) struct Read {
    pub(super) stretch: Stretch,
    pub(super) tickets: [Ticket; Piece::MOST],
}

impl Read {
    /// That of those transfers of `batch` that `stretch` is of.
    pub(super) fn of(stretch: Stretch, batch: &[Transfer]) -> Self {
        let mut tickets = [Ticket::default(); Piece::MOST];
        let (first, last) = stretch.transfers;
        for (ticket, transfer) in tickets.iter_mut().zip(&batch[first..=last]) {
            *ticket = transfer.ticket;
        }
        Self { stretch, tickets }
    }
}

/// All of them.
pub(super) struct Late {
    pub(super) queue: Queue,
    table: Mutex<Box<[Option<Read>]>>,
}

impl Late {
    pub(super) fn new() -> Result<Self, Errno> {
        let queue = Queue::with_descriptor(u32::try_from(MOST).unwrap_or(u32::MAX))?;
        Ok(Self { queue, table: Mutex::new((0..MOST).map(|_| None).collect()) })
    }

    /// Keeps `read`, and says by which number; `None` if there is no room.
    pub(super) fn add(&self, read: Read) -> Option<usize> {
        let mut table = lock(&self.table);
        let number = table.iter().position(Option::is_none)?;
        table[number] = Some(read);
        Some(number)
    }

    /// Gives read number `number` back.
    pub(super) fn take(&self, number: usize) -> Option<Read> {
        lock(&self.table).get_mut(number)?.take()
    }
}
