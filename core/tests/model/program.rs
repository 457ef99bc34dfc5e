//! What the program does, and what the handler thread does about it.

use hetmem_core::advice::DiscardError;
use hetmem_core::fault::{Ended, FaultResolution};
use hetmem_core::frames::Keep;
use hetmem_core::migrate::{Request, Target};
use hetmem_core::slot::{SYSTEM_POOL, Slot};
use hetmem_core::space::Region;
use hetmem_core::units::{PageCount, PageRange, VirtAddr};

use super::world::{POOL, frames_of};
use super::{Event, Fork, Memory, Model, Page, Token, Touch, Truth, ZERO, Zap, nth, run_of};

impl Truth {
    pub(super) fn also(&mut self, value: Token) {
        if !self.0.contains(&value) {
            self.0.push(value);
        }
    }
}

impl Memory {
    fn any_registered(&self, range: PageRange) -> bool {
        range.iter().any(|page| self.pages.get(&page.get()).is_some_and(|entry| entry.registered))
    }

    fn take_down(&mut self, range: PageRange) {
        for page in range.iter() {
            self.pages.remove(&page.get());
            self.truth.remove(&page.get());
            self.dropped.remove(&page.get());
            self.no_longer_sure(page);
        }
    }

    pub(super) fn no_longer_sure(&mut self, page: VirtAddr) {
        for zap in &mut self.zaps {
            zap.sure.remove(&page.get());
        }
    }

    fn write(&mut self, page: u64) -> Token {
        let token = self.fresh();
        let entry = self.pages.get_mut(&page).expect("the page is mapped");
        entry.written = true;
        match entry.laid {
            Some(frame) => _ = self.own.insert(frame.get(), token),
            None => entry.content = Some(token),
        }
        self.truth.insert(page, Truth(vec![token]));
        // A removal that is under way may count as done before this.
        self.no_longer_sure(VirtAddr::new(page));
        token
    }

    /// The events of a removal of `range`, one for each mapping that somebody watches.
    fn begin_removal(&mut self, range: PageRange) -> Vec<Event> {
        let (mut events, mut rest) = (Vec::new(), range);
        while !rest.is_empty() {
            let laid = self.is_laid(rest.start());
            let part = rest.slice(PageCount::ZERO, run_of(rest, |page| self.is_laid(VirtAddr::new(page)) == laid));
            rest = rest.slice(part.pages(), rest.pages());
            if laid {
                continue;
            }
            let sure: Vec<u64> = part.iter().map(VirtAddr::get).filter(|page| self.pages.contains_key(page)).collect();
            for page in &sure {
                let hole = self.of_a_hole(VirtAddr::new(*page));
                self.truth.get_mut(page).expect("what is mapped has a truth").also(hole);
            }
            let zap = Zap { range: part, sure: sure.into_iter().collect() };
            if self.any_registered(part) {
                self.zaps.push(zap);
                events.push(Event::Remove(part));
            } else {
                self.carry_out(&zap);
            }
        }
        events
    }

    pub(crate) fn carry_out(&mut self, zap: &Zap) {
        for page in zap.range.iter() {
            let laid = self.is_laid(page);
            self.note_dropped(page);
            // What is shared keeps its bytes.
            let hole = self.of_a_hole(page);
            let Some(entry) = self.pages.get_mut(&page.get()).filter(|_| !laid) else { continue };
            // What is dropped of a file's own mapping is read from the file.
            (entry.content, entry.written) = (entry.file.filter(|_| !entry.registered).map(|_| hole), false);
            let truth = self.truth.get_mut(&page.get()).expect("what is mapped has a truth");
            if zap.sure.contains(&page.get()) { *truth = Truth(vec![hole]) } else { truth.also(hole) }
        }
    }

    pub(super) fn agree(&mut self, page: u64, got: Token, what: &str) {
        let truth = self.truth.get_mut(&page).expect("what is mapped has a truth");
        assert!(truth.0.contains(&got), "{what} {page:#x} finds {got}, and the program left {truth:?} there");
    }
}

