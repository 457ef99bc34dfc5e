//! `hetmem pages`: manual pages, and completions for shells, made of what the command itself knows.
//!
//! ```text
//! command    hetmem(1), and a page for each of its commands
//! topics     hetmem-devices(7), hetmem-policies(7)
//! library    libhetmem(3), from the headers
//! text       paragraphs, lists and examples, as roff
//! ```
//!
//! Whoever packages hetmem runs it once; so it is not among the commands that `hetmem --help` lists.

mod command;
mod library;
mod text;
mod topics;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap_complete::Shell;

use crate::failure::Failure;

/// Write the manual pages, and completions for bash, zsh and fish.
///
/// Each goes where it is looked for below a folder such as /usr/share or ~/.local/share: man/man1, man/man3 and man/man7, bash-completion/completions,
/// zsh/site-functions, fish/vendor_completions.d. Files that are there already are replaced.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The folder; it is made if it is not there
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Writes them; the result is the exit status.
pub(crate) fn run(args: &Args, cli: clap::Command) -> Result<u8, Failure> {
    let mut files = command::pages(&cli);
    files.extend(topics::pages());
    files.push(library::page());
    files.extend(completions(&cli));
    for (path, text) in files {
        let path = args.folder.join(path);
        write(&path, &text).map_err(|source| Failure::Page { path, source })?;
    }
    Ok(0)
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    fs::create_dir_all(path.parent().expect("each is in a folder of its own"))?;
    fs::write(path, text)
}

fn completions(cli: &clap::Command) -> [(PathBuf, Vec<u8>); 3] {
    // Without what `hetmem --help` leaves out, too.
    let listed = cli.get_subcommands().filter(|command| !command.is_hide_set());
    let mut cli = clap::Command::new("hetmem")
        .version(env!("CARGO_PKG_VERSION"))
        .about(cli.get_about().cloned().unwrap_or_default())
        .disable_help_subcommand(true)
        .subcommands(listed.cloned());
    // Where each shell looks, and what it calls the file.
    [
        (Shell::Bash, "bash-completion/completions/hetmem"),
        (Shell::Zsh, "zsh/site-functions/_hetmem"),
        (Shell::Fish, "fish/vendor_completions.d/hetmem.fish"),
    ]
    .map(|(shell, path)| {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut cli, "hetmem", &mut text);
        (PathBuf::from(path), text)
    })
}
