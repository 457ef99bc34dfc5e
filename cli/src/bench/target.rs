//! What `hetmem bench agent` and `hetmem bench policy` measure: this binary once more, natively and under `hetmem run`, as a program that sleeps, works,
//! ends at once, or uses memory as a workload says. It says on standard output, as JSON, what it cost; threads that others have started in it are counted.

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::time::Duration;

use hetmem_core::units::{PAGE_SIZE, PageCount};
use hetmem_sys::mapping::{Arena, ArenaOptions, HugePages, Prefault, Whose, forbid_huge_pages};
use hetmem_sys::maps::{BUFFER_SIZE, Perms, for_each_mapping};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::setup::failed;
use crate::failure::Failure;

/// Be the program that `hetmem bench agent` or `hetmem bench policy` measures.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    role: Role,
}

/// What the program does.
#[derive(clap::Subcommand, Debug)]
enum Role {
    /// It ends.
    End,
    /// It maps memory, writes to it, and sleeps.
    Sleep {
        /// Mappings, side by side.
        mappings: u64,
        /// Pages of each.
        pages: u64,
        /// Milliseconds before the measurement.
        settle: u64,
        /// Milliseconds of the measurement.
        measure: u64,
    },
    /// It computes, and allocates now and then.
    Work {
        /// How much.
        turns: u64,
    },
    /// It uses memory.
    Policy {
        /// How, as JSON.
        task: String,
    },
}

/// What it cost.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Cost {
    /// Processor time of the measured part.
    pub(super) cpu_nanoseconds: u64,
    /// Memory that was resident at the end.
    pub(super) resident_bytes: u64,
    /// Private memory that was readable and writable at the end.
    pub(super) writable_bytes: u64,
}

/// Plays the role.
pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    match &args.role {
        Role::End => Ok(0),
        Role::Sleep { mappings, pages, settle, measure } => {
            let _memory = patchwork(*mappings, PageCount::new(*pages))?;
            sleep(Duration::from_millis(*settle))?;
            say(&cost(|| sleep(Duration::from_millis(*measure)))?)
        }
        Role::Work { turns } => say(&cost(|| {
            black_box(work(*turns));
            Ok(())
        })?),
        Role::Policy { task } => {
            let task = serde_json::from_str(task).map_err(failed("the task can't be read"))?;
            say(&super::policy::program::run(&task)?)
        }
    }
}

fn say(figures: &impl Serialize) -> Result<u8, Failure> {
    let text = serde_json::to_string(figures).map_err(failed("the figures can't be put into JSON"))?;
    writeln!(std::io::stdout(), "{text}").map_err(|source| Failure::Output { what: "the figures", source })?;
    Ok(0)
}

/// `count` mappings of `pages` small pages each, which the kernel can't make one of: every other one may have huge pages, by its flags.
fn patchwork(count: u64, pages: PageCount) -> Result<Option<Arena>, Failure> {
    if count == 0 {
        return Ok(None);
    }
    let no_memory = failed("no memory for the measured program");
    let all = PageCount::new(count * pages.get());
    // With more than one, huge pages would be as large as many mappings.
    let options = ArenaOptions { huge_pages: HugePages::System, whose: Whose::Program, ..ArenaOptions::default() };
    let options = if count > 1 { options } else { ArenaOptions { huge_pages: HugePages::Never, ..options } };
    let arena = Arena::reserve(all, &ArenaOptions { prefault: Prefault::OnTouch, ..options }).map_err(&no_memory)?;
    for i in (0..count).step_by(2) {
        forbid_huge_pages(arena.range().slice(PageCount::new(i * pages.get()), pages)).map_err(&no_memory)?;
    }
    arena.populate(arena.range()).map_err(&no_memory)?;
    Ok(Some(arena))
}

pub(super) fn sleep(time: Duration) -> Result<(), Failure> {
    let time = time.try_into().map_err(failed("a time can't be had"))?;
    // Of nothing: only time passes.
    rustix::event::poll(&mut [], Some(&time)).map_err(failed("the program can't sleep"))?;
    Ok(())
}

/// The processor time of all threads of this process, whoever has made them.
#[expect(clippy::disallowed_methods, reason = "this program moves no vDSO")]
pub(super) fn cpu_nanoseconds() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or(0)
}

fn cost(part: impl FnOnce() -> Result<(), Failure>) -> Result<Cost, Failure> {
    let before = cpu_nanoseconds();
    part()?;
    let cpu_nanoseconds = cpu_nanoseconds() - before;
    let mut writable_bytes = 0;
    for_each_mapping(&mut [0; BUFFER_SIZE], |mapping| {
        if mapping.perms.contains(Perms::READ | Perms::WRITE) && !mapping.perms.contains(Perms::SHARED) {
            writable_bytes += mapping.range.pages().bytes().get();
        }
        ControlFlow::Continue(())
    })
    .map_err(failed("/proc/self/maps can't be read"))?;
    Ok(Cost { cpu_nanoseconds, resident_bytes: resident_bytes()?, writable_bytes })
}

fn resident_bytes() -> Result<u64, Failure> {
    let text = std::fs::read_to_string("/proc/self/statm").map_err(failed("/proc/self/statm can't be read"))?;
    let pages: Option<u64> = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.map(|pages| pages * PAGE_SIZE).ok_or_else(|| Failure::Bench("/proc/self/statm has no figures".to_owned()))
}

/// Allocates, writes, reads and frees, a piece of a megabyte at most in each of `turns`, between computations that touch nothing.
fn work(turns: u64) -> u64 {
    let mut sum = 0_u64;
    for turn in 0..turns {
        let mut text = String::new();
        for i in 0..200 {
            let _infallible = write!(text, "{turn}:{i} ");
        }
        let words: Vec<u64> = (0..1 + turn % 64 * 512).collect();
        sum = words.iter().fold(sum, |sum, word| sum.rotate_left(5) ^ word);
        for step in 0..400_000_u64 {
            sum = black_box(sum.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step));
        }
        sum ^= text.len() as u64;
    }
    sum
}
