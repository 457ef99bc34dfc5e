//! A NUMA node that plays device memory, in both types: CXL or HBM memory that the kernel has made a node of, or the memory of another
//! socket.
//!
//! Frames are anonymous pages of an arena that prefers the node. Whether a frame's page *is* on the node is asked each time the frame
//! is about to be filled ([`Device::prepare`]), and mended or refused there:
//!
//! | the page is | then |
//! | --- | --- |
//! | on the node | it is used |
//! | not there, or the zero page (the kernel leaves those where it divides a huge page) | it is made present, whole huge pages where the node has them, and asked for again |
//! | elsewhere | the kernel is asked to move it; it is counted as a stray unless it was new |
//! | elsewhere still | the node is full: the frames that were asked for are refused, and their pages dropped |
//!
//! A page that a migration moves into the program keeps its frame: the kernel allocates nothing then, and the policy of the
//! *program's* mapping is not asked. It stays on the node as long as nobody moves it:
//!
//! * NUMA balancing doesn't, in programs under `hetmem run`
//!   ([`keep_from_balancing`](hetmem_sys::numa::keep_from_balancing)); others turn it off (`kernel.numa_balancing=0`).
//! * Administrators, other programs (`migratepages`, `move_pages` of another process) and the end of a node do; so does demotion under pressure
//!   (`numa/demotion_enabled`) and, where a huge page is made of pages of several nodes, khugepaged.
//! * The kernel copies a page that was shared by a fork to wherever the policy of the writer says.
//!
//! So where a page is that the program maps is asked, too ([`Device::astray`]), before anything is said or decided of it.
//!
//! *Limits:* each process has frames of its own, so processes together may want more than the node has; what doesn't fit stays in
//! system memory.

use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::{MemoryType, Owner, Pagemap};
use hetmem_core::port::{Astray, Device, NoBacking, Reach, Transfer};
use hetmem_core::units::{BLOCK_PAGES, ByteLen, DeviceId, PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::Arena;
use hetmem_sys::numa::{Node, Place, nodes_of};
use hetmem_sys::pagemap::PagemapScanner;

use crate::emulated::reserve;
use crate::frames::Frames;
use crate::kind::{Footprint, HostProblem, Kind, MakeError};
use crate::spec::{DeviceSpec, default_size};

/// `node=N`.
pub(crate) struct NodeKind;

fn node(argument: &str) -> Option<Node> {
    // `parse` would take a sign.
    let digits = argument.chars().all(|c| c.is_ascii_digit());
    digits.then(|| argument.parse().ok()).flatten().and_then(Node::new)
}

fn node_on_host(argument: &str) -> Result<Node, HostProblem> {
    node(argument).ok_or_else(|| HostProblem::new(not_a_node(argument)))
}

fn not_a_node(argument: &str) -> String {
    format!("node: `{argument}` is not the number of a NUMA node; give node=N, as in coherent:node=1,size=1G")
}

impl Kind for NodeKind {
    fn name(&self) -> &'static str {
        "node"
    }

    fn syntax(&self) -> &'static str {
        "node=N"
    }

    fn help(&self) -> &'static str {
        "memory of NUMA node N"
    }

    fn check_argument(&self, argument: Option<&str>) -> Result<(), String> {
        let number = argument.unwrap_or_default();
        node(number).map(drop).ok_or_else(|| not_a_node(number))
    }

    fn default_size(&self, argument: &str, _memory: ByteLen) -> Result<ByteLen, HostProblem> {
        Ok(default_size(node_on_host(argument)?.memory().map_err(HostProblem::new)?))
    }

    fn footprint(&self) -> Footprint {
        Footprint::Size
    }

    fn shares_size(&self) -> bool {
        true
    }

    fn check_host(&self, argument: &str, _memory_type: MemoryType, size: ByteLen) -> Result<(), HostProblem> {
        let node = node_on_host(argument)?;
        let have = node.memory().map_err(HostProblem::new)?;
        if size > have {
            return Err(HostProblem::new(format!("size {size} is more than node {node} has ({have})")));
        }
        Ok(())
    }

    fn is_balanced(&self) -> bool {
        true
    }

    fn make(&self, id: DeviceId, owner: Owner, spec: &DeviceSpec) -> Result<Box<dyn Device>, MakeError> {
        let node =
            node_on_host(spec.backend.argument()).map_err(|problem| MakeError::Unsuitable(problem.to_string()))?;
        Ok(Box::new(NodeMemory::new(id, owner, spec, node)?))
    }
}

