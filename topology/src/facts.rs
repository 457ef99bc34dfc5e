//! All that the sources say, before anything is concluded from it.

use crate::acpi::hmat::{self, Hmat};
use crate::acpi::srat::{self, Srat};
use crate::read::blocks::Blocks;
use crate::read::cmdline::CommandLine;
use crate::read::cxl::Cxl;
use crate::read::iomem::Resource;
use crate::read::nodes::Node;
use crate::read::pci::Bar;
use crate::read::{blocks, cmdline, cxl, dax, firmware, iomem, nodes, pci};
use crate::root::{Root, Unreadable};
use crate::source::{Problems, Source, SourceId, SourceState, count};

/// The facts.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) sources: Vec<Source>,
    pub(crate) memmap: Vec<firmware::Entry>,
    pub(crate) boot_params: Vec<firmware::Entry>,
    pub(crate) efi: Vec<firmware::Entry>,
    pub(crate) resources: Vec<Resource>,
    pub(crate) blocks: Blocks,
    pub(crate) nodes: Vec<Node>,
    pub(crate) dax: Vec<dax::Device>,
    pub(crate) cxl: Cxl,
    pub(crate) bars: Vec<Bar>,
    pub(crate) srat: Srat,
    pub(crate) hmat: Hmat,
    pub(crate) command_line: CommandLine,
}

impl Facts {
    /// Reads all sources.
    pub(crate) fn read(root: &Root) -> Self {
        let mut sources = Vec::new();
        let mut keep = |source| sources.push(source);
        let mut all = Self {
            memmap: told(&mut keep, firmware::memmap(root)),
            boot_params: told(&mut keep, firmware::boot_params(root)),
            efi: told(&mut keep, firmware::efi_runtime_map(root)),
            resources: told(&mut keep, iomem::read(root)),
            blocks: told(&mut keep, blocks::read(root)),
            nodes: told(&mut keep, nodes::read(root)),
            dax: told(&mut keep, dax::read(root)),
            cxl: told(&mut keep, cxl::read(root)),
            bars: told(&mut keep, pci::read(root)),
            srat: told(
                &mut keep,
                table(root, SourceId::Srat, srat::parse, |srat: &Srat| {
                    count(srat.memory.len(), "memory range", "memory ranges")
                }),
            ),
            hmat: told(
                &mut keep,
                table(root, SourceId::Hmat, hmat::parse, |hmat: &Hmat| count(hmat.figures.len(), "figure", "figures")),
            ),
            command_line: told(&mut keep, cmdline::read(root)),
            sources: Vec::new(),
        };
        all.sources = sources;
        all
    }

    fn state(&self, id: SourceId) -> Option<SourceState> {
        self.sources.iter().find(|source| source.id == id).map(|source| source.state)
    }

    /// Whether what a source doesn't name is not there; otherwise it may be what the source doesn't tell.
    pub(crate) fn is_complete(&self, id: SourceId) -> bool {
        self.state(id) == Some(SourceState::Read)
    }

    /// Whether a source told something.
    pub(crate) fn was_read(&self, id: SourceId) -> bool {
        matches!(self.state(id), Some(SourceState::Read | SourceState::Partial))
    }
}

fn told<T>(keep: &mut impl FnMut(Source), (source, facts): (Source, T)) -> T {
    keep(source);
    facts
}

fn table<T: Default>(
    root: &Root,
    id: SourceId,
    parse: impl Fn(&[u8], &mut Problems) -> Result<T, String>,
    describe: impl Fn(&T) -> String,
) -> (Source, T) {
    let mut problems = Problems::default();
    let parsed = root.bytes(id.path()).and_then(|bytes| parse(&bytes, &mut problems).map_err(Unreadable::Failed));
    match parsed {
        Ok(table) => (Source::read(id, describe(&table), problems), table),
        Err(why) => (Source::unreadable(id, &why), T::default()),
    }
}
