//! What `hetmem run` asks of the agent, and how it travels: as JSON in the one environment variable [`VARIABLE`], which
//! every program of the tree inherits.
//!
//! A [`Config`] that was decoded is complete and checked: the agent refuses anything else, and so does an agent of
//! another version than the `hetmem` that started it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use hetmem_core::quantity;
use hetmem_core::units::ByteLen;
use hetmem_devices::spec::{DeviceSpec, SpecError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The environment variable that carries the configuration.
pub const VARIABLE: &str = "HETMEM_AGENT";

/// Changes whenever an older agent would misread the configuration or the statistics memory.
const VERSION: u32 = 2;

/// Everything that the agent is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The devices, in the order of the command line.
    pub devices: Vec<DeviceSpec>,
    /// Which pages go where, and when.
    pub policy: Policy,
    /// The statistics memory: a path that the process opens and maps, of the form `/proc/PID/fd/N`.
    pub ledger: PathBuf,
    /// The process id of the supervising `hetmem run`. Its direct child is the program itself; a process with another
    /// parent is one that the program started.
    pub supervisor: u32,
}

/// Which pages go where, and when.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Policy {
    /// Nothing moves unless the program asks for it.
    Manual,
    /// At most `system_limit` of managed memory stays in system memory; a clock chooses what leaves, and passes over what touches brought home since it last came by.
    Limit {
        /// The limit, of each process.
        system_limit: ByteLen,
    },
    /// Random chunks of everything go to every device and back, without pause.
    Chaos {
        /// The seed of the random numbers.
        seed: u64,
    },
}

/// A policy as it is written on the command line: its name, with the seed where one is given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PolicyName {
    /// `manual`
    Manual,
    /// `limit`
    Limit,
    /// `chaos` or `chaos=SEED`
    Chaos(Option<u64>),
}

/// Why a text names no policy.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// No such policy.
    #[error("unknown policy `{0}`; the policies are manual, limit and chaos[=SEED]")]
    Unknown(String),
    /// An argument where none is taken.
    #[error("policy {policy} takes no argument, but `{argument}` was given")]
    UnexpectedArgument {
        /// The policy.
        policy: &'static str,
        /// What was given.
        argument: String,
    },
    /// The seed is no number.
    #[error("`{0}` is not a seed: a 64-bit number, decimal or with 0x in front")]
    Seed(String),
}

impl FromStr for PolicyName {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let (name, argument) = match text.split_once('=') {
            Some((name, argument)) => (name, Some(argument)),
            None => (text, None),
        };
        let (policy, label) = match name {
            "manual" => (Self::Manual, "manual"),
            "limit" => (Self::Limit, "limit"),
            "chaos" => return Ok(Self::Chaos(argument.map(seed).transpose()?)),
            _ => return Err(PolicyError::Unknown(name.to_owned())),
        };
        match argument {
            Some(argument) => Err(PolicyError::UnexpectedArgument { policy: label, argument: argument.to_owned() }),
            None => Ok(policy),
        }
    }
}

fn seed(text: &str) -> Result<u64, PolicyError> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // `from_str_radix` would take a sign.
    let number = digits.chars().all(|c| c.is_digit(radix)).then(|| u64::from_str_radix(digits, radix));
    number.and_then(Result::ok).ok_or_else(|| PolicyError::Seed(text.to_owned()))
}

/// Printed as on the command line, the limit behind it: `manual`, `limit (256 MiB)`, `chaos=0x2a`.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manual => write!(f, "manual"),
            Self::Limit { system_limit } => write!(f, "limit ({system_limit})"),
            Self::Chaos { seed } => write!(f, "chaos={seed:#x}"),
        }
    }
}

/// Printed as it is read.
impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manual => write!(f, "manual"),
            Self::Limit => write!(f, "limit"),
            Self::Chaos(None) => write!(f, "chaos"),
            Self::Chaos(Some(seed)) => write!(f, "chaos={seed:#x}"),
        }
    }
}

/// Why a configuration can't be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The variable holds something else.
    #[error("{VARIABLE} is not a configuration of hetmem: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by another version.
    #[error("{VARIABLE} was written by another version of hetmem (its format is {found}, this one reads {VERSION})")]
    Version {
        /// The version of the format.
        found: u32,
    },
    /// A device's spec can't be read.
    #[error("{VARIABLE}: {0}")]
    Device(#[from] SpecError),
}

