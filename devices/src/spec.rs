//! The grammar of `--device`: `TYPE:BACKEND[=ARG][,key=value]…`.
//!
//! ```text
//! coherent:emulated
//! private:emulated,size=256M,latency=2us,bandwidth=4G,name=gpu0
//! coherent:node=1,size=4G
//! private:dax=/dev/dax0.0
//! coherent:dax=/dev/dax0.0,size=512M
//! private:compressed,size=4G,memory=1G
//! private:file=/var/tmp,size=8G
//! ```
//!
//! | key | value | without it |
//! | --- | --- | --- |
//! | `size` | capacity, a multiple of the page | 1 GiB, or a quarter of the machine's (or the node's) memory if that is less; all of a DAX device |
//! | `memory` | of `compressed`: the memory that it may take, a multiple of 64 KiB, at most the size | half of the size, rounded up |
//! | `name` | up to 32 letters, digits, `_`, `-`, `.` | `coherent0`, `coherent1`, … and `private0`, `private1`, … |
//! | `latency` | added to every copy: `ns`, `us`, `ms`, `s`, at most 10 s | none |
//! | `bandwidth` | bytes a second that copies are slowed down to | not limited |
//! | `fail` | every N-th copy fails with an injected device error | never |
//!
//! [`parse_all`] reads the specs of a whole command line: it gives each device its name and size and checks them against
//! one another and the machine, which is asked what nodes and DAX devices it has. A single [`DeviceSpec`] is read with [`str::parse`], and what it
//! prints parses back to itself, which is how specs travel to the agent.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use hetmem_core::physmap::MemoryType;
use hetmem_core::quantity::Exact;
use hetmem_core::stats::MAX_DEVICES;
use hetmem_core::units::{ByteLen, PAGE_SIZE};

mod problem;

use crate::kind::Footprint;
pub use crate::kind::{Backend, HostProblem};
pub use hetmem_core::quantity;
use problem::up;
pub use problem::{SpecError, SpecProblem};

/// A device's capacity when its spec gives none and memory is no concern.
pub const DEFAULT_SIZE: ByteLen = ByteLen::new(1 << 30);
/// The largest device: what the 32-bit frame indexes reach.
pub const MAX_SIZE: ByteLen = ByteLen::new(PAGE_SIZE << 32);
/// The longest latency that can be injected; longer ones look like a hang.
pub const MAX_LATENCY: Duration = Duration::from_secs(10);
/// The longest device name.
pub const MAX_NAME: usize = 32;

/// A device as asked for, complete. Read from text with [`str::parse`]: `"private:emulated,size=64M".parse::<DeviceSpec>()?`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceSpec {
    /// Whether the CPU can use its pages in place.
    pub memory_type: MemoryType,
    /// What stands behind it.
    pub backend: Backend,
    /// Its name, which no other device of the list has.
    pub name: String,
    /// Its capacity: a positive multiple of the page, at most [`MAX_SIZE`].
    pub size: ByteLen,
    /// The memory that it may take, if that was said: of kinds with [`Footprint::Limited`] only.
    pub memory: Option<ByteLen>,
    /// Time added to every copy.
    pub latency: Duration,
    /// Bytes a second that copies are slowed down to; never zero.
    pub bandwidth: Option<ByteLen>,
    /// Every so manieth copy fails with an injected device error.
    pub fail_every: Option<NonZeroU64>,
}

/// What can be said of a device beside its type and backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Size,
    Memory,
    Name,
    Latency,
    Bandwidth,
    Fail,
}

impl Key {
    const ALL: &'static [Self] = &[Self::Size, Self::Memory, Self::Name, Self::Latency, Self::Bandwidth, Self::Fail];

    const fn label(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Memory => "memory",
            Self::Name => "name",
            Self::Latency => "latency",
            Self::Bandwidth => "bandwidth",
            Self::Fail => "fail",
        }
    }
}

/// A spec as written, before names and sizes are filled in.
struct Written {
    memory_type: MemoryType,
    backend: Backend,
    name: Option<String>,
    size: Option<ByteLen>,
    memory: Option<ByteLen>,
    latency: Option<Duration>,
    bandwidth: Option<ByteLen>,
    fail_every: Option<NonZeroU64>,
}

