//! Text of manual pages: the beginning of a page, paragraphs, lists, examples.

use std::path::PathBuf;

use clap_mangen::roff::{Inline, Roff, bold, roman};

/// What stands above every page, in the middle.
pub(super) const MANUAL: &str = "hetmem manual";

/// In place of a date, which would be that of the build; it can't be empty, as the next would take its place.
pub(super) const UNDATED: &str = " ";

/// What stands below every page, on the left.
pub(super) fn source() -> String {
    format!("hetmem {}", env!("CARGO_PKG_VERSION"))
}

/// A page that is being written.
pub(super) struct Page {
    name: &'static str,
    section: &'static str,
    roff: Roff,
}

impl Page {
    /// Begins the page `name`(`section`), which is about `what`.
    pub(super) fn new(name: &'static str, section: &'static str, what: &str) -> Self {
        let mut roff = Roff::new();
        roff.control("TH", [name, section, UNDATED, &source(), MANUAL]);
        roff.control("SH", ["NAME"]).text([roman(format!("{name} - {what}"))]);
        Self { name, section, roff }
    }

    /// A heading.
    pub(super) fn heading(&mut self, heading: &str) -> &mut Self {
        self.roff.control("SH", [heading.to_uppercase().as_str()]);
        self
    }

    /// Text in paragraphs, which empty lines part. Lines that are indented are shown as they are.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        paragraphs(&mut self.roff, text);
        self
    }

    /// Lines as they are.
    pub(super) fn example(&mut self, lines: &str) -> &mut Self {
        example(&mut self.roff, lines);
        self
    }

    /// An entry of a list: what it is about, and what is said of it.
    pub(super) fn entry(&mut self, what: &str, said: &str) -> &mut Self {
        self.roff.control("TP", []).text([bold(what)]);
        let mut paragraphs = said.split("\n\n");
        self.roff.text(inline(paragraphs.next().unwrap_or_default()));
        for paragraph in paragraphs {
            self.roff.control("sp", []).text(inline(paragraph));
        }
        self
    }

    /// Indents what comes, or ends that.
    pub(super) fn indent(&mut self, is_begun: bool) -> &mut Self {
        self.roff.control(if is_begun { "RS" } else { "RE" }, []);
        self
    }

    /// Where it belongs, and the page.
    pub(super) fn end(&self) -> (PathBuf, Vec<u8>) {
        (path(self.name, self.section), tidied(&self.roff.render()))
    }
}

/// Where a page belongs.
pub(super) fn path(name: &str, section: &str) -> PathBuf {
    format!("man/man{section}/{name}.{section}").into()
}

/// Writes text in paragraphs. Where all lines of one are indented it is an example.
pub(super) fn paragraphs(roff: &mut Roff, text: &str) {
    for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
        if paragraph.lines().all(|line| line.starts_with("  ")) {
            example(roff, paragraph);
        } else {
            roff.control("PP", []).text(inline(paragraph));
        }
    }
}

/// Writes lines as they are, without the indentation that all have.
pub(super) fn example(roff: &mut Roff, lines: &str) {
    let indented = |line: &&str| !line.trim().is_empty();
    let depth = lines.lines().filter(indented).map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
    roff.control("PP", []).control("RS", ["4"]).control("EX", []);
    for line in lines.lines() {
        roff.text([roman(line.get(depth..).unwrap_or_default())]);
    }
    roff.control("EE", []).control("RE", []);
}

/// A page without what says nothing: macros that part paragraphs where none are to be parted. Empty lines, which do so without a macro, get theirs.
pub(super) fn tidied(page: &str) -> Vec<u8> {
    let mut lines: Vec<&str> = Vec::new();
    for line in page.lines().map(|line| if line.is_empty() { ".sp" } else { line }) {
        let last = lines.last().copied().unwrap_or_default();
        match line {
            ".PP" if last.starts_with(".SH") => {}
            ".br" if last == ".sp" => {}
            ".sp" if last == ".br" => *lines.last_mut().expect("there is a last one") = line,
            _ => lines.push(line),
        }
    }
    (lines.join("\n") + "\n").into_bytes()
}

/// Text with what is between backticks in bold.
fn inline(text: &str) -> Vec<Inline> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let parts = text.split('`').enumerate();
    parts.map(|(at, part)| if at % 2 == 1 { bold(part) } else { roman(part) }).collect()
}
