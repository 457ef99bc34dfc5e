//! A device of one's own: a private one that keeps pages compressed in this process's memory.
//!
//! A page is kept as runs of equal words, if that is shorter, and as it is otherwise. The conformance suite tries the device first; then the
//! program's pages go there and come home with the touches, with the bytes that they had.
//!
//! ```sh
//! cargo run --release -p hetmem --example custom_device
//! ```
#![expect(clippy::print_stdout, reason = "an example prints what it found")]
#![expect(unsafe_code, reason = "a device reads and writes pages by address")]

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use hetmem::device::{Direction, Pagemap, Progress, Reach, Transfer, conformance};
use hetmem::{
    ByteLen, Device, DeviceId, FaultPath, FrameRun, MemoryType, Owner, PAGE_SIZE, PageCount, Request, Residency,
    Runtime, Target, VirtAddr,
};

/// Words of a page.
const WORDS: usize = ByteLen::new(PAGE_SIZE).as_usize() / 8;
const DEVICE: DeviceId = DeviceId::new(0);
const PAGES: usize = 1024;

type Page = [u64; WORDS];

/// What a frame holds.
enum Stored {
    /// Words, each with how often it comes.
    Runs(Box<[(usize, u64)]>),
    Whole(Box<Page>),
}

impl Stored {
    fn pack(page: &Page) -> Self {
        let runs: Vec<(usize, u64)> = page.chunk_by(|a, b| a == b).map(|run| (run.len(), run[0])).collect();
        if size_of_val(&*runs) < size_of::<Page>() { Self::Runs(runs.into()) } else { Self::Whole(Box::new(*page)) }
    }

    fn unpack(&self, page: &mut Page) {
        match self {
            Self::Runs(runs) => {
                let words = runs.iter().flat_map(|(times, word)| std::iter::repeat_n(*word, *times));
                page.iter_mut().zip(words).for_each(|(to, word)| *to = word);
            }
            Self::Whole(whole) => *page = **whole,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Runs(runs) => size_of_val(&**runs),
            Self::Whole(_) => size_of::<Page>(),
        }
    }
}

/// A private device whose frames hold compressed pages.
struct Compressed {
    pagemap: Pagemap,
    /// A lock each, as frames are used by several threads at once. It is held while no managed memory is touched.
    frames: Box<[Mutex<Option<Stored>>]>,
    /// What all of them take.
    bytes: Arc<AtomicUsize>,
}

impl Compressed {
    fn new(id: DeviceId, capacity: PageCount, bytes: Arc<AtomicUsize>) -> Self {
        let pagemap = Pagemap::new(id, MemoryType::DevicePrivate, Owner::new(1), capacity);
        Self { pagemap, frames: (0..capacity.get()).map(|_| Mutex::default()).collect(), bytes }
    }

    fn replace(&self, frame: usize, new: Option<Stored>) {
        let size = |stored: &Option<Stored>| stored.as_ref().map_or(0, Stored::bytes);
        self.bytes.fetch_add(size(&new), Relaxed);
        // No lock is poisoned: nothing that is done under one panics.
        let old = std::mem::replace(&mut *self.frames[frame].lock().unwrap_or_else(PoisonError::into_inner), new);
        self.bytes.fetch_sub(size(&old), Relaxed);
    }

    fn store(&self, frame: usize, from: *const Page) {
        // SAFETY: a page of hetmem's, which nobody writes meanwhile.
        let page = unsafe { from.read() };
        self.replace(frame, Some(Stored::pack(&page)));
    }

    /// Allocates nothing: this may be a signal handler.
    fn fetch(&self, frame: usize, to: *mut Page) {
        let mut page = [0; WORDS];
        let stored = self.frames[frame].lock().unwrap_or_else(PoisonError::into_inner);
        stored.iter().for_each(|stored| stored.unpack(&mut page));
        // SAFETY: a page of hetmem's, which nobody else uses meanwhile.
        unsafe { to.write(page) };
    }
}

/// The page that lies `index` pages behind `start`.
fn page_at(start: VirtAddr, index: usize) -> *mut Page {
    let at = start.add_pages(PageCount::new(index as u64));
    std::ptr::with_exposed_provenance_mut(usize::try_from(at.get()).unwrap_or(0))
}

impl Device for Compressed {
    fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    /// It is private: its frames have no address.
    fn reach(&self) -> Reach {
        Reach::Copied
    }

    fn transfer(&self, batch: &mut [Transfer]) {
        for transfer in batch {
            for (i, frame) in transfer.frames.iter().enumerate() {
                match transfer.direction {
                    Direction::In => self.store(frame.index(), page_at(transfer.memory, i)),
                    Direction::Out => self.fetch(frame.index(), page_at(transfer.memory, i)),
                }
            }
            transfer.progress = Progress::Done(Ok(()));
        }
    }

    /// What was kept goes at once.
    fn released(&self, run: FrameRun) {
        self.clear(run);
    }

    /// What holds nothing reads as zeros.
    fn clear(&self, run: FrameRun) {
        run.iter().for_each(|frame| self.replace(frame.index(), None));
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    conformance::check(|capacity| Box::new(Compressed::new(DEVICE, capacity, Arc::default())));

    let bytes = Arc::new(AtomicUsize::new(0));
    let device = Compressed::new(DEVICE, PageCount::new(PAGES as u64), Arc::clone(&bytes));
    // SAFETY: it keeps the contract of `hetmem::device`, as far as the suite can tell and its comments say.
    let runtime = unsafe { Runtime::builder().custom(Box::new(device)) }.start()?;
    let mapping = runtime.map(ByteLen::new(PAGES as u64 * PAGE_SIZE), FaultPath::Thread)?;

    // Half of the pages are mostly one word, and the others are not.
    let content = |word: usize| if (word / WORDS).is_multiple_of(2) { (word / 128) as u64 } else { word as u64 };
    let words = mapping.words();
    words.iter().enumerate().for_each(|(i, word)| word.store(content(i), Relaxed));

    let moved = runtime.migrate(mapping.range(), Request::all_to(Target::Device(DEVICE))).moved();
    let kept = bytes.load(Relaxed);
    println!("{} pages on the device, {} KiB in {} KiB", moved.get(), moved.bytes().get() >> 10, kept >> 10);
    if moved.get() != PAGES as u64
        || runtime.residency(mapping.range()).iter().any(|at| *at != Residency::Device(DEVICE))
    {
        return Err("a page did not move to the device".into());
    }
    if kept >= moved.bytes().as_usize() * 6 / 10 {
        return Err("the pages are not compressed".into());
    }

    // The touches bring the pages home.
    if let Some(wrong) = words.iter().enumerate().position(|(i, word)| word.load(Relaxed) != content(i)) {
        return Err(format!("word {wrong} is not what it was").into());
    }
    if runtime.residency(mapping.range()).iter().any(|at| *at != Residency::System) {
        return Err("a page is not home".into());
    }
    println!("all came home with the program's touches, as they were");
    Ok(())
}
