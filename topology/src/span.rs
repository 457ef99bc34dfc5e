//! Ranges of physical addresses.

use std::fmt;

use hetmem_core::units::ByteLen;
use serde::{Serialize, Serializer};

/// A physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// The address `raw`.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The address as a number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// As `/proc/iomem` prints it: hexadecimal, without `0x`.
impl fmt::Display for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:08x}", self.0))
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A text, `"0x880000000"`: readers of JSON that keep numbers as floats would round a number.
impl Serialize for PhysAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

/// Physical addresses from `start` up to but without `end`; never empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    // Invariant: start < end.
    start: u64,
    end: u64,
}

impl Span {
    /// `[start, end)`; `None` if that is empty.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        if start < end { Some(Self { start, end }) } else { None }
    }

    /// From `first` to `last`, both in it, as the kernel's resources are given; `None` if they are in the wrong order. The
    /// last byte of the 64-bit address space can't be named and is left out.
    #[must_use]
    pub const fn inclusive(first: u64, last: u64) -> Option<Self> {
        Self::new(first, last.saturating_add(1))
    }

    /// `len` bytes from `start`; `None` if that is empty or goes past the end of the address space.
    #[must_use]
    pub const fn sized(start: u64, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Self::new(start, end),
            None => None,
        }
    }

    /// The first address.
    #[must_use]
    pub const fn start(self) -> PhysAddr {
        PhysAddr(self.start)
    }

    /// The first address behind it.
    #[must_use]
    pub const fn end(self) -> PhysAddr {
        PhysAddr(self.end)
    }

    /// The last address in it.
    #[must_use]
    pub const fn last(self) -> PhysAddr {
        PhysAddr(self.end - 1)
    }

    /// Its length.
    #[must_use]
    pub const fn len(self) -> ByteLen {
        ByteLen::new(self.end - self.start)
    }

    /// Never: an empty range is no `Span`.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Whether all of `other` lies in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// What both hold.
    #[must_use]
    pub fn intersect(self, other: Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// The part of it that begins and ends at multiples of `unit`, which is a power of two.
    #[must_use]
    pub fn aligned_inside(self, unit: u64) -> Option<Self> {
        let start = self.start.checked_add(unit - 1)? & !(unit - 1);
        Self::new(start, self.end & !(unit - 1))
    }

    /// The smallest range around it that begins and ends at multiples of `unit`, which is a power of two.
    #[must_use]
    pub fn aligned_around(self, unit: u64) -> Self {
        let end = self.end.checked_add(unit - 1).map_or(u64::MAX, |end| end & !(unit - 1));
        Self { start: self.start & !(unit - 1), end }
    }
}

/// As `/proc/iomem` prints it: `880000000-107fffffff`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}", self.start(), self.last()))
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Ranges in order, those that touch or overlap made one.
pub(crate) fn union(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut joined: Vec<Span> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => joined.push(span),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_never_empty_and_never_wrap() {
        assert_eq!(Span::new(5, 5), None);
        assert_eq!(Span::inclusive(5, 4), None);
        assert_eq!(Span::sized(u64::MAX, 2), None);
        assert_eq!(Span::inclusive(0, u64::MAX).unwrap().end().get(), u64::MAX);
        assert_eq!(Span::new(1, u64::MAX).unwrap().aligned_around(4096).end().get(), u64::MAX);
        assert_eq!(Span::new(u64::MAX - 1, u64::MAX).unwrap().aligned_inside(4096), None);
    }

    #[test]
    fn they_print_as_in_iomem() {
        assert_eq!(Span::new(0x1000, 0x9fc00).unwrap().to_string(), "00001000-0009fbff");
        assert_eq!(Span::sized(0x8_8000_0000, 0x8_0000_0000).unwrap().to_string(), "880000000-107fffffff");
    }

    #[test]
    fn touching_ranges_become_one() {
        let spans = [(8, 9), (1, 3), (3, 4), (2, 3)].map(|(a, b)| Span::new(a, b).unwrap()).to_vec();
        assert_eq!(union(spans), [Span::new(1, 4).unwrap(), Span::new(8, 9).unwrap()]);
    }
}
