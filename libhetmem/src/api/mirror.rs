//! `hetmem_subscribe`, what its callbacks are told, `hetmem_announce`, `hetmem_range_fault` and `hetmem_range_fault_runs`.
#![expect(unsafe_code, reason = "exports C functions")]

use std::ffi::c_void;
use std::mem::ManuallyDrop;

use hetmem_core::physmap::Owner;
use hetmem_core::units::PageRange;
use runtime::mirror::{Event, MirrorPage, MirrorRun, Notice, Place as PageAt, RangeFault, Seq, Subscription, Want};

use super::failure::{Answer, Failure, answer};
use super::instance::{Handle, Instance};
use super::memory::{Place, pages, parts};
use super::pointers::{Out, array, borrow, take};

/// `hetmem_callback`.
type Callback = unsafe extern "C" fn(*const c_void, *mut c_void);
/// What `hetmem_announce` calls.
type Change = unsafe extern "C" fn(*mut c_void);

/// What `hetmem_subscription` points to. It does not keep the runtime, whose end it is told.
struct SubscriptionHandle {
    subscription: ManuallyDrop<Subscription>,
    process: u32,
}

impl SubscriptionHandle {
    fn is_of_this_process(&self) -> bool {
        self.process == std::process::id()
    }
}

impl Drop for SubscriptionHandle {
    fn drop(&mut self) {
        if self.is_of_this_process() {
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.subscription) };
        }
    }
}

/// A callback and what it is given, from C.
struct Told {
    callback: Callback,
    user: *mut c_void,
}

// SAFETY: the header says that the callback runs in any thread, and what `user` points to is the program's to share.
unsafe impl Send for Told {}
// SAFETY: as above.
unsafe impl Sync for Told {}

impl Told {
    fn tell(&self, notice: &Notice<'_>) {
        // SAFETY: the header's contract; the notice lives until the callback returns.
        unsafe { (self.callback)(std::ptr::from_ref(notice).cast(), self.user) };
    }
}

fn subscribe(instance: &Instance, range: PageRange, told: Told) -> Result<SubscriptionHandle, Failure> {
    let subscription = instance.runtime()?.subscribe(range, move |notice| told.tell(notice))?;
    Ok(SubscriptionHandle { subscription: ManuallyDrop::new(subscription), process: std::process::id() })
}

/// `hetmem_fault_request`.
#[derive(Clone, Copy)]
#[repr(C)]
struct FaultRequest {
    want: u32,
    reserved: u32,
    owner: u64,
    subscription: *const SubscriptionHandle,
    seq: u64,
    wants: *const u32,
}

/// `hetmem_mirror_page`.
#[derive(Clone, Copy)]
#[repr(C)]
struct PageForC {
    place: Place,
    frame: u32,
    flags: u32,
    order: u32,
}

fn want(number: u32) -> Result<Want, Failure> {
    match number {
        0 => Ok(Want::Snapshot),
        1 => Ok(Want::Read),
        2 => Ok(Want::Write),
        other => {
            Err(Failure::invalid(format!("a page can't be wanted for {other}; 0 (snapshot), 1 (read), 2 (write)")))
        }
    }
}

fn page(page: MirrorPage) -> PageForC {
    let (place, frame, zero) = match page.place() {
        Some(PageAt::Device(frame)) => (u32::try_from(frame.device.index()).unwrap_or(0) + 1, frame.index.get(), false),
        Some(PageAt::Zero) => (0, 0, true),
        Some(PageAt::System) | None => (0, 0, false),
    };
    let bits = [page.is_valid(), page.is_writable(), page.is_error(), zero, page.is_private()];
    let flags = bits.iter().enumerate().fold(0, |flags, (i, set)| flags | u32::from(*set) << i);
    PageForC { place, frame, flags, order: u32::from(page.order()) }
}

/// `hetmem_mirror_run`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RunForC {
    address: *mut c_void,
    length: usize,
    first: PageForC,
}

