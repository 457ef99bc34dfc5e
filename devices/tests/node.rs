//! Memory of NUMA nodes as a device: on every node that this machine has, also if that is one.

mod common;

use common::skip;
use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::{MemoryType, Owner};
use hetmem_core::port::{Astray, Device, Transfer};
use hetmem_core::units::{ByteLen, DeviceId, PageCount, PageRange, VirtAddr};
use hetmem_devices::spec::{Backend, parse_all};
use hetmem_devices::{NodeMemory, conformance};
use hetmem_sys::mapping::{Arena, ArenaOptions};
use hetmem_sys::numa::{Node, Place, nodes_of, nodes_with_memory};
use hetmem_sys::pagemap::{Categories, PagemapScanner, Region, ScanQuery};

fn device(spec: &str) -> NodeMemory {
    let specs = parse_all(&[spec], ByteLen::new(1 << 40)).unwrap();
    let node = Node::new(specs[0].backend.argument().parse().unwrap()).unwrap();
    NodeMemory::new(DeviceId::new(0), Owner::new(1), &specs[0], node).unwrap()
}

/// Frames of a coherent device that are ready and filled, and where they are.
fn filled(device: &NodeMemory, pages: u64) -> (FrameRun, PageRange) {
    let from = Arena::reserve(PageCount::new(pages), &ArenaOptions::default()).unwrap();
    let run = device.pagemap().frames.allocate(PageCount::new(pages), VirtAddr::default()).unwrap();
    assert_eq!(run.pages.get(), pages);
    assert_eq!(device.prepare(run), Ok(PageCount::ZERO));
    let mut batch = [Transfer::into_frames(run, from.range().start())];
    device.transfer(&mut batch);
    batch[0].result().unwrap();
    let start = device.reach().movable().unwrap().add_pages(PageCount::new(u64::from(run.first.get())));
    (run, PageRange::new(start, run.pages).unwrap())
}

fn places(range: PageRange) -> Vec<Place> {
    let mut places = Vec::new();
    nodes_of(range, |_, place| places.push(place)).unwrap();
    places
}

#[test]
fn both_types_conform_on_every_node() {
    for node in nodes_with_memory() {
        for kind in [MemoryType::DevicePrivate, MemoryType::DeviceCoherent] {
            conformance::check(|capacity| {
                Box::new(device(&format!("{}:node={node},size={}", kind.label(), capacity.bytes().get())))
            });
        }
    }
}

#[test]
fn every_filled_frame_is_on_its_node() {
    for node in nodes_with_memory() {
        let device = device(&format!("coherent:node={node},size=8M"));
        for pages in [1, 7, 300, 512] {
            let (_, range) = filled(&device, pages);
            assert_eq!(places(range), vec![Place::On(node); range.pages().as_usize()]);
        }
    }
}

#[test]
fn frames_that_nobody_has_asked_for_take_no_memory() {
    let node = nodes_with_memory()[0];
    let device = device(&format!("coherent:node={node},size=8M"));
    let start = device.reach().movable().unwrap();
    assert_eq!(places(PageRange::page_of(start)), [Place::Hole]);
}

#[test]
fn blocks_of_frames_are_whole_huge_pages() {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if !enabled.contains("[always]") && !enabled.contains("[madvise]") {
        return skip("this machine has no transparent huge pages");
    }
    for node in nodes_with_memory() {
        let device = device(&format!("coherent:node={node},size=8M"));
        let (_, range) = filled(&device, 512);
        let query = ScanQuery { all_of: Categories::HUGE, report: Categories::HUGE, ..ScanQuery::default() };
        let mut found = [Region::default(); 1];
        match PagemapScanner::open().unwrap().scan(range, query, &mut found) {
            Ok((1, _)) => assert_eq!(found[0].range(), range),
            Ok(_) => skip(&format!("node {node} has no huge page to give now")),
            Err(errno) => skip(&format!("the page map can't be scanned: {errno}")),
        }
    }
}

#[test]
fn a_page_that_was_moved_away_is_brought_back_and_counted() {
    let nodes = nodes_with_memory();
    let [node, other] = match nodes[..] {
        [node, other, ..] => [node, other],
        _ => return skip("this machine has one NUMA node"),
    };
    let device = device(&format!("coherent:node={node},size=8M"));
    let (run, range) = filled(&device, 4);
    other.bring(&[range.start(), range.slice(PageCount::new(2), PageCount::ONE).start()]).unwrap();
    // A huge page goes as a whole.
    let moved = places(range).iter().filter(|place| **place == Place::On(other)).count() as u64;
    assert!(moved == 2 || moved == 4, "{moved} pages moved");
    let mut astray = 0;
    device.astray(range, &mut |_, place| astray += u64::from(place == Astray::Elsewhere));
    assert_eq!(astray, moved);
    assert_eq!(device.prepare(run), Ok(PageCount::new(moved)));
    assert_eq!(places(range), vec![Place::On(node); 4]);
    device.astray(range, &mut |page, _| panic!("page {page} is on the node"));
}

#[test]
fn a_node_that_cannot_be_has_no_device() {
    let mut specs = parse_all(&["coherent:node=0,size=2M"], ByteLen::new(1 << 40)).unwrap();
    let absent = Node::new(1023).unwrap();
    specs[0].backend = Backend::parse("node=1023").unwrap();
    assert!(NodeMemory::new(DeviceId::new(0), Owner::new(1), &specs[0], absent).is_err());
}

#[test]
#[ignore = "fills a node; the tests in virtual machines run it"]
fn a_full_node_refuses_frames_and_kills_nobody() {
    let node = *nodes_with_memory().last().unwrap();
    // More than is free: the kernel has some of it.
    let device = device(&format!("coherent:node={node},size={}", node.memory().unwrap().get()));
    let mut refused = 0;
    while let Some(run) = device.pagemap().frames.allocate(PageCount::new(512), VirtAddr::default()) {
        refused += u64::from(device.prepare(run).is_err());
    }
    assert!(refused > 0, "no frame was refused");
    let frames = PageRange::new(device.reach().movable().unwrap(), device.pagemap().frames.capacity()).unwrap();
    let mut there = 0;
    nodes_of(frames, |page, place| match place {
        Place::On(on) => {
            assert_eq!(on, node, "page {page}");
            there += 1;
        }
        Place::Hole | Place::Zero => {}
        Place::Unknown(errno) => panic!("page {page}: {errno}"),
    })
    .unwrap();
    assert!(there > frames.pages().get() / 2, "{there} pages are there");
}
