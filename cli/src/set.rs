//! `hetmem set`: changes what a run goes by, while it is under way.

use std::time::Duration;

use hetmem_core::quantity::{self, Exact};
use hetmem_core::units::ByteLen;

use crate::control::client;
use crate::control::protocol::{Answer, Request};
use crate::failure::Failure;
use crate::shown;

/// How long the run may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Change what a run goes by, while it is under way.
///
/// system-limit=SIZE is what may stay in system memory from now on, of a run with the policy limit or clock: what is above it leaves within a second
/// or so, as far as devices have room. SIZE takes K, M, G, T in powers of 1024.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The run: the process of `hetmem run`, or of its program (see `hetmem ps`)
    #[arg(value_parser = crate::args::pid)]
    pid: u32,

    /// What to change
    #[arg(value_name = "system-limit=SIZE", value_parser = setting)]
    setting: ByteLen,
}

fn setting(text: &str) -> Result<ByteLen, String> {
    match text.split_once('=') {
        Some(("system-limit", size)) => {
            let size = quantity::size(size).map_err(|error| error.to_string())?;
            let is_limit = size.whole_pages().is_some_and(|pages| !pages.is_zero());
            is_limit.then_some(size).ok_or_else(|| "a limit is a positive multiple of 4K, such as 256M".to_owned())
        }
        _ if quantity::size(text).is_ok() => Err(format!("what is set must be said: system-limit={text}")),
        _ => Err("only system-limit=SIZE can be set".to_owned()),
    }
}

/// Sets it; the result is the exit status.
pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let (run, mut connection) = client::find(Some(args.pid)).map_err(Failure::Control)?;
    let failed = |error: client::AskError| Failure::Control(format!("run {}: {error}", run.pid));
    let request = Request::Set { system_limit_bytes: args.setting.get() };
    let Answer::Set(set) = connection.ask(&request, PATIENCE).map_err(failed)? else {
        return Err(Failure::Control(format!("run {}: it answers something else", run.pid)));
    };
    let limit = Exact(ByteLen::new(set.system_limit_bytes));
    shown::print(&format!("run {}: system-limit={limit}\n", run.pid), "what was set")?;
    Ok(0)
}
