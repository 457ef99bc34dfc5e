use hetmem_sys::mapping::{Arena, ArenaOptions};

use super::*;
use crate::conformance;

fn device(spec: &str) -> Compressed {
    Compressed::new(DeviceId::new(0), Owner::new(1), &spec.parse().unwrap()).unwrap()
}

#[test]
fn it_conforms_whether_transfers_end_at_once_or_late() {
    for injected in ["", ",latency=3us", ",latency=1ms"] {
        conformance::check(|capacity| {
            let size = capacity.bytes().get();
            let spec = format!("private:compressed,size={size},memory={size}{injected}").parse().unwrap();
            crate::kind::make(DeviceId::new(0), Owner::new(1), &spec).unwrap()
        });
    }
}

/// A page's worth of memory, and what stands in it.
struct Page(Arena);

impl Page {
    fn new() -> Self {
        Self(Arena::reserve(PageCount::ONE, &ArenaOptions::default()).unwrap())
    }

    #[expect(unsafe_code, reason = "reads and writes a page of its own")]
    fn there_and_back(
        &self,
        device: &Compressed,
        run: FrameRun,
        bytes: &[u8; PAGE],
    ) -> Result<[u8; PAGE], TransferError> {
        let at = self.0.range().start();
        // SAFETY: this arena's page, which nobody else knows.
        unsafe { store_page(at, bytes) };
        let mut batch = [Transfer::into_frames(run, at)];
        device.transfer(&mut batch);
        batch[0].result()?;
        // SAFETY: as above.
        unsafe { store_page(at, &[0xA5; PAGE]) };
        let mut batch = [Transfer::out_of_frames(run, at)];
        device.transfer(&mut batch);
        batch[0].result()?;
        let mut back = [0; PAGE];
        // SAFETY: as above.
        unsafe { load_page(&mut back, at) };
        Ok(back)
    }
}

fn random(seed: u64) -> [u8; PAGE] {
    let mut state = seed | 1;
    std::array::from_fn(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
}

#[test]
fn pages_of_every_kind_come_back_and_are_counted() {
    let device = device("private:compressed,size=4M,memory=1M");
    let page = Page::new();
    let same: [u8; PAGE] = std::array::from_fn(|at| [1, 2, 3, 4][at % 4]);
    let eight: [u8; PAGE] = std::array::from_fn(|at| [1, 2, 3, 4, 5, 6, 7, 8][at % 8]);
    let text: [u8; PAGE] = std::array::from_fn(|at| b"so it goes, and so on. "[at % 23]);
    let mut nearly = random(3);
    nearly[1500..].fill(0);
    let expected = [[0; PAGE], [0xFF; PAGE], same, eight, text, nearly, random(9)];
    let mut runs = Vec::new();
    for bytes in &expected {
        let run = device.pagemap().frames.allocate(PageCount::ONE, VirtAddr::default()).unwrap();
        assert!(page.there_and_back(&device, run, bytes).unwrap() == *bytes);
        runs.push(run);
    }
    let packing = device.packing().unwrap();
    assert_eq!((packing.pages, packing.same_filled_pages, packing.raw_pages), (7, 3, 1));
    assert!(packing.packed_bytes > 4096 + 1500 && packing.packed_bytes < 4096 + 2000, "{packing:?}");
    // Each frame again, with what the next one had.
    for (run, bytes) in runs.iter().zip(expected.iter().cycle().skip(1)) {
        assert!(page.there_and_back(&device, *run, bytes).unwrap() == *bytes);
    }
    assert_eq!(device.packing().unwrap().pages, 7);
    for run in runs {
        device.pagemap().frames.release(run, |run| device.released(run));
    }
    let packing = device.packing().unwrap();
    assert_eq!((packing.pages, packing.packed_bytes), (0, 0));
    lock(&device.store).check();
}

#[test]
fn what_there_is_no_room_for_is_refused_and_what_is_there_stays() {
    let device = device("private:compressed,size=4M,memory=128K");
    let page = Page::new();
    let mut there = Vec::new();
    let refused = loop {
        let run = device.pagemap().frames.allocate(PageCount::ONE, VirtAddr::default()).unwrap();
        match page.there_and_back(&device, run, &random(there.len() as u64)) {
            Ok(_) => there.push(run),
            Err(error) => break error,
        }
    };
    assert_eq!((refused, there.len(), device.room().get()), (TransferError::Full, 32, 0));
    let mut batch = there.iter().map(|run| Transfer::out_of_frames(*run, page.0.range().start())).collect::<Vec<_>>();
    for (seed, transfer) in (0..).zip(&mut batch) {
        device.transfer(std::slice::from_mut(transfer));
        assert_eq!(transfer.result(), Ok(()));
        let run = device.pagemap().frames.allocate(PageCount::ONE, VirtAddr::default()).unwrap();
        // A page of zeros needs no room.
        assert!(page.there_and_back(&device, run, &[0; PAGE]).unwrap() == [0; PAGE]);
        assert!(
            page.there_and_back(&device, there[usize::try_from(seed).unwrap()], &random(seed)).unwrap() == random(seed)
        );
    }
    device.pagemap().frames.release(there.swap_remove(0), |run| device.released(run));
    let run = device.pagemap().frames.allocate(PageCount::ONE, VirtAddr::default()).unwrap();
    assert!(page.there_and_back(&device, run, &random(100)).unwrap() == random(100), "its slot has come free");
    lock(&device.store).check();
}
