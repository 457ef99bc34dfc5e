//! What the supervisor is told of a process, by the ledger: lines about its management.
#![expect(unsafe_code, reason = "what is said when all else has failed takes no lock")]

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use super::config::Config;
use super::ledger::Ledger;
use super::recording::Rings;

/// The ledger, which outlives agents.
static LEDGER: AtomicPtr<Ledger> = AtomicPtr::new(ptr::null_mut());
/// The rings for records, if there are any; they outlive agents, too.
static RINGS: AtomicPtr<Rings> = AtomicPtr::new(ptr::null_mut());
/// The process that the agent is in.
pub(super) static PID: AtomicU32 = AtomicU32::new(0);

/// Whether the calling thread is one of the process that the last agent was started in, and not of a child that shares its memory (vfork).
pub fn is_this_process() -> bool {
    PID.load(Ordering::Relaxed) == std::process::id()
}

/// The ledger, opened once: a process that can't reach its path any more still has it, and so have its children.
pub(super) fn ledger(config: &Config) -> Option<&'static Ledger> {
    // SAFETY: null or a leaked ledger. Acquire pairs with the Release below.
    if let Some(ledger) = unsafe { LEDGER.load(Ordering::Acquire).as_ref() } {
        return Some(ledger);
    }
    let ledger: &'static Ledger = Box::leak(Box::new(Ledger::open(&config.ledger).ok()?));
    LEDGER.store(ptr::from_ref(ledger).cast_mut(), Ordering::Release);
    Some(ledger)
}

/// The rings, opened once, as the ledger is.
pub(super) fn rings(config: &Config) -> Option<&'static Rings> {
    // SAFETY: null or leaked rings. Acquire pairs with the Release below.
    if let Some(rings) = unsafe { RINGS.load(Ordering::Acquire).as_ref() } {
        return Some(rings);
    }
    let rings: &'static Rings = Box::leak(Box::new(Rings::open(config.rings.as_ref()?).ok()?));
    RINGS.store(ptr::from_ref(rings).cast_mut(), Ordering::Release);
    Some(rings)
}

/// Leaves `line` to the supervisor of this process, which has no agent: what became of the management of this process, in words that follow its name.
pub fn note(config: &Config, line: &str) {
    if let Some(ledger) = ledger(config) {
        ledger.refuse(std::process::id(), line);
    }
}

/// Whether no agent was ever in this process, before an `execve(2)` perhaps; as far as the ledger can be asked.
#[must_use]
pub fn is_first(config: &Config) -> bool {
    ledger(config).is_some_and(|ledger| ledger.counters_of(std::process::id()).is_none())
}

/// Leaves `line` to the supervisor, which prints it: what became of the management of this process.
pub fn last_word(line: &str) {
    // SAFETY: null or a leaked ledger. Acquire pairs with the Release in `ledger`.
    if let Some(ledger) = unsafe { LEDGER.load(Ordering::Acquire).as_ref() } {
        ledger.refuse(PID.load(Ordering::Relaxed), line);
    }
}
