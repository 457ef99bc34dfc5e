//! What the tests of mirrors and accelerators have in common.
#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod file;

use hetmem::{
    BLOCK_PAGES, BLOCK_SIZE, ByteLen, DeviceId, DeviceSpec, FaultPath, Mapping, PAGE_SIZE, PageCount, PageRange,
    Request, Runtime, Target, VirtAddr,
};
use hetmem_sys::pagemap::{Categories, PagemapScanner, Region, ScanQuery};

pub(crate) const PRIVATE: DeviceId = DeviceId::new(0);
pub(crate) const COHERENT: DeviceId = DeviceId::new(1);
/// The page, in bytes and in words.
pub(crate) const PAGE: usize = ByteLen::new(PAGE_SIZE).as_usize();
pub(crate) const WORDS: usize = PAGE / 8;

pub(crate) fn runtime() -> Runtime {
    builder().start().unwrap()
}

/// A private and a coherent device.
pub(crate) fn builder() -> hetmem::Builder {
    let specs =
        ["private:emulated,size=64M", "coherent:emulated,size=64M"].map(|spec| spec.parse::<DeviceSpec>().unwrap());
    specs.into_iter().fold(Runtime::builder().sigbus(), hetmem::Builder::device)
}

pub(crate) fn to(device: DeviceId) -> Request {
    Request::all_to(Target::Device(device))
}

/// Runs `body` while another thread migrates `range` by each of `requests` in turn, until `body` ends or panics; then checks `runtime`.
///
/// # Panics
///
/// If no page moved.
pub(crate) fn while_migrating(runtime: &Runtime, range: PageRange, requests: &[Request], body: impl FnOnce()) {
    use std::sync::atomic::{AtomicBool, Ordering};
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let done = AtomicBool::new(false);
    let (begun, first) = std::sync::mpsc::channel();
    let moved = std::thread::scope(|scope| {
        let done = &done;
        let mover = scope.spawn(move || {
            let mut moved = 0;
            for request in requests.iter().cycle() {
                if done.load(Ordering::SeqCst) {
                    break;
                }
                moved += runtime.migrate(range, *request).moved().get();
                // Nobody listens after the first.
                let _ = begun.send(());
            }
            moved
        });
        let end = End(done);
        first.recv().unwrap();
        body();
        drop(end);
        mover.join().unwrap()
    });
    assert!(moved > 0, "pages move meanwhile");
    runtime.check();
}

pub(crate) fn map(runtime: &Runtime, pages: u64, path: FaultPath) -> Mapping {
    runtime.map(ByteLen::new(pages * PAGE_SIZE), path).unwrap()
}

fn content(page: usize) -> u64 {
    page as u64 ^ 0xabcd_ef01
}

pub(crate) fn fill(mapping: &Mapping) {
    use std::sync::atomic::Ordering::Relaxed;
    mapping.words().chunks(WORDS).enumerate().for_each(|(i, page)| page[i % WORDS].store(content(i), Relaxed));
}

/// The first page that is not what [`fill`] wrote.
pub(crate) fn wrong_page(mapping: &Mapping) -> Option<usize> {
    use std::sync::atomic::Ordering::Relaxed;
    let mut pages = mapping.words().chunks(WORDS).enumerate();
    pages.find(|(i, page)| page[i % WORDS].load(Relaxed) != content(*i)).map(|(i, _)| i)
}

pub(crate) fn verify(mapping: &Mapping) {
    assert_eq!(wrong_page(mapping), None, "a page is not what was written");
}

pub(crate) fn bytes(pages: u64) -> usize {
    usize::try_from(pages * PAGE_SIZE).unwrap()
}

/// Memory that hetmem knows nothing of, far from what the kernel chooses for others, which fills from the top of the address space downwards: what a
/// test unmaps of it stays unmapped, whatever other threads map meanwhile, and unmapping all of it at the end takes nothing of theirs.
pub(crate) struct Raw {
    range: PageRange,
    owned: bool,
}

