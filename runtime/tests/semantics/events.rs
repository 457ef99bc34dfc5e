//! The interval notifiers' events: what a subscription is told of each change, with pages in system memory and on a device.

use std::sync::{Arc, Mutex};

use hetmem::mirror::{Event, Subscription};
use hetmem::{FaultPath, PageOutcome, Request, Residency, Runtime, Target};
use hetmem_core::units::{PageRange, VirtAddr};

use crate::case::{Case, Managed, PAGES, owner, part};
use crate::common::Raw;

type Events = Vec<(PageRange, Event)>;

/// A subscription that accepts everything, and what it was told since the last question.
pub(crate) struct Told {
    pub(crate) subscription: Subscription,
    log: Arc<Mutex<Events>>,
}

impl Told {
    pub(crate) fn of(runtime: &Runtime, range: PageRange) -> Self {
        let log: Arc<Mutex<Events>> = Arc::default();
        let events = Arc::clone(&log);
        let subscription = runtime.subscribe(range, move |notice| {
            let mut events = events.lock().unwrap();
            notice.set_seq();
            events.push((notice.range(), notice.event()));
        });
        Self { subscription: subscription.unwrap(), log }
    }

    pub(crate) fn take(&self) -> Events {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    /// What `change` was announced with, once it was read and applied. The reader's sequence moves with it.
    fn during(&self, runtime: &Runtime, change: impl FnOnce()) -> Events {
        let seq = self.subscription.read_begin();
        let _ = self.take();
        change();
        // Whatever was read is applied before anybody is answered.
        let _ = runtime.residency(self.subscription.range());
        let events = self.take();
        assert_eq!(self.subscription.read_retry(seq), !events.is_empty());
        events
    }
}

/// Runs `test` with pages in system memory, and on the device.
fn each(test: impl Fn(&Case, &Runtime, Managed<'_>)) {
    Case::each(|case, runtime| {
        test(case, runtime, case.managed(runtime));
        let memory = case.managed(runtime);
        memory.place(case);
        test(case, runtime, memory);
    });
}

#[test]
fn munmap_is_told_as_unmap() {
    each(|_, runtime, memory| {
        let told = Told::of(runtime, memory.range());
        let events = told.during(runtime, || memory.unmap(3, 5));
        assert_eq!(events, [(part(memory.range(), 3, 5), Event::Unmap)]);
        let events = told.during(runtime, || memory.unmap(0, PAGES));
        assert_eq!(events, [(memory.range(), Event::Unmap)], "the hole in it is passed over");
    });
}

/// The number of pages that events are about, which do not overlap.
fn pages_of(events: &Events) -> u64 {
    events.iter().map(|(range, _)| range.pages().get()).sum()
}

#[test]
fn a_mapping_over_another_is_told_as_unmap() {
    each(|_, runtime, memory| {
        let told = Told::of(runtime, memory.range());
        let events = told.during(runtime, || memory.remap_anew());
        assert_eq!(events, [(memory.range(), Event::Unmap)]);
        assert!((0..PAGES).all(|i| memory.get(i) == 0), "the new mapping has nothing of the old one");
    });
}

#[test]
fn mremap_is_told_as_unmap_of_both_sides() {
    each(|case, runtime, memory| {
        let there = runtime.residency(memory.range());
        let place = case.written(PAGES);
        let (from, to) = (memory.range(), place.range());
        // SAFETY: no allocator and no thread uses it.
        unsafe { runtime.adopt(to, FaultPath::Thread) }.unwrap();
        let (source, target) = (Told::of(runtime, from), Told::of(runtime, to));
        let mut moved = None;
        let events = source.during(runtime, || moved = Some(Raw::borrowed(from).remap_to(place)));
        let moved = moved.unwrap();
        assert!(events.iter().all(|event| *event == (from, Event::Unmap)) && !events.is_empty(), "{events:?}");
        let events = target.take();
        assert!(events.iter().all(|event| *event == (to, Event::Unmap)) && !events.is_empty(), "{events:?}");
        assert_eq!(runtime.residency(to), there, "the pages went along");
        moved.verify();
        let _ = runtime.release(to);
    });
}

#[test]
fn dropped_contents_are_told_as_clear() {
    each(|_, runtime, memory| {
        let told = Told::of(runtime, memory.range());
        let events = told.during(runtime, || memory.discard(3, 5));
        assert_eq!(events, [(part(memory.range(), 3, 5), Event::Clear)]);
        assert!((3..8).all(|i| memory.get(i) == 0));
        let rest = Raw::borrowed(part(memory.range(), 512, 8));
        let events = told.during(runtime, || rest.advise(libc::MADV_FREE));
        assert_eq!(events, [(rest.range(), Event::Clear)]);
        assert!(runtime.residency(part(memory.range(), 3, 5)).iter().all(|r| *r == Residency::System));
    });
}

/// `mprotect` raises no event in user space: it is told as far as it is announced, until it is done.
#[test]
fn a_protection_is_told_as_announced() {
    each(|_, runtime, memory| {
        let told = Told::of(runtime, memory.range());
        assert_eq!(told.during(runtime, || memory.protect(0, 4, libc::PROT_READ)), []);
        let all = part(memory.range(), 2, 6);
        let events = told.during(runtime, || {
            runtime.announce(all, Event::ProtectionVma, || memory.protect(2, 6, libc::PROT_READ | libc::PROT_WRITE));
        });
        assert_eq!(events, [(all, Event::ProtectionVma)]);
    });
}

#[test]
fn migrations_are_told_with_the_owner_of_the_request() {
    Case::each(|case, runtime| {
        let (memory, elsewhere) = (case.managed(runtime), case.managed(runtime));
        let told = Told::of(runtime, memory.range());
        assert_eq!(told.during(runtime, || elsewhere.place(case)), [], "other ranges are no concern");
        for (request, owner) in [
            (Request { owner: owner(runtime, case.device), ..case.there() }, owner(runtime, case.device)),
            (Request::all_to(Target::System), None),
            (case.there(), None),
        ] {
            let events = told.during(runtime, || assert_eq!(memory.migrate(request), PageOutcome::Moved));
            assert!(events.iter().all(|(_, event)| *event == Event::Migrate(owner)), "{events:?}");
            assert_eq!(pages_of(&events), PAGES, "each page once: {events:?}");
        }
        // A touch is the CPU's migration, and nobody's request. Coherent pages are used where they are.
        let events = told.during(runtime, || memory.verify());
        assert!(events.iter().all(|(_, event)| *event == Event::Migrate(None)), "{events:?}");
        assert_eq!(events.is_empty(), !case.is_private());
    });
}

/// The own migration of a device need not shoot its table down: a callback that leaves `set_seq` out has no effect on readers.
#[test]
fn a_callback_may_pass_over_its_own_migration() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        let own = owner(runtime, case.device);
        let subscription = runtime.subscribe(memory.range(), move |notice| {
            if notice.event() != Event::Migrate(own) {
                notice.set_seq();
            }
        });
        let subscription = subscription.unwrap();
        let seq = subscription.read_begin();
        assert_eq!(memory.migrate(Request { owner: own, ..case.there() }), PageOutcome::Moved);
        assert!(!subscription.read_retry(seq));
        assert_eq!(memory.migrate(Request::all_to(Target::System)), PageOutcome::Moved);
        assert!(subscription.read_retry(seq));
    });
}

