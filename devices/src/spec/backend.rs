//! What stands behind a device, as specs name it.

use std::fmt;

use hetmem_core::physmap::MemoryType;
use hetmem_core::units::{BLOCK_SIZE, ByteLen};
use hetmem_sys::dax::{DaxDevice, DaxError, DaxSlice};
use hetmem_sys::numa::{Node, NodeError};
use thiserror::Error;

use super::{SpecProblem, default_size};

/// What pages of a coherent DAX device are used by.
const BLOCK: ByteLen = ByteLen::new(BLOCK_SIZE);

/// What stands behind a device.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Backend {
    /// Ordinary memory of this machine.
    Emulated,
    /// Memory of a NUMA node.
    Node(Node),
    /// A device-DAX device, by its path.
    Dax(String),
}

/// Why this host has no memory for a backend.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum HostProblem {
    /// The node can't be used.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The node is smaller than the device.
    #[error("size {size} is more than node {node} has ({have})")]
    NodeTooSmall {
        /// The node.
        node: Node,
        /// The device's size.
        size: ByteLen,
        /// The node's.
        have: ByteLen,
    },
    /// The DAX device can't be used.
    #[error(transparent)]
    Dax(#[from] DaxError),
    /// The DAX device is smaller than what is asked for.
    #[error("size {size} is more than {path} has ({have})")]
    DaxTooSmall {
        /// The device.
        path: String,
        /// What is asked for.
        size: ByteLen,
        /// What it has.
        have: ByteLen,
    },
    /// The size is no multiple of the DAX device's alignment.
    #[error("size {size} is not a multiple of the alignment of {path}, {align}")]
    DaxAlign {
        /// The device.
        path: String,
        /// What is asked for.
        size: ByteLen,
        /// The alignment.
        align: ByteLen,
    },
    /// The size of a coherent DAX device is no multiple of a block.
    #[error("size {size} is not a multiple of {BLOCK}, by which pages of {path} are used in place")]
    DaxBlocks {
        /// The device.
        path: String,
        /// What is asked for.
        size: ByteLen,
    },
    /// The alignment of a DAX device is more than a block, so that it can't be coherent.
    #[error(
        "pages of {path} can't be used in place: its alignment, {align}, is more than {BLOCK}; give it another (daxctl reconfigure-device --align=2M), or \
         use private:dax={path}"
    )]
    DaxCoarse {
        /// The device.
        path: String,
        /// The alignment.
        align: ByteLen,
    },
}

impl Backend {
    pub(super) const KNOWN: &'static str = "emulated, node=N, dax=/dev/daxX.Y";

    /// The backend's word in specs and statistics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Emulated => "emulated",
            Self::Node(_) => "node",
            Self::Dax(_) => "dax",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, SpecProblem> {
        let (name, argument) = match text.split_once('=') {
            Some((name, argument)) => (name, Some(argument)),
            None => (text, None),
        };
        match (name, argument) {
            ("emulated", None) => Ok(Self::Emulated),
            ("emulated", Some(argument)) => {
                Err(SpecProblem::UnexpectedArgument { backend: Self::Emulated, argument: argument.to_owned() })
            }
            ("node", argument) => {
                let number = argument.unwrap_or_default();
                // `parse` would take a sign.
                let digits = number.chars().all(|c| c.is_ascii_digit()).then(|| number.parse().ok()).flatten();
                let node = digits.and_then(Node::new).ok_or_else(|| SpecProblem::Node(number.to_owned()))?;
                Ok(Self::Node(node))
            }
            ("dax", path) => {
                let path = path.unwrap_or_default();
                if !path.starts_with('/') {
                    return Err(SpecProblem::DaxPath(path.to_owned()));
                }
                Ok(Self::Dax(path.to_owned()))
            }
            _ => Err(SpecProblem::UnknownBackend { name: name.to_owned() }),
        }
    }

    /// The size of a device whose spec gives none, on a machine with this much memory.
    pub(super) fn default_size(&self, memory: ByteLen) -> Result<ByteLen, HostProblem> {
        Ok(match self {
            Self::Emulated => default_size(memory),
            Self::Node(node) => default_size(node.memory()?),
            Self::Dax(path) => DaxDevice::find(path)?.size,
        })
    }

    /// Whether its frames are a part of the machine's memory (`MemTotal`).
    pub(super) const fn takes_memory(&self) -> bool {
        match self {
            Self::Emulated | Self::Node(_) => true,
            Self::Dax(_) => false,
        }
    }

    /// Checks that this host has `size` of it.
    pub(super) fn check(&self, memory_type: MemoryType, size: ByteLen) -> Result<(), HostProblem> {
        match self {
            Self::Emulated => {}
            Self::Node(node) => {
                let have = node.memory()?;
                if size > have {
                    return Err(HostProblem::NodeTooSmall { node: *node, size, have });
                }
            }
            Self::Dax(path) => {
                let device = DaxDevice::find(path)?;
                fits(&device, memory_type, size)?;
                // Whether there is a free part now. Each process takes its own when it starts.
                drop(DaxSlice::claim(&device, size)?);
            }
        }
        Ok(())
    }
}

/// Whether a device of that type and size can be a part of `on`.
pub(super) fn fits(on: &DaxDevice, memory_type: MemoryType, size: ByteLen) -> Result<(), HostProblem> {
    let (path, align) = (on.path.clone(), on.align);
    if size > on.size {
        return Err(HostProblem::DaxTooSmall { path, size, have: on.size });
    }
    if memory_type == MemoryType::DeviceCoherent && align > BLOCK {
        return Err(HostProblem::DaxCoarse { path, align });
    }
    if !size.get().is_multiple_of(align.get()) {
        return Err(HostProblem::DaxAlign { path, size, align });
    }
    if memory_type == MemoryType::DeviceCoherent && !size.get().is_multiple_of(BLOCK.get()) {
        return Err(HostProblem::DaxBlocks { path, size });
    }
    Ok(())
}

/// Printed as in specs.
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Emulated => f.write_str(self.label()),
            Self::Node(node) => write!(f, "node={node}"),
            Self::Dax(path) => write!(f, "dax={path}"),
        }
    }
}