impl Model {
    /// Maps `range`, with nothing in it.
    pub(crate) fn map(&self, range: PageRange, registered: bool) {
        let mut memory = self.lock();
        for page in range.iter() {
            let entry = Page {
                registered,
                read_only: false,
                stuck: None,
                written: false,
                content: None,
                laid: None,
                guarded: false,
                file: None,
            };
            let before = memory.pages.insert(page.get(), entry);
            assert!(before.is_none(), "{page} is mapped already");
            memory.truth.insert(page.get(), Truth(vec![ZERO]));
        }
    }

    /// Puts what is mapped in `range` under management, if no event is unread.
    pub(crate) fn adopt(&self, range: PageRange, region: Region) -> bool {
        let engine = self.engine();
        let _events = engine.events();
        let mut memory = self.lock();
        let mapped = range.iter().all(|page| memory.pages.contains_key(&page.get()));
        if !memory.events.is_empty() || !mapped {
            return false;
        }
        for page in range.iter() {
            memory.pages.get_mut(&page.get()).expect("looked at before").registered = true;
        }
        engine.manage(range, region);
        true
    }

    /// Unmaps what is mapped in `range`.
    pub(crate) fn unmap(&self, range: PageRange) {
        let mut memory = self.lock();
        let tell = memory.any_registered(range);
        memory.take_down(range);
        if tell {
            memory.queue(Event::Unmap(range));
        }
        self.changed.notify_all();
    }

    /// Moves the mapping `from`, all of it managed, to `to`, over whatever is there.
    pub(crate) fn remap(&self, from: PageRange, to: VirtAddr) {
        let target = PageRange::new(to, from.pages()).expect("a range of the test is valid");
        let mut memory = self.lock();
        if target.overlaps(from) || !from.iter().all(|p| memory.pages.get(&p.get()).is_some_and(|e| e.registered)) {
            return;
        }
        if memory.any_registered(target) {
            memory.queue(Event::Unmap(target));
        }
        memory.take_down(target);
        for page in from.iter() {
            let new = to.add_pages(page.pages_since(from.start())).get();
            let entry = memory.pages.remove(&page.get()).expect("looked at before");
            let truth = memory.truth.remove(&page.get()).expect("what is mapped has a truth");
            memory.pages.insert(new, entry);
            memory.truth.insert(new, truth);
            memory.no_longer_sure(page);
        }
        memory.queue(Event::Remap { from, to });
        memory.queue(Event::Unmap(from));
        self.changed.notify_all();
    }

    /// Announces that the contents of `range` will be dropped. They are with [`Model::zap_all`], once the event was read. What is laid
    /// there is not.
    pub(crate) fn remove(&self, range: PageRange) {
        let mut memory = self.lock();
        let events = memory.begin_removal(range);
        events.into_iter().for_each(|event| memory.queue(event));
        self.changed.notify_all();
    }

    /// Has the engine discard `range`: it is removed, and that is over on return.
    pub(crate) fn discard(&self, range: PageRange) -> Result<(), DiscardError<()>> {
        let engine = self.engine();
        let bring_home = |laid: &[PageRange]| engine.migrate_all(laid, Request::all_to(Target::System));
        engine.discard_range(range, bring_home, || {
            self.remove(range);
            self.deliver();
            self.zap_all();
            Ok(())
        })
    }

    /// The same as [`Model::remove`]; the event waits until hetmem has changed the mappings.
    pub(crate) fn remove_late(&self, range: PageRange) {
        let mut memory = self.lock();
        let events = memory.begin_removal(range);
        memory.late.extend(events);
    }

    /// Installs guard markers in `range`, by a system call of which nobody hears: what is there is dropped at once.
    pub(crate) fn guard(&self, range: PageRange) {
        let mut memory = self.lock();
        for page in range.iter() {
            let laid = memory.is_laid(page);
            memory.note_dropped(page);
            let Some(entry) = memory.pages.get_mut(&page.get()).filter(|_| !laid) else { continue };
            (entry.content, entry.written, entry.guarded) = (None, false, true);
            memory.strays.remove(&page.get());
            memory.truth.insert(page.get(), Truth(vec![ZERO]));
        }
        self.changed.notify_all();
    }

