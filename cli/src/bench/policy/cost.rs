//! What a fault costs the program: from the touch to its return, at random, on a device like the measured one.

use std::hint::black_box;
use std::sync::atomic::Ordering::Relaxed;

use hetmem::{ByteLen, FaultPath, Runtime};
use hetmem_sys::mapping::forbid_huge_pages;

use super::contender::Device;
use crate::bench::rounds::timed;
use crate::bench::samples::float;
use crate::bench::setup::{WORDS, failed, fill, send_out, shuffled};
use crate::failure::{Failure, chain};

/// So much is touched, page by page.
const TOUCHED: ByteLen = ByteLen::new(16 << 20);

/// The mean, in microseconds.
pub(super) fn fault(device: Device) -> Result<f64, Failure> {
    let spec = device.spec(TOUCHED).parse().map_err(failed::<hetmem::SpecError>("a device can't be described"))?;
    let runtime = Runtime::builder().device(spec).start().map_err(|error| Failure::Bench(chain(&error)))?;
    let mapping = runtime.map(TOUCHED, FaultPath::Thread).map_err(failed("no memory for hetmem"))?;
    forbid_huge_pages(mapping.range()).map_err(failed("huge pages can't be kept away"))?;
    fill(mapping.words(), 0);
    let order = shuffled(mapping.range().pages().as_usize(), 1);
    let mut time = std::time::Duration::ZERO;
    // The first time warms up.
    for _ in 0..2 {
        send_out(&runtime, mapping.range())?;
        (time, ()) = timed(|| {
            for page in &order {
                black_box(mapping.words()[page * WORDS].load(Relaxed));
            }
        });
    }
    Ok(time.as_secs_f64() * 1e6 / float(order.len() as u64))
}
