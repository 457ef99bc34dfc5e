//! A device that reads a file's mapping while that ends. Alone in its process: where the mapping was another may be then, of which it reads, too.
#![expect(unsafe_code, reason = "tests touch mapped memory")]

mod common;
mod counting;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use common::file::{PAGES, all_moved, file, map, word};
use common::{COHERENT, PRIVATE, runtime, to};
use counting::{accelerator, first};
use hetmem::accelerator::{AccessError, InPlace};
use hetmem::mirror::RangeFaultError;

#[test]
fn a_mapping_that_ends_is_an_error_to_kernels_and_no_signal() {
    let (runtime, path) = (runtime(), file());
    for device in [PRIVATE, COHERENT].into_iter().cycle().take(20) {
        let mapping = map(&runtime, &path);
        let range = mapping.range();
        all_moved(&runtime.migrate(range, to(device)));
        let kernels = accelerator(&runtime, PRIVATE, range, InPlace::Checked);
        let (reads, ends, ended) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                kernels.launch(usize::MAX, |view, i| {
                    let page = first(range, i % PAGES);
                    let found = view.load(page)?;
                    // What is there afterwards is anybody's.
                    assert!(ends.load(SeqCst) || found == word(i % PAGES, 0), "{page} has {found:x}");
                    reads.fetch_add(1, SeqCst);
                    if ended.load(SeqCst) { Err(AccessError::NotMapped(page)) } else { Ok(()) }
                })
            });
            while reads.load(SeqCst) < 500 {
                std::thread::yield_now();
            }
            ends.store(true, SeqCst);
            drop(mapping);
            ended.store(true, SeqCst);
            let why = reading.join().unwrap().unwrap_err();
            let is_gone = matches!(
                why,
                AccessError::NotMapped(_)
                    | AccessError::Fault(RangeFaultError::NoMapping(_) | RangeFaultError::Failed(_))
            );
            assert!(is_gone, "{why:?}");
        });
        drop(kernels);
        runtime.check();
    }
}
