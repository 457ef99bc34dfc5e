//! Memory under management: mapped or adopted, released, advised about, discarded, and where its pages are.
#![expect(unsafe_code, reason = "exports C functions")]

use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use hetmem_core::advice::DiscardError;
use hetmem_core::units::{ByteLen, DeviceId, PAGE_SIZE, PageCount, PageRange, VirtAddr};
use hetmem_interpose::cancel::uncancelled;
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::set_aside;
use runtime::{Advice, FaultPath, FileMapping, Mapping, Residency, Target};

use super::failure::{Answer, Failure, answer};
use super::instance::{Handle, Instance};
use super::pointers::{Out, borrow, take};

/// No address of a program lies above it: 56 bits on every machine that hetmem runs on.
pub(crate) const ADDRESS_LIMIT: u64 = 1 << 56;
/// Pages that are worked on at a time, so that what a call needs of the library's heap is bounded: a GiB.
pub(crate) const AT_ONCE: PageCount = PageCount::new(1 << 18);

/// `hetmem_place`: system memory is 0, device `n` is `n + 1`.
pub(crate) type Place = u32;

const SYSTEM: Place = 0;
const MIGRATING: Place = u32::MAX;

/// What `hetmem_mapping` points to. It keeps the runtime.
struct MappingHandle {
    mapping: ManuallyDrop<Mapped>,
    instance: Handle,
}

enum Mapped {
    Memory(Mapping),
    File(FileMapping),
}

impl Mapped {
    fn address(&self) -> *mut c_void {
        match self {
            Self::Memory(mapping) => mapping.as_ptr().cast(),
            Self::File(mapping) => mapping.as_ptr().cast_mut().cast(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Memory(mapping) => mapping.len(),
            Self::File(mapping) => mapping.len(),
        }
    }
}

impl Drop for MappingHandle {
    fn drop(&mut self) {
        if self.instance.is_of_this_process() {
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.mapping) };
        }
    }
}

/// The pages of a range that C names.
pub(crate) fn pages(start: *const c_void, len: usize) -> Result<PageRange, Failure> {
    // The address is used as a number, by the kernel; what it names stays the program's.
    let start = VirtAddr::new(start.expose_provenance() as u64);
    if !start.is_page_aligned() {
        return Err(Failure::invalid(format!("address {start} is not a multiple of the page, {PAGE_SIZE} B")));
    }
    let len = ByteLen::new(len as u64);
    let Some(pages) = len.whole_pages().filter(|pages| !pages.is_zero()) else {
        return Err(Failure::invalid(format!(
            "a length of {len} is not a positive multiple of the page, {PAGE_SIZE} B"
        )));
    };
    PageRange::new(start, pages)
        .filter(|range| range.end().get() <= ADDRESS_LIMIT)
        .ok_or_else(|| Failure::invalid(format!("{len} from {start} on reach past the end of the address space")))
}

/// The parts of `range` that are worked on one after the other.
pub(crate) fn parts(range: PageRange) -> impl Iterator<Item = PageRange> {
    let mut rest = range;
    std::iter::from_fn(move || {
        let part = rest.slice(PageCount::ZERO, AT_ONCE);
        rest = rest.slice(part.pages(), rest.pages());
        (!part.is_empty()).then_some(part)
    })
}

/// Where pages are asked to go, and on which device.
pub(crate) fn target(instance: &Instance, place: Place) -> Result<Target, Failure> {
    match place.checked_sub(1) {
        None => Ok(Target::System),
        Some(_) if place == MIGRATING => {
            Err(Failure::invalid("HETMEM_MIGRATING is no place that pages can be sent to"))
        }
        Some(index) => {
            let (id, _) = instance.device(usize::try_from(index).unwrap_or(usize::MAX))?;
            Ok(Target::Device(id))
        }
    }
}

fn place(residency: Residency) -> Place {
    let device = |id: DeviceId| u32::try_from(id.index()).map_or(MIGRATING, |index| index + 1);
    match residency {
        Residency::System => SYSTEM,
        Residency::Device(id) => device(id),
        Residency::Migrating => MIGRATING,
    }
}

