//! A bar on standard error while something takes long; nothing where that is no terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// The bar, gone on drop.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new() -> Self {
        // Hidden by itself where standard error is no terminal.
        Self(ProgressBar::new(0))
    }

    /// Begins a part of `steps` steps.
    pub(crate) fn begin(&self, what: &str, steps: usize) {
        if let Ok(style) = ProgressStyle::with_template("{msg:34} [{bar:30}] {pos}/{len}") {
            self.0.set_style(style);
        }
        self.0.set_length(steps as u64);
        self.0.set_position(0);
        self.0.set_message(what.to_owned());
        self.0.tick();
    }

    /// Begins a part of which nobody knows yet how many steps it has.
    pub(crate) fn begin_counting(&self, what: &str) {
        if let Ok(style) = ProgressStyle::with_template("{msg:34} {human_pos}") {
            self.0.set_style(style);
        }
        self.0.set_position(0);
        self.0.set_message(what.to_owned());
        self.0.tick();
    }

    /// So many steps are done.
    pub(crate) fn steps(&self, steps: usize) {
        self.0.inc(steps as u64);
    }

    /// A step is done. Nothing is drawn while anything is timed.
    pub(crate) fn step(&self) {
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
