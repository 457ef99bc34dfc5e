//! The kinds of devices: what `BACKEND[=ARG]` in a spec names, and how a device of it is made.
//!
//! To add one: a file with a type that implements [`Kind`] and one for its devices ([`Device`]), and a line in [`KINDS`].

use std::fmt;

use hetmem_core::physmap::{MemoryType, Owner};
use hetmem_core::port::Device;
use hetmem_core::units::{ByteLen, DeviceId};
use hetmem_sys::errno::Errno;
use thiserror::Error;

use crate::injected::Injected;
use crate::spec::{DeviceSpec, SpecProblem};

/// All kinds.
pub static KINDS: &[&dyn Kind] = &[
    &crate::emulated::EmulatedKind,
    &crate::node::NodeKind,
    &crate::dax::DaxKind,
    &crate::compressed::CompressedKind,
    &crate::file::FileKind,
];

/// One kind of device. Arguments are as written behind the `=`, empty if there is none; but for [`Kind::check_argument`] they were checked.
pub trait Kind: Sync {
    /// The word for it in specs and statistics.
    fn name(&self) -> &'static str;

    /// How it is written in a spec, as in `node=N`.
    fn syntax(&self) -> &'static str;

    /// What memory it is, in half a sentence, for the help.
    fn help(&self) -> &'static str;

    /// Checks an argument; `None` if there is no `=`.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and what would be right, in half a sentence.
    fn check_argument(&self, argument: Option<&str>) -> Result<(), String>;

    /// The size of a device whose spec gives none, on a machine with this much memory.
    ///
    /// # Errors
    ///
    /// If this host doesn't have what the argument names.
    fn default_size(&self, argument: &str, memory: ByteLen) -> Result<ByteLen, HostProblem>;

    /// What it takes of the machine's memory (`MemTotal`).
    fn footprint(&self) -> Footprint;

    /// Checks that this host has memory for a device of that type and size.
    ///
    /// # Errors
    ///
    /// Why it hasn't.
    fn check_host(&self, argument: &str, memory_type: MemoryType, size: ByteLen) -> Result<(), HostProblem>;

    /// Checks that a device of that type can have memory of programs that don't know of it, as of those that `hetmem run` starts.
    ///
    /// # Errors
    ///
    /// Why it can't, and what can.
    fn check_for_any_program(&self, argument: &str, memory_type: MemoryType) -> Result<(), String> {
        let _ = (argument, memory_type);
        Ok(())
    }

    /// Whether the processes of a run share the size: each makes a device of its own, and all of these together have no more frames in use than one has.
    fn shares_size(&self) -> bool {
        false
    }

    /// Whether the kernel's NUMA balancing would move pages away from the device.
    fn is_balanced(&self) -> bool {
        false
    }

    /// Makes the device that `spec` describes, which is of this kind; latency, bandwidth and failures are injected by who calls.
    ///
    /// # Errors
    ///
    /// Why it can't be made.
    fn make(&self, id: DeviceId, owner: Owner, spec: &DeviceSpec) -> Result<Box<dyn Device>, MakeError>;
}

/// What a device takes of the machine's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Footprint {
    /// Nothing that counts there.
    None,
    /// As much as its size.
    Size,
    /// What `memory=` says, or half of its size; this at the least.
    Limited {
        /// Of which it takes whole multiples.
        least: ByteLen,
    },
}

/// Why a device can't be made.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum MakeError {
    /// This host can't have it as it is described.
    #[error("{0}")]
    Unsuitable(String),
    /// The host has no room for it now.
    #[error("it can't be made: {0}")]
    Os(#[from] Errno),
}

/// Why this host has no memory for a device.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0}")]
pub struct HostProblem(String);

impl HostProblem {
    /// The problem that `why` describes, in half a sentence.
    pub fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string())
    }
}

/// What stands behind a device, as specs name it: a kind, and its argument.
#[derive(Clone)]
pub struct Backend {
    kind: &'static dyn Kind,
    argument: Option<String>,
}

impl Backend {
    /// Reads `BACKEND[=ARG]`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, SpecProblem> {
        let (name, argument) = match text.split_once('=') {
            Some((name, argument)) => (name, Some(argument)),
            None => (text, None),
        };
        let kind = KINDS
            .iter()
            .copied()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| SpecProblem::UnknownBackend { name: name.to_owned() })?;
        kind.check_argument(argument).map_err(SpecProblem::Argument)?;
        Ok(Self { kind, argument: argument.map(str::to_owned) })
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> &'static dyn Kind {
        self.kind
    }

    /// Its argument, empty if it has none.
    #[must_use]
    pub fn argument(&self) -> &str {
        self.argument.as_deref().unwrap_or_default()
    }
}

/// Printed as in specs.
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        self.argument.as_ref().map_or(Ok(()), |argument| write!(f, "={argument}"))
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({self})")
    }
}

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        self.kind.name() == other.kind.name() && self.argument == other.argument
    }
}

impl Eq for Backend {}

/// Makes the device that `spec` describes, with `id` as its id and `owner` as the owner of its pages.
///
/// # Errors
///
/// Why it can't be made.
pub fn make(id: DeviceId, owner: Owner, spec: &DeviceSpec) -> Result<Box<dyn Device>, MakeError> {
    let device = spec.backend.kind().make(id, owner, spec)?;
    Ok(Injected::wrap(device, spec)?)
}
