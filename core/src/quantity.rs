//! Sizes, rates and durations as people write them: `256M`, `4G/s`, `2us`.
//!
//! Sizes are counted in powers of 1024, whichever way the unit is spelled (`K`, `KiB`); decimal units (`KB`) are refused
//! instead of being guessed at. What [`size`] and [`duration`] read, [`Exact`] prints with the largest unit that loses
//! nothing.

use std::fmt;
use std::time::Duration;

use crate::units::ByteLen;
use thiserror::Error;

/// Why a text is no size, rate or duration.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum QuantityError {
    /// The text doesn't begin with a digit.
    #[error("`{0}` is not a whole number with a unit")]
    NotANumber(String),
    /// The unit is none of a size.
    #[error("unknown unit `{unit}` in `{text}`; sizes take K, M, G or T (powers of 1024)")]
    SizeUnit {
        /// The whole text.
        text: String,
        /// Its unit.
        unit: String,
    },
    /// The unit is none of a duration.
    #[error("unknown unit `{unit}` in `{text}`; durations take ns, us, ms or s")]
    DurationUnit {
        /// The whole text.
        text: String,
        /// Its unit.
        unit: String,
    },
    /// A duration without a unit.
    #[error("`{0}` has no unit; durations take ns, us, ms or s")]
    NoUnit(String),
    /// The number doesn't fit into 64 bits.
    #[error("`{0}` is too large a number")]
    TooLarge(String),
}

/// Splits `text` into its leading digits, as a number, and what follows them.
fn split(text: &str) -> Result<(u64, &str), QuantityError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 || text[digits..].starts_with('.') {
        return Err(QuantityError::NotANumber(text.to_owned()));
    }
    let number = text[..digits].parse().map_err(|_| QuantityError::TooLarge(text.to_owned()))?;
    Ok((number, &text[digits..]))
}

/// Reads a size: bytes, or a number with `K`, `M`, `G` or `T` (also `k`, `KiB` and so on), in powers of 1024.
///
/// # Errors
///
/// If the text is no whole number with such a unit, or doesn't fit into 64 bits.
pub fn size(text: &str) -> Result<ByteLen, QuantityError> {
    let (number, unit) = split(text)?;
    let shift = match unit {
        "" | "B" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return Err(QuantityError::SizeUnit { text: text.to_owned(), unit: unit.to_owned() }),
    };
    number.checked_mul(1 << shift).map(ByteLen::new).ok_or_else(|| QuantityError::TooLarge(text.to_owned()))
}

/// Reads a rate in bytes a second: a [`size`], with `/s` behind it or not.
///
/// # Errors
///
/// As [`size`].
pub fn rate(text: &str) -> Result<ByteLen, QuantityError> {
    size(text.strip_suffix("/s").unwrap_or(text))
}

/// Reads a duration: a whole number with `ns`, `us`, `ms` or `s`.
///
/// # Errors
///
/// If the text is no whole number with such a unit, or is more than 2^64 ns.
pub fn duration(text: &str) -> Result<Duration, QuantityError> {
    let (number, unit) = split(text)?;
    let scale: u64 = match unit {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "" => return Err(QuantityError::NoUnit(text.to_owned())),
        _ => return Err(QuantityError::DurationUnit { text: text.to_owned(), unit: unit.to_owned() }),
    };
    number.checked_mul(scale).map(Duration::from_nanos).ok_or_else(|| QuantityError::TooLarge(text.to_owned()))
}

/// Prints a quantity so that it reads back as the same: `256M`, `2us`.
#[derive(Clone, Copy, Debug)]
pub struct Exact<T>(pub T);

impl fmt::Display for Exact<ByteLen> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.get();
        for (shift, unit) in [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')] {
            if bytes != 0 && bytes.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", bytes >> shift);
            }
        }
        write!(f, "{bytes}")
    }
}

impl fmt::Display for Exact<Duration> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        for (scale, unit) in [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")] {
            if nanos != 0 && nanos.is_multiple_of(scale) {
                return write!(f, "{}{unit}", nanos / scale);
            }
        }
        write!(f, "{nanos}ns")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("4096B", 4096), ("4K", 4096), ("4KiB", 4096), ("3T", 3 << 40)]
        {
            assert_eq!(size(text), Ok(ByteLen::new(bytes)), "{text}");
        }
        assert_eq!(rate("4G/s"), Ok(ByteLen::new(4 << 30)));
        assert_eq!(rate("4G"), Ok(ByteLen::new(4 << 30)));
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_unit_named() {
        assert_eq!(size("1.5G"), Err(QuantityError::NotANumber("1.5G".into())));
        assert_eq!(size(""), Err(QuantityError::NotANumber(String::new())));
        assert_eq!(size("-1"), Err(QuantityError::NotANumber("-1".into())));
        assert_eq!(size("1MB"), Err(QuantityError::SizeUnit { text: "1MB".into(), unit: "MB".into() }));
        assert_eq!(size("16777216T"), Err(QuantityError::TooLarge("16777216T".into())));
        assert_eq!(size("99999999999999999999"), Err(QuantityError::TooLarge("99999999999999999999".into())));
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("2us"), Ok(Duration::from_micros(2)));
        assert_eq!(duration("2µs"), Ok(Duration::from_micros(2)));
        assert_eq!(duration("2"), Err(QuantityError::NoUnit("2".into())));
        assert_eq!(duration("2m"), Err(QuantityError::DurationUnit { text: "2m".into(), unit: "m".into() }));
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(bytes: u64, shift in 0_u32..64, nanos: u64) {
            let bytes = ByteLen::new(bytes >> shift << (shift / 2));
            prop_assert_eq!(size(&Exact(bytes).to_string()), Ok(bytes));
            let time = Duration::from_nanos(nanos);
            prop_assert_eq!(duration(&Exact(time).to_string()), Ok(time));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".*") {
            let _ = (size(&text), rate(&text), duration(&text));
        }
    }
}
