//! `limit`: at most so much of managed memory stays in system memory.
//!
//! *Limits:* what leaves is chosen by `clock`.

use super::clock;
use super::registry::{Argument, Entry};

/// `limit`, as the table of policies has it.
pub(super) const ENTRY: Entry = Entry {
    name: "limit",
    argument: Argument::Limit,
    help: "at most SIZE of managed memory stays in system memory; a clock chooses what leaves, and passes over what touches brought home since it last came by",
    make: clock::ENTRY.make,
};
