//! The kernel's command line: what of it changes the memory map.

use crate::root::Root;
use crate::source::{Problems, Source, SourceId, SourceState};

/// The parameters that change the map, as they were given.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct CommandLine {
    pub(crate) parameters: Vec<String>,
}

impl CommandLine {
    /// Whether special-purpose memory was told to be ordinary memory.
    pub(crate) fn no_soft_reserve(&self) -> bool {
        self.parameters
            .iter()
            .filter_map(|word| word.strip_prefix("efi="))
            .any(|options| options.split(',').any(|option| option == "nosoftreserve"))
    }

    /// The parameters that move ranges from one type to another.
    pub(crate) fn map_changes(&self) -> impl Iterator<Item = &str> {
        self.parameters.iter().map(String::as_str).filter(|word| !word.starts_with("efi="))
    }
}

/// Reads it.
pub(crate) fn read(root: &Root) -> (Source, CommandLine) {
    let id = SourceId::CommandLine;
    let text = match root.text(id.path()) {
        Ok(text) => text,
        Err(why) => return (Source::unreadable(id, &why), CommandLine::default()),
    };
    // What follows `--` is for the first process.
    let words = text.split_whitespace().take_while(|word| *word != "--");
    let changes = |word: &&str| ["memmap=", "mem=", "efi="].iter().any(|name| word.starts_with(name));
    let parameters: Vec<_> = words.filter(changes).map(str::to_owned).collect();
    let detail = if parameters.is_empty() {
        "nothing in it changes the map".to_owned()
    } else {
        format!("changes the map: {}", parameters.join(" "))
    };
    (Source::stated(id, SourceState::Read, detail, Problems::default()), CommandLine { parameters })
}
