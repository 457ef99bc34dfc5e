//! The combinations that each row is tried in.
#![allow(dead_code, reason = "each test uses a part")]

use std::ops::Deref;

use hetmem::{FaultPath, KeptReason, Outcomes, PageOutcome, Request, Residency, Runtime, Select, Target};
use hetmem_core::physmap::Owner;
use hetmem_core::units::{ByteLen, DeviceId, PageCount, PageRange};
use hetmem_devices::spec::parse_all;
use hetmem_sys::pagemap::Categories;

use crate::common::{COHERENT, PRIVATE, Raw};

/// Memory of a case: a huge page, the next one, and a few pages more.
pub(crate) const PAGES: u64 = 1024 + 8;

/// A device, and whether the program's memory is of huge pages.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) device: DeviceId,
    pub(crate) huge: bool,
}

impl Case {
    /// Tries `test` in each combination, with a runtime of its own that has both devices. A failure names the combination.
    pub(crate) fn each(test: impl Fn(&Self, &Runtime)) {
        Self::each_with("", test);
    }

    /// The same, with `options` for the devices.
    pub(crate) fn each_with(options: &str, test: impl Fn(&Self, &Runtime)) {
        for device in [PRIVATE, COHERENT] {
            for huge in [false, true] {
                let case = Self { device, huge };
                let _named = Named(case);
                let specs = ["private", "coherent"].map(|kind| format!("{kind}:emulated,size=64M{options}"));
                let specs = parse_all(&specs, ByteLen::new(1 << 40)).unwrap();
                let builder = specs.into_iter().fold(Runtime::builder().sigbus(), hetmem::Builder::device);
                let runtime = builder.start().unwrap();
                test(&case, &runtime);
                runtime.check();
            }
        }
    }

    pub(crate) fn is_private(&self) -> bool {
        self.device == PRIVATE
    }

    /// What selects the device's pages.
    pub(crate) fn select(&self) -> Select {
        if self.is_private() { Select::DEVICE_PRIVATE } else { Select::DEVICE_COHERENT }
    }

    /// The device that this case is not about.
    pub(crate) fn other(&self) -> DeviceId {
        if self.is_private() { COHERENT } else { PRIVATE }
    }

    /// To the device.
    pub(crate) fn there(&self) -> Request {
        Request::all_to(Target::Device(self.device))
    }

    /// Memory with or without huge pages, with nothing in it.
    pub(crate) fn empty(&self, pages: u64) -> Raw {
        let memory = Raw::aligned(pages);
        memory.advise(if self.huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE });
        memory
    }

    /// The same, written.
    pub(crate) fn written(&self, pages: u64) -> Raw {
        let memory = self.empty(pages);
        memory.fill();
        assert_eq!(memory.has(Categories::HUGE), self.huge && pages.is_multiple_of(512) && gives_huge_pages());
        memory
    }

    /// The same, under management.
    pub(crate) fn managed<'r>(&self, runtime: &'r Runtime) -> Managed<'r> {
        Managed::new(runtime, self.written(PAGES))
    }
}

/// Whether the kernel makes huge pages where they are asked for; else the rows are tried with small ones only, and say so.
pub(crate) fn gives_huge_pages() -> bool {
    static GIVES: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *GIVES.get_or_init(|| {
        let gives = Raw::huge().is_some();
        if !gives {
            eprintln!("skipped: huge pages (the kernel gives none here)");
        }
        gives
    })
}

/// Names the combination if the test fails in it.
struct Named(Case);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kind = if self.0.is_private() { "private" } else { "coherent" };
            eprintln!("with a {kind} device, huge pages {}", if self.0.huge { "on" } else { "off" });
        }
    }
}

/// Memory under a runtime's management until it is dropped.
pub(crate) struct Managed<'r> {
    runtime: &'r Runtime,
    raw: Raw,
}

impl<'r> Managed<'r> {
    pub(crate) fn new(runtime: &'r Runtime, raw: Raw) -> Self {
        Self::by(runtime, raw, FaultPath::Thread)
    }

    pub(crate) fn by(runtime: &'r Runtime, raw: Raw, path: FaultPath) -> Self {
        // SAFETY: no allocator and no thread uses it.
        unsafe { runtime.adopt(raw.range(), path) }.unwrap();
        Self { runtime, raw }
    }

    /// Migrates all of it, and says what became of all its pages.
    pub(crate) fn migrate(&self, request: Request) -> PageOutcome {
        let outcomes = self.runtime.migrate(self.raw.range(), request);
        the_same(&outcomes)
    }

    /// Puts all of it where a row begins.
    pub(crate) fn place(&self, case: &Case) {
        assert_eq!(self.migrate(case.there()), PageOutcome::Moved);
        assert!(self.is_at(Residency::Device(case.device)));
    }

    /// Whether all of it is there.
    pub(crate) fn is_at(&self, residency: Residency) -> bool {
        self.runtime.residency(self.raw.range()).iter().all(|r| *r == residency)
    }

    /// Checks that all its pages are what [`Raw::fill`] wrote.
    pub(crate) fn verify(&self) {
        self.raw.verify();
    }
}

impl Deref for Managed<'_> {
    type Target = Raw;
    fn deref(&self) -> &Raw {
        &self.raw
    }
}

impl Drop for Managed<'_> {
    fn drop(&mut self) {
        // Or the books would go on about addresses that another test may get. What was unmapped is not managed any more.
        let _ = self.runtime.release(self.raw.range());
    }
}

/// What became of every page.
pub(crate) fn the_same(outcomes: &Outcomes) -> PageOutcome {
    let first = outcomes.as_slice()[0];
    assert!(outcomes.as_slice().iter().all(|o| *o == first), "the same of all: {outcomes:?}");
    first
}

pub(crate) const fn kept(reason: KeptReason) -> PageOutcome {
    PageOutcome::Kept(reason)
}

pub(crate) fn owner(runtime: &Runtime, device: DeviceId) -> Option<Owner> {
    Some(runtime.owner(device).unwrap())
}

/// `count` pages of `range` from its page `first` on.
pub(crate) fn part(range: PageRange, first: u64, count: u64) -> PageRange {
    range.slice(PageCount::new(first), PageCount::new(count))
}
