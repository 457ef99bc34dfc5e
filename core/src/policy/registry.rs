//! The policies by name: what is written on the command line, travels to the agent, and stands in what is reported.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::Policy;
use crate::heat::Source;
use crate::quantity;
use crate::units::ByteLen;

/// All policies. The first is the one without being asked.
pub const POLICIES: &[Entry] = &[super::manual::ENTRY, super::limit::ENTRY, super::clock::ENTRY, super::chaos::ENTRY];

/// The names of those that hold a limit on system memory, with `between` between them.
#[must_use]
pub fn with_limit(between: &str) -> String {
    let names = POLICIES.iter().filter(|entry| entry.argument == Argument::Limit).map(|entry| entry.name);
    names.collect::<Vec<_>>().join(between)
}

/// A policy, as it is offered.
pub struct Entry {
    /// Its name: a word.
    pub name: &'static str,
    /// What is written behind it.
    pub argument: Argument,
    /// What shows it how pages are used.
    pub heat: &'static [Source],
    /// What it does, in one line.
    pub help: &'static str,
    /// Makes it as the argument says, which is empty where there is none; or says what is wrong with that.
    pub make: fn(&str) -> Result<Box<dyn Policy>, String>,
}

/// What is written behind a policy's name, with a `=` between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Argument {
    /// Nothing.
    None,
    /// How much may stay in system memory, without which there is no policy.
    Limit,
    /// A number of this name, which is drawn where none is given.
    Drawn(&'static str),
}

/// Printed as in a usage line: `manual`, `limit=SIZE`, `chaos[=SEED]`.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.argument {
            Argument::None => write!(f, "{}", self.name),
            Argument::Limit => write!(f, "{}=SIZE", self.name),
            Argument::Drawn(argument) => write!(f, "{}[={argument}]", self.name),
        }
    }
}

/// Names are unique.
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Entry {}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({self})")
    }
}

/// A policy with its argument, checked. What it prints parses back to the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicySpec {
    entry: &'static Entry,
    argument: Option<String>,
}

/// Why a text names no policy.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// No such policy.
    #[error("unknown policy `{0}`; the policies are {list}", list = All)]
    Unknown(String),
    /// An argument where none is taken.
    #[error("policy {policy} takes no argument, but `{argument}` was given")]
    UnexpectedArgument {
        /// The policy.
        policy: &'static str,
        /// What was given.
        argument: String,
    },
    /// No argument where one is needed.
    #[error("policy {name} needs an argument: {}", .0, name = .0.name)]
    NoArgument(&'static Entry),
    /// The policy can't do anything with its argument.
    #[error("{0}")]
    Argument(String),
}

/// The policies in a sentence.
struct All;

impl fmt::Display for All {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, entry) in POLICIES.iter().enumerate() {
            let before = match POLICIES.len() - at {
                _ if at == 0 => "",
                1 => " and ",
                _ => ", ",
            };
            write!(f, "{before}{entry}")?;
        }
        Ok(())
    }
}

impl PolicySpec {
    /// The policy's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.entry.name
    }

    /// Its argument, if one was given.
    #[must_use]
    pub fn argument(&self) -> Option<&str> {
        self.argument.as_deref()
    }

    /// Whether it holds a limit on system memory, said or not.
    #[must_use]
    pub fn holds_limit(&self) -> bool {
        self.entry.argument == Argument::Limit
    }

    /// What shows it how pages are used, if nothing is left out.
    #[must_use]
    pub const fn heat(&self) -> &'static [Source] {
        self.entry.heat
    }

    /// How much it leaves in system memory, if it holds a limit, and that was said.
    #[must_use]
    pub fn limit(&self) -> Option<ByteLen> {
        let argument = self.argument().filter(|_| self.holds_limit())?;
        quantity::size(argument).ok()
    }

    /// The same policy with `argument`.
    ///
    /// # Errors
    ///
    /// If it takes none, or not this one.
    pub fn with(&self, argument: &str) -> Result<Self, PolicyError> {
        format!("{}={argument}", self.name()).parse()
    }

    /// The same policy with all that it needs; `draw` is asked for a number where one is to be drawn.
    ///
    /// # Errors
    ///
    /// If an argument is needed that was not given.
    pub fn complete(self, draw: impl FnOnce() -> u64) -> Result<Self, PolicyError> {
        match (self.entry.argument, &self.argument) {
            (Argument::Limit, None) => Err(PolicyError::NoArgument(self.entry)),
            (Argument::Drawn(_), None) => self.with(&draw().to_string()),
            _ => Ok(self),
        }
    }

    /// The policy itself.
    ///
    /// # Errors
    ///
    /// If it is not [complete](Self::complete).
    pub fn make(&self) -> Result<Box<dyn Policy>, PolicyError> {
        let argument = match (self.entry.argument, &self.argument) {
            (Argument::None, _) => "",
            (Argument::Limit | Argument::Drawn(_), Some(argument)) => argument,
            (Argument::Limit | Argument::Drawn(_), None) => return Err(PolicyError::NoArgument(self.entry)),
        };
        (self.entry.make)(argument).map_err(PolicyError::Argument)
    }
}

impl Default for PolicySpec {
    fn default() -> Self {
        Self { entry: &POLICIES[0], argument: None }
    }
}

