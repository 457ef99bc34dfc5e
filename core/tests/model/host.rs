//! The program's memory as the kernel lets hetmem change it.

use hetmem_core::home::{FileHome, FileId};
use hetmem_core::outcome::KeptReason;
use hetmem_core::port::{Arrived, Backing, FaultPath, Host, How, InstallStop, Taken};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};

use super::inject::{Done, Failure};
use super::{Memory, ModelHost, Page, STOPPED, StepKind, Token, ZERO, nth, run_of};

impl Memory {
    /// The content of a page of hetmem's own, which must have one.
    pub(crate) fn own_content(&self, at: VirtAddr) -> Token {
        *self.own.get(&at.get()).unwrap_or_else(|| panic!("the hole at {at} is read"))
    }

    /// Why the page at `page` can't be taken out, and the number of pages that this holds for.
    fn refuses_take(&self, rest: PageRange) -> Option<(KeptReason, PageCount)> {
        let at = |page: u64| self.pages.get(&page);
        let Some(page) = at(rest.start().get()) else {
            return Some((KeptReason::Unsupported, run_of(rest, |p| at(p).is_none())));
        };
        assert_eq!(page.laid, None, "the laid page at {} is taken out", rest.start());
        if page.guarded {
            return Some((KeptReason::Guarded, run_of(rest, |p| at(p).is_some_and(|q| q.guarded))));
        }
        if page.content.is_none() {
            return Some((
                KeptReason::Hole,
                run_of(rest, |p| at(p).is_some_and(|q| q.content.is_none() && !q.guarded)),
            ));
        }
        if page.read_only {
            return Some((KeptReason::Unsupported, run_of(rest, |p| at(p).is_some_and(|q| q.read_only))));
        }
        page.stuck.map(|reason| (reason, PageCount::ONE))
    }

    fn take(&mut self, from: PageRange, to: VirtAddr) -> Taken {
        for (i, page) in (0..).zip(from.iter()) {
            if let Some(stop) = self.refuses_take(from.slice(PageCount::new(i), from.pages())) {
                return Taken { pages: PageCount::new(i), stop: Some(stop) };
            }
            let entry = self.pages.get_mut(&page.get()).expect("looked at before");
            assert!(entry.registered, "{page} is taken out, and nobody watches it");
            assert!(!self.unsplittable.contains(&page.get()), "the kernel does not come back from taking {page} out");
            let content = entry.content.take().expect("looked at before");
            self.strays.remove(&page.get());
            let before = self.own.insert(nth(to, i).get(), content);
            assert_eq!(before, None, "{page} is taken out to a place that holds a page");
        }
        Taken { pages: from.pages(), stop: None }
    }

    fn refuses_put(&self, page: VirtAddr, how: How) -> Option<InstallStop> {
        match self.pages.get(&page.get()) {
            Some(entry) if !entry.registered => Some(InstallStop::Gone),
            None => Some(InstallStop::Gone),
            Some(entry) if entry.guarded => Some(InstallStop::Guarded),
            Some(entry) if entry.content.is_some() => Some(InstallStop::Occupied),
            Some(entry) if entry.read_only && how == How::Move => Some(InstallStop::Refused),
            Some(_) => None,
        }
    }

    fn put(&mut self, to: PageRange, how: How, mut content: impl FnMut(&mut Self, u64) -> Token) -> Arrived {
        for (i, page) in (0..).zip(to.iter()) {
            assert!(!self.is_laid(page) || how == How::Copy, "the laid page at {page} is moved in");
            if let Some(stop) = self.refuses_put(page, how) {
                return Arrived { pages: PageCount::new(i), stop: Some(stop) };
            }
            let content = content(self, i);
            self.pages.get_mut(&page.get()).expect("looked at before").content = Some(content);
            if !matches!(how, How::Fetch | How::FetchTouched) {
                self.waiters.remove(&page.get());
            }
            self.dropped.remove(&page.get());
        }
        Arrived::all(to.pages())
    }
}

