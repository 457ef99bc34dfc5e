//! Compressed memory: a private device whose pages are packed into a part of this machine's memory.
//!
//! ```text
//! codec     packs and unpacks a page, with no lock held but that of the place where it does so
//! store     what each frame has, under one lock
//! contents  the word for each frame: empty, filled with one word, or packed in a slot
//! slabs     slots of many sizes in slabs of 64 KiB, and compaction
//! ```
//!
//! `size=` is how much of the program's memory it takes, `memory=` how much memory it may take for that. A page that is one word over and over takes no
//! more than its frame's 8 bytes, one that can hardly be packed is kept as it is. When there is no room for a page, it stays where it was
//! ([`TransferError::Full`]), and [`Device::room`] says so until there is more.
//!
//! Memory is taken when pages come. That of slabs without pages goes back with the next frames that are cleared, and so do slabs that compaction has made
//! empty: both after a page has left, and while nobody waits.
//!
//! *Limits:* one codec, LZ4.

mod codec;
mod contents;
mod slabs;
mod store;

use hetmem_core::frames::{FrameRun, Quota};
use hetmem_core::physmap::{MemoryType, Owner, Pagemap};
use hetmem_core::port::{Device, Direction, Packing, Progress, Reach, Transfer, TransferError};
use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{ByteLen, DeviceId, PageCount, VirtAddr};
use hetmem_sys::copy::{load_page, store_page};
use hetmem_sys::errno::Errno;

use crate::kind::{Footprint, HostProblem, Kind, MakeError};
use crate::spec::{DeviceSpec, default_size};
use codec::Desks;
use slabs::{PAGE, SLAB_PAGES};
use store::{Found, Store};

/// `compressed`.
pub(crate) struct CompressedKind;

impl Kind for CompressedKind {
    fn name(&self) -> &'static str {
        "compressed"
    }

    fn syntax(&self) -> &'static str {
        "compressed"
    }

    fn help(&self) -> &'static str {
        "pages are compressed into memory of this machine, `private` only: `size=` is what they are, `memory=` what they may take"
    }

    fn check_argument(&self, argument: Option<&str>) -> Result<(), String> {
        match argument {
            None => Ok(()),
            Some(argument) => Err(format!("backend compressed takes no argument, but `{argument}` was given")),
        }
    }

    fn default_size(&self, _argument: &str, memory: ByteLen) -> Result<ByteLen, HostProblem> {
        Ok(default_size(memory))
    }

    fn footprint(&self) -> Footprint {
        Footprint::Limited { least: SLAB_PAGES.bytes() }
    }

    fn shares_size(&self) -> bool {
        true
    }

    fn check_host(&self, _argument: &str, memory_type: MemoryType, _size: ByteLen) -> Result<(), HostProblem> {
        is_private(memory_type).map_err(HostProblem::new)
    }

    fn make(&self, id: DeviceId, owner: Owner, spec: &DeviceSpec) -> Result<Box<dyn Device>, MakeError> {
        is_private(spec.memory_type).map_err(|why| MakeError::Unsuitable(why.to_owned()))?;
        Ok(Box::new(Compressed::new(id, owner, spec)?))
    }
}

fn is_private(memory_type: MemoryType) -> Result<(), &'static str> {
    match memory_type {
        MemoryType::DevicePrivate => Ok(()),
        MemoryType::DeviceCoherent => Err("compressed pages can't be used in place; use private:compressed"),
    }
}

/// A device whose frames are packed pages.
pub struct Compressed {
    pagemap: Pagemap,
    desks: Desks,
    store: Mutex<Store>,
}

impl Compressed {
    /// The device that `spec` describes, with `device` as its id and `owner` as the owner of its pages.
    ///
    /// # Errors
    ///
    /// If the host has no address space for it.
    pub fn new(device: DeviceId, owner: Owner, spec: &DeviceSpec) -> Result<Self, Errno> {
        let frames = spec.size.whole_pages().ok_or(Errno::INVAL)?;
        let store = Store::new(frames, spec.memory().pages_down())?;
        let pagemap = Pagemap::new(device, MemoryType::DevicePrivate, owner, frames);
        Ok(Self { pagemap, desks: Desks::new(), store: Mutex::new(store) })
    }

    fn carry_out(&self, transfer: Transfer) -> Result<(), TransferError> {
        let pages = transfer.frames.iter().zip(0..);
        let at = |page| transfer.memory.add_pages(PageCount::new(page));
        match transfer.direction {
            Direction::In => {
                let mut packed = pages.map(|(frame, page)| self.pack(frame.get(), at(page)));
                let result = packed.try_for_each(|packed| packed);
                if result.is_err() {
                    let mut store = lock(&self.store);
                    remove(&mut store, transfer.frames);
                    store.note_refused();
                }
                result
            }
            Direction::Out => {
                let mut unpacked = pages.map(|(frame, page)| self.unpack(frame.get(), at(page)));
                unpacked.try_for_each(|unpacked| unpacked)
            }
        }
    }

    #[expect(unsafe_code, reason = "reads a page that is named by number")]
    fn pack(&self, frame: u32, from: VirtAddr) -> Result<(), TransferError> {
        let mut tools = self.desks.sit_down();
        // SAFETY: by the contract of the trait a page of hetmem's, which nobody else uses meanwhile.
        unsafe { load_page(&mut tools.page, from) };
        let put = match tools.same_word() {
            Some(word) => lock(&self.store).put_filled(frame, word),
            None => {
                let packed = tools.pack();
                lock(&self.store).put(frame, packed)
            }
        };
        tools.wipe();
        put.map_err(|_| TransferError::Full)
    }

    #[expect(unsafe_code, reason = "writes a page that is named by number")]
    fn unpack(&self, frame: u32, to: VirtAddr) -> Result<(), TransferError> {
        let mut tools = self.desks.sit_down();
        let found = lock(&self.store).get(frame, tools.packed());
        let is_whole = match found {
            Found::Filled(word) => {
                tools.fill(word);
                true
            }
            Found::Packed(PAGE) => {
                let page = *tools.packed();
                *tools.page = page;
                true
            }
            Found::Packed(bytes) => tools.unpack(bytes),
        };
        // SAFETY: by the contract of the trait a page of hetmem's, which nobody else uses meanwhile.
        unsafe { store_page(to, &tools.page) };
        tools.wipe();
        // What is no page that was packed here is a defect, or memory that somebody else has written to.
        if is_whole { Ok(()) } else { Err(TransferError::Lost) }
    }
}

impl Device for Compressed {
    fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    fn reach(&self) -> Reach {
        Reach::Copied
    }

    fn transfer(&self, batch: &mut [Transfer]) {
        for transfer in batch {
            transfer.progress = Progress::Done(self.carry_out(*transfer));
        }
    }

    fn released(&self, run: FrameRun) {
        remove(&mut lock(&self.store), run);
    }

    fn clear(&self, run: FrameRun) {
        let mut store = lock(&self.store);
        remove(&mut store, run);
        store.tidy();
    }

    fn room(&self) -> PageCount {
        lock(&self.store).room()
    }

    fn packing(&self) -> Option<Packing> {
        Some(lock(&self.store).packing())
    }

    fn count_memory_with_others(&self, quota: Box<dyn Quota>) {
        lock(&self.store).count_with_others(quota);
    }
}

fn remove(store: &mut Store, run: FrameRun) {
    run.iter().for_each(|frame| store.remove(frame.get()));
}

#[cfg(test)]
mod tests;