    /// Removes the guard markers of `range`, as a thread does that has the engine look first, with nothing put in meanwhile.
    pub(crate) fn unguard(&self, range: PageRange) {
        let engine = self.engine();
        let events = engine.events();
        engine.guarded(&events, range);
        let mut memory = self.lock();
        for (_, entry) in memory.pages.range_mut(range.start().get()..range.end().get()) {
            entry.guarded = false;
        }
    }

    /// Removes every guard marker.
    pub(crate) fn unguard_all(&self) {
        let guarded: Vec<u64> = self.lock().pages.iter().filter(|(_, page)| page.guarded).map(|(at, _)| *at).collect();
        guarded.into_iter().for_each(|page| self.unguard(PageRange::page_of(VirtAddr::new(page))));
    }

    /// Carries out the removals whose announcement was read.
    pub(crate) fn zap_all(&self) {
        let mut memory = self.lock();
        let unread: Vec<PageRange> = memory
            .events
            .iter()
            .chain(&memory.late)
            .filter_map(|event| if let Event::Remove(range) = event { Some(*range) } else { None })
            .collect();
        let (wait, go): (Vec<Zap>, Vec<Zap>) = memory.zaps.drain(..).partition(|zap| unread.contains(&zap.range));
        memory.zaps = wait;
        go.iter().for_each(|zap| memory.carry_out(zap));
    }

    /// Drops the contents of `range` with nobody told, as in the moment between two registrations.
    pub(crate) fn drop_unseen(&self, range: PageRange) {
        let sure = range.iter().map(VirtAddr::get).collect();
        self.lock().carry_out(&Zap { range, sure });
    }

    /// Ends the registration of `range`: what happens to its mapping is not reported any more.
    pub(crate) fn unwatch(&self, range: PageRange) {
        let mut memory = self.lock();
        for page in range.iter() {
            memory.pages.get_mut(&page.get()).expect("the page is mapped").registered = false;
        }
    }

    /// Forks; the child's pages of `within` will be compared with what the parent had now.
    pub(crate) fn fork(&self, within: PageRange) {
        let mut memory = self.lock();
        assert!(memory.pages.values().all(|page| page.laid.is_none()), "a child would lack what is laid");
        let fork = Fork { pages: memory.pages.clone(), truth: memory.truth.clone(), within };
        memory.queue(Event::Fork(fork));
        self.changed.notify_all();
    }

    /// Makes `range` read-only or writable; there is no event.
    pub(crate) fn protect(&self, range: PageRange, read_only: bool) {
        let mut memory = self.lock();
        for page in range.iter() {
            if let Some(entry) = memory.pages.get_mut(&page.get()) {
                entry.read_only = read_only;
            }
        }
    }

    /// Writes to the page if it is present.
    pub(crate) fn write_present(&self, page: VirtAddr) -> bool {
        let mut memory = self.lock();
        let Some(entry) = memory.pages.get(&page.get()) else { return false };
        let present = !entry.guarded && (entry.is_present() || !entry.registered);
        if present {
            memory.write(page.get());
        }
        present
    }