fn run(run: &MirrorRun) -> RunForC {
    let address = std::ptr::with_exposed_provenance_mut(usize::try_from(run.range.start().get()).unwrap_or(0));
    RunForC { address, length: run.range.pages().bytes().as_usize(), first: page(run.first) }
}

/// Has `request` answered part by part; `take` is given what is told of each, also of the one that is refused, and says whether to go on.
fn range_fault(
    instance: &Instance,
    range: PageRange,
    request: &FaultRequest,
    mut take: impl FnMut(&[MirrorRun]) -> bool,
) -> Result<(), Failure> {
    if request.reserved != 0 {
        return Err(Failure::invalid("reserved must be 0"));
    }
    let count = if request.wants.is_null() { 0 } else { range.pages().as_usize() };
    // SAFETY: the header's contract: one for each page.
    let wants = unsafe { array(request.wants, count, "wants") }?;
    if let Some(bad) = wants.iter().find(|number| want(**number).is_err()) {
        want(*bad)?;
    }
    let subscription = if request.subscription.is_null() {
        None
    } else {
        // SAFETY: the header's contract.
        Some(unsafe { borrow(request.subscription, "subscription") }?)
    };
    let unless_changed = subscription.map(|s| (&*s.subscription, Seq::new(request.seq)));
    let owner = (request.owner != 0).then_some(Owner::new(request.owner));
    let (runtime, all) = (instance.runtime()?, want(request.want)?);
    let mut runs = Vec::new();
    for part in parts(range) {
        let skip = part.start().pages_since(range.start()).as_usize();
        let len = part.pages().as_usize();
        let wants: Vec<Want> =
            wants.iter().skip(skip).take(len).map(|number| want(*number)).collect::<Result<_, _>>()?;
        let asked = RangeFault { want: all, wants: &wants, owner, unless_changed };
        let result = runtime.range_fault_runs(part, asked, &mut runs);
        let go_on = take(&runs);
        result?;
        if !go_on {
            break;
        }
    }
    Ok(())
}

fn by_pages(
    instance: &Instance,
    range: PageRange,
    request: &FaultRequest,
    mut out: Out<PageForC>,
) -> Result<(), Failure> {
    if out.left() != range.pages().as_usize() {
        return Err(Failure::invalid(format!(
            "there is room for {} answers, but the range has {} pages",
            out.left(),
            range.pages().get()
        )));
    }
    range_fault(instance, range, request, |runs| {
        runs.iter().flat_map(|run| run.pages()).for_each(|(_, answer)| out.put(page(answer)));
        true
    })
}

