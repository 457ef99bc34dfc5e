//! Pages of a program that are on a node's device are on that node: asked of the kernel for each page, after each migration. On a
//! machine with one node the same is asked of that node.
#![expect(unsafe_code, reason = "tests touch mapped memory")]

use hetmem::{FaultPath, Mapping, Request, Residency, Runtime, Target};
use hetmem_core::units::{ByteLen, DeviceId, PageCount, PageRange};
use hetmem_devices::spec::parse_all;
use hetmem_sys::numa::{Node, Place, keep_from_balancing, nodes_of, nodes_with_memory};

/// A coherent device on every node, in their order, and a private one on the last.
fn runtime(nodes: &[Node]) -> Runtime {
    // As `hetmem run` does for its program: the kernel's balancing would undo what is checked here.
    keep_from_balancing().unwrap();
    let mut texts: Vec<String> = nodes.iter().map(|node| format!("coherent:node={node},size=32M")).collect();
    texts.extend(nodes.last().map(|node| format!("private:node={node},size=32M")));
    let specs = parse_all(&texts, ByteLen::new(1 << 40)).unwrap();
    specs.into_iter().fold(Runtime::builder(), hetmem::Builder::device).start().unwrap()
}

fn word(mapping: &Mapping, page: usize) -> *mut u64 {
    mapping.as_ptr().wrapping_add(page * 4096 + (page % 500) * 8).cast()
}

fn fill(mapping: &Mapping, seed: u64) {
    for page in 0..mapping.len() / 4096 {
        // SAFETY: inside the mapping.
        unsafe { word(mapping, page).write_volatile(page as u64 ^ seed) };
    }
}

fn verify(mapping: &Mapping, seed: u64) {
    for page in 0..mapping.len() / 4096 {
        // SAFETY: inside the mapping.
        let found = unsafe { word(mapping, page).read_volatile() };
        assert_eq!(found, page as u64 ^ seed, "page {page}");
    }
}

/// Each page of `range` that is on a coherent device is on the node of that device; returns how many are.
fn check_places(runtime: &Runtime, nodes: &[Node], range: PageRange) -> usize {
    let mut checked = 0;
    let residency = runtime.residency(range);
    nodes_of(range, |page, place| {
        if let Residency::Device(device) = residency[page.pages_since(range.start()).as_usize()]
            && let Some(node) = nodes.get(device.index())
        {
            assert_eq!(place, Place::On(*node), "page {page}");
            checked += 1;
        }
    })
    .unwrap();
    checked
}

#[test]
fn pages_are_on_the_node_of_their_device_after_every_migration() {
    let nodes = nodes_with_memory();
    let runtime = runtime(&nodes);
    let mapping = runtime.map(ByteLen::new(8 << 20), FaultPath::Thread).unwrap();
    let (range, pages) = (mapping.range(), mapping.range().pages().get());
    let mut random = 0x2021_0915_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let targets = nodes.len() as u64 + 2;
    let mut checked = 0;
    for round in 0..50 {
        fill(&mapping, round);
        for _ in 0..4 {
            let first = next(pages);
            // Single pages and whole blocks.
            let take = [1, 16, 512, 1024][usize::try_from(next(4)).unwrap()];
            let part = range.slice(PageCount::new(first), PageCount::new(take.min(pages - first)));
            let target = u8::try_from(next(targets)).unwrap();
            let target =
                if u64::from(target) + 1 == targets { Target::System } else { Target::Device(DeviceId::new(target)) };
            let _outcomes = runtime.migrate(part, Request::all_to(target));
            checked += check_places(&runtime, &nodes, range);
        }
        verify(&mapping, round);
        checked += check_places(&runtime, &nodes, range);
    }
    assert!(checked > 50_000, "{checked} pages were checked");
    for device in &runtime.statistics().devices {
        assert_eq!(device.stray_pages, 0);
    }
    runtime.check();
}

#[test]
fn whole_blocks_move_whole_and_to_the_node() {
    let nodes = nodes_with_memory();
    let runtime = runtime(&nodes);
    let mapping = runtime.map(ByteLen::new(4 << 20), FaultPath::Thread).unwrap();
    fill(&mapping, 7);
    for index in (0..nodes.len()).chain((0..nodes.len()).rev()) {
        let device = DeviceId::new(u8::try_from(index).unwrap());
        let _outcomes = runtime.migrate(mapping.range(), Request::all_to(Target::Device(device)));
        assert_eq!(check_places(&runtime, &nodes, mapping.range()), mapping.range().pages().as_usize());
        verify(&mapping, 7);
    }
}