    /// Reads and applies all events, as the handler thread does.
    pub(crate) fn deliver(&self) {
        let engine = self.engine();
        loop {
            let events = engine.events();
            let event = {
                let mut memory = self.lock();
                let Some(event) = memory.events.pop_front() else { return };
                memory.events_read += 1;
                memory.delivering = true;
                event
            };
            self.changed.notify_all();
            match event {
                Event::Unmap(range) => engine.unmapped(&events, range),
                Event::Remap { from, to } => engine.remapped(&events, from, to),
                Event::Remove(range) => engine.removed(&events, range),
                Event::Fork(mut fork) => {
                    engine.forked(&events);
                    let fill = |range: PageRange, from: VirtAddr| {
                        let memory = self.lock();
                        for (i, page) in (0..).zip(range.iter()) {
                            let content = memory.own_content(nth(from, i));
                            let child =
                                fork.pages.get_mut(&page.get()).filter(|child| child.registered && !child.guarded);
                            if let Some(child) = child {
                                child.content.get_or_insert(content);
                            }
                        }
                    };
                    engine.for_each_unmapped(&events, fill).expect("the devices give their pages for the child");
                    for page in fork.within.iter() {
                        let Some(child) = fork.pages.get(&page.get()).filter(|child| !child.guarded) else { continue };
                        let got = child.content.unwrap_or(ZERO);
                        let truth = &fork.truth[&page.get()];
                        assert!(
                            truth.0.contains(&got),
                            "the child finds {got} at {page}, and its parent had {truth:?}"
                        );
                    }
                }
            }
            self.lock().delivering = false;
        }
    }

    /// A thread of the program touches `page`; see [`Model::serve`].
    pub(crate) fn begin_touch(&self, page: VirtAddr) {
        let mut memory = self.lock();
        let Some(entry) = memory.pages.get(&page.get()) else { return };
        if !entry.is_present() && entry.registered && !entry.guarded {
            memory.waiters.insert(page.get());
            memory.touches.push(Touch { page: page.get(), told_to_wait: false });
        }
    }

    /// Serves every touch, as the handler thread does. `inside` a call, those that must wait for its end are left; else each must
    /// have been served or woken.
    pub(crate) fn serve(&self, inside: bool) {
        let engine = self.engine();
        for _ in 0..10_000 {
            let page = {
                let memory = &mut *self.lock();
                let ready = |touch: &Touch| !touch.told_to_wait || !memory.waiters.contains(&touch.page);
                let Some(at) = memory.touches.iter().position(ready) else { break };
                let touch = memory.touches[at];
                if !memory.waiters.contains(&touch.page) {
                    // Awake: it looks again.
                    let missing = memory.pages.get(&touch.page).is_some_and(Page::is_waited_for);
                    if !missing {
                        memory.touches.swap_remove(at);
                        continue;
                    }
                    memory.waiters.insert(touch.page);
                    memory.touches[at].told_to_wait = false;
                }
                touch.page
            };
            self.resolve(page, engine.begin_fault(VirtAddr::new(page), page));
        }
        // Who is inside a call of a device's is not the one that looks what has ended.
        if !inside && engine.faults_under_way() > 0 {
            let mut ended = Vec::new();
            engine.end_faults(&mut |fault| ended.push(fault));
            for Ended { addr, token, resolution } in ended {
                assert_eq!(addr.get(), token);
                self.lock().touches.iter_mut().filter(|t| t.page == token).for_each(|t| t.told_to_wait = false);
                self.resolve(token, resolution);
            }
            return self.serve(inside);
        }
        let memory = self.lock();
        if !inside {
            assert!(memory.touches.is_empty(), "nobody wakes {:?}; asleep are {:x?}", memory.touches, memory.waiters);
        }
    }

    fn resolve(&self, page: u64, resolution: FaultResolution) {
        match resolution {
            // Somebody wakes it, or it is ended.
            FaultResolution::Waiting | FaultResolution::UnderWay => {
                let mut memory = self.lock();
                memory.touches.iter_mut().filter(|t| t.page == page).for_each(|t| t.told_to_wait = true);
            }
            FaultResolution::EventsPending => {
                self.raise_late();
                self.deliver();
            }
            FaultResolution::Mirrored => panic!("only a signal handler is told so"),
            FaultResolution::NoRoom => panic!("there is room for more faults than the model has"),
            FaultResolution::NoMemory => self.engine().trim_pool(Keep::Limit),
            FaultResolution::Home(_) | FaultResolution::Back(_) | FaultResolution::Present => {
                let sleeps = self.lock().waiters.contains(&page);
                assert!(!sleeps, "the touch of {page:#x} ended as {resolution:?}, and nobody woke it");
            }
        }
    }

