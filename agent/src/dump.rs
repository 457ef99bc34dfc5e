//! Before a core dump: everything that can come home does.
//!
//! The kernel writes a dump when the process's other threads are dead, the agent's among them, and waits for no page that is missing
//! (`handle_userfault` of fs/userfaultfd.c, where `PF_DUMPCORE` is set). So a thread whose signal is about to end the process asks first.
//!
//! It asks in a handler of that signal, in the middle of anything. It holds none of hetmem's locks, as whoever holds one has all signals blocked (the
//! kernel ends the process by a fault with no handler then); and it uses no thread-local storage and no allocator, whose locks it may hold.
//!
//! *Limits:* a page that can't come home is missing in the dump: of a device that goes on failing, or where the machine has less memory left than is
//! away.

use super::config::Config;
use super::presence::{may_leave, stay};
use hetmem_core::physmap::MemoryType;

/// Whether there can be pages that a dump would miss.
#[must_use]
pub fn may_miss_pages(config: &Config) -> bool {
    config.devices.iter().any(|spec| spec.memory_type == MemoryType::DevicePrivate)
}

/// Brings home what can be, and has the agent stand still. `false` where there is no agent: in a process that it has left, in a child that was forked
/// past the C library, and in one that shares its parent's memory.
#[must_use]
pub fn gather() -> bool {
    stay().is_some_and(|agent| {
        agent.mailbox.gather();
        true
    })
}

/// After [`gather`], where the process goes on: lets the agent go on, too.
pub fn disperse() {
    if let Some(agent) = stay() {
        agent.mailbox.disperse();
        may_leave();
        may_leave();
    }
}
