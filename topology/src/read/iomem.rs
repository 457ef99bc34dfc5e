//! The kernel's resources: `/proc/iomem`.
//!
//! A tree by indentation. What matters of it is who holds each address: the innermost resource, and those around it. The parts of
//! the kernel inside System RAM (code, data, crash kernel) are no claims of their own. A reader without `CAP_SYS_ADMIN` sees zeros
//! in place of all addresses.

use std::borrow::Cow;

use procfs_core::{FromBufRead as _, Iomem};

use crate::root::{Root, excerpt};
use crate::source::{MAX_ENTRIES, Problems, Source, SourceId, SourceState, count};
use crate::span::Span;

/// What the kernel calls memory that it manages from boot on.
pub(crate) const SYSTEM_RAM: &str = "System RAM";
/// What it calls memory that a driver added: `System RAM (kmem)`, and others by the driver's name.
const ADDED_RAM: &str = "System RAM (";
/// What a resource without a name is called here: drivers may register one.
const UNNAMED: &str = "(no name)";

/// A resource with those around it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Resource {
    pub(crate) span: Span,
    /// The names from the outermost to its own.
    pub(crate) path: Vec<String>,
}

impl Resource {
    /// The driver that added the memory, if it is memory that a driver added.
    pub(crate) fn adder(name: &str) -> Option<&str> {
        name.strip_prefix(ADDED_RAM)?.strip_suffix(')')
    }
}

/// Reads it.
pub(crate) fn read(root: &Root) -> (Source, Vec<Resource>) {
    match root.lines(SourceId::Iomem.path()) {
        Ok(text) => parse(&text),
        Err(why) => (Source::unreadable(SourceId::Iomem, &why), Vec::new()),
    }
}

fn parse(text: &str) -> (Source, Vec<Resource>) {
    let id = SourceId::Iomem;
    let mut problems = Problems::default();
    let mut resources: Vec<Resource> = Vec::new();
    let mut around: Vec<(Span, String)> = Vec::new();
    let (mut lines, mut zeros) = (0, 0);
    let body = text.trim_matches(['\n', ' ', '\t', '\0']);
    for (number, line) in body.lines().enumerate() {
        if lines == MAX_ENTRIES {
            problems.add(format!("more than {MAX_ENTRIES} lines: the rest was not read"));
            break;
        }
        lines += 1;
        let wrong = || format!("line {} is no resource: `{}`", number + 1, excerpt(line.trim()));
        // One line at a time: a whole text is refused for one line that is wrong.
        // The kernel ends each line: of one that doesn't end the name may be cut off.
        let is_cut = !text.ends_with('\n') && body.ends_with(line);
        let named = if is_cut { Cow::Borrowed(line) } else { with_name(line) };
        let Ok(Iomem(parsed)) = Iomem::from_buf_read(named.as_bytes()) else {
            problems.add(wrong());
            continue;
        };
        let Some((depth, map)) = parsed.into_iter().next() else { continue };
        if map.address == (0, 0) {
            zeros += 1;
            continue;
        }
        let Some(span) = Span::inclusive(map.address.0, map.address.1) else {
            problems.add(wrong());
            continue;
        };
        around.truncate(depth);
        if around.len() < depth || around.last().is_some_and(|(outer, _)| !outer.contains(span)) {
            problems.add(format!("line {}: `{}` is not inside the resource above it", number + 1, excerpt(&map.name)));
            around.retain(|(outer, _)| outer.contains(span));
        }
        around.push((span, map.name));
        let inside_ram = around.len() > 1 && around[around.len() - 2].1 == SYSTEM_RAM;
        if !inside_ram && !around.iter().rev().skip(2).any(|(_, name)| name == SYSTEM_RAM) {
            resources.push(Resource { span, path: around.iter().map(|(_, name)| name.clone()).collect() });
        }
    }
    let source = if lines == 0 {
        Source::stated(id, SourceState::Invalid, "empty".to_owned(), problems)
    } else if resources.is_empty() && zeros > 0 {
        let detail = "its addresses are zeros; root may see them".to_owned();
        Source::stated(id, SourceState::Hidden, detail, problems)
    } else if resources.is_empty() {
        Source::stated(id, SourceState::Invalid, "no line of it is a resource".to_owned(), problems)
    } else {
        if zeros > 0 {
            problems.add(format!("{} without addresses", count(zeros, "line", "lines")));
        }
        Source::read(id, count(lines, "resource", "resources"), problems)
    };
    (source, resources)
}

/// A line, and [`UNNAMED`] where a name should follow.
fn with_name(line: &str) -> Cow<'_, str> {
    match line.trim_end().strip_suffix(" :") {
        Some(range) => Cow::Owned(format!("{range} : {UNNAMED}")),
        None => Cow::Borrowed(line),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TREE: &str = "\
00001000-0009fbff : System RAM
  00002000-00002fff : Kernel code
    00002000-00002100 : deeper
880000000-107fffffff : Soft Reserved
  880000000-107fffffff : dax0.0
    880000000-107fffffff : System RAM (kmem)
";

    #[test]
    fn claims_nest_and_the_kernels_own_parts_are_none() {
        let (source, resources) = parse(TREE);
        assert_eq!(source.state, SourceState::Read, "{source:?}");
        let paths: Vec<_> = resources.iter().map(|r| r.path.join(" > ")).collect();
        let kmem = "Soft Reserved > dax0.0 > System RAM (kmem)";
        assert_eq!(paths, ["System RAM", "Soft Reserved", "Soft Reserved > dax0.0", kmem]);
        assert_eq!(Resource::adder("System RAM (kmem)"), Some("kmem"));
    }

    #[test]
    fn without_privilege_it_is_called_hidden() {
        let (source, resources) = parse("00000000-00000000 : Reserved\n  00000000-00000000 : dax0.0\n");
        assert_eq!((source.state, resources.len()), (SourceState::Hidden, 0));
        assert!(source.detail.contains("root"), "{}", source.detail);
    }

    /// The kernel prints whatever name it is given (`r_show`, kernel/resource.c).
    #[test]
    fn a_resource_without_a_name_is_a_resource() {
        let (source, resources) = parse("1000-1fff : \n  1800-1fff : \n2000-2fff : System RAM\n");
        assert_eq!((source.state, resources.len()), (SourceState::Read, 3), "{source:?}");
        assert_eq!(resources[1].path, ["(no name)", "(no name)"]);
        // Without the end of its line, the name may have been cut off.
        let (source, resources) = parse("1000-1fff : \n2000-2fff : ");
        assert_eq!((source.state, resources.len()), (SourceState::Partial, 1), "{source:?}");
    }

    #[test]
    fn a_line_that_is_cut_is_told_and_the_others_are_kept() {
        let (source, resources) = parse(&TREE[..TREE.len() - 30]);
        assert_eq!((source.state, resources.len()), (SourceState::Partial, 3));
        assert!(source.problems[0].starts_with("line 6 is no resource: `88"), "{:?}", source.problems);
        let (source, _) = parse("2000-1000 : a\n1000-1fff : b\n    3000-3fff : c\n");
        assert!(source.problems.iter().any(|p| p.contains("line 1")), "{source:?}");
        assert!(source.problems.iter().any(|p| p == "line 3: `c` is not inside the resource above it"), "{source:?}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".*(\n.*){0,8}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_cut_and_no_flip_makes_it_panic(at in 0..TREE.len(), byte in 0_u8..128) {
            let mut bytes = TREE.as_bytes().to_vec();
            bytes[at] = byte;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let _ = (parse(&text), parse(&TREE[..at]));
        }
    }
}
