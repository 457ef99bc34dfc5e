//! What hetmem allocates: nothing to serve a fault, nothing for memory that never moved, and little for what did.
//!
//! One test, as the allocator is counted for the whole process.
#![expect(unsafe_code, reason = "an allocator that counts, and touches of mapped memory")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use hetmem::{FaultPath, KeptReason, Mapping, Request, Runtime, Target};
use hetmem_core::units::{ByteLen, DeviceId, PageCount, PageRange};
use hetmem_devices::spec::parse_all;

struct Counting;

static CALLS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes every request on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        BYTES.fetch_add(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// As many that what a runtime allocates once doesn't count.
const PAGES: usize = 65536;
const TOUCHED: usize = 4096;
const LEN: ByteLen = ByteLen::new(PAGES as u64 * 4096);

fn send_out(runtime: &Runtime, mapping: &Mapping) {
    let outcomes = runtime.migrate(mapping.range(), Request::all_to(Target::Device(DeviceId::new(0))));
    assert_eq!(outcomes.moved() + outcomes.kept(KeptReason::AlreadyThere), mapping.range().pages());
}

/// Reads the pages in the order that `order` gives, and returns how often anybody allocated meanwhile.
fn touch(mapping: &Mapping, order: impl Fn(usize) -> usize) -> u64 {
    let before = CALLS.load(Relaxed);
    for i in 0..TOUCHED {
        let page = order(i);
        assert_eq!(mapping.words()[page * 512].load(Relaxed), page as u64);
    }
    CALLS.load(Relaxed) - before
}

/// How many bytes a page costs where every `stride`-th of a range is migrated.
fn grown_by_every(runtime: &Runtime, stride: usize) -> usize {
    const MANY: usize = 256;
    let mapping = runtime.map(ByteLen::new((MANY * stride * 4096) as u64), FaultPath::Thread).unwrap();
    let pages: Vec<PageRange> = mapping.range().iter().step_by(stride).map(PageRange::page_of).collect();
    (0..MANY).for_each(|i| mapping.words()[i * stride * 512].store(1, Relaxed));
    let before = BYTES.load(Relaxed);
    let outcomes = runtime.migrate_all(&pages, Request::all_to(Target::Device(DeviceId::new(0))));
    assert!(outcomes.iter().all(|outcomes| outcomes.moved() == PageCount::ONE));
    drop(outcomes);
    (BYTES.load(Relaxed) - before) / MANY
}

#[test]
fn faults_allocate_nothing_and_the_books_are_small() {
    let specs = parse_all(&["private:emulated,size=256M"], ByteLen::new(1 << 40)).unwrap();
    let start = BYTES.load(Relaxed);
    // What is kept warm beyond the stock has books of its own.
    let mut builder = Runtime::builder().sigbus().strict_stock();
    for spec in specs {
        builder = builder.device(spec);
    }
    let runtime = builder.start().unwrap();

    let before = BYTES.load(Relaxed);
    let untouched = runtime.map(ByteLen::new(1 << 34), FaultPath::Thread).unwrap();
    let grown = BYTES.load(Relaxed).saturating_sub(before);
    // Threads of the runtime may be about to make their queues.
    assert!(grown < 1 << 15, "{grown} bytes for 16 GiB that was never migrated");
    drop(untouched);

    // The descriptors of a block of frames are made first, which are more than those. They are 8 bytes each.
    grown_by_every(&runtime, 8);
    for stride in [8, 128, 512] {
        let grown = 8 + grown_by_every(&runtime, stride);
        assert!(grown <= 64, "{grown} bytes for each page if one of {stride} is on a device");
    }

    for path in [FaultPath::Thread, FaultPath::Sigbus] {
        let mapping = runtime.map(LEN, path).unwrap();
        for page in 0..PAGES {
            mapping.words()[page * 512].store(page as u64, Relaxed);
        }
        send_out(&runtime, &mapping);
        let books = BYTES.load(Relaxed) - start;
        assert!(books <= 16 * PAGES, "{path:?}: {books} bytes for {PAGES} pages on a device");
        assert_eq!(touch(&mapping, |i| i), 0, "{path:?}: touches in sequence");
        send_out(&runtime, &mapping);
        assert_eq!(touch(&mapping, |i| i * 40_961 % PAGES), 0, "{path:?}: touches in disorder");
    }
}
