//! Memory for packed pages: slots of a few sizes, in slabs of 64 KiB.
//!
//! ```text
//! slab   [frame in each slot][slot][slot]…   all slots of one size: of one class
//! ```
//!
//! There is a class for each multiple of 64 bytes up to three quarters of a page, and one of whole pages. A slab that has free slots is in its class's
//! list; an empty one can become any class's. Where the free slots of a class are as many as a slab has, [`Slabs::compact`] moves the pages of one slab
//! into the others, and it is empty.
//!
//! *Limits:* beside itself each slab takes 128 bytes, once it is used, which count for no limit.

use hetmem_core::frames::Quota;
use hetmem_core::units::{ByteLen, PAGE_SIZE, PageCount};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::ByteArena;

use super::contents::{Content, Contents};

/// Pages of a slab.
pub(super) const SLAB_PAGES: PageCount = PageCount::new(16);
pub(super) const SLAB: usize = 16 * PAGE;
pub(super) const PAGE: usize = ByteLen::new(PAGE_SIZE).as_usize();
/// By how much slots of one class are larger than those of the class before.
const STEP: usize = 64;
/// A page that is packed into more bytes is better kept as it is.
pub(super) const MOST_PACKED: usize = PAGE / 4 * 3;
/// The class of whole pages, which is the last.
const RAW: usize = MOST_PACKED / STEP;
const CLASSES: usize = RAW + 1;
/// No slab, or no slot.
const NONE: u32 = u32::MAX;
/// How many slabs of a class are looked at for the one that has the fewest pages.
const LOOKED_AT: usize = 16;

/// A slot of a slab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub(super) slab: u32,
    pub(super) number: u32,
}

/// What is known of a slab.
#[derive(Clone, Copy, Debug)]
struct Slab {
    class: u32,
    /// How many slots are in use, and how many ever were.
    used: u32,
    touched: u32,
    /// The first of the slots that were in use once; each names the next.
    free: u32,
    /// Its neighbours in the list that it is in.
    before: u32,
    after: u32,
}

/// What is read of it before the frames of its slots, if it is of whole pages: those of others lie in the slab itself.
const SLAB_ENTRY: usize = 128;
const OWNERS_OF_RAW: usize = 64;

/// A class of slots.
#[derive(Clone, Copy, Debug)]
struct Class {
    /// Slabs that have free slots, and how many of these there are.
    partial: u32,
    free: u32,
}

/// Slabs, and which of them have room.
pub(super) struct Slabs {
    bytes: ByteArena,
    about: ByteArena,
    classes: [Class; CLASSES],
    /// How many there may be, were ever used, and have memory.
    limit: u32,
    made: u32,
    live: u32,
    /// Those without pages that have memory, and how many; and those that have none any more.
    empty: u32,
    empties: u32,
    dropped: u32,
    /// The most that had memory at a time, and how many pages were moved from slab to slab.
    peak: u32,
    compacted: u64,
    /// What of the memory may be taken here, if other processes count theirs together with this one.
    quota: Option<Box<dyn Quota>>,
}

impl Slabs {
    /// Slabs that take at most `memory`, of which there is at least one.
    pub(super) fn new(memory: PageCount) -> Result<Self, Errno> {
        let limit = u32::try_from(memory.get() / SLAB_PAGES.get()).map_err(|_| Errno::INVAL)?;
        let bytes = PageCount::new(u64::from(limit) * SLAB_PAGES.get());
        let about = ByteLen::new((u64::from(limit) * SLAB_ENTRY as u64).next_multiple_of(PAGE_SIZE)).pages_down();
        Ok(Self {
            bytes: ByteArena::reserve(bytes, c"hetmem:compressed")?,
            about: ByteArena::reserve(about, c"hetmem:compressed")?,
            classes: [Class { partial: NONE, free: 0 }; CLASSES],
            limit,
            made: 0,
            live: 0,
            empty: NONE,
            empties: 0,
            dropped: NONE,
            peak: 0,
            compacted: 0,
            quota: None,
        })
    }

    /// From now on memory is taken as far as `quota` has some.
    pub(super) fn count_with_others(&mut self, quota: Box<dyn Quota>) {
        self.quota = Some(quota);
    }

    /// How many bytes there may be, are, and were at the most.
    pub(super) fn memory(&self) -> [u64; 3] {
        [self.limit, self.live, self.peak].map(|slabs| u64::from(slabs) * SLAB as u64)
    }

