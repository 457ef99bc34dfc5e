//! What shows how pages are used, by name: what is written on the command line, travels to the agent, and a policy goes by.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// What shows that pages are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Touches that bring pages home.
    Faults,
    /// Touches of pages that were taken out for a while to that end.
    Samples,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Faults, Self::Samples];

    /// Its name: a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Faults => "faults",
            Self::Samples => "samples",
        }
    }
}

/// The sources that a policy may go by. A touch that brings a page home shows that whatever else is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sources {
    /// Whether [`Source::Samples`] is among them.
    pub samples: bool,
}

impl Default for Sources {
    fn default() -> Self {
        Self { samples: true }
    }
}

impl Sources {
    /// Those that are among them.
    pub fn each(self) -> impl Iterator<Item = Source> {
        Source::ALL.into_iter().filter(move |source| *source != Source::Samples || self.samples)
    }
}

/// Why a text names no sources.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum SourcesError {
    /// No such source.
    #[error("unknown source `{0}`; the sources are faults and samples")]
    Unknown(String),
    /// Nothing can be done without.
    #[error("`faults` can't be left out: what a touch brings home shows that it is used")]
    NoFaults,
}

/// Reads names with commas between.
impl FromStr for Sources {
    type Err = SourcesError;

    fn from_str(text: &str) -> Result<Self, SourcesError> {
        let named = |name: &str| Source::ALL.into_iter().find(|source| source.name() == name);
        let sources = text.split(',').map(|name| named(name).ok_or_else(|| SourcesError::Unknown(name.to_owned())));
        let sources = sources.collect::<Result<Vec<_>, _>>()?;
        if !sources.contains(&Source::Faults) {
            return Err(SourcesError::NoFaults);
        }
        Ok(Self { samples: sources.contains(&Source::Samples) })
    }
}

/// Printed as they are read.
impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.each().enumerate().try_for_each(|(at, source)| {
            let between = if at == 0 { "" } else { "," };
            write!(f, "{between}{}", source.name())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_as_they_are_printed() {
        for (text, samples) in [("faults", false), ("faults,samples", true)] {
            let sources: Sources = text.parse().unwrap();
            assert_eq!((sources.samples, sources.to_string().as_str()), (samples, text));
        }
        assert_eq!("samples,faults,faults".parse(), Ok(Sources::default()));
    }

    #[test]
    fn what_is_no_source_is_named() {
        for (text, unknown) in [("", ""), ("x", "x"), ("faults,x,y", "x"), ("faults,", ""), ("Faults", "Faults")] {
            assert_eq!(text.parse::<Sources>(), Err(SourcesError::Unknown(unknown.to_owned())), "{text:?}");
        }
        assert_eq!("samples".parse::<Sources>(), Err(SourcesError::NoFaults));
        let all = SourcesError::Unknown("x".to_owned()).to_string();
        assert!(Source::ALL.iter().all(|source| all.contains(source.name())), "{all}");
    }
}
