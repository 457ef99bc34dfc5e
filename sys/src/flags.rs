//! Flag sets that cross the kernel boundary: one 64-bit word each, with named bits.

/// Defines a set of flags over a `u64`: constants, set operations, and `Debug`/`Display` that name the bits.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident { $($(#[$flag_doc:meta])* $flag:ident = $bits:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// No flag.
            pub const NONE: Self = Self(0);
            $($(#[$flag_doc])* pub const $flag: Self = Self($bits);)*

            const NAMED: &'static [(u64, &'static str)] = &[$(($bits, stringify!($flag)),)*];

            /// The flags that are set in `bits`, known by name or not.
            #[must_use]
            pub const fn from_bits(bits: u64) -> Self {
                Self(bits)
            }

            /// The flags as the kernel's word.
            #[must_use]
            pub const fn bits(self) -> u64 {
                self.0
            }

            /// Whether no flag is set.
            #[must_use]
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// Whether all of `other` is set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether any of `other` is set.
            #[must_use]
            pub const fn intersects(self, other: Self) -> bool {
                self.0 & other.0 != 0
            }

            /// What is set in either.
            #[must_use]
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// What is set here and not in `other`.
            #[must_use]
            pub const fn difference(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// The names of the flags that are set and known.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                Self::NAMED.iter().filter(move |(bits, _)| self.0 & bits == *bits).map(|(_, name)| *name)
            }
        }

        impl std::ops::BitOr for $name {
            type Output = Self;
            fn bitor(self, other: Self) -> Self {
                self.union(other)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                crate::flags::write_names(f, self.0, Self::NAMED)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}
pub(crate) use flags;

/// Writes the names of `bits` joined by `|`, and what has no name as a number.
pub(crate) fn write_names(
    f: &mut std::fmt::Formatter<'_>,
    bits: u64,
    named: &[(u64, &'static str)],
) -> std::fmt::Result {
    let mut unnamed = bits;
    let mut separator = "";
    for (flag, name) in named.iter().filter(|(flag, _)| bits & flag == *flag) {
        write!(f, "{separator}{name}")?;
        separator = "|";
        unnamed &= !flag;
    }
    if unnamed != 0 {
        return write!(f, "{separator}{unnamed:#x}");
    }
    if bits == 0 { f.write_str("none") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use crate::uffd::Mode;

    #[test]
    fn flags_print_their_names_and_keep_unknown_bits() {
        assert_eq!(Mode::NONE.to_string(), "none");
        assert_eq!((Mode::MISSING | Mode::WP).to_string(), "MISSING|WP");
        assert_eq!(format!("{:?}", Mode::from_bits(0x11)), "Mode(MISSING|0x10)");
        assert_eq!(Mode::from_bits(3).names().collect::<Vec<_>>(), ["MISSING", "WP"]);
    }

    #[test]
    fn set_operations_are_those_of_sets() {
        let both = Mode::MISSING.union(Mode::WP);
        assert!(both.contains(Mode::MISSING) && !Mode::MISSING.contains(both) && Mode::MISSING.intersects(both));
        assert_eq!(both.difference(Mode::MISSING), Mode::WP);
        assert_eq!(Mode::from_bits(both.bits()), both);
    }
}
