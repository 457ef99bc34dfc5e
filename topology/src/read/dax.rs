//! DAX devices: `/sys/bus/dax/devices`. Their addresses are for root to read; their names, sizes and drivers are for all.

use std::ffi::OsStr;

use crate::model::Known;
use crate::read::{optional, optional_node};
use crate::root::{Root, Unreadable, numbered};
use crate::source::{MAX_ENTRIES, Problems, Source, SourceId, count};
use crate::span::Span;

/// A DAX device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Device {
    pub(crate) name: String,
    /// `device_dax`, `kmem`, or none.
    pub(crate) driver: Option<String>,
    pub(crate) size: Option<u64>,
    pub(crate) align: Option<u64>,
    /// The node that its memory belongs to, or would make.
    pub(crate) target_node: Option<u32>,
    /// Whether it is on persistent memory: such a device is below a bus of libnvdimm.
    pub(crate) persistent: Known,
    /// Where it is, in parts; empty if that is not known.
    pub(crate) spans: Vec<Span>,
}

/// Reads them.
pub(crate) fn read(root: &Root) -> (Source, Vec<Device>) {
    let id = SourceId::Dax;
    let names = match root.names(id.path()) {
        Ok(names) => names,
        Err(why) => return (Source::unreadable(id, &why), Vec::new()),
    };
    let mut problems = Problems::default();
    let names = names.into_iter().filter(|name| is_device(name)).take(MAX_ENTRIES);
    let devices: Vec<_> = names.map(|name| device(root, name, &mut problems)).collect();
    (Source::read(id, count(devices.len(), "device", "devices"), problems), devices)
}

fn device(root: &Root, name: String, problems: &mut Problems) -> Device {
    let dir = format!("{}/{name}", SourceId::Dax.path());
    let size = optional(root, &format!("{dir}/size"), problems);
    let mut spans = Vec::new();
    let mut denied = false;
    // `mapping` without a number is where new ones are asked for.
    for mapping in root.names(&dir).unwrap_or_default().iter().filter(|name| numbered(name, "mapping").is_some()) {
        let ends = |end| root.number(&format!("{dir}/{mapping}/{end}"));
        match (ends("start"), ends("end")) {
            (Ok(start), Ok(end)) => match Span::inclusive(start, end) {
                Some(span) => spans.push(span),
                None => problems.add(format!("{dir}/{mapping}: {start:#x} to {end:#x} is no range")),
            },
            (Err(Unreadable::Denied), _) | (_, Err(Unreadable::Denied)) => denied = true,
            (Err(why), _) | (_, Err(why)) => problems.add(format!("{dir}/{mapping}: {}", why.words())),
        }
    }
    if spans.is_empty() {
        match root.number(&format!("{dir}/resource")) {
            Ok(start) => spans.extend(size.and_then(|size| Span::sized(start, size))),
            Err(Unreadable::Denied) => denied = true,
            Err(Unreadable::Absent) => {}
            Err(Unreadable::Failed(why)) => problems.add(why),
        }
    }
    if denied {
        problems.add(format!("{name}: root may read where it is"));
    }
    Device {
        driver: root.link_name(&format!("{dir}/driver")),
        align: optional(root, &format!("{dir}/align"), problems),
        target_node: optional_node(root, &format!("{dir}/target_node"), problems),
        persistent: match root.link(&dir) {
            Some(path) if path.iter().any(is_nvdimm_bus) => Known::Yes,
            Some(_) => Known::No,
            None => Known::Unknown,
        },
        name,
        size,
        spans,
    }
}

/// `ndbus0`.
fn is_nvdimm_bus(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| numbered(name, "ndbus").is_some())
}

/// Whether it is the name of a DAX device: `dax0.0`.
pub(crate) fn is_device(name: &str) -> bool {
    name.strip_prefix("dax").and_then(|rest| rest.split_once('.')).is_some_and(|(region, device)| {
        [region, device].iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_recognised() {
        assert!(is_device("dax0.0") && is_device("dax12.3"));
        assert!(!is_device("dax0") && !is_device("dax.") && !is_device("daxy.1"));
    }
}
