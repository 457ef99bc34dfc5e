//! Memory blocks: `/sys/devices/system/memory`. The unit in which memory is added and taken, a multiple of the section.

use crate::root::{Root, Unreadable, numbered};
use crate::source::{Problems, Source, SourceId, SourceState, count};
use crate::span::Span;

/// Whether the pages of a block are in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BlockState {
    Online,
    Offline,
    Unknown,
}

/// Blocks that follow one another and are alike.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) span: Span,
    pub(crate) state: BlockState,
    pub(crate) node: Option<u32>,
}

/// All of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Blocks {
    pub(crate) runs: Vec<Run>,
    pub(crate) block_size: Option<u64>,
}

/// More blocks than any machine has: 2^22 of 128 MiB are 512 TiB.
const MAX_BLOCKS: usize = 1 << 22;

/// Reads them.
pub(crate) fn read(root: &Root) -> (Source, Blocks) {
    let id = SourceId::MemoryBlocks;
    let names = match root.names(id.path()) {
        Ok(names) => names,
        Err(why) => return (Source::unreadable(id, &why), Blocks::default()),
    };
    let size = match root.text(&format!("{}/block_size_bytes", id.path())) {
        // Hexadecimal, without `0x`.
        Ok(text) => u64::from_str_radix(&text, 16).ok().filter(|size| size.is_power_of_two()),
        Err(Unreadable::Absent | Unreadable::Denied | Unreadable::Failed(_)) => None,
    };
    let Some(size) = size else {
        let why = "block_size_bytes does not say how large a block is".to_owned();
        return (Source::unreadable(id, &Unreadable::Failed(why)), Blocks::default());
    };
    let mut problems = Problems::default();
    let mut runs: Vec<Run> = Vec::new();
    let mut blocks = 0;
    for name in names.iter().take(MAX_BLOCKS) {
        let Some(index) = numbered(name, "memory") else { continue };
        let dir = format!("{}/{name}", id.path());
        let Some(span) = u64::from(index).checked_mul(size).and_then(|start| Span::sized(start, size)) else {
            problems.add(format!("{name}: lies past the end of the address space"));
            continue;
        };
        let state = state(root, &dir, &mut problems);
        let node = root.names(&dir).ok().and_then(|names| names.iter().find_map(|name| numbered(name, "node")));
        blocks += 1;
        match runs.last_mut() {
            Some(last) if last.span.end() == span.start() && (last.state, last.node) == (state, node) => {
                last.span = Span::new(last.span.start().get(), span.end().get()).unwrap_or(last.span);
            }
            _ => runs.push(Run { span, state, node }),
        }
    }
    if blocks == 0 {
        return (Source::stated(id, SourceState::Absent, "no blocks".to_owned(), problems), Blocks::default());
    }
    let detail = format!("{} of {} MiB", count(blocks, "block", "blocks"), size >> 20);
    (Source::read(id, detail, problems), Blocks { runs, block_size: Some(size) })
}

fn state(root: &Root, dir: &str, problems: &mut Problems) -> BlockState {
    match root.text(&format!("{dir}/state")).as_deref() {
        Ok("online") => BlockState::Online,
        Ok("offline") => BlockState::Offline,
        Ok("going-offline") => BlockState::Unknown,
        Ok(other) => {
            problems.add(format!("{dir}/state: `{}` is no state", crate::root::excerpt(other)));
            BlockState::Unknown
        }
        Err(why) => {
            problems.add(format!("{dir}/state: {}", why.words()));
            BlockState::Unknown
        }
    }
}
