//! One module for each kind of source: reads its files into plain facts, and says how well that went.

pub(crate) mod blocks;
pub(crate) mod cmdline;
pub(crate) mod cxl;
pub(crate) mod dax;
pub(crate) mod firmware;
pub(crate) mod iomem;
pub(crate) mod nodes;
pub(crate) mod pci;

use crate::root::{Root, Unreadable};
use crate::source::Problems;

/// A number that may be missing without harm: what is there and wrong is told, and so is a denial.
pub(crate) fn optional(root: &Root, path: &str, problems: &mut Problems) -> Option<u64> {
    match root.number(path) {
        Ok(number) => Some(number),
        Err(Unreadable::Absent) => None,
        Err(Unreadable::Denied) => {
            problems.add(format!("{path}: root may read it"));
            None
        }
        Err(Unreadable::Failed(why)) => {
            problems.add(why);
            None
        }
    }
}

/// A number as [`optional`], of which `-1` says that there is none.
pub(crate) fn optional_node(root: &Root, path: &str, problems: &mut Problems) -> Option<u32> {
    if root.text(path).is_ok_and(|text| text == "-1") {
        return None;
    }
    optional(root, path, problems).and_then(|number| u32::try_from(number).ok())
}
