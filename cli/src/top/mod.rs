//! `hetmem top`: a run while it is under way, on the whole screen, or once as text, JSON or a picture.
//!
//! ```text
//! frame    what is shown, as cells: places, flow, faults, heat, processes
//! picture  a frame as SVG
//! screen   the terminal: taken, and given back however this ends
//! signals  what comes from the kernel while one waits
//! ```
//!
//! It sleeps until the run has news, a key is pressed, or a signal comes. A run that says nothing is shown as it was, and since when.

mod frame;
mod picture;
mod screen;
mod signals;

use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::control::client::{self, AskError, Connection};
use crate::control::protocol::{self, Answer, Heat, Request, Run, Statistics};
use crate::failure::Failure;
use crate::shown::{self, Picture};
use frame::{Look, Shown};
use screen::Screen;
use signals::Signals;

/// From one frame to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// Over which `--once` looks.
const ONCE: Duration = Duration::from_millis(500);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// After this time without news it is said since when there are none.
const SILENCE: Duration = Duration::from_secs(3);
/// The parts that heat is asked in: as many as a screen is wide.
const CELLS: u32 = 160;
/// The size of the frame that `--once` prints or draws.
const ONCE_SIZE: Rect = Rect { x: 0, y: 0, width: 80, height: 24 };

/// Watch a run: where its memory is, what moves, how long faults take, how warm what is managed is, and its processes.
///
/// Keys: q or Ctrl-C quits. Rates are those of the last second. Colours are left out where NO_COLOR is set.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The run: the process of `hetmem run`, or of its program (see `hetmem ps`) [default: the only one]
    #[arg(value_parser = crate::args::pid)]
    pid: Option<u32>,

    /// Print one frame as text, and end
    #[arg(long)]
    once: bool,

    /// With --once: print it as JSON
    #[arg(long, requires = "once")]
    json: bool,

    /// With --once: draw it into this file, as SVG
    #[arg(long, value_name = "FILE", requires = "once", conflicts_with = "json")]
    svg: Option<PathBuf>,
}

/// Watches; the result is the exit status.
pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let has_terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
    if !args.once && !has_terminal {
        return Err(Failure::Usage("top needs a terminal; --once prints one frame as text".to_owned()));
    }
    let (run, connection) = client::find(args.pid).map_err(Failure::Control)?;
    let failed = |error| Failure::Control(format!("run {}: {error}", run.pid));
    if args.once {
        // Before there is anything to draw.
        let picture = args.svg.as_deref().map(Picture::prepare).transpose()?;
        let shown = once(connection).map_err(failed)?;
        if let Some(picture) = picture {
            let name = format!("hetmem top {}", run.pid);
            return picture.write(&picture::draw(&frame(&shown, Look::full()), &name)).map(|()| 0);
        }
        let text = if args.json { json(&shown) } else { frame::text(&frame(&shown, Look::plain())) };
        return shown::print(&text, "the frame").map(|()| 0);
    }
    watch(&run, connection)
}

/// What is known after half a second.
fn once(mut connection: Connection) -> Result<Shown, AskError> {
    connection.send(&Request::Subscribe { interval_ms: u64::try_from(ONCE.as_millis()).ok() })?;
    let mut shown = Shown::default();
    while shown.statistics.as_ref().is_none_or(|statistics| statistics.interval.is_none()) {
        take(&mut shown, Ok(connection.receive(PATIENCE)?))?;
    }
    if let Some(request) = heat_of(&shown) {
        connection.send(&request)?;
        while !shown.heat_is_answered {
            let answer = connection.receive(PATIENCE);
            take(&mut shown, answer)?;
        }
    }
    Ok(shown)
}

/// It as one frame.
fn frame(shown: &Shown, look: Look) -> Buffer {
    let mut cells = Buffer::empty(ONCE_SIZE);
    frame::draw(shown, look, ONCE_SIZE, &mut cells);
    cells
}

/// It as a line of JSON.
fn json(shown: &Shown) -> String {
    #[derive(Serialize)]
    struct Frame<'a> {
        statistics: &'a Option<Statistics>,
        heat: &'a Option<Heat>,
    }
    protocol::line(&Frame { statistics: &shown.statistics, heat: &shown.heat })
}

