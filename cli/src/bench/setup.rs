//! What several measurements need: runtimes, requests, contents, orders.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hetmem::{ByteLen, DeviceId, FaultPath, Outcomes, PAGE_SIZE, PageCount, PageRange, Request, Runtime, Target};
use hetmem_core::policy::Random;

use crate::failure::Failure;

/// Words of a page.
pub(super) const WORDS: usize = ByteLen::new(PAGE_SIZE).as_usize() / size_of::<u64>();

/// A failure of the step `what`.
pub(super) fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure::Bench(format!("{what}: {error}"))
}

/// A runtime with an emulated device of `size` for each of `types` and room for `stock` of populated pages.
pub(super) fn runtime(
    types: &[&str],
    size: ByteLen,
    stock: Option<ByteLen>,
    path: FaultPath,
) -> Result<Runtime, Failure> {
    let kib = size.get() >> 10;
    let mut builder = Runtime::builder();
    for kind in types {
        let spec = format!("{kind}:emulated,size={kib}K");
        builder = builder.device(spec.parse().map_err(failed("a device can't be described"))?);
    }
    if let Some(stock) = stock {
        builder = builder.stock(stock);
    }
    if path == FaultPath::Sigbus {
        builder = builder.sigbus();
    }
    builder.start().map_err(|error| Failure::Bench(crate::failure::chain(&error)))
}

/// Every page to device `id`.
pub(super) fn to_device(id: u8) -> Request {
    Request::all_to(Target::Device(DeviceId::new(id)))
}

/// Every page home.
pub(super) fn home() -> Request {
    Request::all_to(Target::System)
}

/// The pages that moved, and the pages that were kept.
pub(super) fn moved_and_kept(outcomes: &[Outcomes]) -> (u64, u64) {
    let moved: u64 = outcomes.iter().map(|o| o.moved().get()).sum();
    let all: usize = outcomes.iter().map(|o| o.as_slice().len()).sum();
    (moved, all as u64 - moved)
}

/// Moves all of `range` to device 0; none may be left behind.
pub(super) fn send_out(runtime: &Runtime, range: PageRange) -> Result<(), Failure> {
    send(runtime, range, DeviceId::new(0))
}

/// Moves all of `range` to `device`; none may be left behind.
pub(super) fn send(runtime: &Runtime, range: PageRange, device: DeviceId) -> Result<(), Failure> {
    let (_, kept) = moved_and_kept(&[runtime.migrate(range, Request::all_to(Target::Device(device)))]);
    if kept == 0 { Ok(()) } else { Err(Failure::Bench(format!("{kept} pages did not move to the device"))) }
}

/// The words of `pages` pages from page `first` on.
pub(super) fn page_words(words: &[AtomicU64], first: PageCount, pages: PageCount) -> &[AtomicU64] {
    &words[first.as_usize() * WORDS..(first + pages).as_usize() * WORDS]
}

/// Writes contents that `seed` and the place determine.
pub(super) fn fill(words: &[AtomicU64], seed: u64) {
    for (i, word) in (seed..).zip(words) {
        word.store(i.wrapping_mul(0x9e37_79b9_7f4a_7c15), Relaxed);
    }
}

/// Whether `words` are as [`fill`] left them.
pub(super) fn is_intact(words: &[AtomicU64], seed: u64) -> bool {
    (seed..).zip(words).all(|(i, word)| word.load(Relaxed) == i.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The numbers below `n` in an order that `seed` determines.
pub(super) fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let mut random = Random::new(seed);
    for i in (1..n).rev() {
        let other = usize::try_from(random.below(i as u64 + 1)).unwrap_or(0);
        order.swap(i, other);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_is_a_permutation_and_not_the_identity() {
        let mut order = shuffled(1000, 7);
        assert_ne!(order, (0..1000).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn one_changed_word_is_noticed() {
        let words: Vec<AtomicU64> = (0..100).map(AtomicU64::new).collect();
        fill(&words, 5);
        assert!(is_intact(&words, 5) && !is_intact(&words, 6));
        words[50].fetch_add(1, Relaxed);
        assert!(!is_intact(&words, 5));
    }
}
