//! Frames that are memory in this process's address space, one after the other, and the copies into and out of them: what
//! the backends have in common.
//!
//! Latency, bandwidth and failures of copies can be injected.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::{MemoryType, Owner, Pagemap};
use hetmem_core::port::DeviceError;
use hetmem_core::sync::atomic::{AtomicU64, Ordering};
use hetmem_core::units::{ByteLen, DeviceId, PageCount, PageRange, VirtAddr};
use hetmem_sys::copy::{clear_pages, copy_pages, stream_pages};

use crate::spec::DeviceSpec;

/// See the module.
pub(crate) struct Frames {
    // Invariant: frame i of the pagemap is page i of the range, which is mapped, readable and writable as long as the backend
    // that made this lives, and nobody's but that backend's.
    pub(crate) pagemap: Pagemap,
    range: PageRange,
    latency: Duration,
    bandwidth: Option<ByteLen>,
    fail_every: Option<NonZeroU64>,
    copies: AtomicU64,
}

impl Frames {
    /// The frames of the device that `spec` describes: the pages of `range`.
    pub(crate) fn new(device: DeviceId, owner: Owner, spec: &DeviceSpec, range: PageRange) -> Self {
        Self {
            pagemap: Pagemap::new(device, spec.memory_type, owner, range.pages()),
            range,
            latency: spec.latency,
            bandwidth: spec.bandwidth,
            fail_every: spec.fail_every,
            copies: AtomicU64::new(0),
        }
    }

    /// As [`hetmem_core::port::Device::frames_start`].
    pub(crate) fn start(&self) -> Option<VirtAddr> {
        match self.pagemap.memory_type {
            MemoryType::DeviceCoherent => Some(self.range.start()),
            MemoryType::DevicePrivate => None,
        }
    }

    /// As [`hetmem_core::port::Device::device_side`].
    pub(crate) const fn device_side(&self) -> VirtAddr {
        self.range.start()
    }

    /// Where the frames of `run` are.
    ///
    /// # Panics
    ///
    /// If the device doesn't have them.
    pub(crate) fn place(&self, run: FrameRun) -> PageRange {
        let skip = PageCount::new(u64::from(run.first.get()));
        assert!(skip + run.pages <= self.range.pages(), "the device has the frames");
        self.range.slice(skip, run.pages)
    }

    /// As [`hetmem_core::port::Device::copy_in`].
    pub(crate) fn copy_in(&self, to: FrameRun, from: VirtAddr) -> Result<(), DeviceError> {
        self.copy(self.place(to).start(), from, to.pages, NextUser::Nobody)
    }

    /// As [`hetmem_core::port::Device::copy_out`].
    pub(crate) fn copy_out(&self, from: FrameRun, to: VirtAddr) -> Result<(), DeviceError> {
        // A fault brings few pages, and somebody waits for them; a migration home brings many.
        let next = if from.pages > FEW { NextUser::Nobody } else { NextUser::Cpu };
        self.copy(to, self.place(from).start(), from.pages, next)
    }

    /// As [`hetmem_core::port::Device::clear`].
    #[expect(unsafe_code, reason = "the frames are memory of this process")]
    pub(crate) fn clear(&self, run: FrameRun) {
        let place = self.place(run);
        // SAFETY: frames of this device, which nobody refers to.
        unsafe { clear_pages(place.start(), run.pages) };
    }

    #[expect(unsafe_code, reason = "the frames are memory of this process")]
    fn copy(&self, to: VirtAddr, from: VirtAddr, pages: PageCount, next: NextUser) -> Result<(), DeviceError> {
        // Relaxed: the count is only for choosing which copies fail.
        let number = self.copies.fetch_add(1, Ordering::Relaxed) + 1;
        if self.fail_every.is_some_and(|every| number.is_multiple_of(every.get())) {
            return Err(DeviceError);
        }
        let due = self.injected(pages).map(|delay| (Instant::now(), delay));
        match next {
            // SAFETY: one side is frames of this device, which the caller has references to; the other, by the contract of
            // the trait, is memory of hetmem that nobody else uses meanwhile.
            NextUser::Cpu => unsafe { copy_pages(to, from, pages) },
            // SAFETY: as above.
            NextUser::Nobody => unsafe { stream_pages(to, from, pages) },
        }
        if let Some((start, delay)) = due {
            wait_until(start, delay);
        }
        Ok(())
    }

    /// How long a copy of `pages` is to take, if that is not as long as it takes.
    fn injected(&self, pages: PageCount) -> Option<Duration> {
        let transfer = self.bandwidth.map_or(Duration::ZERO, |rate| {
            let nanoseconds = u128::from(pages.bytes().get()) * 1_000_000_000 / u128::from(rate.get());
            Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
        });
        let delay = self.latency + transfer;
        (!delay.is_zero()).then_some(delay)
    }
}

/// Who uses pages next after they were copied.
#[derive(Clone, Copy)]
enum NextUser {
    Cpu,
    Nobody,
}

/// Copies of more pages than this are no fault's ([`hetmem_core::fault::MAX_AROUND`]).
const FEW: PageCount = PageCount::new(hetmem_core::fault::MAX_AROUND as u64);

/// Waits until `delay` after `start`. The system's sleep is too coarse for the microseconds that devices take, so the end
/// of the wait is spun away: this models the time in which a processor waits for its own load or store.
fn wait_until(start: Instant, delay: Duration) {
    const COARSE: Duration = Duration::from_micros(200);
    loop {
        let left = delay.saturating_sub(start.elapsed());
        if left.is_zero() {
            return;
        }
        if left > COARSE {
            let nanoseconds = (left - COARSE).as_nanos().min(999_999_999);
            hetmem_sys::thread::backoff_sleep(u32::try_from(nanoseconds).unwrap_or(999_999_999));
        } else {
            std::hint::spin_loop();
        }
    }
}