impl Written {
    fn parse(text: &str) -> Result<Self, SpecProblem> {
        let mut parts = text.split(',');
        let (memory_type, backend) = parts.next().and_then(|head| head.split_once(':')).ok_or(SpecProblem::Form)?;
        let memory_type = [MemoryType::DevicePrivate, MemoryType::DeviceCoherent]
            .into_iter()
            .find(|t| t.label() == memory_type)
            .ok_or_else(|| SpecProblem::UnknownType(memory_type.to_owned()))?;
        let backend = Backend::parse(backend)?;
        let mut written = Self {
            memory_type,
            backend,
            name: None,
            size: None,
            memory: None,
            latency: None,
            bandwidth: None,
            fail_every: None,
        };
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(|| SpecProblem::NotKeyValue(part.to_owned()))?;
            let key = Key::ALL
                .iter()
                .copied()
                .find(|k| k.label() == key)
                .ok_or_else(|| SpecProblem::UnknownKey { name: key.to_owned() })?;
            written.set(key, value)?;
        }
        written.check_memory()?;
        Ok(written)
    }

    fn set(&mut self, key: Key, value: &str) -> Result<(), SpecProblem> {
        let unreadable = |source| SpecProblem::Quantity { key: key.label(), source };
        let first = match key {
            Key::Size => self.size.replace(whole_pages(quantity::size(value).map_err(unreadable)?)?).is_none(),
            Key::Memory => self.memory.replace(quantity::size(value).map_err(unreadable)?).is_none(),
            Key::Name => self.name.replace(checked_name(value)?).is_none(),
            Key::Latency => {
                let latency = quantity::duration(value).map_err(unreadable)?;
                if latency > MAX_LATENCY {
                    return Err(SpecProblem::TooSlow(latency));
                }
                self.latency.replace(latency).is_none()
            }
            Key::Bandwidth => {
                let rate = quantity::rate(value).map_err(unreadable)?;
                if rate.get() == 0 {
                    return Err(SpecProblem::Zero(key.label()));
                }
                self.bandwidth.replace(rate).is_none()
            }
            Key::Fail => {
                let every = value.parse().map_err(|_| SpecProblem::Fail(value.to_owned()))?;
                let every = NonZeroU64::new(every).ok_or(SpecProblem::Zero(key.label()))?;
                self.fail_every.replace(every).is_none()
            }
        };
        if first { Ok(()) } else { Err(SpecProblem::DuplicateKey(key.label())) }
    }

    fn check_memory(&self) -> Result<(), SpecProblem> {
        let Some(memory) = self.memory else { return Ok(()) };
        let Footprint::Limited { least } = self.backend.kind().footprint() else {
            return Err(SpecProblem::NoMemoryKey(self.backend.to_string()));
        };
        if memory.get() == 0 {
            return Err(SpecProblem::Zero(Key::Memory.label()));
        }
        if !memory.get().is_multiple_of(least.get()) {
            return Err(SpecProblem::NotWhole { memory, least });
        }
        match self.size {
            Some(size) if memory > up(size, least) => Err(SpecProblem::MoreThanSize { memory, size }),
            Some(_) | None => Ok(()),
        }
    }

    fn complete(self, name: String, default: ByteLen) -> DeviceSpec {
        DeviceSpec {
            memory_type: self.memory_type,
            backend: self.backend,
            name: self.name.unwrap_or(name),
            size: self.size.unwrap_or(default),
            memory: self.memory,
            latency: self.latency.unwrap_or_default(),
            bandwidth: self.bandwidth,
            fail_every: self.fail_every,
        }
    }
}

fn whole_pages(size: ByteLen) -> Result<ByteLen, SpecProblem> {
    if size.get() == 0 {
        return Err(SpecProblem::Zero(Key::Size.label()));
    }
    if size > MAX_SIZE {
        return Err(SpecProblem::TooLarge(size));
    }
    if size.whole_pages().is_none() { Err(SpecProblem::NotPages(size)) } else { Ok(size) }
}

/// What is said of pages that are on no device.
const RESERVED_NAMES: [&str; 2] = ["system", "migrating"];

fn checked_name(name: &str) -> Result<String, SpecProblem> {
    if RESERVED_NAMES.contains(&name) {
        return Err(SpecProblem::ReservedName(name.to_owned()));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let good =
        name.len() <= MAX_NAME && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(allowed);
    if good { Ok(name.to_owned()) } else { Err(SpecProblem::Name(name.to_owned())) }
}

/// Reads one spec as if it were the only one on a machine with memory enough: a missing name is the first default name of
/// its type, a missing size [`DEFAULT_SIZE`].
impl FromStr for DeviceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let written = Written::parse(text).map_err(|problem| SpecError { spec: text.to_owned(), problem })?;
        let name = format!("{}0", written.memory_type.label());
        Ok(written.complete(name, DEFAULT_SIZE))
    }
}

impl DeviceSpec {
    /// What it takes of the machine's memory at the most.
    #[must_use]
    pub fn memory(&self) -> ByteLen {
        match self.backend.kind().footprint() {
            Footprint::None => ByteLen::new(0),
            Footprint::Size => self.size,
            Footprint::Limited { least } => {
                let most = up(self.size, least);
                self.memory.unwrap_or_else(|| up(ByteLen::new(self.size.get().div_ceil(2)), least)).min(most)
            }
        }
    }

    /// Whether its copies are slowed down, or some of them fail: then all of them go through the device, and its memory is never read in place.
    #[must_use]
    pub const fn is_injected(&self) -> bool {
        !self.latency.is_zero() || self.bandwidth.is_some() || self.fail_every.is_some()
    }
}

