//! libhetmem(3): what the headers declare, and say of it.
//!
//! A header is declarations with their comments before them, and an empty line behind each; a comment with a line of dashes is a heading. That is all that
//! is known of C here.

use std::path::PathBuf;

use super::text::Page;

const HEADERS: [&str; 2] =
    [include_str!("../../../include/hetmem.h"), include_str!("../../../include/hetmem_mirror.h")];

/// The page, with where it belongs.
pub(super) fn page() -> (PathBuf, Vec<u8>) {
    let mut page = Page::new("libhetmem", "3", "heterogeneous memory management in user space");
    page.heading("Synopsis")
        .example("#include <hetmem.h>\n\ncc program.c $(pkg-config --cflags --libs hetmem)")
        .heading("Description");
    for header in HEADERS {
        for part in parts(header) {
            declaration(&mut page, &part);
        }
    }
    page.heading("See also").text("hetmem(1), hetmem-devices(7), userfaultfd(2)");
    page.end()
}

/// What empty lines part, but for those between braces.
fn parts(header: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in header.split("\n\n") {
        match parts.last_mut() {
            // As `extern "C"` does, which has all of a header in it.
            Some(last) if !last.contains("extern") && last.matches('{').count() > last.matches('}').count() => {
                *last = format!("{last}\n{part}");
            }
            _ => parts.push(part.to_owned()),
        }
    }
    parts
}

/// A part of a header: a comment, declarations, or both.
fn declaration(page: &mut Page, part: &str) {
    let (said, code) = split(part);
    if let Some(heading) = said.strip_prefix("--- ") {
        page.heading(heading.trim_end_matches(['-', ' ']));
        return;
    }
    // What is for the preprocessor and the compiler alone.
    let is_plumbing = |line: &str| {
        ["#ifdef", "#ifndef", "#endif", "#include", "extern \"C\"", "#define HETMEM_H", "#define HETMEM_MIRROR_H"]
            .iter()
            .any(|start| line.starts_with(start))
            || line == "}"
    };
    let code: Vec<&str> = code.lines().filter(|line| !is_plumbing(line)).collect();
    if code.is_empty() {
        // A comment at the beginning of a file is about all of it; its first line is the name of the file.
        let text = said
            .split_once("\n\n")
            .filter(|(first, _)| first.starts_with("hetmem"))
            .map_or(said.as_str(), |(_, text)| text);
        for paragraph in text.split("\n\n") {
            match terms(paragraph) {
                Some(terms) => terms.iter().for_each(|(term, said)| {
                    page.entry(term, said);
                }),
                None => {
                    page.text(paragraph);
                }
            }
        }
        return;
    }
    let first_inner = code.iter().position(|line| line.starts_with("    ") && code[0].ends_with('{'));
    if let Some(first) = first_inner {
        page.example(code[0]).indent(true).text(&said);
        members(page, &code[first..code.len() - 1]);
        page.indent(false).example(code[code.len() - 1]);
    } else {
        page.example(&code.join("\n"));
        if !said.is_empty() {
            page.indent(true).text(&said).indent(false);
        }
    }
}

/// The terms that a paragraph explains in two columns, each with what is said of it.
fn terms(paragraph: &str) -> Option<Vec<(&str, String)>> {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let first = paragraph.lines().next().filter(|line| depth(line) > 0)?;
    let mut terms: Vec<(&str, String)> = Vec::new();
    for line in paragraph.lines() {
        if depth(line) == depth(first) {
            let (term, said) = line.trim_start().split_once("  ")?;
            terms.push((term, said.trim_start().to_owned()));
        } else {
            let (_, said) = terms.last_mut()?;
            *said = format!("{said} {}", line.trim_start());
        }
    }
    Some(terms)
}

/// The members of an enumeration or a structure, each with its comment.
fn members(page: &mut Page, lines: &[&str]) {
    let mut rest: String =
        lines.iter().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    while !rest.trim().is_empty() {
        let (said, code) = split(&rest);
        let (member, behind) = code.split_once('\n').unwrap_or((&code, ""));
        page.entry(member.trim_end_matches([',', ';']), &said);
        rest = behind.trim_start().to_owned();
    }
}

/// The comment at the beginning of `text`, without its marks, and what is behind it.
fn split(text: &str) -> (String, String) {
    let text = text.trim();
    let Some((comment, code)) = text.strip_prefix("/*").and_then(|text| text.split_once("*/")) else {
        return (String::new(), text.to_owned());
    };
    let lines = comment.lines().map(|line| {
        let line = line.trim_start();
        line.strip_prefix("* ").or_else(|| line.strip_prefix('*')).unwrap_or(line)
    });
    (lines.collect::<Vec<_>>().join("\n").trim().to_owned(), code.trim().to_owned())
}