/// A device whose frames are pages of this process on a NUMA node.
pub struct NodeMemory {
    frames: Frames,
    arena: Arena,
    node: Node,
    scanner: PagemapScanner,
}

/// Where the pages of a run of frames are.
#[derive(Default)]
struct Survey {
    /// Whether some are not there.
    holes: bool,
    /// Pages that are not on the node.
    astray: Vec<VirtAddr>,
}

impl NodeMemory {
    /// The device that `spec` describes, on `node`, with `device` as its id and `owner` as the owner of its pages.
    ///
    /// # Errors
    ///
    /// If the host has no address space for it, or has no such node for this process.
    pub fn new(device: DeviceId, owner: Owner, spec: &DeviceSpec, node: Node) -> Result<Self, Errno> {
        let arena = reserve(spec)?;
        node.prefer_for(arena.range())?;
        Ok(Self {
            frames: Frames::new(device, owner, spec.memory_type, arena.range()),
            arena,
            node,
            scanner: PagemapScanner::open()?,
        })
    }

    fn survey(&self, range: PageRange) -> Result<Survey, Errno> {
        let mut survey = Survey::default();
        nodes_of(range, |page, place| match place {
            Place::On(node) if node == self.node => {}
            // The zero page is no page of the device's either; populating takes its place, too.
            Place::Hole | Place::Zero => survey.holes = true,
            Place::On(_) | Place::Unknown(_) => survey.astray.push(page),
        })?;
        Ok(survey)
    }

    /// Whether `range` is one huge page on the node: the common case of large migrations, found out with two questions and not one
    /// for each page.
    fn is_settled_huge_page(&self, range: PageRange) -> bool {
        if range.pages().get() != BLOCK_PAGES || range.start().index_in_block() != 0 {
            return false;
        }
        let mut there = false;
        let asked = nodes_of(PageRange::page_of(range.start()), |_, place| there = place == Place::On(self.node));
        asked.is_ok() && there && self.scanner.is_huge(range) == Ok(true)
    }

    /// Makes the pages of `range` present, on the node; says how many were elsewhere.
    fn settle(&self, range: PageRange) -> Result<PageCount, Errno> {
        self.arena.open(range)?;
        if self.is_settled_huge_page(range) {
            return Ok(PageCount::ZERO);
        }
        let mut survey = self.survey(range)?;
        let strays = PageCount::new(survey.astray.len() as u64);
        if survey.holes {
            // A page that is there already is only looked at.
            self.arena.populate(range)?;
            survey = self.survey(range)?;
        }
        if survey.astray.is_empty() {
            return Ok(strays);
        }
        // What it could not do shows in the next survey.
        let _ = self.node.bring(&survey.astray);
        let left = self.survey(range)?;
        if left.astray.is_empty() && !left.holes { Ok(strays) } else { Err(Errno::NOMEM) }
    }
}

impl Device for NodeMemory {
    fn pagemap(&self) -> &Pagemap {
        &self.frames.pagemap
    }

    fn reach(&self) -> Reach {
        match self.frames.pagemap.memory_type {
            MemoryType::DevicePrivate => Reach::Copied,
            MemoryType::DeviceCoherent => Reach::Movable(self.frames.start()),
        }
    }

    fn is_kept_populated(&self) -> bool {
        true
    }

    fn readable(&self) -> Option<VirtAddr> {
        Some(self.frames.start())
    }

    fn device_side(&self) -> Option<VirtAddr> {
        Some(self.frames.start())
    }

    fn prepare(&self, run: FrameRun) -> Result<PageCount, NoBacking> {
        let place = self.frames.place(run);
        self.settle(place).map_err(|_| {
            // Those elsewhere are no use, and in the others may be what earlier pages have left.
            let _ = self.arena.discard(place);
            NoBacking
        })
    }

    fn astray(&self, range: PageRange, visit: &mut dyn FnMut(VirtAddr, Astray)) {
        if self.is_settled_huge_page(range) {
            return;
        }
        let asked = nodes_of(range, |page, place| match place {
            Place::On(node) if node == self.node => {}
            Place::On(_) | Place::Unknown(_) => visit(page, Astray::Elsewhere),
            Place::Hole | Place::Zero => visit(page, Astray::Nowhere),
        });
        if asked.is_err() {
            // A filter of system calls, say: nobody knows that they are there.
            range.iter().for_each(|page| visit(page, Astray::Elsewhere));
        }
    }

    fn transfer(&self, batch: &mut [Transfer]) {
        batch.iter_mut().for_each(|transfer| self.frames.copy(transfer));
    }

    fn clear(&self, run: FrameRun) {
        self.frames.clear(run);
    }
}