/// Printed with its name and size, and with the other keys where they are set; parses back to the same.
impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_type, backend, name, size, memory, latency, bandwidth, fail_every } = self;
        write!(f, "{}:{},size={},name={name}", memory_type.label(), backend, Exact(*size))?;
        if let Some(memory) = memory {
            write!(f, ",memory={}", Exact(*memory))?;
        }
        if !latency.is_zero() {
            write!(f, ",latency={}", Exact(*latency))?;
        }
        if let Some(bandwidth) = bandwidth {
            write!(f, ",bandwidth={}", Exact(*bandwidth))?;
        }
        if let Some(every) = fail_every {
            write!(f, ",fail={every}")?;
        }
        Ok(())
    }
}

/// A device's size when its spec gives none, on a machine with this much memory: [`DEFAULT_SIZE`] or a quarter of it,
/// whichever is less.
#[must_use]
pub fn default_size(memory: ByteLen) -> ByteLen {
    let quarter = memory.get() / 4 / PAGE_SIZE * PAGE_SIZE;
    DEFAULT_SIZE.min(ByteLen::new(quarter.max(PAGE_SIZE)))
}

/// Reads the specs of a whole command line for a machine with this much memory.
///
/// # Errors
///
/// The first thing that is wrong: with a spec by itself, with its name against the others', or as [`check`] finds.
pub fn parse_all<S: AsRef<str>>(texts: &[S], memory: ByteLen) -> Result<Vec<DeviceSpec>, SpecError> {
    let mut written = Vec::new();
    for text in texts {
        let text = text.as_ref();
        let parsed = Written::parse(text).map_err(|problem| SpecError { spec: text.to_owned(), problem })?;
        written.push(parsed);
    }
    let mut taken: Vec<String> = written.iter().filter_map(|w| w.name.clone()).collect();
    let mut specs = Vec::new();
    for one in written {
        let mut name = String::new();
        if one.name.is_none() {
            // As many candidates as there are names taken, and one more: one of them is free.
            let candidates = (0..=taken.len()).map(|n| format!("{}{n}", one.memory_type.label()));
            name = candidates.into_iter().find(|n| !taken.contains(n)).unwrap_or_default();
            taken.push(name.clone());
        }
        let text = texts[specs.len()].as_ref();
        let host = |problem: HostProblem| SpecError { spec: text.to_owned(), problem: problem.into() };
        let backend = one.backend.clone();
        let default = if one.size.is_some() {
            DEFAULT_SIZE
        } else {
            backend.kind().default_size(backend.argument(), memory).map_err(host)?
        };
        let spec = one.complete(name, default);
        backend.kind().check_host(backend.argument(), spec.memory_type, spec.size).map_err(host)?;
        specs.push(spec);
    }
    for (i, spec) in specs.iter().enumerate() {
        if specs[..i].iter().any(|earlier| earlier.name == spec.name) {
            let problem = SpecProblem::DuplicateName(spec.name.clone());
            return Err(SpecError { spec: texts[i].as_ref().to_owned(), problem });
        }
    }
    check(&specs, memory).map_err(|(i, problem)| SpecError { spec: texts[i].as_ref().to_owned(), problem })?;
    Ok(specs)
}

/// Checks that the devices can have memory of programs that don't know of them, as of those that `hetmem run` starts. What is no spec is not looked
/// at.
///
/// # Errors
///
/// The first device for which that is not so, and why.
pub fn check_for_any_program<S: AsRef<str>>(texts: &[S]) -> Result<(), SpecError> {
    for text in texts.iter().map(AsRef::as_ref) {
        if let Ok(Written { memory_type, backend, .. }) = Written::parse(text) {
            let checked = backend.kind().check_for_any_program(backend.argument(), memory_type);
            checked.map_err(|why| SpecError { spec: text.to_owned(), problem: SpecProblem::NotForAnyProgram(why) })?;
        }
    }
    Ok(())
}

/// Checks that a machine with this much memory can have these devices, as far as they take memory from it.
///
/// # Errors
///
/// The place in the list of the first device that can't be had, and why.
pub fn check(specs: &[DeviceSpec], memory: ByteLen) -> Result<(), (usize, SpecProblem)> {
    let mut total = 0_u64;
    for (i, spec) in specs.iter().enumerate() {
        if i >= MAX_DEVICES {
            return Err((i, SpecProblem::TooMany));
        }
        let size = spec.memory();
        if size > memory {
            let is_limited = matches!(spec.backend.kind().footprint(), Footprint::Limited { .. });
            let problem = match (is_limited, spec.memory) {
                (false, _) => SpecProblem::LargerThanMemory { key: "size", size, memory },
                (true, Some(_)) => SpecProblem::LargerThanMemory { key: "memory", size, memory },
                (true, None) => SpecProblem::DefaultLargerThanMemory { size, memory },
            };
            return Err((i, problem));
        }
        total = total.saturating_add(size.get());
        if total > memory.get() {
            return Err((i, SpecProblem::TogetherLargerThanMemory { total: ByteLen::new(total), memory }));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "spec/tests.rs"]
mod tests;