fn fault_path(path: u32) -> Result<FaultPath, Failure> {
    match path {
        0 => Ok(FaultPath::Thread),
        1 => Ok(FaultPath::Sigbus),
        other => Err(Failure::invalid(format!("there is no fault path {other}; they are 0 (thread) and 1 (SIGBUS)"))),
    }
}

/// What `hetmem_advise` is asked to do of a range.
enum Asked {
    Advise(Advice),
    Discard,
}

/// `hetmem_advice`, and the place that goes with it, of which `device` finds the device.
fn asked(advice: u32, place: Place, device: impl FnOnce(Place) -> Result<Target, Failure>) -> Result<Asked, Failure> {
    let asked = match advice {
        1 => {
            return match device(place)? {
                Target::Device(device) => Ok(Asked::Advise(Advice::PreferredLocation(device))),
                Target::System => Err(Failure::invalid("a preferred location is a device: HETMEM_DEVICE(index)")),
            };
        }
        2 => Asked::Advise(Advice::NoPreference),
        3 => Asked::Advise(Advice::Pin),
        4 => Asked::Advise(Advice::Unpin),
        5 => Asked::Advise(Advice::ReadMostly),
        6 => Asked::Advise(Advice::Soon),
        7 => Asked::Advise(Advice::NotSoon),
        8 => Asked::Discard,
        other => return Err(Failure::invalid(format!("there is no advice {other}; they are 1 to 8"))),
    };
    if place == SYSTEM { Ok(asked) } else { Err(Failure::invalid("this advice takes no place; give HETMEM_SYSTEM")) }
}

/// # Safety
///
/// As for `hetmem_advise`.
unsafe fn advise(instance: &Instance, range: PageRange, asked: &Asked) -> Result<(), Failure> {
    let runtime = instance.runtime()?;
    match asked {
        // SAFETY: as the caller promised.
        Asked::Discard => Ok(unsafe { runtime.discard(range) }?),
        Asked::Advise(advice) => Ok(runtime.advise(range, *advice)?),
    }
}

/// # Safety
///
/// As for `hetmem_adopt`.
unsafe fn adopt(instance: &Instance, range: PageRange, path: FaultPath) -> Result<(), Failure> {
    let runtime = instance.runtime()?;
    if let Some(own) = set_aside().find(|own| own.overlaps(range)) {
        return Err(Failure::invalid(format!("{own} is memory of hetmem's own, and can't be adopted")));
    }
    // SAFETY: as the caller promised; hetmem allocates from an arena of its own, which is set aside.
    unsafe { runtime.adopt(range, path) }?;
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_map(runtime: *const Handle, len: usize, path: u32, out: *mut *mut MappingHandle) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    // SAFETY: the header's contract.
    let out = unsafe { Out::one(out, "out") };
    answer(instance.and_then(|instance| {
        let (mut out, path) = (out?, fault_path(path)?);
        let mapping = Mapped::Memory(instance.runtime()?.map(ByteLen::new(len as u64), path)?);
        out.put(handle(mapping, instance));
        Ok(())
    }))
}

