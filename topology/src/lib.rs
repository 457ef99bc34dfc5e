//! What memory a machine has, who claims it, and what hetmem can do with it.
//!
//! The firmware marks a range as special-purpose: does Linux make struct pages for it? A direct map? Who claims it? No single
//! source says. [`look`] reads them all, below any root directory, and reconciles them into ranges of which the same holds
//! everywhere.
//!
//! ```text
//! Root ── read/*  one module a source: files → facts, and how well that went (Source)
//!      └─ acpi/*  SRAT and HMAT from their bytes
//!              └─ reconcile   facts → ranges, nodes, disagreements
//!                       └─ model   Topology, which serialises
//! ```
//!
//! Nothing is changed on the machine, no source is necessary, and none is trusted: a source that is absent, hidden from users,
//! truncated or wrong is named as such in [`Topology::sources`], and where two contradict each other is in
//! [`Topology::disagreements`].
//!
//! *Limits:* what no file of the kernel shows can't be told. Linux exposes no more of the EFI map than its runtime part. A driver that
//! makes struct pages without asking for a resource (amdgpu, for its coherent memory) does not show. Sections are taken for
//! 128 MiB, as on x86-64 and on arm64 with 4 KiB pages.
#![forbid(unsafe_code)]

mod acpi;
mod facts;
pub mod model;
mod read;
mod reconcile;
mod root;
mod source;
mod span;

pub use model::Topology;
pub use root::{Root, RootError};
pub use source::{Source, SourceId, SourceState};
pub use span::{PhysAddr, Span};

/// Reads every source below `root` and reconciles them.
#[must_use]
pub fn look(root: &Root) -> Topology {
    reconcile::reconcile(root.directory(), facts::Facts::read(root))
}