    /// How many pages were moved to make slabs empty.
    pub(super) const fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Bytes of the slabs that have pages.
    pub(super) fn in_use(&self) -> u64 {
        u64::from(self.live - self.empties) * SLAB as u64
    }

    /// How many are empty, or could be made.
    pub(super) fn to_be_had(&self) -> u32 {
        let left = self.limit - self.live;
        let left = self
            .quota
            .as_ref()
            .map_or(left, |quota| u32::try_from(quota.left().get() / SLAB_PAGES.get()).unwrap_or(u32::MAX).min(left));
        self.empties + left
    }

    /// Puts `bytes`, which are `frame`'s, into a slot, if there is one, and says so in `contents`.
    pub(super) fn put(&mut self, frame: u32, bytes: &[u8], contents: &mut Contents) -> Option<()> {
        let slot = self.take(class_of(bytes.len()), contents)?;
        self.settle(frame, slot, bytes.len(), contents);
        self.bytes.write(self.at(slot), bytes);
        Some(())
    }

    /// Copies what is in `slot` into `to`, which is as long.
    pub(super) fn read(&self, slot: Slot, to: &mut [u8]) {
        self.bytes.read(self.at(slot), to);
    }

    /// Does a little of what can be done when nobody waits: gives memory back that holds nothing, or makes such.
    pub(super) fn tidy(&mut self, contents: &mut Contents) {
        if self.empties > 0 {
            self.drop_empty();
        } else if let Some(class) = (0..CLASSES).find(|class| self.classes[*class].free >= 2 * slots(*class)) {
            self.compact(class, contents);
        }
    }

    fn drop_empty(&mut self) {
        // Locked memory stays.
        if self.bytes.discard(self.empty as usize * SLAB, SLAB).is_ok() {
            let number = self.pop_empty();
            self.set_slab(number, Slab { after: self.dropped, ..self.slab(number) });
            self.dropped = number;
            self.live -= 1;
            self.quota.iter().for_each(|quota| quota.give(SLAB_PAGES));
        }
    }

    /// Moves all pages of one slab of `class` into others, which have that many free slots.
    fn compact(&mut self, class: usize, contents: &mut Contents) {
        let source = self.emptiest(class);
        let from = self.slab(source);
        self.unlink(source);
        for number in 0..from.touched {
            let slot = Slot { slab: source, number };
            // A free slot names another one, and no frame is said to be in a free slot.
            let frame = self.owner(slot);
            let content = if u64::from(frame) < contents.capacity() { contents.get(frame) } else { Content::Empty };
            if let Content::Packed { slot: there, len } = content
                && there == slot
            {
                let to = self.take_free(class).expect("the others have as many free slots");
                self.settle(frame, to, len as usize, contents);
                self.bytes.copy(self.at(slot), self.at(to), len as usize);
                self.wipe(slot, len as usize);
                self.compacted += 1;
            }
        }
        self.classes[class].free -= slots(class) - from.used;
        self.push_empty(source);
    }

    /// Leaves nothing of a page in `slot`.
    fn wipe(&mut self, slot: Slot, len: usize) {
        self.bytes.write(self.at(slot), &[0; PAGE][..len]);
    }

    /// One of the first slabs of `class` with free slots that has the fewest pages of these.
    fn emptiest(&self, class: usize) -> u32 {
        let mut emptiest = self.classes[class].partial;
        let mut next = self.slab(emptiest).after;
        for _ in 1..LOOKED_AT {
            if next == NONE {
                break;
            }
            if self.slab(next).used < self.slab(emptiest).used {
                emptiest = next;
            }
            next = self.slab(next).after;
        }
        emptiest
    }

    /// A slot for a page of `class`: if none is free and no slab can be had, one of a class that is larger.
    fn take(&mut self, class: usize, contents: &mut Contents) -> Option<Slot> {
        if let Some(slot) = self.take_free(class) {
            return Some(slot);
        }
        if self.empty == NONE
            && !self.make_slab()
            && let Some(sparse) = (0..CLASSES).find(|class| self.classes[*class].free >= slots(*class))
        {
            self.compact(sparse, contents);
        }
        if self.empty != NONE {
            self.give_slab_to(class);
        }
        (class..CLASSES).find_map(|class| self.take_free(class))
    }

