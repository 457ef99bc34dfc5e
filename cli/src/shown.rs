//! What several commands show in one way.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::run::output::Output;

/// Prints `text`, which is called `what`, on standard output.
pub(crate) fn print(text: &str, what: &'static str) -> Result<(), Failure> {
    print_on(text, what).map(|_| ())
}

/// The same; whether somebody may want more.
pub(crate) fn print_on(text: &str, what: &'static str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        // A reader that went away has seen what it wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(source) => Err(Failure::Output { what, source }),
    }
}

/// A picture that is to be, an SVG document: what is in its file stays until it is drawn.
#[derive(Debug)]
pub(crate) struct Picture {
    path: PathBuf,
    file: Output,
}

impl Picture {
    /// Makes sure of the file, before there is anything to draw.
    pub(crate) fn prepare(path: &Path) -> Result<Self, Failure> {
        let failed = |source| Failure::Picture { path: path.to_owned(), source };
        Ok(Self { path: path.to_owned(), file: Output::prepare(path).map_err(failed)? })
    }

    /// Writes what was drawn.
    pub(crate) fn write(self, drawn: &svg::Document) -> Result<(), Failure> {
        let text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{drawn}\n");
        match self.file.write(text.as_bytes()) {
            // A reader that went away has seen what it wanted.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written.map_err(|source| Failure::Picture { path: self.path, source }),
        }
    }
}

/// Rows in columns of their width, two spaces between them; those of `left` begin on the left, the others end on the right.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]], left: &[usize]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if left.contains(&column) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// How many processes, in words.
pub(crate) fn processes(number: u64) -> String {
    if number == 1 { "1 process".to_owned() } else { format!("{number} processes") }
}

/// A time as people tell it: `0:07`, `12:34`, `3:00:00`, `2d 3:00:00`.
pub(crate) fn time(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "casts of floats saturate, and no time is negative"
    )]
    let seconds = seconds as u64;
    let (minutes, hours) = (seconds / 60 % 60, seconds / 3600 % 24);
    let clock = format!("{minutes:02}:{:02}", seconds % 60);
    match (seconds / 86400, hours) {
        (0, 0) => clock.strip_prefix('0').map_or(clock.clone(), str::to_owned),
        (0, hours) => format!("{hours}:{clock}"),
        (days, hours) => format!("{days}d {hours}:{clock}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_people_tell_them() {
        for (seconds, text) in [(7.9, "0:07"), (754.0, "12:34"), (10_800.0, "3:00:00"), (183_600.0, "2d 3:00:00")] {
            assert_eq!(time(seconds), text);
        }
    }

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [["A", "NAME", "N"], ["123", "é", "4"]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows, &[1]), "  A  NAME  N\n123  é     4\n");
    }
}
