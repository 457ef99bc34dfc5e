//! A file that is mapped to be read, what stands in for its mapping, and who writes it.

use hetmem_core::home::{FileHome, FileId, Home};
use hetmem_core::outcome::KeptReason;
use hetmem_core::space::Region;
use hetmem_core::units::{PAGE_SIZE, PageCount, PageRange, VirtAddr};

use super::inject::Failure;
use super::lay::TEMPORARY;
use super::{Event, Memory, Model, Page, StepKind, Token, Truth, ZERO, nth};

/// The one file.
pub(crate) const FILE: FileId = FileId::new(0);

impl Memory {
    /// What a page reads as that is nowhere: zeros, or what its file has.
    pub(crate) fn of_a_hole(&self, page: VirtAddr) -> Token {
        let file = self.pages.get(&page.get()).and_then(|entry| entry.file);
        file.map_or(ZERO, |index| self.file[&index])
    }

    /// What the file has from byte `offset` on goes to memory of hetmem's own.
    pub(crate) fn read_file(&mut self, offset: u64, to: VirtAddr, pages: PageCount) {
        for i in 0..pages.get() {
            let content = self.file[&(offset / PAGE_SIZE + i)];
            self.own.insert(nth(to, i).get(), content);
        }
    }

    /// Memory takes the place of what is mapped in `part`, with these pages from frames.
    pub(crate) fn stand_in(&mut self, part: PageRange, placed: &[(PageRange, VirtAddr)]) {
        assert!(!self.written, "a device gets pages of a file that is being written");
        self.map_over(part, |entry| (entry.content, entry.registered) = (None, true));
        for (at, from) in placed {
            for (i, page) in (0..).zip(at.iter()) {
                let content = self.own.remove(&nth(*from, i).get()).expect("a frame that is moved in has a page");
                self.pages.get_mut(&page.get()).expect("mapped just now").content = Some(content);
            }
        }
        let from = PageRange::new(TEMPORARY, part.pages()).expect("the place is valid");
        self.queue(Event::Remap { from, to: part.start() });
        self.queue(Event::Unmap(from));
    }

    /// The file is mapped again in `part`.
    pub(crate) fn map_file_again(&mut self, part: PageRange, home: FileHome) {
        let file = self.file.clone();
        let at = |page: VirtAddr| home.offset_at(page) / PAGE_SIZE;
        for page in part.iter() {
            assert_eq!(self.pages.get(&page.get()).and_then(|entry| entry.file), Some(at(page)), "{page} is that page");
        }
        self.map_over(part, |entry| {
            (entry.content, entry.registered) = (entry.file.map(|index| file[&index]), false);
        });
    }

    fn map_over(&mut self, part: PageRange, change: impl Fn(&mut Page)) {
        let was_registered = part.iter().any(|page| self.pages[&page.get()].registered);
        for page in part.iter() {
            self.strays.remove(&page.get());
            change(self.pages.get_mut(&page.get()).expect("what is mapped over is mapped"));
        }
        if was_registered {
            self.queue(Event::Unmap(part));
        }
    }
}

impl Model {
    /// Maps the file's pages from `index` on at `range`, to be read, and has them managed.
    pub(crate) fn map_file(&self, range: PageRange, index: u64) -> Region {
        let home = FileHome::new(FILE, range.start(), index * PAGE_SIZE);
        let region = Region { home: Home::File(home), ..Region::default() };
        self.engine().expect_files();
        {
            let mut memory = self.lock();
            for (index, page) in (index..).zip(range.iter()) {
                let content = match memory.file.get(&index) {
                    Some(content) => *content,
                    None => memory.fresh(),
                };
                memory.file.insert(index, content);
                let (registered, stuck, written, laid, guarded) = (false, None, true, None, false);
                let file = Some(index);
                let entry =
                    Page { registered, read_only: true, stuck, written, content: Some(content), laid, guarded, file };
                memory.pages.insert(page.get(), entry);
                memory.truth.insert(page.get(), Truth(vec![content]));
            }
        }
        self.engine().manage(range, region);
        region
    }

    /// Nobody gets more of the file from here on; all of it comes home, and is written then.
    pub(crate) fn write_file(&self) {
        self.lock().wanted = true;
        while !self.engine().bring_files_home(|file| file == FILE).is_zero() {
            std::thread::yield_now();
        }
        let mut guard = self.lock();
        let memory = &mut *guard;
        memory.written = true;
        let indexes: Vec<u64> = memory.file.keys().copied().collect();
        for index in indexes {
            let content = memory.fresh();
            memory.file.insert(index, content);
        }
        for (at, page) in &mut memory.pages {
            let Some(index) = page.file else { continue };
            assert!(!page.registered, "something stands in for {at:#x}, and the file is written");
            page.content = Some(memory.file[&index]);
            memory.truth.insert(*at, Truth(vec![memory.file[&index]]));
        }
    }

    /// The file is open for writing no longer.
    pub(crate) fn end_writing(&self) {
        let mut memory = self.lock();
        (memory.wanted, memory.written) = (false, false);
    }

    /// A thread reads `page`, asleep while it is missing, and finds what the file has.
    pub(crate) fn read_asleep(&self, page: VirtAddr) {
        let key = page.get();
        let mut memory = self.lock();
        loop {
            if let Some(content) = memory.pages[&key].content {
                return memory.agree(key, content, "a read of");
            }
            assert!(memory.pages[&key].registered, "a page of the file is missing in its own mapping");
            memory.waiters.insert(key);
            memory.messages.push_back(key);
            self.changed.notify_all();
            memory = self.sleep_until(memory, "a page", |memory| !memory.waiters.contains(&key));
        }
    }

    /// What the host says where bytes of a file are read.
    pub(crate) fn fails_to_read(&self) -> Result<(), KeptReason> {
        match self.step(StepKind::ReadFile) {
            Some(Failure::NotRead) => Err(KeptReason::FileUnreadable),
            _ => Ok(()),
        }
    }
}
