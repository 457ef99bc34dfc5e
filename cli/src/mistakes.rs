//! What is said of a wrong command line: one line, which says what would be right and where help is.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// What of clap's explanation would mislead: whoever writes an unknown option means no value.
const MISLEADING: &str = "tip: to pass '";

/// The error that clap explains in paragraphs, in one line.
pub(crate) fn in_one_line(error: &clap::Error, args: &[OsString], cli: &clap::Command) -> String {
    let words: Vec<String> = args.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let is_help = words.first().is_some_and(|word| word == "help");
    let command = words.get(usize::from(is_help)).and_then(|word| cli.find_subcommand(word));
    let help =
        command.map_or("`hetmem --help`".to_owned(), |command| format!("`hetmem {} --help`", command.get_name()));
    let is_suggested =
        [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg].iter().any(|kind| error.get(*kind).is_some());
    let named = |kind| match error.get(kind) {
        Some(ContextValue::String(name)) => name.clone(),
        _ => String::new(),
    };
    let (kind, unknown) = (error.kind(), named(ContextKind::InvalidArg));
    let told = if kind == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        "no command is given".to_owned()
    } else if kind == ErrorKind::InvalidSubcommand && is_help {
        "hetmem has no command `help`".to_owned()
    } else if kind == ErrorKind::InvalidSubcommand && !is_suggested {
        let name = named(ContextKind::InvalidSubcommand);
        let program: Vec<&str> = words.iter().map(String::as_str).skip_while(|word| *word != name).collect();
        format!("hetmem has no command `{name}`; a program is run by `hetmem run -- {}`", program.join(" "))
    } else if kind == ErrorKind::UnknownArgument && !is_suggested && unknown.starts_with('-') {
        let options = command.unwrap_or(cli).get_opts().filter(|option| !option.is_hide_set());
        let mut options: Vec<String> =
            options.filter_map(clap::Arg::get_long).map(|long| format!("--{long}")).collect();
        if command.is_none() {
            options.extend(["--help", "--version"].map(str::to_owned));
        }
        format!("there is no option `{unknown}`; there are {}", options.join(", "))
    } else {
        paragraphs(error)
    };
    let is_without_program =
        kind == ErrorKind::MissingRequiredArgument && command.is_some_and(|command| command.get_name() == "run");
    let example = if is_without_program { "; as in `hetmem run -- python3 script.py`" } else { "" };
    format!("{told}{example}; see {help}")
}

/// What clap says, without usage and the way to help.
fn paragraphs(error: &clap::Error) -> String {
    let text = error.to_string();
    let paragraphs = text.split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "));
    let passed_over = ["Usage:", "For more information", MISLEADING];
    let told = paragraphs.filter(|p| !passed_over.iter().any(|start| p.starts_with(start)));
    let told: Vec<_> = told.map(|p| p.trim_start_matches("error: ").to_owned()).filter(|p| !p.is_empty()).collect();
    told.join("; ")
}
