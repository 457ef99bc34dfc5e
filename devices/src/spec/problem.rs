//! What can be wrong with a spec, or with a list of them.

use std::time::Duration;

use hetmem_core::quantity::{Exact, QuantityError};
use hetmem_core::stats::MAX_DEVICES;
use hetmem_core::units::{ByteLen, PAGE_SIZE};
use thiserror::Error;

use super::{Key, MAX_LATENCY, MAX_NAME, MAX_SIZE};
use crate::kind::{HostProblem, KINDS};

/// What is wrong with the spec of a device, or with the list of them.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("device `{spec}`: {problem}")]
pub struct SpecError {
    pub(super) spec: String,
    pub(super) problem: SpecProblem,
}

impl SpecError {
    /// The spec, as it was written.
    #[must_use]
    pub fn spec(&self) -> &str {
        &self.spec
    }

    /// What is wrong.
    #[must_use]
    pub fn problem(&self) -> &SpecProblem {
        &self.problem
    }
}

/// What is wrong with a spec.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum SpecProblem {
    /// There is no `TYPE:BACKEND`.
    #[error("not of the form TYPE:BACKEND[=ARG][,key=value]…, for example coherent:emulated,size=1G")]
    Form,
    /// No such memory type.
    #[error("unknown memory type `{0}`; the types are private and coherent")]
    UnknownType(String),
    /// No such backend.
    #[error("unknown backend `{name}`; known: {known}", known = list(KINDS.iter().map(|k| k.syntax())))]
    UnknownBackend {
        /// What was written.
        name: String,
    },
    /// The backend's argument is missing, wrong, or one too many.
    #[error("{0}")]
    Argument(String),
    /// The device is none for programs that don't know of it.
    #[error("{0}")]
    NotForAnyProgram(String),
    /// This host has no memory for the device.
    #[error(transparent)]
    Host(#[from] HostProblem),
    /// A part that is no `key=value`.
    #[error("`{0}` is not of the form key=value")]
    NotKeyValue(String),
    /// No such key.
    #[error("unknown key `{name}`; known: {known}", known = list(Key::ALL.iter().map(|k| k.label())))]
    UnknownKey {
        /// What was written.
        name: String,
    },
    /// A key is given twice.
    #[error("key `{0}` is given twice")]
    DuplicateKey(&'static str),
    /// A value can't be read.
    #[error("{key}: {source}")]
    Quantity {
        /// The key.
        key: &'static str,
        /// Why not.
        source: QuantityError,
    },
    /// A value is zero that must not be.
    #[error("{0} is zero; it must be positive")]
    Zero(&'static str),
    /// The size is no multiple of the page.
    #[error("size {} is not a multiple of the page ({PAGE_SIZE} bytes); {} would be", .0.get(), page_up(*.0))]
    NotPages(ByteLen),
    /// The size is beyond [`MAX_SIZE`].
    #[error("size {0} is more than a device can have ({MAX_SIZE})")]
    TooLarge(ByteLen),
    /// The kind takes as much memory as its size, or none.
    #[error("memory is not a key of {0}; what such a device has is its size")]
    NoMemoryKey(String),
    /// The memory is no multiple of what is taken at a time.
    #[error("memory {} is not a multiple of {least}; {} would be", Exact(*.memory), Exact(up(*.memory, *.least)))]
    NotWhole {
        /// What was given.
        memory: ByteLen,
        /// Of which it must be a multiple.
        least: ByteLen,
    },
    /// More memory than the pages that are to be in it.
    #[error("memory {memory} is more than the size of the device, {size}; its pages take less")]
    MoreThanSize {
        /// What was given.
        memory: ByteLen,
        /// The size.
        size: ByteLen,
    },
    /// The latency is beyond [`MAX_LATENCY`].
    #[error("latency {} is more than {}", Exact(*.0), Exact(MAX_LATENCY))]
    TooSlow(Duration),
    /// The failure interval is no number.
    #[error("fail: `{0}` is not a whole number of copies")]
    Fail(String),
    /// The name is empty, too long, or has other characters than it may.
    #[error("name `{0}` is not 1 to {MAX_NAME} letters, digits, `_`, `-` or `.`, the first a letter or digit")]
    Name(String),
    /// The name is what places are called that are no device's.
    #[error("no device can be called `{0}`, which says of a page that it is on none")]
    ReservedName(String),
    /// An earlier device has the same name.
    #[error("the name `{0}` is taken by an earlier device; give name=…")]
    DuplicateName(String),
    /// The device is larger than the machine's memory.
    #[error("{key} {size} is larger than this machine's memory ({memory})")]
    LargerThanMemory {
        /// The key that says how large it is.
        key: &'static str,
        /// The device's size, or what it takes.
        size: ByteLen,
        /// The machine's memory.
        memory: ByteLen,
    },
    /// What it takes where nobody says is larger than the machine's memory.
    #[error(
        "half of the size, {size}, is what its pages may take if nobody says, more than this machine's memory ({memory}); give memory=…, such as memory={}",
        Exact(ByteLen::new((memory.get() / 4) >> 20 << 20))
    )]
    DefaultLargerThanMemory {
        /// What it takes.
        size: ByteLen,
        /// The machine's memory.
        memory: ByteLen,
    },
    /// The devices up to this one are together larger than the machine's memory.
    #[error("with the devices before it {total} are asked for, more than this machine's memory ({memory})")]
    TogetherLargerThanMemory {
        /// The size of all devices up to this one.
        total: ByteLen,
        /// The machine's memory.
        memory: ByteLen,
    },
    /// There are more devices than can be counted apart.
    #[error("there are more than {MAX_DEVICES} devices")]
    TooMany,
}

fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

fn page_up(size: ByteLen) -> Exact<ByteLen> {
    Exact(up(size, ByteLen::new(PAGE_SIZE)))
}

/// `size`, up to the next multiple of `to`.
pub(super) fn up(size: ByteLen, to: ByteLen) -> ByteLen {
    ByteLen::new(size.get().div_ceil(to.get()).saturating_mul(to.get()))
}
