//! hetmem(1) and a page for each command, made by clap_mangen of what the command line is read by.

use std::path::PathBuf;

use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::text;

/// The pages that another names at its end.
const TOPICS: &str = "hetmem-devices(7), hetmem-policies(7), libhetmem(3)";

/// Each with where it belongs.
pub(super) fn pages(cli: &clap::Command) -> Vec<(PathBuf, Vec<u8>)> {
    let mut cli = cli.clone();
    cli.build();
    let commands: Vec<&clap::Command> = cli.get_subcommands().filter(|command| !command.is_hide_set()).collect();
    let name = |command: &clap::Command| format!("hetmem-{}", command.get_name());
    let mut names: Vec<String> = commands.iter().map(|command| format!("{}(1)", name(command))).collect();
    names.push(TOPICS.to_owned());
    let others = names.join(", ");
    let mut pages: Vec<_> = commands
        .iter()
        .map(|command| (text::path(&name(command), "1"), page(command, &format!("hetmem(1), {TOPICS}"))))
        .collect();
    pages.push((text::path("hetmem", "1"), page(&cli, &others)));
    pages
}

/// The page of one command.
fn page(command: &clap::Command, others: &str) -> Vec<u8> {
    let notes = command.get_after_long_help().map(ToString::to_string);
    let mut command = command.clone();
    // Which arguments there are is said below, and only once.
    let usage = command.render_usage().to_string();
    let command = command.override_usage(usage.trim_start_matches("Usage: ").to_owned());
    let man = Man::new(command.clone()).date(text::UNDATED).source(text::source()).manual(text::MANUAL);
    let has_options = command.get_arguments().any(|argument| !argument.is_hide_set());
    let mut page = Vec::new();
    let parts = [
        man.render_title(&mut page),
        man.render_name_section(&mut page),
        man.render_synopsis_section(&mut page),
        man.render_description_section(&mut page),
        if has_options { man.render_options_section(&mut page) } else { Ok(()) },
        if command.has_subcommands() { man.render_subcommands_section(&mut page) } else { Ok(()) },
    ];
    for part in parts {
        part.expect("memory can be written");
    }
    let mut roff = Roff::new();
    for note in notes.iter().flat_map(|notes| notes.split("\n\n")) {
        // A line that ends with a colon, and what belongs to it.
        let (heading, lines) = note.split_once(":\n").unwrap_or(("Notes", note));
        roff.control("SH", [heading.trim().to_uppercase().as_str()]);
        text::example(&mut roff, lines);
    }
    roff.control("SH", ["SEE ALSO"]).control("nh", []).text([roman(others)]);
    page.extend(roff.render().into_bytes());
    text::tidied(&String::from_utf8(page).expect("texts are UTF-8"))
}