    fn take_free(&mut self, class: usize) -> Option<Slot> {
        let number = self.classes[class].partial;
        if number == NONE {
            return None;
        }
        let mut slab = self.slab(number);
        let slot = Slot { slab: number, number: if slab.free == NONE { slab.touched } else { slab.free } };
        if slab.free == NONE {
            slab.touched += 1;
        } else {
            slab.free = self.owner(slot);
        }
        slab.used += 1;
        self.set_slab(number, slab);
        self.classes[class].free -= 1;
        if slab.used == slots(class) {
            self.unlink(number);
        }
        Some(slot)
    }

    /// The `len` bytes in `slot` are of no use any more.
    pub(super) fn give(&mut self, slot: Slot, len: usize) {
        self.wipe(slot, len);
        let number = slot.slab;
        let mut slab = self.slab(number);
        let class = slab.class as usize;
        self.set_owner(slot, slab.free);
        slab.free = slot.number;
        slab.used -= 1;
        self.set_slab(number, slab);
        self.classes[class].free += 1;
        if slab.used + 1 == slots(class) {
            self.link(number);
        }
        if slab.used == 0 {
            self.unlink(number);
            self.classes[class].free -= slots(class);
            self.push_empty(number);
        }
    }

    /// Takes memory for one more slab; `false` where there is none.
    fn make_slab(&mut self) -> bool {
        if self.live == self.limit || !self.take_quota() {
            return false;
        }
        let slab = if self.dropped == NONE { self.made } else { self.dropped };
        let (at, entry) = (slab as usize * SLAB, slab as usize * SLAB_ENTRY);
        let made = self.about.open(entry + SLAB_ENTRY).and_then(|()| self.bytes.open(at + SLAB));
        if made.and_then(|()| self.bytes.populate(at, SLAB)).is_err() {
            self.quota.iter().for_each(|quota| quota.give(SLAB_PAGES));
            return false;
        }
        if self.dropped == NONE {
            self.made += 1;
        } else {
            self.dropped = self.slab(slab).after;
        }
        self.live += 1;
        self.peak = self.peak.max(self.live);
        self.push_empty(slab);
        true
    }

    fn take_quota(&self) -> bool {
        let Some(quota) = &self.quota else { return true };
        let got = quota.take(SLAB_PAGES);
        if got < SLAB_PAGES && !got.is_zero() {
            quota.give(got);
        }
        got == SLAB_PAGES
    }

    fn give_slab_to(&mut self, class: usize) {
        let number = self.pop_empty();
        let of = u32::try_from(class).expect("there are few classes");
        self.set_slab(number, Slab { class: of, used: 0, touched: 0, free: NONE, before: NONE, after: NONE });
        self.classes[class].free += slots(class);
        self.link(number);
    }

    fn push_empty(&mut self, number: u32) {
        let slab = Slab { after: self.empty, ..self.slab(number) };
        self.set_slab(number, slab);
        self.empty = number;
        self.empties += 1;
    }

    fn pop_empty(&mut self) -> u32 {
        let number = self.empty;
        self.empty = self.slab(number).after;
        self.empties -= 1;
        number
    }

    /// Puts a slab into the list of its class.
    fn link(&mut self, number: u32) {
        let slab = self.slab(number);
        let first = std::mem::replace(&mut self.classes[slab.class as usize].partial, number);
        self.set_slab(number, Slab { before: NONE, after: first, ..slab });
        if first != NONE {
            self.set_slab(first, Slab { before: number, ..self.slab(first) });
        }
    }

    fn unlink(&mut self, number: u32) {
        let Slab { class, before, after, .. } = self.slab(number);
        if before == NONE {
            self.classes[class as usize].partial = after;
        } else {
            self.set_slab(before, Slab { after, ..self.slab(before) });
        }
        if after != NONE {
            self.set_slab(after, Slab { before, ..self.slab(after) });
        }
    }

    /// `frame` has `len` bytes in `slot`.
    fn settle(&mut self, frame: u32, slot: Slot, len: usize, contents: &mut Contents) {
        self.set_owner(slot, frame);
        let len = u32::try_from(len).expect("at most a page");
        contents.set(frame, Content::Packed { slot, len });
    }

    /// Where a slot is.
    fn at(&self, Slot { slab, number }: Slot) -> usize {
        let class = self.slab(slab).class as usize;
        let first = if class == RAW { 0 } else { slots(class) as usize * 4 };
        slab as usize * SLAB + first + number as usize * size(class)
    }

