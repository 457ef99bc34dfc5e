//! Files that a program has mapped itself, to be read, by functions that the agent stands in front of.
//!
//! The thread of the agent's that keeps leases has no right to open the file, nor to take a lease on it: a thread of the program does both
//! (`LeaseFile::of_thread`). One lease is for all that is mapped of a file. It is not asked for anew when somebody has written the file, but when that is
//! mapped the next time.
//!
//! That the program changes what it has mapped is known from the functions by which it does so, and before each exchange the kernel is asked
//! (`UserMemory::is_as_booked`).

use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Weak};
use std::time::Instant;

use hetmem_core::home::{FileHome, FileId, Home};
use hetmem_core::outcome::KeptReason;
use hetmem_core::port::{Backing, Host as _, Instead};
use hetmem_core::space::Region;
use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{PAGE_SIZE, PageCount, PageRange};
use hetmem_sys::lease::{LeaseFile, Shadow};
use hetmem_sys::maps::Perms;

use super::{Lease, ManagedFile, Mapped, On, UNWRITTEN};
use crate::inner::Inner;
use crate::service::MEMORY_PATIENCE;

/// What a program has mapped of a file.
#[derive(Clone, Copy, Debug)]
pub struct FileMapped {
    /// Where.
    pub range: PageRange,
    /// Which file: the number of its device, and its own.
    pub file: (u64, u64),
    /// How many bytes that has.
    pub size: u64,
    /// Which byte of it is the first.
    pub offset: u64,
}

/// What becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adopted {
    /// This much is managed, from its start on.
    Pages(PageCount),
    /// Nothing yet: nobody holds a lease on the file.
    WantsLease,
    /// Nothing, and it is not to be.
    Nothing,
}

impl Inner {
    /// Manages what the program has mapped, which is the first that is said of it. `lease` has a lease on the file, if there is none yet.
    pub(crate) fn adopt_file(&self, mapped: FileMapped, lease: Option<LeaseFile>) -> Adopted {
        let (engine, files) = (&self.engine, &self.engine.host().files);
        // Pages behind the end of the file are none of hetmem's: who touches them gets SIGBUS.
        let pages = PageCount::new(mapped.size.saturating_sub(mapped.offset).div_ceil(PAGE_SIZE));
        let range = mapped.range.slice(PageCount::ZERO, pages);
        if range.is_empty() {
            return Adopted::Nothing;
        }
        let Some(as_mapped) = self.how_mapped(range, mapped) else {
            // The kernel's list has other numbers for the file, or tells nothing; or it is another's by now.
            engine.counters().count_kept(KeptReason::Unsupported, range.pages().get());
            return Adopted::Nothing;
        };
        let lease = match (lease, self.lease_on(mapped.file)) {
            (_, Some(known)) => known,
            (None, None) => return Adopted::WantsLease,
            // Somebody has asked for it before anybody could know that there is one.
            (Some(lease), None) if !lease.has_lease() => {
                engine.counters().count_kept(KeptReason::FileOpenForWriting, range.pages().get());
                return Adopted::Nothing;
            }
            (Some(lease), None) => {
                let lease = Lease { state: AtomicU8::new(UNWRITTEN), on: Mutex::new(Some(On::Here(lease))) };
                let lease = Arc::new(lease);
                lock(&files.known).insert(mapped.file, Arc::downgrade(&lease));
                lease
            }
        };
        let Ok(shadow) = Shadow::of_mapping(range, mapped.offset) else {
            engine.counters().count_kept(KeptReason::NoMemory, range.pages().get());
            return Adopted::Nothing;
        };
        let _coming = lock(&files.coming);
        // By now it may be another's, who has mapped it there: then the shadow is not of the file. Both are looked at.
        let is_it = self.how_mapped(shadow.range(), mapped).is_some() && self.how_mapped(range, mapped).is_some();
        // What was managed there is no more, as the program has mapped this.
        if !is_it || engine.end_management(range).is_err() {
            return Adopted::Nothing;
        }
        let file = files.add(ManagedFile { shadow, mapped: Some(as_mapped), lease });
        let home = Home::File(FileHome::new(file, range.start(), mapped.offset));
        match engine.manage_new(range, Region { home, ..Region::default() }) {
            Ok(()) => Adopted::Pages(range.pages()),
            Err(_) => {
                files.remove(file);
                Adopted::Nothing
            }
        }
    }

    /// Calls `look` while no file that the program maps comes to be managed.
    pub(crate) fn while_no_file_comes<R>(&self, look: impl FnOnce() -> R) -> R {
        let _coming = lock(&self.engine.host().files.coming);
        look()
    }

