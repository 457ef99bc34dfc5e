//! Which pages of the measured program are in system memory.

use std::ffi::{c_int, c_void};

use hetmem_core::units::PageRange;
use hetmem_sys::pagemap::{Categories, PagemapScanner, Region, ScanQuery};
use hetmem_sys::thread::next_symbol;

use crate::bench::setup::failed;
use crate::failure::Failure;

/// What the agent exports for this: it writes a byte for each page, 0 where that is in system memory.
type Places = unsafe extern "C" fn(*mut c_void, usize, *mut u8) -> c_int;

/// Runs of pages that the kernel tells at a time.
const RUNS: usize = 1024;

/// Who is asked: the agent, which knows what is mapped from a device; where there is none, the kernel.
#[derive(Debug)]
pub(super) enum Witness {
    Agent(Places),
    Kernel(PagemapScanner),
}

impl Witness {
    /// Whoever there is in this process.
    #[expect(unsafe_code, reason = "a function is found by its name")]
    pub(super) fn find() -> Result<Self, Failure> {
        let found = next_symbol(c"__hetmem_places");
        if found.is_null() {
            return PagemapScanner::open().map(Self::Kernel).map_err(failed("/proc/self/pagemap can't be read"));
        }
        // SAFETY: libhetmem.so alone has a function of this name, and declares it so.
        Ok(Self::Agent(unsafe { std::mem::transmute::<*mut c_void, Places>(found) }))
    }

    /// Whether each page of `range` is in system memory.
    pub(super) fn in_system_memory(&self, range: PageRange) -> Result<Vec<bool>, Failure> {
        match self {
            Self::Agent(places) => ask_the_agent(*places, range),
            Self::Kernel(pagemap) => ask_the_kernel(pagemap, range),
        }
    }
}

#[expect(unsafe_code, reason = "a function of C's is called")]
fn ask_the_agent(places: Places, range: PageRange) -> Result<Vec<bool>, Failure> {
    let mut bytes = vec![0; range.pages().as_usize()];
    let start = std::ptr::with_exposed_provenance_mut(usize::try_from(range.start().get()).unwrap_or(0));
    // SAFETY: it has room for a byte of each page.
    let answered = unsafe { places(start, range.pages().bytes().as_usize(), bytes.as_mut_ptr()) };
    match answered {
        0 => Ok(bytes.into_iter().map(|byte| byte == 0).collect()),
        _ => Err(Failure::Bench("the measured program lost its agent".to_owned())),
    }
}

fn ask_the_kernel(pagemap: &PagemapScanner, range: PageRange) -> Result<Vec<bool>, Failure> {
    let mut there = vec![false; range.pages().as_usize()];
    let query = ScanQuery { all_of: Categories::PRESENT, report: Categories::PRESENT, ..ScanQuery::default() };
    let mut runs = [Region::default(); RUNS];
    let mut left = range;
    while !left.is_empty() {
        let scanned = pagemap.scan(left, query, &mut runs);
        let (count, walked) = scanned.map_err(failed("/proc/self/pagemap can't be scanned"))?;
        for run in &runs[..count] {
            let first = run.range().start().pages_since(range.start()).as_usize();
            there[first..first + run.range().pages().as_usize()].fill(true);
        }
        let done = walked.pages_since(left.start());
        left = left.slice(done, left.pages() - done);
    }
    Ok(there)
}
