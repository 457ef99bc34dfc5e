//! A coherent DAX device used by a program that knows of it: on this machine's own device if there is one, and everywhere on memory of a file that
//! plays it, which is mapped and exchanged in the same way.
#![expect(unsafe_code, reason = "tests fork, and touch memory that is not there")]

mod kernels;
mod processes;

use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, Once, PoisonError, RwLock};
use std::thread;

use hetmem_core::frames::FrameRun;
use hetmem_core::mirror::{Place, RangeFault, Want};
use hetmem_core::physmap::Owner;
use hetmem_core::slot::Frame;
use hetmem_core::units::{BLOCK_PAGES, BLOCK_SIZE, ByteLen, DeviceId, FrameIndex, PageCount, PageRange, VirtAddr};
use hetmem_devices::DaxStore;
use hetmem_devices::spec::DeviceSpec;
use hetmem_sys::dax::DaxDevice;

use crate::{Advice, FaultPath, KeptReason, Mapping, PageOutcome, Request, Residency, Runtime, Target};

const LAID: DeviceId = DeviceId::new(0);
const PRIVATE: DeviceId = DeviceId::new(1);
const COHERENT: DeviceId = DeviceId::new(2);
const BLOCKS: u64 = 8;

/// A fork brings the blocks of all runtimes of the process home, those of other tests, too.
static FORKS: RwLock<()> = RwLock::new(());

