//! CXL: `/sys/bus/cxl/devices`. Windows are the parts of the address space that the platform gives to CXL (root decoders);
//! regions are what is committed in them; memory devices are behind them.

use serde::Serialize;

use crate::read::{optional, optional_node};
use crate::root::{Root, Unreadable, numbered};
use crate::source::{MAX_ENTRIES, Problems, Source, SourceId, count};
use crate::span::Span;

/// A CXL memory device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CxlMemory {
    /// `mem0`.
    pub name: String,
    /// Its volatile capacity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volatile_bytes: Option<u64>,
    /// Its persistent capacity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_bytes: Option<u64>,
    /// The node that it is near.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<u32>,
}

/// A window or a region, by its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) span: Span,
}

/// All of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Cxl {
    pub(crate) windows: Vec<Part>,
    pub(crate) regions: Vec<Part>,
    pub(crate) memories: Vec<CxlMemory>,
}

/// Reads it.
pub(crate) fn read(root: &Root) -> (Source, Cxl) {
    let id = SourceId::Cxl;
    let names = match root.names(id.path()) {
        Ok(names) => names,
        Err(why) => return (Source::unreadable(id, &why), Cxl::default()),
    };
    let mut problems = Problems::default();
    let mut cxl = Cxl::default();
    for name in names.into_iter().take(MAX_ENTRIES) {
        let dir = format!("{}/{name}", id.path());
        if numbered(&name, "mem").is_some() {
            cxl.memories.push(CxlMemory {
                volatile_bytes: optional(root, &format!("{dir}/ram/size"), &mut problems),
                persistent_bytes: optional(root, &format!("{dir}/pmem/size"), &mut problems),
                node: optional_node(root, &format!("{dir}/numa_node"), &mut problems),
                name,
            });
        } else if numbered(&name, "region").is_some() {
            cxl.regions.extend(part(root, name, "resource", &mut problems));
        } else if name.strip_prefix("decoder0.").is_some() {
            cxl.windows.extend(part(root, name, "start", &mut problems));
        }
    }
    let detail = format!(
        "{}, {}, {}",
        count(cxl.windows.len(), "window", "windows"),
        count(cxl.regions.len(), "region", "regions"),
        count(cxl.memories.len(), "memory device", "memory devices")
    );
    (Source::read(id, detail, problems), cxl)
}

fn part(root: &Root, name: String, start: &str, problems: &mut Problems) -> Option<Part> {
    let dir = format!("{}/{name}", SourceId::Cxl.path());
    match (root.number(&format!("{dir}/{start}")), root.number(&format!("{dir}/size"))) {
        (Ok(start), Ok(size)) => {
            let span = Span::sized(start, size);
            if span.is_none() && size > 0 {
                problems.add(format!("{name}: {size:#x} bytes from {start:#x} are no range"));
            }
            Some(Part { name, span: span? })
        }
        (Err(Unreadable::Denied), _) | (_, Err(Unreadable::Denied)) => {
            problems.add(format!("{name}: root may read where it is"));
            None
        }
        (Err(why), _) | (_, Err(why)) => {
            problems.add(format!("{name}: {}", why.words()));
            None
        }
    }
}