impl Raw {
    /// A mapping that begins where a huge page can.
    pub(crate) fn map(pages: u64, flags: i32, fd: i32) -> Self {
        Self::map_at(Self::far(pages), pages, flags | libc::MAP_FIXED_NOREPLACE, fd)
    }

    /// A mapping where the kernel chooses, which no test unmaps in parts.
    pub(crate) fn anywhere(pages: u64, flags: i32, fd: i32) -> Self {
        Self::map_at(std::ptr::null_mut(), pages, flags, fd)
    }

    /// Where there is room for `pages`, and nothing comes but what asks for it.
    fn far(pages: u64) -> *mut libc::c_void {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(1 << 36);
        let bytes = (pages * PAGE_SIZE).next_multiple_of(BLOCK_SIZE);
        let start = NEXT.fetch_add(bytes + (32 << 20), Ordering::Relaxed);
        std::ptr::with_exposed_provenance_mut(usize::try_from(start).unwrap())
    }

    fn map_at(at: *mut libc::c_void, pages: u64, flags: i32, fd: i32) -> Self {
        // SAFETY: a new mapping, which takes no other's place.
        let at = unsafe { libc::mmap(at, bytes(pages), libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        let range = PageRange::new(VirtAddr::new(at.expose_provenance() as u64), PageCount::new(pages)).unwrap();
        Self { range, owned: true }
    }

    /// Private anonymous memory, one page behind where a huge page can begin.
    pub(crate) fn anonymous(pages: u64) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        Self::map_at(Self::far(pages + 1).wrapping_byte_add(bytes(1)), pages, flags, -1)
    }

    /// A mapping of a file of `pages_in_file` pages.
    pub(crate) fn file(pages: u64, pages_in_file: u64, shared: bool) -> Self {
        use std::os::fd::AsRawFd;
        let file = rustix::fs::memfd_create(c"mirror", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, pages_in_file * PAGE_SIZE).unwrap();
        Self::map(pages, if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE }, file.as_raw_fd())
    }