/// A reader that begins during a change sleeps until its end; the answers of before are refused.
#[test]
fn a_reader_waits_for_the_end_of_a_change() {
    each(|_, runtime, memory| {
        let told = Told::of(runtime, memory.range());
        let before = told.subscription.read_begin();
        let changed = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = runtime.announce(memory.range(), Event::ProtectionVma, || {
                let reader = scope.spawn(|| {
                    let seq = told.subscription.read_begin();
                    assert!(changed.load(std::sync::atomic::Ordering::SeqCst), "not before its end");
                    seq
                });
                (0..100).for_each(|_| std::thread::yield_now());
                changed.store(true, std::sync::atomic::Ordering::SeqCst);
                reader
            });
            let seq = reader.join().unwrap();
            assert!(told.subscription.read_retry(before) && !told.subscription.read_retry(seq));
        });
    });
}

#[test]
fn several_subscriptions_are_told_of_their_part_and_none_after_its_end() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        let halves = [part(memory.range(), 0, 512), part(memory.range(), 512, PAGES - 512)];
        let [first, second] = halves.map(|half| Told::of(runtime, half));
        memory.place(case);
        assert_eq!(first.take(), [(halves[0], Event::Migrate(None))]);
        assert_eq!(pages_of(&second.take()), PAGES - 512);
        let log = Arc::clone(&second.log);
        drop(second);
        memory.migrate(Request::all_to(Target::System));
        assert_eq!(first.take().len(), 1);
        assert_eq!(*log.lock().unwrap(), []);
        let nothing = part(memory.range(), 3, 0);
        assert!(runtime.subscribe(nothing, |_| ()).is_err(), "a range without a page");
    });
}

#[test]
fn the_end_of_the_runtime_is_told_once_to_everybody() {
    for device in [crate::common::PRIVATE, crate::common::COHERENT] {
        let runtime = crate::common::runtime();
        let case = Case { device, huge: true };
        let raw = case.written(PAGES);
        // SAFETY: no allocator and no thread uses it.
        unsafe { runtime.adopt(raw.range(), FaultPath::Thread) }.unwrap();
        runtime.migrate(raw.range(), case.there());
        let everything = PageRange::between(VirtAddr::new(4096), VirtAddr::new(1 << 47)).unwrap();
        let told = [raw.range(), everything].map(|range| Told::of(&runtime, range));
        drop(runtime);
        for told in told {
            let release = |event: &&(PageRange, Event)| event.1 == Event::Release;
            let events = told.take();
            assert_eq!(events.iter().filter(release).count(), 1, "{events:?}");
            assert!(events.contains(&(told.subscription.range(), Event::Release)));
        }
        raw.verify();
    }
}