impl Config {
    /// The configuration as the value of [`VARIABLE`].
    ///
    /// # Panics
    ///
    /// Never for a path of the form that [`Config::ledger`] has, which is always text.
    #[must_use]
    pub fn encode(&self) -> String {
        let wire = Wire {
            version: VERSION,
            devices: self.devices.iter().map(DeviceSpec::to_string).collect(),
            policy: match self.policy {
                Policy::Manual => WirePolicy::Manual,
                Policy::Limit { system_limit } => WirePolicy::Limit { system_limit: system_limit.get() },
                Policy::Chaos { seed } => WirePolicy::Chaos { seed },
            },
            ledger: self.ledger.clone(),
            supervisor: self.supervisor,
        };
        serde_json::to_string(&wire).expect("strings, numbers and a textual path are JSON")
    }

    /// Reads the value of [`VARIABLE`].
    ///
    /// # Errors
    ///
    /// If this version of hetmem did not write it.
    pub fn decode(text: &str) -> Result<Self, ConfigError> {
        let Version { version } = serde_json::from_str(text)?;
        if version != VERSION {
            return Err(ConfigError::Version { found: version });
        }
        let wire: Wire = serde_json::from_str(text)?;
        Ok(Self {
            devices: wire.devices.iter().map(|spec| spec.parse()).collect::<Result<_, _>>()?,
            policy: match wire.policy {
                WirePolicy::Manual => Policy::Manual,
                WirePolicy::Limit { system_limit } => Policy::Limit { system_limit: ByteLen::new(system_limit) },
                WirePolicy::Chaos { seed } => Policy::Chaos { seed },
            },
            ledger: wire.ledger,
            supervisor: wire.supervisor,
        })
    }
}

/// Printed as on the command line of the `hetmem run` that would ask for the same.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for device in &self.devices {
            write!(f, "--device {device} ")?;
        }
        match self.policy {
            Policy::Limit { system_limit } => {
                write!(f, "--policy limit --system-limit {}", quantity::Exact(system_limit))
            }
            Policy::Manual | Policy::Chaos { .. } => write!(f, "--policy {}", self.policy),
        }
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u32,
    devices: Vec<String>,
    policy: WirePolicy,
    ledger: PathBuf,
    supervisor: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum WirePolicy {
    Manual,
    Limit { system_limit: u64 },
    Chaos { seed: u64 },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(policy: Policy) -> Config {
        Config {
            devices: vec![
                "coherent:emulated,size=64M,name=c".parse().unwrap(),
                "private:emulated,size=64M,latency=2us,fail=9".parse().unwrap(),
            ],
            policy,
            ledger: "/proc/12/fd/3".into(),
            supervisor: 12,
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let limit = Policy::Limit { system_limit: ByteLen::new(1 << 20) };
        for policy in [Policy::Manual, limit, Policy::Chaos { seed: u64::MAX }] {
            let config = config(policy);
            assert_eq!(Config::decode(&config.encode()).unwrap(), config);
        }
    }

    #[test]
    fn other_versions_and_other_texts_are_refused() {
        let later = format!("{{\"version\":{},\"new\":1}}", VERSION + 1);
        assert!(matches!(Config::decode(&later), Err(ConfigError::Version { found }) if found == VERSION + 1));
        assert!(matches!(Config::decode(""), Err(ConfigError::Malformed(_))));
        let bad = config(Policy::Manual).encode().replace("emulated", "imagined");
        assert!(matches!(Config::decode(&bad), Err(ConfigError::Device(_))));
    }

    #[test]
    fn policies_are_read_as_they_are_printed() {
        for text in ["manual", "limit", "chaos", "chaos=0x2a"] {
            assert_eq!(text.parse::<PolicyName>().unwrap().to_string(), text);
        }
        assert_eq!("chaos=42".parse(), Ok(PolicyName::Chaos(Some(42))));
        assert_eq!("chaos=0xffffffffffffffff".parse(), Ok(PolicyName::Chaos(Some(u64::MAX))));
    }

    #[test]
    fn what_is_no_policy_is_named() {
        let error = |text: &str| text.parse::<PolicyName>().unwrap_err();
        assert_eq!(error("lru"), PolicyError::Unknown("lru".into()));
        for text in ["", "0x", "x", "-1", "+1", "18446744073709551616"] {
            assert_eq!(error(&format!("chaos={text}")), PolicyError::Seed(text.into()));
        }
        assert_eq!(error("limit=1G"), PolicyError::UnexpectedArgument { policy: "limit", argument: "1G".into() });
    }

    #[test]
    fn a_configuration_prints_as_options() {
        assert_eq!(
            config(Policy::Limit { system_limit: ByteLen::new(1 << 20) }).to_string(),
            "--device coherent:emulated,size=64M,name=c \
             --device private:emulated,size=64M,name=private0,latency=2us,fail=9 --policy limit --system-limit 1M"
        );
    }
}
