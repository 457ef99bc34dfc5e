//! Huge pages stay whole, also where small pages come and go beside them.

use std::sync::atomic::Ordering::Relaxed;

use hetmem::{FaultPath, Mapping, Request, Runtime, Target};
use hetmem_core::units::{ByteLen, DeviceId, PageCount, PageRange};
use hetmem_devices::spec::parse_all;
use hetmem_sys::mapping::{forbid_huge_pages, populate_write};
use hetmem_sys::pagemap::PagemapScanner;

const BLOCKS: u64 = 16;

/// How many blocks of the mapping are huge pages.
fn huge(mapping: &Mapping) -> u64 {
    let scanner = PagemapScanner::open().unwrap();
    mapping.range().by_block().filter(|(_, block)| scanner.is_huge(*block).unwrap()).count() as u64
}

fn skip(why: &str) {
    use std::io::Write as _;
    std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes()).unwrap();
}

#[test]
fn huge_pages_stay_whole_where_small_ones_are_migrated_too() {
    let spec = parse_all(&["coherent:emulated,size=256M"], ByteLen::new(1 << 40)).unwrap().remove(0);
    let runtime = Runtime::builder().device(spec).start().unwrap();
    let map = || runtime.map(ByteLen::new(BLOCKS << 21), FaultPath::Thread).unwrap();
    let (small, large) = (map(), map());
    forbid_huge_pages(small.range()).unwrap();
    for mapping in [&small, &large] {
        populate_write(mapping.range()).unwrap();
        mapping.words().iter().enumerate().step_by(509).for_each(|(i, word)| word.store(i as u64, Relaxed));
    }
    if huge(&large) < BLOCKS {
        return skip("the machine gives no huge pages");
    }
    let migrate = |range: PageRange, target| runtime.migrate(range, Request::all_to(target));
    let device = Target::Device(DeviceId::new(0));
    for round in 0..6 {
        // Whole blocks of small pages, and parts of such.
        let few = small.range().slice(PageCount::new(round * 700), PageCount::new(77));
        for (mapping, range) in [(&small, few), (&small, small.range()), (&large, large.range())] {
            for target in [device, Target::System] {
                migrate(range, target);
                if std::ptr::eq(mapping, &raw const large) {
                    // The kernel may have none for a frame or two.
                    assert!(huge(&large) + 2 >= BLOCKS, "{} in round {round}, {target:?}", huge(&large));
                }
            }
        }
    }
    for mapping in [&small, &large] {
        assert!(mapping.words().iter().enumerate().step_by(509).all(|(i, word)| word.load(Relaxed) == i as u64));
    }
    runtime.check();
}

/// What comes home beyond the stock has to be populated anew.
#[test]
fn huge_pages_come_home_as_such_though_none_is_in_stock() {
    let spec = parse_all(&["coherent:emulated,size=64M"], ByteLen::new(1 << 40)).unwrap().remove(0);
    let runtime = Runtime::builder().device(spec).stock(ByteLen::new(0)).strict_stock().start().unwrap();
    let mapping = runtime.map(ByteLen::new(BLOCKS << 21), FaultPath::Thread).unwrap();
    populate_write(mapping.range()).unwrap();
    mapping.words().iter().enumerate().step_by(509).for_each(|(i, word)| word.store(i as u64, Relaxed));
    if huge(&mapping) < BLOCKS {
        return skip("the machine gives no huge pages");
    }
    for round in 0..3 {
        for target in [Target::Device(DeviceId::new(0)), Target::System] {
            assert_eq!(runtime.migrate(mapping.range(), Request::all_to(target)).moved(), mapping.range().pages());
            // The kernel may have none for one or two.
            assert!(huge(&mapping) + 2 >= BLOCKS, "{} in round {round}, {target:?}", huge(&mapping));
        }
    }
    assert!(mapping.words().iter().enumerate().step_by(509).all(|(i, word)| word.load(Relaxed) == i as u64));
    runtime.check();
}
