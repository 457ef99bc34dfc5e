//! Tables that are right, cut, flipped, or nothing at all.

use proptest::prelude::*;

use super::hmat::{self, Figure, Hmat, Kind};
use super::srat::{self, Srat};
use super::tables;
use crate::source::{Problems, Source, SourceId};
use crate::span::Span;

const GIB: u64 = 1 << 30;

/// What came of the parse, and what is wrong, in lines.
fn srat(bytes: &[u8]) -> (Option<Srat>, Vec<String>) {
    told(|problems| srat::parse(bytes, problems))
}

fn hmat(bytes: &[u8]) -> (Option<Hmat>, Vec<String>) {
    told(|problems| hmat::parse(bytes, problems))
}

fn told<T>(parse: impl FnOnce(&mut Problems) -> Result<T, String>) -> (Option<T>, Vec<String>) {
    let mut problems = Problems::default();
    let parsed = parse(&mut problems);
    let mut lines = Source::read(SourceId::Srat, String::new(), problems).problems;
    match parsed {
        Ok(table) => (Some(table), lines),
        Err(why) => {
            lines.push(why);
            (None, lines)
        }
    }
}

fn srat_bytes() -> Vec<u8> {
    let table = tables::Srat::new().processor(2, 0).x2apic(300, 1).gicc(2, 0).generic_initiator(9);
    table.memory(5, 0, 2 * GIB, 1).memory(2, 4 * GIB, GIB, 0b1011).memory(8, 8 * GIB, GIB, 0).bytes()
}

fn hmat_bytes() -> Vec<u8> {
    let table = tables::Hmat::new().attached(2, 5).locality(0, 1000, &[2, 3], &[5], &[80, 0xffff]);
    table.locality(4, 100, &[2], &[5, 6], &[1200, 300]).cache(5, GIB).bytes()
}

#[test]
fn memory_and_the_order_of_domains_are_read() {
    let (table, problems) = srat(&srat_bytes());
    let table = table.unwrap();
    assert_eq!(problems, [""; 0]);
    // Processors and initiators first, as Linux numbers nodes; disabled memory has no meaning.
    assert_eq!(table.domains, [2, 300, 9, 5]);
    assert_eq!(table.memory.len(), 2);
    let memory = table.memory[1];
    assert_eq!((memory.domain, memory.span), (2, Span::sized(4 * GIB, GIB).unwrap()));
    assert!(memory.hot_pluggable && memory.specific_purpose && !memory.non_volatile);
}

#[test]
fn figures_attachments_and_caches_are_read() {
    let (table, problems) = hmat(&hmat_bytes());
    let table = table.unwrap();
    assert_eq!(problems, [""; 0]);
    let figure = |target, kind, value| Figure { initiator: 2, target, kind, value };
    let expected = [
        figure(5, Kind::ReadLatency, 80),
        figure(5, Kind::WriteLatency, 80),
        figure(5, Kind::ReadBandwidth, 120_000),
        figure(6, Kind::ReadBandwidth, 30_000),
    ];
    assert_eq!(table.figures, expected);
    assert_eq!((table.attached, table.caches), (vec![(5, 2)], vec![(5, GIB)]));
}

/// `bytes` with `change` made, and its checksum put right again.
fn changed(mut bytes: Vec<u8>, offset: usize, change: &[u8]) -> Vec<u8> {
    bytes[offset..offset + change.len()].copy_from_slice(change);
    let length = bytes[4..8].to_vec();
    let mut bytes = tables::finished(bytes);
    bytes[4..8].copy_from_slice(&length);
    bytes
}