    /// The frame in a slot; if it is free, the next free one.
    fn owner(&self, slot: Slot) -> u32 {
        let mut bytes = [0; 4];
        if self.slab(slot.slab).class as usize == RAW {
            self.about.read(owner_of_raw(slot), &mut bytes);
        } else {
            self.bytes.read(owner_of_packed(slot), &mut bytes);
        }
        u32::from_ne_bytes(bytes)
    }

    fn set_owner(&mut self, slot: Slot, frame: u32) {
        if self.slab(slot.slab).class as usize == RAW {
            self.about.write(owner_of_raw(slot), &frame.to_ne_bytes());
        } else {
            self.bytes.write(owner_of_packed(slot), &frame.to_ne_bytes());
        }
    }

    fn slab(&self, number: u32) -> Slab {
        let mut bytes = [0; 24];
        self.about.read(number as usize * SLAB_ENTRY, &mut bytes);
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Slab { class: word(0), used: word(4), touched: word(8), free: word(12), before: word(16), after: word(20) }
    }

    fn set_slab(&mut self, number: u32, slab: Slab) {
        let Slab { class, used, touched, free, before, after } = slab;
        let mut bytes = [0; 24];
        for (to, word) in bytes.chunks_exact_mut(4).zip([class, used, touched, free, before, after]) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        self.about.write(number as usize * SLAB_ENTRY, &bytes);
    }

    /// Checks that these books and `contents` agree.
    #[cfg(test)]
    pub(super) fn check(&self, contents: &Contents) {
        let mut used = vec![0; self.made as usize];
        let mut full = std::collections::BTreeSet::new();
        for frame in 0..u32::try_from(contents.capacity()).unwrap() {
            if let Content::Packed { slot, len } = contents.get(frame) {
                assert_eq!(self.owner(slot), frame);
                let about = self.slab(slot.slab);
                assert!(slot.number < about.touched && len as usize <= size(about.class as usize));
                used[slot.slab as usize] += 1;
                full.insert((slot.slab, slot.number));
            }
        }
        for slab in 0..self.made {
            let about = self.slab(slab);
            for number in (0..about.touched).filter(|number| !full.contains(&(slab, *number))) {
                let mut bytes = vec![0; size(about.class as usize)];
                self.read(Slot { slab, number }, &mut bytes);
                assert!(
                    bytes.iter().all(|byte| *byte == 0),
                    "nothing of a page is left in slot {number} of slab {slab}"
                );
            }
        }
        let some = |number: u32| Some(number).filter(|number| *number != NONE);
        let list = |first: u32| std::iter::successors(some(first), move |at| some(self.slab(*at).after));
        let [empty, dropped] = [self.empty, self.dropped].map(|first| list(first).collect::<Vec<u32>>());
        assert_eq!(empty.len(), self.empties as usize);
        assert_eq!(self.live as usize + dropped.len(), self.made as usize);
        empty.iter().chain(&dropped).for_each(|slab| assert_eq!(used[*slab as usize], 0));
        for (class, about) in self.classes.iter().enumerate() {
            let free = list(about.partial).map(|slab| {
                let Slab { class: of, used: known, .. } = self.slab(slab);
                assert_eq!((of as usize, known), (class, used[slab as usize]));
                assert!(known > 0 && known < slots(class));
                slots(class) - known
            });
            assert_eq!(free.sum::<u32>(), about.free, "class {class}");
        }
    }
}

/// The least class whose slots have so many bytes.
fn class_of(len: usize) -> usize {
    if len > MOST_PACKED { RAW } else { len.div_ceil(STEP).max(1) - 1 }
}

/// The bytes of a slot.
const fn size(class: usize) -> usize {
    if class == RAW { PAGE } else { (class + 1) * STEP }
}

/// How many slots a slab has.
#[expect(clippy::cast_possible_truncation, reason = "at most a slab's bytes")]
const fn slots(class: usize) -> u32 {
    // What is not of whole pages has the number of a frame beside each slot.
    (if class == RAW { SLAB / PAGE } else { SLAB / (size(class) + 4) }) as u32
}

const fn owner_of_raw(slot: Slot) -> usize {
    slot.slab as usize * SLAB_ENTRY + OWNERS_OF_RAW + slot.number as usize * 4
}

const fn owner_of_packed(slot: Slot) -> usize {
    slot.slab as usize * SLAB + slot.number as usize * 4
}

const _: () = assert!(OWNERS_OF_RAW + 4 * slots(RAW) as usize == SLAB_ENTRY && slots(0) < 1 << 14);
