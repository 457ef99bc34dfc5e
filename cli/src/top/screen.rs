//! The terminal, while a full screen is shown on it. However that ends, the terminal is as it was.

use std::io::{self, Stdout, Write as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use hetmem_core::sync::Arc;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::layout::Rect;
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::control::wait;

/// Ctrl-C, which is no signal while the terminal is raw, and Ctrl-Z.
const CTRL_C: u8 = 3;
const CTRL_Z: u8 = 26;

/// The whole screen.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

/// Whether the terminal is taken: a panic gives it back before it says what it is, and once is enough.
static TAKEN: AtomicBool = AtomicBool::new(false);

impl Screen {
    pub(super) fn take() -> io::Result<Self> {
        let before: Arc<dyn Fn(&std::panic::PanicHookInfo<'_>) + Send + Sync> = Arc::from(std::panic::take_hook());
        std::panic::set_hook(Box::new(move |info| {
            give_back();
            before(info);
        }));
        // Whatever fails from here on, the terminal is given back when this is dropped.
        let screen = Self { terminal: terminal()? };
        enter()?;
        Ok(screen)
    }

    /// Has the screen again, after it was given back.
    pub(super) fn take_again(&mut self) -> io::Result<()> {
        // One that takes nothing for drawn. The old one shows the cursor as it goes.
        self.terminal = terminal()?;
        enter()
    }

    /// Draws a frame of the screen's present size.
    pub(super) fn draw(&mut self, frame: impl FnOnce(Rect, &mut Buffer)) -> io::Result<()> {
        self.terminal.draw(|shown| frame(shown.area(), shown.buffer_mut())).map(|_| ())
    }

    /// Has the terminal be as it was.
    pub(super) fn give_back(&mut self) {
        give_back();
    }
}

fn terminal() -> io::Result<Terminal<CrosstermBackend<Stdout>>> {
    Terminal::new(CrosstermBackend::new(io::stdout()))
}

fn enter() -> io::Result<()> {
    enable_raw_mode()?;
    TAKEN.store(true, SeqCst);
    execute!(io::stdout(), EnterAlternateScreen, Hide)
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    if TAKEN.swap(false, SeqCst) {
        // A terminal that is gone takes nothing back.
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = io::stdout().flush();
        let _ = disable_raw_mode();
    }
}

/// Reads the keys that were pressed; whether one of them ends it, or there will be no more.
pub(super) fn quits() -> io::Result<bool> {
    let stdin = io::stdin();
    if wait(stdin.as_fd(), PollFlags::IN, Some(Duration::ZERO)).is_empty() {
        return Ok(false);
    }
    let mut keys = [0; 64];
    match rustix::io::read(&stdin, &mut keys) {
        // The terminal has hung up.
        Ok(0) | Err(Errno::IO) => Ok(true),
        Ok(length) => {
            let keys = &keys[..length];
            if keys.contains(&CTRL_Z) {
                signal_hook::low_level::raise(signal_hook::consts::SIGTSTP)?;
            }
            Ok(keys.iter().any(|key| matches!(*key, b'q' | b'Q' | CTRL_C)))
        }
        Err(Errno::INTR | Errno::AGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
