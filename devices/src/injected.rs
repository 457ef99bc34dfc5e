//! Latency, bandwidth and failures that are injected into the copies of another device, so that ordinary memory is as slow as what it plays.
//!
//! The transfers of one batch wait for the latency together, as a device with a queue has them; bandwidth is shared by all that go on at a time.
//! Short waits are spun away, as the system's sleep is too coarse for the microseconds that devices take: this models the time in which a processor
//! waits for its own load or store. A transfer that is submitted and takes longer ends later, and whoever submitted it goes on meanwhile.

use std::num::NonZeroU64;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use hetmem_core::fault::MAX_UNDER_WAY;
use hetmem_core::frames::{FrameRun, Quota};
use hetmem_core::physmap::Pagemap;
use hetmem_core::port::{Astray, Device, NoBacking, Packing, Progress, Reach, Ticket, Transfer, TransferError};
use hetmem_core::sync::atomic::{AtomicU64, Ordering};
use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{ByteLen, PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::timer::Timer;

use crate::spec::DeviceSpec;

/// Up to here waits are spun away.
const SHORT: Duration = Duration::from_micros(200);

/// A device around another one, which makes the other one's copies slow, or has some of them fail.
pub(crate) struct Injected {
    inner: Box<dyn Device>,
    latency: Duration,
    bandwidth: Option<ByteLen>,
    fail_every: Option<NonZeroU64>,
    transfers: AtomicU64,
    /// When the last byte of what was asked for so far has passed.
    busy_until: Mutex<Option<Instant>>,
    under_way: Mutex<Vec<UnderWay>>,
    /// Set to when the next of them ends.
    timer: Timer,
}

struct UnderWay {
    ticket: Ticket,
    result: Result<(), TransferError>,
    due: Instant,
}

impl Injected {
    /// `inner` as slow and as prone to fail as `spec` says; `inner` itself where it says nothing of that.
    pub(crate) fn wrap(inner: Box<dyn Device>, spec: &DeviceSpec) -> Result<Box<dyn Device>, Errno> {
        let DeviceSpec { latency, bandwidth, fail_every, .. } = *spec;
        if !spec.is_injected() {
            return Ok(inner);
        }
        Ok(Box::new(Self {
            inner,
            latency,
            bandwidth,
            fail_every,
            transfers: AtomicU64::new(0),
            busy_until: Mutex::new(None),
            under_way: Mutex::new(Vec::with_capacity(MAX_UNDER_WAY)),
            timer: Timer::new()?,
        }))
    }

    /// Has the device copy, and fails what is to fail.
    fn copy(&self, batch: &mut [Transfer]) {
        self.inner.transfer(batch);
        let Some(every) = self.fail_every else { return };
        for transfer in batch {
            // Relaxed: the count is only for choosing which fail.
            if (self.transfers.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(every.get()) {
                transfer.progress = Progress::Done(Err(TransferError::Transient));
            }
        }
    }

    /// When a transfer of `pages` that is asked for at `now` has ended.
    fn due(&self, now: Instant, pages: PageCount) -> Instant {
        let Some(rate) = self.bandwidth else { return now + self.latency };
        let nanoseconds = u128::from(pages.bytes().get()) * 1_000_000_000 / u128::from(rate.get());
        let passing = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let mut busy_until = lock(&self.busy_until);
        let passed = busy_until.map_or(now, |until| until.max(now)) + passing;
        *busy_until = Some(passed);
        passed + self.latency
    }

    fn set_timer(&self, under_way: &[UnderWay]) {
        let next = under_way.iter().map(|transfer| transfer.due).min();
        // The kernel refuses no time.
        let _ = self.timer.set(next.map(|due| due.saturating_duration_since(Instant::now())));
    }
}

impl Device for Injected {
    fn transfer(&self, batch: &mut [Transfer]) {
        let now = Instant::now();
        self.copy(batch);
        if let Some(last) = batch.iter().map(|transfer| self.due(now, transfer.frames.pages)).max() {
            wait_until(last);
        }
    }

    fn submit(&self, batch: &mut [Transfer]) {
        let now = Instant::now();
        self.copy(batch);
        for transfer in batch {
            let due = self.due(now, transfer.frames.pages);
            if due.saturating_duration_since(now) <= SHORT {
                wait_until(due);
                continue;
            }
            lock(&self.under_way).push(UnderWay { ticket: transfer.ticket, result: transfer.result(), due });
            transfer.progress = Progress::UnderWay;
        }
        self.set_timer(&lock(&self.under_way));
    }

    fn completions(&self, visit: &mut dyn FnMut(Ticket, Result<(), TransferError>)) {
        let now = Instant::now();
        loop {
            let mut under_way = lock(&self.under_way);
            let Some(ended) = under_way.iter().position(|transfer| transfer.due <= now) else {
                return self.set_timer(&under_way);
            };
            let UnderWay { ticket, result, .. } = under_way.swap_remove(ended);
            drop(under_way);
            visit(ticket, result);
        }
    }

    fn completion_descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.timer.as_fd())
    }

    fn pagemap(&self) -> &Pagemap {
        self.inner.pagemap()
    }

    fn reach(&self) -> Reach {
        self.inner.reach()
    }

    fn is_kept_populated(&self) -> bool {
        self.inner.is_kept_populated()
    }

    fn device_side(&self) -> Option<VirtAddr> {
        self.inner.device_side()
    }

    fn prepare(&self, run: FrameRun) -> Result<PageCount, NoBacking> {
        self.inner.prepare(run)
    }

    fn room(&self) -> PageCount {
        self.inner.room()
    }

    fn packing(&self) -> Option<Packing> {
        self.inner.packing()
    }

    fn count_memory_with_others(&self, quota: Box<dyn Quota>) {
        self.inner.count_memory_with_others(quota);
    }

    fn released(&self, run: FrameRun) {
        self.inner.released(run);
    }

    fn clear(&self, run: FrameRun) {
        self.inner.clear(run);
    }

    fn astray(&self, range: PageRange, visit: &mut dyn FnMut(VirtAddr, Astray)) {
        self.inner.astray(range, visit);
    }
}

fn wait_until(due: Instant) {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        if left > SHORT {
            let nanoseconds = (left - SHORT).as_nanos().min(999_999_999);
            hetmem_sys::thread::backoff_sleep(u32::try_from(nanoseconds).unwrap_or(999_999_999));
        } else {
            std::hint::spin_loop();
        }
    }
}