/// Reads `NAME` or `NAME=ARGUMENT`. An argument that is not given may be missing still.
impl FromStr for PolicySpec {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let (name, argument) = match text.split_once('=') {
            Some((name, argument)) => (name, Some(argument)),
            None => (text, None),
        };
        let entry = POLICIES.iter().find(|entry| entry.name == name);
        let entry = entry.ok_or_else(|| PolicyError::Unknown(name.to_owned()))?;
        let Some(argument) = argument else { return Ok(Self { entry, argument: None }) };
        if entry.argument == Argument::None {
            return Err(PolicyError::UnexpectedArgument { policy: entry.name, argument: argument.to_owned() });
        }
        // As the policy writes it: there is one way for each.
        let argument = (entry.make)(argument).map_err(PolicyError::Argument)?.argument();
        Ok(Self { entry, argument })
    }
}

/// Printed as it is read: `manual`, `limit=256M`, `chaos=0x2a`.
impl fmt::Display for PolicySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        self.argument.iter().try_for_each(|argument| write!(f, "={argument}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<PolicySpec, PolicyError> {
        text.parse()
    }

    #[test]
    fn who_holds_a_limit_says_which() {
        let limit = |text: &str| read(text).unwrap().limit().map(ByteLen::get);
        assert_eq!([limit("limit=4K"), limit("clock=1M")], [Some(4096), Some(1 << 20)]);
        assert_eq!([limit("limit"), limit("manual"), limit("chaos=0x2a")], [None; 3]);
        let holds = ["limit", "clock", "manual", "chaos=0x2a"].map(|text| read(text).unwrap().holds_limit());
        assert_eq!(holds, [true, true, false, false]);
        assert_eq!(with_limit(" or "), "limit or clock");
    }

    #[test]
    fn policies_are_read_as_they_are_printed() {
        for text in ["manual", "limit", "limit=256M", "limit=4K", "chaos", "chaos=0x2a"] {
            assert_eq!(read(text).unwrap().to_string(), text);
        }
        for (text, same) in [
            ("chaos=42", "chaos=0x2a"),
            ("chaos=18446744073709551615", "chaos=0xffffffffffffffff"),
            ("limit=1024K", "limit=1M"),
            ("limit=4096", "limit=4K"),
        ] {
            assert_eq!(read(text), read(same));
            assert_eq!(read(text).unwrap().to_string(), same);
        }
    }

    #[test]
    fn a_policy_has_the_argument_that_it_was_made_of_or_none_at_all() {
        for entry in POLICIES {
            let takes_none = entry.argument == Argument::None;
            let example = if takes_none { "" } else { "4096" };
            let policy = (entry.make)(example).unwrap();
            assert_eq!(policy.argument().is_none(), takes_none, "{entry}");
            let argument = policy.argument().unwrap_or_default();
            assert_eq!((entry.make)(&argument).unwrap().argument(), policy.argument(), "{entry}");
        }
    }

    #[test]
    fn what_is_missing_is_drawn_or_asked_for() {
        let complete = |text: &str| read(text).unwrap().complete(|| 42).map(|spec| spec.to_string());
        for (text, whole) in [("manual", "manual"), ("chaos", "chaos=0x2a"), ("chaos=1", "chaos=0x1")] {
            assert_eq!(complete(text).as_deref(), Ok(whole));
        }
        let error = complete("limit").unwrap_err();
        assert_eq!(error.to_string(), "policy limit needs an argument: limit=SIZE");
        for text in ["limit", "chaos"] {
            assert!(read(text).unwrap().make().is_err());
        }
    }

    #[test]
    fn what_is_no_policy_is_named() {
        let error = |text: &str| read(text).unwrap_err();
        assert_eq!(error("lru"), PolicyError::Unknown("lru".into()));
        let message = error("lru").to_string();
        assert!(message.starts_with("unknown policy `lru`; the policies are manual, "), "{message}");
        assert!(POLICIES.iter().all(|entry| message.contains(&entry.to_string())), "{message}");
        for text in ["", "0x", "x", "-1", "+1", "18446744073709551616"] {
            let message = format!("`{text}` is not a seed: a 64-bit number, decimal or with 0x in front");
            assert_eq!(error(&format!("chaos={text}")), PolicyError::Argument(message));
        }
        assert_eq!(error("manual=1G"), PolicyError::UnexpectedArgument { policy: "manual", argument: "1G".into() });
        for (size, part) in [("0", "zero"), ("5000", "multiple of the page"), ("1GB", "unknown unit `GB`"), ("", "")] {
            let message = error(&format!("limit={size}")).to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn entries_are_fit_to_be_printed() {
        for (at, entry) in POLICIES.iter().enumerate() {
            assert!(!entry.name.is_empty() && entry.name.bytes().all(|byte| byte.is_ascii_lowercase()), "{entry}");
            assert!(POLICIES[..at].iter().all(|other| other.name != entry.name), "{entry}");
            assert!(!entry.help.is_empty() && !entry.help.contains('\n') && !entry.help.ends_with('.'), "{entry}");
        }
        assert_eq!(PolicySpec::default().to_string(), "manual");
        assert!(PolicySpec::default().make().is_ok(), "without being asked there is a policy that needs nothing");
    }
}