/// What came, into what is shown.
fn take(shown: &mut Shown, answer: Result<Answer, AskError>) -> Result<(), AskError> {
    match answer {
        Ok(Answer::Statistics(statistics)) => shown.statistics = Some(statistics),
        Ok(Answer::Heat(heat)) => (shown.heat, shown.heat_is_answered) = (Some(heat), true),
        // Heat that can't be told: its process has ended, is stopped, or busy.
        Err(AskError::Refused(_)) => (shown.heat, shown.heat_is_answered) = (None, true),
        Ok(
            Answer::Run(_)
            | Answer::Regions(_)
            | Answer::Residency(_)
            | Answer::Set(_)
            | Answer::Migrate(_)
            | Answer::Advise(_)
            | Answer::Error(_),
        ) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Asks for the heat of the process of which most is managed.
fn heat_of(shown: &Shown) -> Option<Request> {
    let processes = &shown.statistics.as_ref()?.processes;
    let largest = processes.iter().max_by_key(|process| process.managed_bytes)?;
    Some(Request::Heat { pid: largest.pid, cells: Some(CELLS) })
}

/// Shows frames until a key, a signal, or the run's end.
fn watch(run: &Run, mut connection: Connection) -> Result<u8, Failure> {
    let failed = |error| Failure::Control(format!("run {}: {error}", run.pid));
    let terminal = |source| Failure::Output { what: "to the terminal", source };
    let subscription = Request::Subscribe { interval_ms: u64::try_from(INTERVAL.as_millis()).ok() };
    connection.send(&subscription).map_err(failed)?;
    let signals = Signals::new().map_err(terminal)?;
    let look = Look::of_environment();
    let mut screen = Screen::take().map_err(terminal)?;
    let (mut shown, mut heard) = (Shown::default(), Instant::now());
    let ended = loop {
        loop {
            let answer = match connection.received() {
                Ok(None) => break,
                Ok(Some(answer)) => Ok(answer),
                Err(error) => Err(error),
            };
            heard = Instant::now();
            let has_news = matches!(answer, Ok(Answer::Statistics(_)));
            let mut taken = take(&mut shown, answer);
            if taken.is_ok()
                && has_news
                && let Some(request) = heat_of(&shown)
            {
                taken = connection.send(&request);
            }
            if let Err(error) = taken {
                // Who has not read for long, as while this was stopped, was hung up on.
                if error == AskError::Ended
                    && let Ok((_, again)) = client::find(Some(run.pid))
                {
                    connection = again;
                    connection.send(&subscription).map_err(failed)?;
                    break;
                }
                screen.give_back();
                if error != AskError::Ended {
                    return Err(failed(error));
                }
                return shown::print(&format!("run {} has ended\n", run.pid), "the end").map(|()| 0);
            }
        }
        shown.silent_for = Some(heard.elapsed()).filter(|time| *time >= SILENCE);
        screen.draw(|area, cells| frame::draw(&shown, look, area, cells)).map_err(terminal)?;
        if !wait(&connection, &signals) {
            continue;
        }
        if let Some(signal) = signals.ends() {
            break Some(signal);
        }
        if signals.stops() {
            screen.give_back();
            signals::stop();
            screen.take_again().map_err(terminal)?;
        }
        if screen::quits().map_err(terminal)? {
            break None;
        }
    };
    screen.give_back();
    if let Some(signal) = ended {
        signals::end(signal);
    }
    Ok(0)
}

/// Waits for news, keys and signals; whether there may be keys or signals.
fn wait(connection: &Connection, signals: &Signals) -> bool {
    let stdin = io::stdin();
    let mut fds = [
        PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
    ];
    let time = Timespec { tv_sec: i64::try_from(SILENCE.as_secs()).unwrap_or(1), tv_nsec: 0 };
    // Interrupted, or anything else: whatever it is, it is looked at.
    poll(&mut fds, Some(&time)).is_err() || !fds[1].revents().is_empty() || !fds[2].revents().is_empty()
}
