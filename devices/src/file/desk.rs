//! Batches that are waited for. What is more than a little is under way all at once, and meanwhile the sums are made of what goes out, or are compared of
//! what has come.

use hetmem_core::port::{Direction, Progress, Transfer};
use hetmem_core::sync::{Mutex, try_lock};
use hetmem_core::units::PageCount;
use hetmem_sys::aio::{Queue, Request};
use hetmem_sys::errno::Errno;

use super::FileStore;
use super::stretch::{Cut, Stretch};

/// How many batches go so at a time; others are read or written piece by piece.
const DESKS: usize = 2;
/// Stretches of a batch that are under way.
const ROOM: usize = 32;
/// A batch of so many pages that follow one another is not worth it.
const FEW: PageCount = PageCount::new(16);

/// Queues, each for one batch at a time.
pub(super) struct Desks {
    all: [Desk; DESKS],
}

struct Desk(Mutex<Queue>);

impl Desks {
    pub(super) fn new() -> Self {
        let room = u32::try_from(ROOM).unwrap_or(u32::MAX);
        Self { all: std::array::from_fn(|_| Desk(Mutex::new(Queue::new(room)))) }
    }
}

/// What is under way at a desk. Whatever happens, it is waited for: the disk has the pages until then.
struct Flying<'a> {
    queue: &'a Queue,
    stretches: [Option<Stretch>; ROOM],
    count: usize,
}

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        let (queue, count) = (self.queue, &mut self.count);
        while *count > 0 {
            queue.wait(&mut |_, _| *count -= 1);
        }
    }
}

impl FileStore {
    /// Carries out what is waiting of `batch`. What is still waiting then is done; what is not done is [`Progress::UnderWay`].
    pub(super) fn carry_out(&self, batch: &mut [Transfer]) {
        let mut cut = Cut::default();
        let Some(first) = cut.next(batch) else { return };
        let is_little = first.pages() <= FEW && cut.next(batch).is_none();
        let desk = || self.desks.all.iter().find_map(|desk| try_lock(&desk.0));
        match (!is_little).then(desk).flatten() {
            Some(queue) => self.carry_out_at(&queue, batch),
            None => self.carry_out_here(batch),
        }
    }

    /// One stretch after another.
    fn carry_out_here(&self, batch: &mut [Transfer]) {
        let mut cut = Cut::default();
        while let Some(stretch) = cut.next(batch) {
            self.note(&stretch);
            let bytes = self.here(&stretch);
            self.settle(batch, &stretch, bytes);
        }
    }

    #[expect(unsafe_code, reason = "pages that are named by number")]
    fn here(&self, stretch: &Stretch) -> Result<usize, Errno> {
        match stretch.direction {
            // SAFETY: by the contract of the trait pages of hetmem's, which nobody else uses meanwhile.
            Direction::In => unsafe { self.file.write(stretch.pieces(), stretch.offset()) },
            // SAFETY: as above.
            Direction::Out => unsafe { self.file.read(stretch.pieces(), stretch.offset()) },
        }
    }

    /// As many stretches at a time as there is room for.
    fn carry_out_at(&self, queue: &Queue, batch: &mut [Transfer]) {
        let mut cut = Cut::default();
        let mut flying = Flying { queue, stretches: [None; ROOM], count: 0 };
        loop {
            let mut fresh = [0; ROOM];
            let mut count = 0;
            for number in 0..ROOM {
                if flying.stretches[number].is_none()
                    && let Some(stretch) = cut.next(batch)
                {
                    flying.stretches[number] = Some(stretch);
                    fresh[count] = number;
                    count += 1;
                }
            }
            let accepted = {
                let mut requests = [Request::NONE; ROOM];
                for (request, number) in requests.iter_mut().zip(&fresh[..count]) {
                    *request = flying.stretches[*number].as_ref().map_or(Request::NONE, |s| s.request(*number as u64));
                }
                self.submit_to(queue, &requests[..count])
            };
            flying.count += accepted;
            for (nth, number) in fresh[..count].iter().enumerate() {
                let Some(stretch) = flying.stretches[*number] else { continue };
                if nth < accepted {
                    self.note(&stretch);
                } else {
                    flying.stretches[*number] = None;
                    settle_as(batch, &stretch, false);
                }
            }
            if flying.count == 0 {
                if count == 0 {
                    return;
                }
                continue;
            }
            let mut ended = [(0, Ok(0)); ROOM];
            let mut n = 0;
            queue.wait(&mut |number, bytes| {
                ended[n] = (usize::try_from(number).unwrap_or(0), bytes);
                n += 1;
            });
            flying.count -= n;
            for (number, bytes) in ended[..n].iter().copied() {
                if let Some(stretch) = flying.stretches[number].take() {
                    self.settle(batch, &stretch, bytes);
                }
            }
        }
    }

    /// So many bytes of `stretch` have come, or gone.
    fn settle(&self, batch: &mut [Transfer], stretch: &Stretch, bytes: Result<usize, Errno>) {
        settle_as(batch, stretch, self.is_whole(stretch, bytes));
    }
}

/// Where not all of a stretch is as it should be, its transfers are not done.
fn settle_as(batch: &mut [Transfer], stretch: &Stretch, is_whole: bool) {
    let (first, last) = stretch.transfers;
    if !is_whole {
        batch[first..=last].iter_mut().for_each(|transfer| transfer.progress = Progress::UnderWay);
    }
}