fn handle(mapping: Mapped, instance: &Handle) -> *mut MappingHandle {
    let mapping = ManuallyDrop::new(mapping);
    Box::into_raw(Box::new(MappingHandle { mapping, instance: Arc::clone(instance) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_map_file(
    runtime: *const Handle,
    file: c_int,
    offset: u64,
    len: usize,
    out: *mut *mut MappingHandle,
) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    // SAFETY: the header's contract.
    let out = unsafe { Out::one(out, "out") };
    answer(instance.and_then(|instance| {
        let mut out = out?;
        if file < 0 {
            return Err(Failure::invalid(format!("file is {file}, which is no descriptor")));
        }
        // SAFETY: a descriptor of the caller's; one that is closed is refused by the kernel.
        let file = unsafe { BorrowedFd::borrow_raw(file) };
        let mapping = instance.runtime()?.map_file(file, offset, ByteLen::new(len as u64))?;
        out.put(handle(Mapped::File(mapping), instance));
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_mapping_free(mapping: *mut MappingHandle) {
    // SAFETY: the header's contract.
    drop(unsafe { take(mapping) });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_mapping_address(mapping: *const MappingHandle) -> *mut c_void {
    // SAFETY: the header's contract.
    unsafe { mapping.as_ref() }.map_or(std::ptr::null_mut(), |handle| handle.mapping.address())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_mapping_length(mapping: *const MappingHandle) -> usize {
    // SAFETY: the header's contract.
    unsafe { mapping.as_ref() }.map_or(0, |handle| handle.mapping.len())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_adopt(runtime: *const Handle, address: *mut c_void, len: usize, path: u32) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    answer(instance.and_then(|instance| {
        let (range, path) = (pages(address, len)?, fault_path(path)?);
        // SAFETY: the header's contract.
        unsafe { adopt(instance, range, path) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_release(runtime: *const Handle, address: *mut c_void, len: usize) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    answer(instance.and_then(|instance| Ok(instance.runtime()?.release(pages(address, len)?)?)))
}

/// Takes it to the agent of this program.
///
/// # Safety
///
/// As for `hetmem_advise`.
unsafe fn advise_agent(range: PageRange, asked: &Asked) -> Result<(), Failure> {
    let answer = match asked {
        Asked::Advise(advice) => {
            agent::advise(range, *advice).map(|taken| taken.map_err(|error| Failure::invalid(error.to_string())))
        }
        // SAFETY: as the caller promised.
        Asked::Discard => unsafe { agent::discard(range) }.map(|discarded| discarded.map_err(undiscarded)),
    };
    answer.unwrap_or_else(|| {
        Err(Failure::refused(
            "runtime is NULL, which is for programs under `hetmem run`, and no agent manages this one; give the runtime that manages the range",
        ))
    })
}

fn undiscarded(error: DiscardError<Errno>) -> Failure {
    match error {
        DiscardError::Unmanaged(part) => Failure::invalid(format!("{part} is not managed; nothing was discarded")),
        DiscardError::Laid(reason) => Failure::invalid(format!("device memory stays mapped ({})", reason.label())),
        DiscardError::Host(errno) => Failure::refused(format!("the range can't be discarded: {errno}")),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_advise(
    runtime: *const Handle,
    address: *const c_void,
    len: usize,
    what: u32,
    place: Place,
) -> Answer {
    if runtime.is_null() {
        let any = |place: Place| {
            let device = place.checked_sub(1).map(u8::try_from).transpose();
            let device = device.map_err(|_| Failure::invalid(format!("there is no place {place}")))?;
            Ok(device.map_or(Target::System, |index| Target::Device(DeviceId::new(index))))
        };
        // SAFETY: the header's contract.
        let advise = |range, asked| unsafe { advise_agent(range, &asked) };
        return uncancelled(|| answer(pages(address, len).and_then(|range| advise(range, asked(what, place, any)?))));
    }
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    answer(instance.and_then(|instance| {
        let (range, asked) = (pages(address, len)?, asked(what, place, |place| target(instance, place))?);
        // SAFETY: the header's contract.
        unsafe { advise(instance, range, &asked) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_residency(
    runtime: *const Handle,
    address: *const c_void,
    len: usize,
    places: *mut Place,
    count: usize,
) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    // SAFETY: the header's contract.
    let places = unsafe { Out::many(places, count, "places") };
    answer(instance.and_then(|instance| {
        let (range, mut places) = (pages(address, len)?, places?);
        if places.left() != range.pages().as_usize() {
            return Err(Failure::invalid(format!(
                "there is room for {count} places, but the range has {} pages",
                range.pages().get()
            )));
        }
        let runtime = instance.runtime()?;
        for part in parts(range) {
            runtime.residency(part).into_iter().map(place).for_each(|place| places.put(place));
        }
        Ok(())
    }))
}