fn by_runs(
    instance: &Instance,
    range: PageRange,
    request: &FaultRequest,
    mut out: Out<RunForC>,
    mut found: Out<usize>,
) -> Result<(), Failure> {
    let room = out.left();
    if room == 0 {
        return Err(Failure::invalid("there is room for no run"));
    }
    let result = range_fault(instance, range, request, |runs| {
        runs.iter().for_each(|answer| out.put(run(answer)));
        out.left() > 0
    });
    found.put(room - out.left());
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_subscribe(
    runtime: *const Handle,
    address: *const c_void,
    len: usize,
    callback: Option<Callback>,
    user: *mut c_void,
    out: *mut *mut SubscriptionHandle,
) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    // SAFETY: the header's contract.
    let out = unsafe { Out::one(out, "out") };
    answer(instance.and_then(|instance| {
        let (range, mut out) = (pages(address, len)?, out?);
        let callback = callback.ok_or_else(|| Failure::invalid("callback is NULL"))?;
        out.put(Box::into_raw(Box::new(subscribe(instance, range, Told { callback, user })?)));
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_subscription_free(subscription: *mut SubscriptionHandle) {
    // SAFETY: the header's contract.
    drop(unsafe { take(subscription) });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_read_begin(subscription: *const SubscriptionHandle) -> u64 {
    // SAFETY: the header's contract.
    let handle = unsafe { subscription.as_ref() }.filter(|handle| handle.is_of_this_process());
    handle.map_or(0, |handle| handle.subscription.read_begin().get())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_read_retry(subscription: *const SubscriptionHandle, seq: u64) -> i32 {
    // SAFETY: the header's contract.
    let handle = unsafe { subscription.as_ref() }.filter(|handle| handle.is_of_this_process());
    i32::from(handle.is_none_or(|handle| handle.subscription.read_retry(Seq::new(seq))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_notice_address(notice: *const Notice<'_>) -> *mut c_void {
    // SAFETY: the header's contract.
    let start = unsafe { notice.as_ref() }.map_or(0, |notice| notice.range().start().get());
    std::ptr::with_exposed_provenance_mut(usize::try_from(start).unwrap_or(0))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_notice_length(notice: *const Notice<'_>) -> usize {
    // SAFETY: the header's contract.
    let pages = unsafe { notice.as_ref() }.map(|notice| notice.range().pages());
    pages.and_then(|pages| pages.as_usize().checked_mul(4096)).unwrap_or(0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_notice_event(notice: *const Notice<'_>) -> u32 {
    // SAFETY: the header's contract.
    unsafe { notice.as_ref() }.map_or(0, |notice| match notice.event() {
        Event::Unmap => 1,
        Event::Clear => 2,
        Event::ProtectionVma => 3,
        Event::ProtectionPage => 4,
        Event::Release => 5,
        Event::Migrate(_) => 6,
        Event::Exclusive(_) => 7,
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_notice_owner(notice: *const Notice<'_>) -> u64 {
    // SAFETY: the header's contract.
    unsafe { notice.as_ref() }.map_or(0, |notice| match notice.event() {
        Event::Migrate(owner) | Event::Exclusive(owner) => owner.map_or(0, Owner::get),
        Event::Unmap | Event::Clear | Event::ProtectionVma | Event::ProtectionPage | Event::Release => 0,
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_notice_may_wait(notice: *const Notice<'_>) -> i32 {
    // SAFETY: the header's contract.
    i32::from(unsafe { notice.as_ref() }.is_some_and(Notice::may_wait))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_notice_set_seq(notice: *const Notice<'_>) {
    // SAFETY: the header's contract.
    if let Some(notice) = unsafe { notice.as_ref() } {
        notice.set_seq();
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_announce(
    runtime: *const Handle,
    address: *const c_void,
    len: usize,
    event: u32,
    change: Option<Change>,
    user: *mut c_void,
) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    answer(instance.and_then(|instance| {
        let range = pages(address, len)?;
        let change = change.ok_or_else(|| Failure::invalid("change is NULL"))?;
        let event = match event {
            1 => Event::Unmap,
            2 => Event::Clear,
            3 => Event::ProtectionVma,
            4 => Event::ProtectionPage,
            other => {
                return Err(Failure::invalid(format!(
                    "event {other} can't be announced; those of the program are 1 to 4"
                )));
            }
        };
        // SAFETY: the header's contract.
        instance.runtime()?.announce(range, event, || unsafe { change(user) });
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_range_fault(
    runtime: *const Handle,
    address: *const c_void,
    len: usize,
    request: *const FaultRequest,
    answers: *mut PageForC,
    count: usize,
) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    // SAFETY: the header's contract.
    let request = unsafe { borrow(request, "request") };
    // SAFETY: the header's contract.
    let answers = unsafe { Out::many(answers, count, "pages") };
    answer(instance.and_then(|instance| by_pages(instance, pages(address, len)?, request?, answers?)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_range_fault_runs(
    runtime: *const Handle,
    address: *const c_void,
    len: usize,
    request: *const FaultRequest,
    runs: *mut RunForC,
    room: usize,
    found: *mut usize,
) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    // SAFETY: the header's contract.
    let request = unsafe { borrow(request, "request") };
    // SAFETY: the header's contract.
    let runs = unsafe { Out::many(runs, room, "runs") };
    // SAFETY: the header's contract.
    let found = unsafe { Out::one(found, "found") };
    answer(instance.and_then(|instance| by_runs(instance, pages(address, len)?, request?, runs?, found?)))
}