#[test]
fn each_mistake_is_one_clear_line() {
    let cases: [(Vec<u8>, &str); 8] = [
        (b"SR".to_vec(), "truncated after 2 bytes: the header alone has 36"),
        (hmat_bytes(), "not an SRAT: its signature is `HMAT`"),
        (srat_bytes()[..40].to_vec(), "before its first entry"),
        (srat_bytes()[..100].to_vec(), "truncated: 100 of 258 bytes are there"),
        (changed(srat_bytes(), 4, &[10, 0, 0, 0]), "its header says 10 bytes: an SRAT has at least 48"),
        (changed(srat_bytes(), 49, &[0]), "the entry at offset 48 says 0 bytes: what follows can't be read"),
        ([&srat_bytes()[..9], &[0xaa], &srat_bytes()[10..]].concat(), "its checksum is wrong: its figures may be, too"),
        // Memory whose end is past the end of the address space.
        (changed(srat_bytes(), 138 + 8, &[0xff; 16]), "are no range"),
    ];
    for (bytes, expected) in cases {
        let (_, problems) = srat(&bytes);
        assert!(problems.iter().any(|line| line.contains(expected)), "no `{expected}` in {problems:?}");
        assert!(problems.iter().all(|line| !line.contains('\n')), "{problems:?}");
    }
}

#[test]
fn a_matrix_that_does_not_fit_its_structure_is_refused() {
    // The first locality structure begins behind the header and the attachment; its counts are 12 and 16 bytes into it.
    let at = 40 + 40;
    let (table, problems) = hmat(&changed(hmat_bytes(), at + 12, &[200, 0, 0, 0]));
    assert!(problems.iter().any(|line| line.contains("200 × 1 figures need")), "{problems:?}");
    // The structures behind it are still read.
    assert_eq!(table.unwrap().figures.len(), 2);
    let (_, problems) = hmat(&changed(hmat_bytes(), at + 12, &[0xff; 8]));
    assert!(problems.iter().any(|line| line.contains("more than 1024 nodes")), "{problems:?}");
}

#[test]
fn what_is_cut_keeps_what_came_before() {
    let whole = srat_bytes();
    let (table, problems) = srat(&whole[..whole.len() - 50]);
    assert_eq!(table.unwrap().memory.len(), 1);
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[1].contains("is cut: 30 of 40 bytes are there"), "{problems:?}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = (srat(&bytes), hmat(&bytes));
    }

    #[test]
    fn no_body_behind_a_right_header_makes_them_panic(body in proptest::collection::vec(any::<u8>(), 0..512)) {
        for header in [&srat_bytes()[..48], &hmat_bytes()[..40]] {
            let table = tables::finished([header, &body].concat());
            let _ = (srat(&table), hmat(&table));
        }
    }

    /// Cut anywhere, a table is called truncated, and never gives memory that it did not have.
    #[test]
    fn a_cut_is_named(cut in any::<prop::sample::Index>()) {
        let whole = srat_bytes();
        let (table, problems) = srat(&whole[..cut.index(whole.len())]);
        prop_assert!(problems.iter().any(|line| line.contains("truncated")), "{:?}", problems);
        let all = srat(&whole).0.unwrap().memory;
        prop_assert!(all.starts_with(&table.unwrap_or_default().memory));
        let whole = hmat_bytes();
        let (_, problems) = hmat(&whole[..cut.index(whole.len())]);
        prop_assert!(problems.iter().any(|line| line.contains("truncated")), "{:?}", problems);
    }

    /// A flipped byte shows at least in the checksum.
    #[test]
    fn a_flip_is_named(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        for (mut table, which) in [(srat_bytes(), 0), (hmat_bytes(), 1)] {
            let at = at.index(table.len());
            table[at] ^= flip;
            let problems = if which == 0 { srat(&table).1 } else { hmat(&table).1 };
            prop_assert!(!problems.is_empty(), "byte {} of table {}", at, which);
        }
    }

    /// Flips with the checksum put right again, several at once.
    #[test]
    fn no_flips_with_a_right_checksum_make_them_panic(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        for table in [srat_bytes(), hmat_bytes()] {
            let mut bytes = table;
            for (at, value) in &flips {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            let _ = (srat(&tables::finished(bytes.clone())), hmat(&tables::finished(bytes)));
        }
    }
}