    /// Private anonymous memory that begins where a huge page can.
    pub(crate) fn aligned(pages: u64) -> Self {
        Self::map(pages, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// This and a mapping right behind it, where nothing is.
    pub(crate) fn continued(mut self, pages: u64, flags: i32) -> Self {
        let end = self.pointer(self.range.pages().get());
        let mut next = Self::map_at(end.cast(), pages, flags | libc::MAP_FIXED_NOREPLACE, -1);
        next.owned = false;
        self.range = PageRange::between(self.range.start(), next.range.end()).unwrap();
        self
    }

    /// A whole huge page, if the kernel gives one.
    pub(crate) fn huge() -> Option<Self> {
        let memory = Self::aligned(BLOCK_PAGES);
        memory.advise(libc::MADV_HUGEPAGE);
        // SAFETY: inside the mapping.
        unsafe { memory.pointer(0).write_volatile(1) };
        memory.is_huge().then_some(memory)
    }

    /// Whether all its pages are mapped as huge ones.
    pub(crate) fn is_huge(&self) -> bool {
        self.has(Categories::PRESENT | Categories::HUGE)
    }

    /// Whether each of its pages is all of that.
    pub(crate) fn has(&self, categories: Categories) -> bool {
        let query = ScanQuery { all_of: categories, ..ScanQuery::default() };
        let mut found = [Region::default()];
        let (n, _) = PagemapScanner::open().unwrap().scan(self.range, query, &mut found).unwrap();
        n == 1 && found[0].range() == self.range
    }

    /// How many of its pages are in memory.
    pub(crate) fn present(&self) -> u64 {
        let query = ScanQuery { any_of: Categories::PRESENT, ..ScanQuery::default() };
        let mut found = vec![Region::default(); self.range.pages().as_usize()];
        let (n, _) = PagemapScanner::open().unwrap().scan(self.range, query, &mut found).unwrap();
        found[..n].iter().map(|run| run.range().pages().get()).sum()
    }

    /// `madvise(2)` on a part of it.
    pub(crate) fn advise_part(&self, first: u64, pages: u64, advice: i32) {
        // SAFETY: as for all of it.
        assert_eq!(unsafe { libc::madvise(self.pointer(first).cast(), bytes(pages), advice) }, 0);
    }

    /// `madvise(2)` on all of it.
    pub(crate) fn advise(&self, advice: i32) {
        // SAFETY: the test's own memory, whose contents it gives up if that is the advice.
        let result = unsafe { libc::madvise(self.pointer(0).cast(), bytes(self.range.pages().get()), advice) };
        assert_eq!(result, 0, "madvise {advice}: {}", std::io::Error::last_os_error());
    }

    /// Memory that somebody else unmaps.
    pub(crate) const fn borrowed(range: PageRange) -> Self {
        Self { range, owned: false }
    }

    pub(crate) const fn range(&self) -> PageRange {
        self.range
    }

    pub(crate) fn slice(&self, first: u64, pages: u64) -> PageRange {
        self.range.slice(PageCount::new(first), PageCount::new(pages))
    }

    pub(crate) fn page(&self, index: u64) -> VirtAddr {
        self.range.start().add_pages(PageCount::new(index))
    }

    pub(crate) fn pointer(&self, index: u64) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(usize::try_from(self.page(index).get()).unwrap())
    }

    pub(crate) fn fill(&self) {
        for i in 0..self.range.pages().get() {
            // SAFETY: inside the mapping.
            unsafe { self.pointer(i).write_volatile(u8::try_from(i % 251).unwrap() + 1) };
        }
    }

    /// Checks that all its pages are what [`Raw::fill`] wrote.
    pub(crate) fn verify(&self) {
        let changed = (0..self.range.pages().get()).find(|i| self.get(*i) != i % 251 + 1);
        assert_eq!(changed, None, "a page is not what was written");
    }

    fn word(&self, index: u64) -> &std::sync::atomic::AtomicU64 {
        // SAFETY: inside the mapping, aligned to a page.
        unsafe { std::sync::atomic::AtomicU64::from_ptr(self.pointer(index).cast()) }
    }

    /// The first word of a page.
    pub(crate) fn get(&self, index: u64) -> u64 {
        self.word(index).load(std::sync::atomic::Ordering::SeqCst)
    }

    pub(crate) fn set(&self, index: u64, value: u64) {
        self.word(index).store(value, std::sync::atomic::Ordering::SeqCst);
    }

    /// Maps new memory over all of it.
    pub(crate) fn remap_anew(&self) {
        // SAFETY: the test's own memory, whose contents it gives up.
        let at = unsafe {
            libc::mmap(
                self.pointer(0).cast(),
                bytes(self.range.pages().get()),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        assert_eq!(at, self.pointer(0).cast());
    }

    /// Moves it to where `place` is.
    pub(crate) fn remap_to(mut self, mut place: Self) -> Self {
        self.owned = false;
        place.owned = false;
        let bytes = bytes(self.range.pages().get());
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both are the test's own.
        let at = unsafe { libc::mremap(self.pointer(0).cast(), bytes, bytes, flags, place.pointer(0)) };
        assert_eq!(at, place.pointer(0).cast());
        Self { range: place.range, owned: true }
    }

    pub(crate) fn protect(&self, first: u64, pages: u64, prot: i32) {
        // SAFETY: the test's own memory, which it touches accordingly.
        assert_eq!(unsafe { libc::mprotect(self.pointer(first).cast(), bytes(pages), prot) }, 0);
    }

    pub(crate) fn unmap(&self, first: u64, pages: u64) {
        if pages == 0 {
            return;
        }
        // SAFETY: the test's own memory, which it does not touch afterwards.
        assert_eq!(unsafe { libc::munmap(self.pointer(first).cast(), bytes(pages)) }, 0);
    }

    pub(crate) fn discard(&self, first: u64, pages: u64) {
        // SAFETY: the test's own memory, whose contents it gives up.
        assert_eq!(unsafe { libc::madvise(self.pointer(first).cast(), bytes(pages), libc::MADV_DONTNEED) }, 0);
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if self.owned {
            self.unmap(0, self.range.pages().get());
        }
    }
}
