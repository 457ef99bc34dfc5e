//! What `hetmem run` asks of the agent, and how it travels: as JSON in the one environment variable [`VARIABLE`], which
//! every program of the tree inherits.
//!
//! A [`Config`] that was decoded is complete and checked: the agent refuses anything else, and so does an agent of
//! another version than the `hetmem` that started it.

use std::fmt;
use std::path::PathBuf;

use hetmem_core::heat::{Sources, SourcesError};
use hetmem_core::policy::{PolicyError, PolicySpec};
use hetmem_core::units::ByteLen;
use hetmem_devices::spec::{DeviceSpec, SpecError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The environment variable that carries the configuration.
pub const VARIABLE: &str = "HETMEM_AGENT";

/// Changes whenever an older agent would misread the configuration or the statistics memory.
const VERSION: u32 = 9;

/// Everything that the agent is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The devices, in the order of the command line.
    pub devices: Vec<DeviceSpec>,
    /// Which pages go where, and when.
    pub policy: PolicySpec,
    /// What shows it how pages are used.
    pub heat: Sources,
    /// How much populated system memory is kept for pages on their way home, in each process.
    pub stock: ByteLen,
    /// Whether the limit and the sizes of devices are each process's, and not the run's.
    pub per_process: bool,
    /// Whether files that the program maps to be read are managed, too.
    pub files: bool,
    /// The statistics memory: a path that the process opens and maps, of the form `/proc/PID/fd/N`.
    pub ledger: PathBuf,
    /// The rings for records, if the run is recorded: a path of the same form.
    pub rings: Option<PathBuf>,
    /// The process id of the supervising `hetmem run`. Its direct child is the program itself; a process with another
    /// parent is one that the program started.
    pub supervisor: u32,
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
    /// The policy can't be had.
    #[error("{VARIABLE}: {0}")]
    Policy(#[from] PolicyError),
    /// Heat comes from elsewhere.
    #[error("{VARIABLE}: {0}")]
    Heat(#[from] SourcesError),
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
            policy: self.policy.to_string(),
            heat: self.heat.to_string(),
            stock: self.stock.get(),
            per_process: self.per_process,
            files: self.files,
            ledger: self.ledger.clone(),
            rings: self.rings.clone(),
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
        let policy: PolicySpec = wire.policy.parse()?;
        policy.make()?;
        Ok(Self {
            devices: wire.devices.iter().map(|spec| spec.parse()).collect::<Result<_, _>>()?,
            policy,
            heat: wire.heat.parse()?,
            stock: ByteLen::new(wire.stock),
            per_process: wire.per_process,
            files: wire.files,
            ledger: wire.ledger,
            rings: wire.rings,
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
        let per_process = if self.per_process { " --per-process" } else { "" };
        let files = if self.files { " --files" } else { "" };
        let (policy, heat, stock) = (&self.policy, self.heat, self.stock.get());
        write!(f, "--policy {policy} --heat {heat} --stock {stock}{per_process}{files}")
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
    policy: String,
    heat: String,
    stock: u64,
    per_process: bool,
    files: bool,
    ledger: PathBuf,
    rings: Option<PathBuf>,
    supervisor: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(policy: &str) -> Config {
        Config {
            devices: vec![
                "coherent:emulated,size=64M,name=c".parse().unwrap(),
                "private:emulated,size=64M,latency=2us,fail=9".parse().unwrap(),
            ],
            policy: policy.parse().unwrap(),
            heat: Sources { samples: false },
            stock: ByteLen::new(1 << 20),
            per_process: true,
            files: true,
            ledger: "/proc/12/fd/3".into(),
            rings: Some("/proc/12/fd/4".into()),
            supervisor: 12,
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        for policy in ["manual", "limit=1M", "chaos=0xffffffffffffffff"] {
            let config = config(policy);
            assert_eq!(Config::decode(&config.encode()).unwrap(), config);
        }
    }

    #[test]
    fn other_versions_and_other_texts_are_refused() {
        let later = format!("{{\"version\":{},\"new\":1}}", VERSION + 1);
        assert!(matches!(Config::decode(&later), Err(ConfigError::Version { found }) if found == VERSION + 1));
        assert!(matches!(Config::decode(""), Err(ConfigError::Malformed(_))));
        let bad = config("manual").encode().replace("emulated", "imagined");
        assert!(matches!(Config::decode(&bad), Err(ConfigError::Device(_))));
        let heat = config("manual").encode().replace("\"faults\"", "\"guesses\"");
        assert!(matches!(Config::decode(&heat), Err(ConfigError::Heat(SourcesError::Unknown(_)))));
        let unknown = config("manual").encode().replace("manual", "lru");
        assert!(matches!(Config::decode(&unknown), Err(ConfigError::Policy(PolicyError::Unknown(_)))));
        let incomplete = config("limit").encode();
        assert!(matches!(Config::decode(&incomplete), Err(ConfigError::Policy(PolicyError::NoArgument(_)))));
    }

    #[test]
    fn a_configuration_prints_as_options() {
        assert_eq!(
            config("limit=1M").to_string(),
            "--device coherent:emulated,size=64M,name=c \
             --device private:emulated,size=64M,name=private0,latency=2us,fail=9 --policy limit=1M --heat faults --stock 1048576 --per-process --files"
        );
    }
}
