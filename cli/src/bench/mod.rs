//! `hetmem bench`: measurements. Under construction.

use std::path::PathBuf;

use crate::failure::Failure;

/// Measure migration and faults on this host.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Write the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// The measurements to make [default: all]
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Makes the measurements.
pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let Args { json: _, names: _ } = args;
    Err(Failure::Bench("no measurement is there yet".to_owned()))
}
