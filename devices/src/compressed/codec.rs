//! Packing and unpacking of pages, in places to do that at which nothing is allocated.

use hetmem_core::sync::{Mutex, MutexGuard, lock, try_lock};
use hetmem_sys::copy::PageBytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use super::slabs::{MOST_PACKED, PAGE};

/// How many pages are packed or unpacked at a time.
const DESKS: usize = 16;

/// Places to pack and unpack at.
pub(super) struct Desks {
    all: [Desk; DESKS],
}

struct Desk(Mutex<Tools>);

/// What it takes to pack or unpack a page.
pub(super) struct Tools {
    /// A page as it is.
    pub(super) page: Box<PageBytes>,
    /// A page, packed; as large as one that can't be packed may become.
    packed: Box<[u8]>,
    table: CompressTable,
}

impl Desks {
    pub(super) fn new() -> Self {
        let desk = |_| {
            let packed = vec![0; get_maximum_output_size(PAGE)].into_boxed_slice();
            Desk(Mutex::new(Tools { page: Box::new([0; PAGE]), packed, table: CompressTable::small() }))
        };
        Self { all: std::array::from_fn(desk) }
    }

    /// One that nobody is at, if there is one, for as long as one page takes.
    pub(super) fn sit_down(&self) -> MutexGuard<'_, Tools> {
        self.all.iter().find_map(|desk| try_lock(&desk.0)).unwrap_or_else(|| lock(&self.all[0].0))
    }
}

impl Tools {
    /// The word that the page has over and over, if it has.
    pub(super) fn same_word(&self) -> Option<u32> {
        let (words, _) = self.page.as_chunks::<8>();
        let first = words[0];
        let (half, other) = ([first[0], first[1], first[2], first[3]], [first[4], first[5], first[6], first[7]]);
        (half == other && words.iter().all(|word| *word == first)).then(|| u32::from_ne_bytes(half))
    }

    /// Fills the page with `word`.
    pub(super) fn fill(&mut self, word: u32) {
        let (words, _) = self.page.as_chunks_mut::<4>();
        words.fill(word.to_ne_bytes());
    }

    /// The page, packed; or as it is, if that is hardly smaller.
    pub(super) fn pack(&mut self) -> &[u8] {
        let Self { page, packed, table } = self;
        match compress_into_with_table(&page[..], packed, table) {
            Ok(bytes) if bytes <= MOST_PACKED => &packed[..bytes],
            Ok(_) | Err(_) => &page[..],
        }
    }

    /// Makes the page of the first `bytes` bytes of [`Tools::packed`]; `false` if they are none that were packed.
    pub(super) fn unpack(&mut self, bytes: usize) -> bool {
        decompress_into(&self.packed[..bytes], &mut self.page[..]).is_ok_and(|bytes| bytes == PAGE)
    }

    /// Leaves nothing of a page behind.
    pub(super) fn wipe(&mut self) {
        self.page.fill(0);
        self.packed.fill(0);
    }

    /// Where packed bytes are to be put that are to be unpacked.
    pub(super) fn packed(&mut self) -> &mut PageBytes {
        self.packed.first_chunk_mut().expect("more than a page")
    }
}
