//! `hetmem_migrate` and `hetmem_migrate_all`.
#![expect(unsafe_code, reason = "exports C functions")]

use std::ffi::{c_char, c_void};
use std::sync::LazyLock;

use hetmem_core::physmap::Owner;
use hetmem_core::units::{PageCount, PageRange};
use runtime::{KeptReason, PageOutcome, Request, Select};

use super::failure::{Answer, Failure, answer};
use super::instance::{Handle, Instance};
use super::memory::{AT_ONCE, Place, pages, parts, target};
use super::pointers::{Out, array, borrow};

/// The most ranges of one call.
const MAX_RANGES: usize = 1 << 20;

/// `hetmem_outcome`: moved is 0, kept for a reason is the reason's place in [`KeptReason::ALL`] and one.
type OutcomeCode = u8;

/// `hetmem_request`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RequestFromC {
    target: Place,
    select: u32,
    owner: u64,
}

/// `hetmem_range`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RangeFromC {
    address: *mut c_void,
    length: usize,
}

impl RequestFromC {
    fn read(&self, instance: &Instance) -> Result<Request, Failure> {
        let select = match self.select {
            0 | 7 => Select::ALL,
            1..7 => {
                let kinds = [(1, Select::SYSTEM), (2, Select::DEVICE_PRIVATE), (4, Select::DEVICE_COHERENT)];
                let chosen = kinds.into_iter().filter(|(bit, _)| self.select & bit != 0).map(|(_, kind)| kind);
                chosen.reduce(Select::union).unwrap_or(Select::ALL)
            }
            other => {
                return Err(Failure::invalid(format!(
                    "select is {other:#x}, which has bits beyond HETMEM_SELECT_ALL (0x7)"
                )));
            }
        };
        let owner = (self.owner != 0).then_some(Owner::new(self.owner));
        Ok(Request { target: target(instance, self.target)?, select, owner })
    }
}

fn code(outcome: PageOutcome) -> OutcomeCode {
    match outcome {
        PageOutcome::Moved => 0,
        // There are fewer reasons than a byte can name: see `LABELS`.
        PageOutcome::Kept(reason) => u8::try_from(reason.index() + 1).unwrap_or(u8::MAX),
    }
}

const _: () = assert!(KeptReason::ALL.len() < 255);

/// The label of each outcome, for C.
static LABELS: LazyLock<Vec<std::ffi::CString>> = LazyLock::new(|| {
    let reasons = KeptReason::ALL.iter().map(|reason| reason.label());
    std::iter::once("moved").chain(reasons).map(|label| std::ffi::CString::new(label).unwrap_or_default()).collect()
});

fn migrate(
    instance: &Instance,
    ranges: &[PageRange],
    request: Request,
    mut outcomes: Out<OutcomeCode>,
) -> Result<u64, Failure> {
    let total: u64 = ranges.iter().map(|range| range.pages().get()).fold(0, u64::saturating_add);
    if outcomes.left() != 0 && outcomes.left() as u64 != total {
        return Err(Failure::invalid(format!(
            "there is room for {} outcomes, but the ranges have {total} pages",
            outcomes.left()
        )));
    }
    let runtime = instance.runtime()?;
    let mut moved = 0;
    let mut run = |batch: &mut Vec<PageRange>| {
        for done in runtime.migrate_all(batch, request) {
            moved += done.moved().get();
            done.as_slice().iter().for_each(|outcome| outcomes.put(code(*outcome)));
        }
        batch.clear();
    };
    let (mut batch, mut size) = (Vec::new(), PageCount::ZERO);
    for part in ranges.iter().copied().flat_map(parts) {
        if size + part.pages() > AT_ONCE {
            run(&mut batch);
            size = PageCount::ZERO;
        }
        size += part.pages();
        batch.push(part);
    }
    run(&mut batch);
    Ok(moved)
}

/// What both functions do, once their arguments are Rust's.
fn requested(
    instance: Result<&Handle, Failure>,
    ranges: Result<Vec<PageRange>, Failure>,
    request: Result<&RequestFromC, Failure>,
    outcomes: Result<Out<OutcomeCode>, Failure>,
    moved: Result<Out<u64>, Failure>,
) -> Result<(), Failure> {
    let (instance, ranges, mut moved) = (instance?, ranges?, moved?);
    moved.put(migrate(instance, &ranges, request?.read(instance)?, outcomes?)?);
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_migrate(
    runtime: *const Handle,
    address: *mut c_void,
    len: usize,
    request: *const RequestFromC,
    outcomes: *mut OutcomeCode,
    count: usize,
    moved: *mut u64,
) -> Answer {
    let range = RangeFromC { address, length: len };
    // SAFETY: the header's contract, and a range of this function's own.
    unsafe { hetmem_migrate_all(runtime, &raw const range, 1, request, outcomes, count, moved) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_migrate_all(
    runtime: *const Handle,
    ranges: *const RangeFromC,
    range_count: usize,
    request: *const RequestFromC,
    outcomes: *mut OutcomeCode,
    count: usize,
    moved: *mut u64,
) -> Answer {
    let ranges = if range_count > MAX_RANGES {
        Err(Failure::invalid(format!(
            "{range_count} ranges are too many; at most {MAX_RANGES} can be migrated at once"
        )))
    } else {
        // SAFETY: the header's contract.
        unsafe { array(ranges, range_count, "ranges") }
    };
    let ranges = ranges.and_then(|ranges| ranges.iter().map(|range| pages(range.address, range.length)).collect());
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    // SAFETY: the header's contract.
    let request = unsafe { borrow(request, "request") };
    // SAFETY: the header's contract.
    let outcomes = unsafe { Out::many(outcomes, count, "outcomes") };
    // SAFETY: the header's contract.
    let moved = unsafe { Out::optional(moved, "moved") };
    answer(requested(instance, ranges, request, outcomes, moved))
}

#[unsafe(no_mangle)]
extern "C" fn hetmem_outcome_label(outcome: OutcomeCode) -> *const c_char {
    LABELS.get(usize::from(outcome)).map_or(c"unknown", |label| label).as_ptr()
}