    /// Touches `page` until it is present; `None` if nothing is mapped there, or a guard.
    pub(crate) fn touch(&self, page: VirtAddr) -> Option<Token> {
        // The scripts of a test can't drop a page more often than this just after it came.
        for _ in 0..100 {
            self.begin_touch(page);
            self.serve(false);
            let mut memory = self.lock();
            let entry = memory.pages.get_mut(&page.get()).filter(|entry| !entry.guarded)?;
            if let Some(frame) = entry.laid {
                return Some(memory.own_content(frame));
            }
            if !entry.registered {
                return Some(*entry.content.get_or_insert(ZERO));
            }
            if entry.content.is_some() {
                return entry.content;
            }
        }
        panic!("the touch of {page} is served over and over, and the page is still missing")
    }

    /// Reads `page` and compares it with the truth.
    pub(crate) fn read(&self, page: VirtAddr) {
        if let Some(got) = self.touch(page) {
            let mut memory = self.lock();
            memory.agree(page.get(), got, "a read of");
            memory.truth.insert(page.get(), Truth(vec![got]));
        }
    }

    /// Writes something new to `page`, if it is mapped and writable.
    pub(crate) fn write(&self, page: VirtAddr) {
        let writable = self.lock().pages.get(&page.get()).is_some_and(|entry| !entry.read_only);
        if writable && self.touch(page).is_some() {
            self.lock().write(page.get());
        }
    }

    /// Reads every page that is mapped.
    pub(crate) fn read_all(&self) {
        let mapped: Vec<u64> = self.lock().pages.keys().copied().collect();
        mapped.into_iter().for_each(|page| self.read(VirtAddr::new(page)));
    }

    /// Compares every page with the truth where it lies, without a touch. No event may be unread.
    pub(crate) fn compare_in_place(&self) {
        let engine = self.engine();
        let mapped: Vec<u64> = self.lock().pages.keys().copied().collect();
        for page in mapped {
            let at = VirtAddr::new(page);
            let slot = engine.slot(at);
            let mut memory = self.lock();
            let entry = memory.pages[&page];
            if entry.guarded {
                // What was there is nobody's, wherever the books have it still.
                continue;
            }
            let got = match (entry.content, slot) {
                (None, Slot::Mapped(frame)) if entry.laid.is_some() => {
                    let device = engine.device(frame.device).and_then(|device| device.reach().laid());
                    let expected = device.map(|start| nth(start, u64::from(frame.index.get())));
                    assert_eq!(entry.laid, expected, "{at} is in the frame that its slot names");
                    memory.own_content(expected.expect("what is laid is in a window"))
                }
                _ if entry.laid.is_some() => panic!("{at} is laid, and its slot is {slot:?}"),
                (Some(content), Slot::Mapped(frame)) => {
                    let arena = engine.device(frame.device).and_then(|device| device.reach().movable());
                    let place = arena.map(|start| nth(start, u64::from(frame.index.get())).get());
                    let left = place.and_then(|place| memory.own.get(&place));
                    assert_eq!(left, None, "{at} is mapped from its frame, and no copy of what that holds");
                    content
                }
                (Some(content), Slot::System) => content,
                // Mapped and missing: the removal came after the announcement, when another page had moved there.
                (None, Slot::System | Slot::Mapped(_)) => memory.of_a_hole(at),
                (None, Slot::Unmapped { frame, busy: false }) if frame.device == SYSTEM_POOL => {
                    memory.own_content(nth(POOL, u64::from(frame.index.get())))
                }
                (None, Slot::Unmapped { frame, busy: false }) => {
                    memory.own_content(nth(frames_of(frame.device), u64::from(frame.index.get())))
                }
                (content, slot) => panic!("{at} is {slot:?}, and the program has {content:?} there"),
            };
            memory.agree(page, got, "a look at");
        }
    }
}