/// The part of `range` that is done before a failure, and the number of pages that the failure holds for.
fn cut(range: PageRange, done: Done) -> (PageRange, PageCount) {
    let half = PageCount::new(range.pages().get() / 2);
    match done {
        Done::None => (range.slice(PageCount::ZERO, PageCount::ZERO), PageCount::ONE),
        Done::NoneAtAll => (range.slice(PageCount::ZERO, PageCount::ZERO), range.pages()),
        Done::Half => (range.slice(PageCount::ZERO, half), PageCount::ONE),
    }
}

impl Host for ModelHost {
    fn trapped(&self, _path: FaultPath, range: PageRange) -> Result<PageCount, KeptReason> {
        match self.0.step(StepKind::Trapped) {
            Some(Failure::NotTrapped(reason)) => Err(reason),
            Some(Failure::TrappedOne) => Ok(PageCount::ONE),
            _ => Ok(range.pages()),
        }
    }

    fn can_be_split(&self, part: PageRange) -> bool {
        let memory = self.0.lock();
        !part.iter().any(|page| memory.unsplittable.contains(&page.get()))
    }

    fn take_out(&self, _path: FaultPath, from: PageRange, to: VirtAddr) -> Taken {
        let failure = self.0.step(StepKind::TakeOut);
        let mut memory = self.0.lock();
        if memory.is_changing() {
            // What lies there now may not be what the engine believes.
            return Taken { pages: PageCount::ZERO, stop: Some((KeptReason::Raced, from.pages())) };
        }
        match failure {
            Some(Failure::Take(reason, done)) => {
                let (part, kept) = cut(from, done);
                let taken = memory.take(part, to);
                if reason == KeptReason::Occupied && taken.stop.is_none() {
                    // The kernel has populated the place, as it does to make huge pages.
                    memory.own.insert(to.add_pages(taken.pages).get(), super::GARBAGE);
                }
                Taken { pages: taken.pages, stop: taken.stop.or(Some((reason, kept))) }
            }
            _ => memory.take(from, to),
        }
    }

    fn install(&self, _path: FaultPath, to: PageRange, from: VirtAddr, how: How) -> Arrived {
        let failure = self.0.step(StepKind::Install);
        let mut memory = self.0.lock();
        if memory.is_changing() {
            return Arrived { pages: PageCount::ZERO, stop: Some(InstallStop::EventsPending) };
        }
        let content = |memory: &mut Memory, i: u64| {
            let content = memory.own_content(nth(from, i));
            if how == How::Move {
                memory.own.remove(&nth(from, i).get());
            }
            assert_ne!(content, super::GARBAGE, "what a failed copy left is put in at {to}");
            content
        };
        let put = match failure {
            // Only moving is refused by the mapping.
            Some(Failure::Install(InstallStop::Refused, _)) if how == How::Copy => memory.put(to, how, content),
            Some(Failure::Install(stop, done)) => {
                let put = memory.put(cut(to, done).0, how, content);
                Arrived { pages: put.pages, stop: put.stop.or(Some(stop)) }
            }
            _ => memory.put(to, how, content),
        };
        self.0.changed.notify_all();
        put
    }

    fn zero_fill(&self, _path: FaultPath, range: PageRange) -> Arrived {
        let failure = self.0.step(StepKind::ZeroFill);
        let mut memory = self.0.lock();
        if memory.is_changing() {
            return Arrived { pages: PageCount::ZERO, stop: Some(InstallStop::EventsPending) };
        }
        let put = match failure {
            Some(Failure::Install(stop, _)) => Arrived { pages: PageCount::ZERO, stop: Some(stop) },
            _ => memory.put(range, How::Copy, |_, _| ZERO),
        };
        self.0.changed.notify_all();
        put
    }

    fn wake(&self, _path: FaultPath, range: PageRange) {
        self.0.lock().waiters.retain(|page| !range.contains(VirtAddr::new(*page)));
        self.0.changed.notify_all();
    }