    /// A lease on `file` that is held.
    fn lease_on(&self, file: (u64, u64)) -> Option<Arc<Lease>> {
        let mut known = lock(&self.engine.host().files.known);
        let found = known.get(&file).and_then(Weak::upgrade).filter(|lease| lease.is_held());
        if found.is_none() {
            known.retain(|_, lease| lease.strong_count() > 0);
        }
        found
    }

    /// How `range` is mapped, if that is what is `mapped`, and all that the program may do there is read.
    fn how_mapped(&self, range: PageRange, mapped: FileMapped) -> Option<Mapped> {
        let found = self.engine.host().mapping_at(range.start()).ok()??;
        let perms = [Perms::READ, Perms::READ | Perms::SHARED].into_iter().find(|perms| *perms == found.perms)?;
        let how = Mapped { file: mapped.file, perms };
        how.is(&found, range, mapped.offset).then_some(how)
    }

    /// Counts what the program has mapped of a file, and is not managed.
    pub(crate) fn count_kept(&self, pages: PageCount, reason: KeptReason) {
        self.engine.counters().count_kept(reason, pages.get());
    }

    /// All of files in `range` comes home, and is managed no longer.
    pub(crate) fn release_files(&self, range: PageRange) {
        let (start, files) = (Instant::now(), self.files_in(range));
        while !self.engine.release_files_in(range).is_zero() {
            // Others are at work on them: a touch, another's migration.
            if start.elapsed() > MEMORY_PATIENCE {
                self.engine.host().stop_the_program(range.start(), "pages of a file could not come home");
            }
            self.engine.host().await_events();
        }
        self.forget_adopted(&files);
        self.tell_of_resting();
    }

    /// What of `range` is a file's comes home.
    pub(crate) fn bring_files_home_in(&self, range: PageRange) {
        let files: Vec<FileId> = self.files_in(range);
        if !files.is_empty() {
            self.bring_home_of(|file| files.contains(&file));
        }
    }

    /// Ends what there was of `files`: each is mapped once.
    fn forget_adopted(&self, files: &[FileId]) {
        files.iter().for_each(|file| self.engine.host().files.remove(*file));
    }

    /// Whether all of `range` is managed still, as parts of files, and mapped as the books say.
    pub(crate) fn is_as_mapped(&self, range: PageRange) -> bool {
        let (engine, host) = (&self.engine, self.engine.host());
        let is_it = |part: PageRange, home: FileHome| {
            let booked = host.is_as_booked(part, Backing::StandIn(Instead::OfFile(home), &[])).is_ok();
            // By blocks, as something may stand in for others.
            booked || !engine.stood_in(part).is_zero()
        };
        engine.regions_in(range).into_iter().all(|(part, region)| {
            let Some(Region { home: Home::File(home), .. }) = region else { return false };
            part.by_block().all(|(_, part)| {
                is_it(part, home) || {
                    // Something may just have come to stand in for it, or gone.
                    engine.await_exchanges(part);
                    is_it(part, home)
                }
            })
        })
    }

    /// What the program has unmapped past the functions that would have told is forgotten.
    pub(crate) fn forget_unmapped_files(&self) {
        let files = &self.engine.host().files;
        let mut managed: Vec<usize> = self.files_in(PageRange::ALL).iter().map(|file| file.index()).collect();
        managed.sort_unstable();
        let is_none = |file: &FileId| managed.binary_search(&file.index()).is_err();
        let adopted = files.each().into_iter().filter(|(_, of)| of.mapped.is_some()).map(|(file, _)| file);
        // Those of which nothing is managed; the values are let go of before.
        let gone: Vec<FileId> = adopted.filter(is_none).collect();
        self.forget_adopted(&gone);
    }

    /// The parts of memory that are managed files', in order.
    pub(crate) fn file_parts(&self) -> Vec<PageRange> {
        if !self.engine.has_files() {
            return Vec::new();
        }
        let is_file = |(part, region): (PageRange, Region)| (region.home != Home::Anonymous).then_some(part);
        self.engine.regions().into_iter().filter_map(is_file).collect()
    }

    /// Where hetmem has mapped files itself, for a forked child that has that too; unless somebody changes it.
    pub(crate) fn shadows(&self) -> Vec<PageRange> {
        let all = self.engine.host().files.all.try_lock();
        all.map(|all| all.iter().flatten().map(|file| file.shadow.range()).collect()).unwrap_or_default()
    }
}
