//! PCI devices and the memory of their BARs: `/sys/bus/pci/devices/*/resource`.

use crate::read::{optional, optional_node};
use crate::root::{Root, excerpt, number};
use crate::source::{MAX_ENTRIES, Problems, Source, SourceId, count};
use crate::span::Span;

/// Bits of the kernel's resource flags.
const MEMORY: u64 = 0x200;
const PREFETCHABLE: u64 = 0x2000;
/// The class of bridges between PCI buses: past its own BARs, a bridge lists the windows to what is behind it.
const PCI_BRIDGE: u64 = 0x0604;
/// The class of co-processors: cards that compute, with memory of their own.
const CO_PROCESSOR: u64 = 0x0b40;
/// Lines of a bridge's own BARs and ROM.
const OWN_LINES: usize = 7;

/// A memory BAR.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bar {
    pub(crate) device: String,
    pub(crate) index: usize,
    pub(crate) span: Span,
    pub(crate) prefetchable: bool,
    /// The class of the device, 16 bits; 0 if it is not known.
    pub(crate) class: u64,
    pub(crate) driver: Option<String>,
    pub(crate) node: Option<u32>,
}

impl Bar {
    /// Whether the device is one that computes: a display controller, a co-processor, or a processing accelerator.
    pub(crate) const fn is_accelerator(&self) -> bool {
        matches!(self.class >> 8, 0x03 | 0x12) || self.class == CO_PROCESSOR
    }

    /// What kind of device it is, in a word or two.
    pub(crate) const fn class_label(&self) -> &'static str {
        match self.class >> 8 {
            0x01 => "storage",
            0x02 => "network",
            0x03 => "display",
            0x05 => "memory",
            0x06 => "bridge",
            0x0b => "processor",
            0x0c => "bus",
            0x12 => "accelerator",
            _ => "device",
        }
    }
}

/// Reads the devices: their number, and their memory BARs.
pub(crate) fn read(root: &Root) -> (Source, Vec<Bar>) {
    let id = SourceId::Pci;
    let names = match root.names(id.path()) {
        Ok(names) => names,
        Err(why) => return (Source::unreadable(id, &why), Vec::new()),
    };
    let mut problems = Problems::default();
    let mut bars = Vec::new();
    for name in names.iter().take(MAX_ENTRIES) {
        device(root, name, &mut bars, &mut problems);
        if bars.len() > MAX_ENTRIES {
            problems.add(format!("more than {MAX_ENTRIES} BARs: the rest was not read"));
            bars.truncate(MAX_ENTRIES);
            break;
        }
    }
    let (devices, memory) = (count(names.len(), "device", "devices"), count(bars.len(), "memory BAR", "memory BARs"));
    (Source::read(id, format!("{devices}, {memory}"), problems), bars)
}

fn device(root: &Root, name: &str, bars: &mut Vec<Bar>, problems: &mut Problems) {
    let dir = format!("{}/{name}", SourceId::Pci.path());
    let text = match root.text(&format!("{dir}/resource")) {
        Ok(text) => text,
        Err(why) => return problems.add(format!("{dir}/resource: {}", why.words())),
    };
    let class = optional(root, &format!("{dir}/class"), problems).unwrap_or(0) >> 8;
    let driver = root.link_name(&format!("{dir}/driver"));
    let node = optional_node(root, &format!("{dir}/numa_node"), problems);
    let lines = if class == PCI_BRIDGE { OWN_LINES } else { usize::MAX };
    for (index, line) in text.lines().take(lines).enumerate() {
        let fields: Vec<_> = line.split_whitespace().map(number).collect();
        let [Some(start), Some(end), Some(flags)] = fields[..] else {
            problems.add(format!("{dir}/resource: line {} is no BAR: `{}`", index + 1, excerpt(line)));
            continue;
        };
        // BARs without an address are listed as zeros.
        if flags & MEMORY == 0 || start == 0 {
            continue;
        }
        let Some(span) = Span::inclusive(start, end) else {
            problems.add(format!("{dir}/resource: line {} is no range", index + 1));
            continue;
        };
        let prefetchable = flags & PREFETCHABLE != 0;
        bars.push(Bar { device: name.to_owned(), index, span, prefetchable, class, driver: driver.clone(), node });
    }
}
