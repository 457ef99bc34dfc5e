use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const FRAMES: u32 = 2048;

/// Bytes that `seed` determines, other ones for other seeds.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (at % 8 * 8)).to_le_bytes()[0] ^ at.to_le_bytes()[0])
        .collect()
}

#[derive(Clone, Debug)]
enum Step {
    Put { frame: u32, len: usize },
    Fill { frame: u32, word: u32 },
    Remove { first: u32, frames: u32 },
    Tidy,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let frame = 0..FRAMES;
    let len = prop_oneof![3 => 1..=3072_usize, 1 => Just(PAGE)];
    let step = prop_oneof![
        12 => (frame.clone(), len).prop_map(|(frame, len)| Step::Put { frame, len }),
        2 => (frame.clone(), any::<u32>()).prop_map(|(frame, word)| Step::Fill { frame, word }),
        2 => (frame, 1..200_u32).prop_map(|(first, frames)| Step::Remove { first, frames }),
        1 => Just(Step::Tidy),
    ];
    proptest::collection::vec(step, 1..1500)
}

fn found(store: &Store, frame: u32) -> Result<u32, Vec<u8>> {
    let mut page = [0; PAGE];
    match store.get(frame, &mut page) {
        Found::Filled(word) => Ok(word),
        Found::Packed(len) => Err(page[..len].to_vec()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn frames_have_what_was_put_there_whatever_comes_between(steps in steps(), slabs in 3..24_u64) {
        let memory = PageCount::new(slabs * SLAB_PAGES.get());
        let mut store = Store::new(PageCount::new(FRAMES.into()), memory).unwrap();
        let mut model: BTreeMap<u32, Result<u32, Vec<u8>>> = BTreeMap::new();
        for (seed, step) in (0..).zip(steps) {
            match step {
                Step::Put { frame, len } => {
                    let bytes = bytes(seed, len);
                    model.remove(&frame);
                    if store.put(frame, &bytes).is_ok() {
                        model.insert(frame, Err(bytes));
                    } else {
                        store.remove(frame);
                        store.note_refused();
                        prop_assert!(store.room().is_zero());
                    }
                }
                Step::Fill { frame, word } => {
                    store.put_filled(frame, word).unwrap();
                    model.insert(frame, Ok(word));
                }
                Step::Remove { first, frames } => (first..FRAMES.min(first + frames)).for_each(|frame| {
                    store.remove(frame);
                    model.remove(&frame);
                }),
                Step::Tidy => store.tidy(),
            }
        }
        store.check();
        for frame in 0..FRAMES {
            prop_assert_eq!(found(&store, frame), model.get(&frame).cloned().unwrap_or(Ok(0)));
        }
        let packing = store.packing();
        prop_assert!(packing.packed_bytes <= packing.memory_bytes);
        prop_assert!(packing.memory_bytes <= packing.peak_memory_bytes);
        prop_assert!(packing.peak_memory_bytes <= packing.memory_limit_bytes);
        // What is left of it when all is gone and nobody hurries: nothing.
        (0..FRAMES).for_each(|frame| store.remove(frame));
        (0..slabs).for_each(|_| store.tidy());
        store.check();
        prop_assert_eq!(store.packing().memory_bytes, 0);
    }
}

/// A store full of pages of `len` bytes, and how many there are.
fn full(memory: PageCount, len: usize) -> (Store, u32) {
    let mut store = Store::new(PageCount::new(FRAMES.into()), memory).unwrap();
    let refused = (0..FRAMES).find(|frame| store.put(*frame, &bytes((*frame).into(), len)).is_err()).unwrap();
    store.note_refused();
    (store, refused)
}

#[test]
fn a_full_store_has_room_when_pages_have_left_it() {
    let memory = PageCount::new(4 * SLAB_PAGES.get());
    for (len, each) in [(PAGE, 16), (3072, 21), (1500, 42)] {
        let (mut store, count) = full(memory, len);
        assert_eq!(count, 4 * each, "{len} bytes");
        assert_eq!(store.packing().memory_bytes, memory.bytes().get());
        assert!(store.room().is_zero());
        assert_eq!(store.put(FRAMES - 1, &bytes(1, len)), Err(NoRoom));
        (0..each).for_each(|frame| store.remove(frame));
        assert!(!store.room().is_zero(), "a slab has come free");
        store.put(0, &bytes(1, len)).unwrap();
        store.check();
    }
}

#[test]
fn holes_between_pages_become_room_for_pages_of_another_size() {
    let (mut store, count) = full(PageCount::new(8 * SLAB_PAGES.get()), 2000);
    // Three of four leave: no slab is empty.
    (0..count).filter(|frame| frame % 4 != 0).for_each(|frame| store.remove(frame));
    let mut large = 0;
    while store.put(count + large, &bytes(large.into(), PAGE)).is_ok() {
        large += 1;
    }
    assert!(large >= 5 * 16, "{large} whole pages found room in what was 8 slabs of 64 KiB, of which 2 are needed");
    assert!(store.packing().compacted_pages > 0);
    (0..count)
        .filter(|frame| frame % 4 == 0)
        .for_each(|frame| assert_eq!(found(&store, frame), Err(bytes(frame.into(), 2000))));
    store.check();
}

#[test]
fn memory_goes_back_and_is_taken_again() {
    let (mut store, count) = full(PageCount::new(4 * SLAB_PAGES.get()), 1000);
    for _ in 0..3 {
        (0..count).for_each(|frame| store.remove(frame));
        (0..4).for_each(|_| store.tidy());
        assert_eq!(store.packing().memory_bytes, 0);
        for frame in 0..count {
            store.put(frame, &bytes(frame.into(), 1000)).unwrap();
        }
        store.check();
    }
    (0..count).for_each(|frame| assert_eq!(found(&store, frame), Err(bytes(frame.into(), 1000))));
}

/// So many pages of memory, for all who count with it.
#[derive(Debug)]
struct Left(hetmem_core::sync::atomic::AtomicU64);

impl Quota for &'static Left {
    fn take(&self, want: PageCount) -> PageCount {
        let left = self.left().min(want);
        self.0.fetch_sub(left.get(), std::sync::atomic::Ordering::Relaxed);
        left
    }

    fn give(&self, pages: PageCount) {
        self.0.fetch_add(pages.get(), std::sync::atomic::Ordering::Relaxed);
    }

    fn left(&self) -> PageCount {
        PageCount::new(self.0.load(std::sync::atomic::Ordering::Relaxed))
    }
}

#[test]
fn stores_that_count_together_have_no_more_than_there_is() {
    // Two slabs and a half: of the half nothing is taken.
    let left: &'static Left = Box::leak(Box::new(Left(40.into())));
    let memory = PageCount::new(10 * SLAB_PAGES.get());
    let mut stores = [(); 2].map(|()| Store::new(PageCount::new(FRAMES.into()), memory).unwrap());
    stores.iter_mut().for_each(|store| store.count_with_others(Box::new(left)));
    let [one, other] = &mut stores;
    let fill = |store: &mut Store| (0..FRAMES).take_while(|frame| store.put(*frame, &[7; PAGE]).is_ok()).count();
    assert_eq!((fill(one), fill(other)), (32, 0));
    other.note_refused();
    assert_eq!((left.left().get(), other.room().get()), (8, 0));
    (0..16).for_each(|frame| one.remove(frame));
    one.tidy();
    // The refused page is forgotten when there is more than then.
    assert_eq!((left.left().get(), other.room().get()), (24, 16));
    assert_eq!(fill(other), 16);
}

#[test]
fn what_was_refused_is_tried_again_when_nothing_is_there_and_after_a_while() {
    let memory = PageCount::new(2 * SLAB_PAGES.get());
    let mut store = Store::new(PageCount::new(FRAMES.into()), memory).unwrap();
    // As if the machine had had none.
    store.note_refused();
    assert_eq!(store.room(), memory);
    store.put(0, &[7; PAGE]).unwrap();
    store.note_refused();
    (0..HOLDS_FOR).for_each(|_| {
        assert_eq!(store.room(), PageCount::ZERO);
        store.tidy();
    });
    store.tidy();
    assert!(!store.room().is_zero());
}