    fn copy(&self, from: VirtAddr, to: VirtAddr, pages: PageCount) {
        self.0.step(StepKind::HostCopy);
        let mut memory = self.0.lock();
        for i in 0..pages.get() {
            let content = memory.own_content(nth(from, i));
            memory.own.insert(nth(to, i).get(), content);
        }
    }

    fn clear(&self, at: VirtAddr, pages: PageCount) {
        let mut memory = self.0.lock();
        for i in 0..pages.get() {
            memory.own.insert(nth(at, i).get(), ZERO);
        }
    }

    fn open_places(&self, _at: VirtAddr, _pages: PageCount) -> bool {
        self.0.step(StepKind::OpenPlaces) != Some(Failure::Refused)
    }

    fn discard(&self, at: VirtAddr, pages: PageCount) -> bool {
        // The kernel tells the handler thread of it first, which needs the gate: nobody may hold it here.
        let failure = self.0.step(StepKind::Discard);
        drop(self.0.engine().events());
        if failure.is_some() {
            return false;
        }
        let mut memory = self.0.lock();
        for i in 0..pages.get() {
            memory.own.remove(&nth(at, i).get());
        }
        true
    }

    fn await_events(&self) {
        if self.0.threaded {
            self.0.wait_for_an_event();
        } else {
            self.0.raise_late();
            self.0.deliver();
        }
    }

    fn present_parts(&self, range: PageRange) -> Vec<PageRange> {
        let memory = self.0.lock();
        let present = |page: u64| memory.pages.get(&page).is_some_and(Page::is_present);
        let (mut parts, mut rest) = (Vec::new(), range);
        while !rest.is_empty() {
            let absent = run_of(rest, |page| !present(page));
            rest = rest.slice(absent, rest.pages());
            let part = rest.slice(PageCount::ZERO, run_of(rest, present));
            rest = rest.slice(part.pages(), rest.pages());
            parts.extend((!part.is_empty()).then_some(part));
        }
        parts
    }

    fn guarded_parts(&self, range: PageRange) -> Vec<PageRange> {
        let memory = self.0.lock();
        let guarded = |page: &VirtAddr| memory.pages.get(&page.get()).is_some_and(|entry| entry.guarded);
        range.iter().filter(guarded).map(PageRange::page_of).collect()
    }

    fn removal_is_over(&self, range: PageRange, _looks: u32) -> bool {
        let failure = self.0.step(StepKind::RemovalIsOver);
        failure.is_none() && !self.0.lock().zaps.iter().any(|zap| zap.range.overlaps(range))
    }

    fn exchange(&self, _path: FaultPath, block: PageRange, backing: Backing<'_>) -> Result<(), KeptReason> {
        match backing {
            Backing::Device(frames) => self.0.exchange(StepKind::Lay, block, |memory| memory.lay(block, frames)),
            Backing::Anonymous => self.0.exchange(StepKind::Lift, block, |memory| memory.lift(block)),
            Backing::StandIn(_, placed) => {
                self.0.exchange(StepKind::StandIn, block, |memory| memory.stand_in(block, placed))
            }
            Backing::File(home) => {
                self.0.exchange(StepKind::MapFile, block, |memory| memory.map_file_again(block, home))
            }
        }
    }

    fn is_unwritten(&self, _file: FileId) -> Result<(), KeptReason> {
        if self.0.lock().wanted { Err(KeptReason::FileOpenForWriting) } else { Ok(()) }
    }

    fn read_file(&self, home: FileHome, page: VirtAddr, to: VirtAddr, pages: PageCount) -> Result<(), KeptReason> {
        self.0.fails_to_read()?;
        self.0.lock().read_file(home.offset_at(page), to, pages);
        Ok(())
    }

    fn stop_the_program(&self, page: VirtAddr, why: &'static str) -> ! {
        panic!("{STOPPED} over {page}: {why}")
    }
}