/// A runtime with a coherent DAX device of [`BLOCKS`] blocks and emulated ones of both types, and what the device's mappings are called in
/// `/proc/self/maps`.
struct Scene {
    runtime: Runtime,
    name: String,
    /// The stand-in, or the turn on the real device.
    keeps: (Option<OwnedFd>, Option<MutexGuard<'static, ()>>),
}

fn scene_on(device: &DaxDevice, name: &str, keeps: (Option<OwnedFd>, Option<MutexGuard<'static, ()>>)) -> Scene {
    let size = BLOCKS * BLOCK_SIZE;
    let spec: DeviceSpec = format!("coherent:dax={},size={size}", device.path).parse().unwrap();
    let store = DaxStore::on(LAID, Owner::new(1), &spec, device).unwrap();
    // SAFETY: one of hetmem's own devices.
    let builder = unsafe { Runtime::builder().sigbus().custom(Box::new(store)) };
    let emulated = ["private", "coherent"].map(|kind| format!("{kind}:emulated,size=64M").parse().unwrap());
    let runtime = emulated.into_iter().fold(builder, crate::Builder::device).start().unwrap();
    Scene { runtime, name: name.to_owned(), keeps }
}

/// On a file in memory, and on a real device if there is one.
fn scenes() -> Vec<Scene> {
    /// One test at a time has the real device.
    static TURN: Mutex<()> = Mutex::new(());
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = format!("plays-a-dax-device-{}.", NUMBER.fetch_add(1, Relaxed));
    let file = rustix::fs::memfd_create(name.as_str(), rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, BLOCKS * BLOCK_SIZE).unwrap();
    let stand_in = DaxDevice {
        path: format!("/proc/self/fd/{}", file.as_raw_fd()),
        size: ByteLen::new(BLOCKS * BLOCK_SIZE),
        align: ByteLen::new(BLOCK_SIZE),
    };
    let mut scenes = vec![scene_on(&stand_in, &name, (Some(file), None))];
    let real = hetmem_sys::probe::Capabilities::probe().devdax;
    if let Some(device) = real.iter().find_map(|path| DaxDevice::find(path.to_str()?).ok()) {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        scenes.push(scene_on(&device, &device.path, (None, Some(turn))));
    } else {
        skip_the_real_device();
    }
    scenes
}

/// Says once, on the real standard error, which the harness doesn't catch, that the tests are of the stand-in only.
fn skip_the_real_device() {
    static SAID: Once = Once::new();
    // A standard error that is gone is no reason to fail.
    SAID.call_once(|| {
        let _ = std::io::stderr()
            .write_all(b"skipped overlay::tests on a real device: this machine has no /dev/daxX.Y that can be used\n");
    });
}

impl Scene {
    fn map(&self, pages: u64, path: FaultPath) -> Mapping {
        self.runtime.map(PageCount::new(pages).bytes(), path).unwrap()
    }

    /// How many blocks of `range` are the device's memory.
    fn laid_in(&self, range: PageRange) -> u64 {
        let mut found = 0;
        let _ = crate::mappings::visit(|mapping| {
            if String::from_utf8_lossy(mapping.name).contains(&self.name) {
                found += mapping.range.intersect(range).map_or(0, |part| part.pages().get());
            }
        });
        assert!(found.is_multiple_of(BLOCK_PAGES), "blocks are whole");
        found / BLOCK_PAGES
    }

    fn place(&self, mapping: &Mapping, target: Target) {
        let outcomes = self.runtime.migrate(mapping.range(), Request::all_to(target));
        assert_eq!(outcomes.moved(), mapping.range().pages(), "{outcomes:?}");
    }

    fn is_all(&self, mapping: &Mapping, place: Residency) -> bool {
        self.runtime.residency(mapping.range()).iter().all(|page| *page == place)
    }
}

fn fill(mapping: &Mapping, seed: u64) {
    mapping.words().iter().enumerate().for_each(|(i, word)| word.store(i as u64 ^ seed, Relaxed));
}

fn verify(mapping: &Mapping, seed: u64) {
    let wrong = mapping.words().iter().enumerate().find(|(i, word)| word.load(Relaxed) != *i as u64 ^ seed);
    assert!(wrong.is_none(), "{wrong:x?}");
}

fn block(mapping: &Mapping, block: u64) -> PageRange {
    mapping.range().slice(PageCount::new(block * BLOCK_PAGES), PageCount::new(BLOCK_PAGES))
}

const PATHS: [FaultPath; 2] = [FaultPath::Thread, FaultPath::Sigbus];

#[test]
fn pages_are_used_in_place_and_come_home_with_what_was_written() {
    let _unforked = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    for scene in scenes() {
        for path in PATHS {
            let mapping = scene.map(3 * BLOCK_PAGES, path);
            fill(&mapping, 1);
            for from in [Target::System, Target::Device(PRIVATE), Target::Device(COHERENT)] {
                scene.runtime.migrate(mapping.range(), Request::all_to(from));
                scene.place(&mapping, Target::Device(LAID));
                assert_eq!(scene.laid_in(mapping.range()), 3, "each block is the device's");
                verify(&mapping, 1);
                fill(&mapping, 2);
                assert!(scene.is_all(&mapping, Residency::Device(LAID)), "used in place");
                scene.runtime.check();
                scene.place(&mapping, if from == Target::System { Target::Device(PRIVATE) } else { Target::System });
                assert_eq!(scene.laid_in(mapping.range()), 0);
                verify(&mapping, 2);
                fill(&mapping, 1);
                scene.runtime.check();
            }
        }
    }
}

/// There is nothing to fill before: a page that was never written is on the device as zeros.
#[test]
fn fresh_memory_goes_there_as_zeros() {
    let _unforked = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    for scene in scenes() {
        let used = scene.map(2 * BLOCK_PAGES, FaultPath::Thread);
        fill(&used, 3);
        scene.place(&used, Target::Device(LAID));
        drop(used);
        let mapping = scene.map(2 * BLOCK_PAGES, FaultPath::Thread);
        scene.place(&mapping, Target::Device(LAID));
        assert!(mapping.words().iter().all(|word| word.load(Relaxed) == 0), "and not as what was there before");
    }
}

#[test]
fn what_is_no_whole_block_of_a_mapping_of_hetmems_stays() {
    let _unforked = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    let scene = scenes().remove(0);
    let mapping = scene.map(BLOCK_PAGES + 5, FaultPath::Thread);
    fill(&mapping, 4);
    let to = Request::all_to(Target::Device(LAID));
    let outcomes = scene.runtime.migrate(mapping.range(), to);
    assert_eq!(outcomes.moved(), PageCount::new(BLOCK_PAGES));
    assert_eq!(outcomes.kept(KeptReason::PartOfBlock), PageCount::new(5));
    // Of a block that is there already, a part is, too.
    let part = mapping.range().slice(PageCount::new(7), PageCount::new(9));
    assert_eq!(scene.runtime.migrate(part, to).kept(KeptReason::AlreadyThere), PageCount::new(9));

    let pinned = scene.map(BLOCK_PAGES, FaultPath::Thread);
    fill(&pinned, 5);
    scene.runtime.advise(pinned.range(), Advice::Pin).unwrap();
    let outcomes = scene.runtime.migrate(pinned.range(), to);
    assert_eq!(outcomes.kept(KeptReason::Advised), PageCount::new(BLOCK_PAGES));

    // A block of which a part is pinned is pinned whole.
    let half = scene.map(BLOCK_PAGES, FaultPath::Thread);
    fill(&half, 50);
    scene.place(&half, Target::Device(LAID));
    scene.runtime.advise(half.range().slice(PageCount::ZERO, PageCount::new(9)), Advice::Pin).unwrap();
    let other = half.range().slice(PageCount::new(100), PageCount::new(4));
    assert_eq!(scene.runtime.migrate(other, Request::all_to(Target::System)).kept(KeptReason::Advised), other.pages());
    assert!(scene.is_all(&half, Residency::Device(LAID)));
    verify(&half, 50);

    let foreign = scene.map(2 * BLOCK_PAGES, FaultPath::Thread);
    scene.runtime.release(foreign.range()).unwrap();
    let adopted = block(&foreign, 1);
    // SAFETY: memory of the test's own.
    unsafe { scene.runtime.adopt(adopted, FaultPath::Thread) }.unwrap();
    assert_eq!(scene.runtime.migrate(adopted, to).kept(KeptReason::Unsupported), PageCount::new(BLOCK_PAGES));
    verify(&mapping, 4);
    verify(&pinned, 5);
}

#[test]
fn a_full_device_takes_no_more() {
    let _unforked = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    let scene = scenes().remove(0);
    let mapping = scene.map((BLOCKS + 2) * BLOCK_PAGES, FaultPath::Thread);
    fill(&mapping, 6);
    let outcomes = scene.runtime.migrate(mapping.range(), Request::all_to(Target::Device(LAID)));
    assert_eq!(outcomes.moved(), PageCount::new(BLOCKS * BLOCK_PAGES));
    assert_eq!(outcomes.kept(KeptReason::NoFrame), PageCount::new(2 * BLOCK_PAGES));
    verify(&mapping, 6);
    scene.runtime.check();
}

#[test]
fn one_page_takes_its_block_along_and_a_touch_brings_each_other_page() {
    let _unforked = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    for scene in scenes() {
        for path in PATHS {
            let mapping = scene.map(2 * BLOCK_PAGES, path);
            fill(&mapping, 7);
            scene.place(&mapping, Target::Device(LAID));
            let page = mapping.range().slice(PageCount::new(3), PageCount::ONE);
            assert_eq!(scene.runtime.migrate(page, Request::all_to(Target::System)).moved(), PageCount::ONE);
            assert_eq!(scene.laid_in(mapping.range()), 1, "the other block is laid still");
            assert_eq!(scene.runtime.residency(page), [Residency::System]);
            scene.runtime.check();
            verify(&mapping, 7);
            assert!(scene.runtime.residency(block(&mapping, 0)).iter().all(|page| *page == Residency::System));
            scene.place(&scene_half(&mapping, &scene), Target::Device(LAID));
            verify(&mapping, 7);
        }
    }
}

/// A mapping of the same runtime, filled: room on the device is free again.
fn scene_half(like: &Mapping, scene: &Scene) -> Mapping {
    let other = scene.map(like.range().pages().get() / 2, FaultPath::Thread);
    fill(&other, 70);
    other
}

#[test]
fn no_store_is_lost_while_blocks_come_and_go() {
    let _unforked = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    for scene in scenes() {
        for path in PATHS {
            let mapping = scene.map(2 * BLOCK_PAGES, path);
            let stop = AtomicBool::new(false);
            let added: [AtomicU64; 2] = Default::default();
            thread::scope(|scope| {
                for (worker, added) in added.iter().enumerate() {
                    let (words, stop) = (mapping.words(), &stop);
                    scope.spawn(move || {
                        let mut at = worker * 977;
                        while !stop.load(Relaxed) {
                            at = (at + 4099) % words.len();
                            words[at].fetch_add(1, SeqCst);
                            added.fetch_add(1, Relaxed);
                        }
                    });
                }
                let targets =
                    [LAID, PRIVATE, LAID, COHERENT, LAID].map(Target::Device).into_iter().chain([Target::System]);
                for target in targets.cycle().take(60) {
                    scene.runtime.migrate(mapping.range(), Request::all_to(target));
                }
                stop.store(true, Relaxed);
            });
            let total: u64 = mapping.words().iter().map(|word| word.load(Relaxed)).sum();
            assert_eq!(total, added.iter().map(|added| added.load(Relaxed)).sum::<u64>());
            scene.runtime.check();
        }
    }
}

#[test]
fn threads_that_migrate_at_once_get_in_nobodys_way() {
    let _unforked = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    for scene in scenes() {
        let mapping = scene.map(3 * BLOCK_PAGES, FaultPath::Thread);
        fill(&mapping, 8);
        thread::scope(|scope| {
            for offset in 0..3 {
                let (mapping, scene) = (&mapping, &scene);
                scope.spawn(move || {
                    let targets = [Target::Device(LAID), Target::System, Target::Device(PRIVATE)];
                    for round in 0..30 {
                        let request = Request::all_to(targets[(round + offset) % 3]);
                        let range = if round % 2 == 0 { mapping.range() } else { block(mapping, round as u64 % 3) };
                        let outcomes = scene.runtime.migrate(range, request);
                        let unexpected = outcomes.as_slice().iter().find(|outcome| {
                            matches!(outcome, PageOutcome::Kept(KeptReason::Unsupported | KeptReason::Unmanaged))
                        });
                        assert_eq!(unexpected, None, "{outcomes:?}");
                    }
                });
            }
        });
        verify(&mapping, 8);
        scene.runtime.check();
    }
}

#[test]
fn a_mapping_that_ends_leaves_nothing_behind_while_others_migrate_it() {
    let _unforked = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    for scene in scenes() {
        let migrating = AtomicBool::new(true);
        let mappings = std::sync::Mutex::new(None::<PageRange>);
        thread::scope(|scope| {
            let (scene, migrating, mappings) = (&scene, &migrating, &mappings);
            scope.spawn(move || {
                while migrating.load(Relaxed) {
                    let range = *mappings.lock().unwrap();
                    if let Some(range) = range {
                        scene.runtime.migrate(range, Request::all_to(Target::Device(LAID)));
                    }
                }
            });
            for seed in 0..40 {
                let mapping = scene.map(2 * BLOCK_PAGES, FaultPath::Thread);
                *mappings.lock().unwrap() = Some(mapping.range());
                fill(&mapping, seed);
                verify(&mapping, seed);
                let range = mapping.range();
                drop(mapping);
                assert_eq!(scene.laid_in(range), 0, "nothing is laid over what is another's");
            }
            migrating.store(false, Relaxed);
        });
        scene.runtime.check();
        assert_eq!(scene.laid_in(PageRange::ALL), BLOCKS, "hetmem's own is left");
    }
}

#[test]
fn a_device_is_emptied_by_its_frames() {
    let _unforked = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    for scene in scenes() {
        let mapping = scene.map(3 * BLOCK_PAGES, FaultPath::Thread);
        fill(&mapping, 11);
        scene.place(&mapping, Target::Device(LAID));
        let some = FrameRun { first: FrameIndex::new(10), pages: PageCount::new(20) };
        assert_eq!(scene.runtime.evict(LAID, some), PageCount::new(20));
        assert_eq!(scene.laid_in(mapping.range()), 2);
        scene.runtime.remove_device(LAID).unwrap();
        assert!(scene.is_all(&mapping, Residency::System));
        verify(&mapping, 11);
        scene.runtime.check();
    }
}

#[test]
fn a_mirror_is_told_when_a_block_is_lifted_and_sees_its_frames_before() {
    let _unforked = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    for scene in scenes() {
        let mapping = scene.map(BLOCK_PAGES, FaultPath::Thread);
        fill(&mapping, 12);
        scene.place(&mapping, Target::Device(LAID));
        let told = std::sync::Arc::new(AtomicU64::new(0));
        let count = std::sync::Arc::clone(&told);
        let subscription = scene
            .runtime
            .subscribe(mapping.range(), move |notice| {
                notice.set_seq();
                count.fetch_add(1, SeqCst);
            })
            .unwrap();
        let mut pages = vec![Default::default(); mapping.range().pages().as_usize()];
        let request = RangeFault { want: Want::Write, owner: Some(Owner::new(1)), ..RangeFault::default() };
        let seq = subscription.read_begin();
        scene.runtime.range_fault(mapping.range(), request, &mut pages).unwrap();
        for (i, page) in (0..).zip(&pages) {
            let frame = Frame { device: LAID, index: FrameIndex::new(i) };
            assert_eq!((page.place(), page.is_writable()), (Some(Place::Device(frame)), true), "page {i}");
        }
        assert!(!subscription.read_retry(seq), "nothing has changed");
        assert_eq!(told.load(SeqCst), 0);
        let last = mapping.range().slice(PageCount::new(511), PageCount::ONE);
        scene.runtime.migrate(last, Request { owner: Some(Owner::new(1)), ..Request::all_to(Target::System) });
        assert!(told.load(SeqCst) > 0 && subscription.read_retry(seq), "of all pages, whoever has asked for one");
        verify(&mapping, 12);
    }
}

#[test]
fn a_page_is_taken_exclusively_after_a_touch_that_brings_it_home() {
    let _unforked = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    for scene in scenes() {
        let mapping = scene.map(BLOCK_PAGES, FaultPath::Thread);
        fill(&mapping, 13);
        scene.place(&mapping, Target::Device(LAID));
        let page = mapping.range().start();
        let (inner, owner) = (&scene.runtime.inner, Owner::new(5));
        assert_eq!(inner.make_exclusive(page, owner), Err(KeptReason::NotSelected));
        mapping.words()[0].store(99, Relaxed);
        inner.make_exclusive(page, owner).unwrap();
        assert_eq!(mapping.words()[0].swap(13, Relaxed), 99);
        verify(&mapping, 13);
        scene.runtime.check();
    }
}

/// A rule of use, and not what other memory does: the kernel drops no page of a device.
#[test]
fn dropping_pages_of_a_laid_block_keeps_their_bytes() {
    let _unforked = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    for scene in scenes() {
        let mapping = scene.map(BLOCK_PAGES, FaultPath::Thread);
        fill(&mapping, 14);
        scene.place(&mapping, Target::Device(LAID));
        // SAFETY: memory of the test's own.
        unsafe { hetmem_sys::mapping::discard(mapping.range()) }.unwrap();
        verify(&mapping, 14);
        scene.place(&mapping, Target::System);
        verify(&mapping, 14);
        // SAFETY: memory of the test's own.
        unsafe { hetmem_sys::mapping::discard(mapping.range()) }.unwrap();
        assert!(mapping.words().iter().all(|word| word.load(Relaxed) == 0));
    }
}

#[test]
fn what_is_discarded_of_a_laid_block_reads_as_zeros_and_frees_it() {
    let _unforked = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    for scene in scenes() {
        let mapping = scene.map(2 * BLOCK_PAGES, FaultPath::Thread);
        fill(&mapping, 15);
        scene.place(&mapping, Target::Device(LAID));
        let given_up = mapping.range().slice(PageCount::new(BLOCK_PAGES - 3), PageCount::new(10));
        scene.runtime.advise(mapping.range().slice(PageCount::ZERO, PageCount::ONE), Advice::Pin).unwrap();
        // SAFETY: memory of the test's own.
        let refused = unsafe { scene.runtime.discard(given_up) }.unwrap_err();
        assert!(refused.to_string().contains("(advised); nothing was discarded"), "{refused}");
        verify(&mapping, 15);
        scene.runtime.advise(mapping.range(), Advice::Unpin).unwrap();
        // SAFETY: memory of the test's own.
        unsafe { scene.runtime.discard(given_up) }.unwrap();
        assert_eq!(scene.laid_in(mapping.range()), 0);
        for (i, word) in mapping.words().iter().enumerate() {
            let is_gone = given_up.contains(mapping.range().start().add_pages(PageCount::new(i as u64 / 512)));
            assert_eq!(word.load(Relaxed), if is_gone { 0 } else { i as u64 ^ 15 }, "word {i}");
        }
    }
}
