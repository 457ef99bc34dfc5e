//! A core dump (core(5), elf(5)): what memory it has, and how the thread that died was.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use elf::ElfBytes;
use elf::abi::{PT_LOAD, PT_NOTE};
use elf::endian::NativeEndian;
use elf::note::Note;

const PAGE: usize = 4096;
const NT_PRSTATUS: u64 = 1;
const NT_SIGINFO: u64 = 0x5349_4749;
/// Where `pr_reg` is in `struct elf_prstatus`, and in it the program counter.
const REGISTERS: usize = 112;
const COUNTER: usize = REGISTERS + 8 * if cfg!(target_arch = "x86_64") { 16 } else { 32 };

/// How a signal was described: `siginfo_t`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Info {
    pub(crate) signal: i32,
    pub(crate) code: i32,
    pub(crate) address: u64,
}

pub(crate) struct Core {
    /// The first bytes of each page, by address.
    pages: HashMap<u64, [u8; 16]>,
    counter: u64,
    info: Info,
}

impl Core {
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
        Self::parse(&bytes).ok_or_else(|| "the dump is no whole one".to_owned())
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let elf = ElfBytes::<NativeEndian>::minimal_parse(bytes).ok()?;
        let (mut pages, mut counter, mut info) = (HashMap::new(), None, None);
        for segment in elf.segments()? {
            if segment.p_type == PT_LOAD {
                for (i, page) in elf.segment_data(&segment).ok()?.chunks_exact(PAGE).enumerate() {
                    pages.insert(segment.p_vaddr + (i * PAGE) as u64, page[..16].try_into().ok()?);
                }
            } else if segment.p_type == PT_NOTE {
                for note in elf.segment_data_as_notes(&segment).ok()? {
                    let Note::Unknown(note) = note else { continue };
                    match note.n_type {
                        // That of the thread which died is the first.
                        NT_PRSTATUS => counter = counter.or(word(note.desc, COUNTER)),
                        NT_SIGINFO => {
                            let half = |at| word(note.desc, at).map(|word| (word & 0xFFFF_FFFF) as u32 as i32);
                            info = Some(Info { signal: half(0)?, code: half(8)?, address: word(note.desc, 16)? });
                        }
                        _ => {}
                    }
                }
            }
        }
        Some(Self { pages, counter: counter?, info: info? })
    }

    /// How many pages of the pattern from `start` on it has not.
    pub(crate) fn missing(&self, start: u64, bytes: usize) -> usize {
        let has = |page: &usize| self.pages.get(&(start + (page * PAGE) as u64)) == Some(&words(page * PAGE / 8, 0));
        (0..bytes / PAGE).filter(|page| !has(page)).count()
    }

    /// How many pages it has of what is kept out of dumps, wherever they are.
    pub(crate) fn secrets(&self, bytes: usize) -> usize {
        let secrets: HashSet<[u8; 16]> = (0..bytes / PAGE).map(|page| words(page * PAGE / 8, u64::MAX)).collect();
        self.pages.values().filter(|first| secrets.contains(*first)).count()
    }

    pub(crate) fn program_counter(&self) -> u64 {
        self.counter
    }

    pub(crate) fn info(&self) -> Info {
        self.info
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The first two words of a page of the program's, whose first is its word `at`: those of the pattern, or, with all bits flipped, of the secret.
fn words(at: usize, flipped: u64) -> [u8; 16] {
    let mut words = [0; 16];
    for (i, word) in words.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&mix((at + i) as u64 ^ flipped).to_ne_bytes());
    }
    words
}

/// As in `programs/c/common.h`.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
