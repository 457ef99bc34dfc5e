//! Files that are mapped to be read and managed: which they are, and who sees to it that nobody writes them while anything of them is on a device.
//!
//! Each has a mapping of hetmem's own, by which its pages are read, and mapped again when they come home ([`Shadow`]), and a description on which a read
//! lease is taken ([`table`]). One thread of the runtime, the *keeper*, is told when somebody wants to write:
//!
//! ```text
//! writer                          keeper
//! ---------------------------     -------------------------------------------------
//! open(), waits in the kernel ──► a signal: the file is written from here on, to us
//!                                 brings its pages home
//! goes on ◄────────────────────── gives the lease up
//! ```
//!
//! The next migration to a device asks for the lease again, and gets it when nobody has the file open for writing any more.
//!
//! *Limits:* a process that is stopped for longer than `/proc/sys/fs/lease-break-time` loses its leases. When it goes on, all pages of such files come
//! home; what its threads read before that may be what the file had then.

mod adopted;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use hetmem_core::home::{FileHome, FileId, Home};
use hetmem_core::outcome::KeptReason;
use hetmem_core::port::Host as _;
use hetmem_core::space::Region;
use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::lease::{self, LeaseFile, OpenFile, Shadow};
use hetmem_sys::maps::Perms;
use hetmem_sys::procmap::Found;

use crate::inner::Inner;
use crate::runtime::spawn;
use crate::service::MEMORY_PATIENCE;
pub use adopted::{Adopted, FileMapped};
use table::{Number, Table};

/// Whether anybody may be writing a file: nobody, as a lease is held; somebody; or that can't be known.
const UNWRITTEN: u8 = 0;
const OPEN_FOR_WRITING: u8 = 1;
const NO_LEASE: u8 = 2;

/// How long to sleep, in nanoseconds, before it is looked again whether nobody is at work on a file.
const LOOK_AGAIN_AFTER: u32 = 50_000;

/// How a program has mapped a file itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped {
    /// Which file: device and number, as the kernel's list of mappings has them.
    file: (u64, u64),
    perms: Perms,
}

impl Mapped {
    /// Whether `found` is that, and has in `part` what begins with byte `offset` of the file.
    pub(crate) fn is(&self, found: &Found, part: PageRange, offset: u64) -> bool {
        let begins = part.start().get().checked_sub(found.range.start().get());
        found.range.contains_range(part)
            && (found.file, found.perms) == (self.file, self.perms)
            && begins.and_then(|begins| found.offset.checked_add(begins)) == Some(offset)
    }
}

/// A file, or a part of one, that is managed where it is mapped.
pub(crate) struct ManagedFile {
    /// All that is mapped of it.
    pub(crate) shadow: Shadow,
    /// How the program has mapped it, if that is not hetmem's doing.
    pub(crate) mapped: Option<Mapped>,
    /// Of all that is managed of the file.
    lease: Arc<Lease>,
}

impl ManagedFile {
    /// Whether nobody writes it: a lease is held.
    pub(crate) fn is_unwritten(&self) -> Result<(), KeptReason> {
        // SeqCst: whoever finds it so has claimed its part of the file before, which who lets somebody write looks for after.
        match self.lease.state.load(Ordering::SeqCst) {
            UNWRITTEN => Ok(()),
            OPEN_FOR_WRITING => Err(KeptReason::FileOpenForWriting),
            _ => Err(KeptReason::NoLease),
        }
    }
}

/// A lease on a file, or what there is instead.
struct Lease {
    /// One of the three above. Written with the lock held.
    state: AtomicU8,
    /// What it is on, until that is closed. Held by who takes the lease, or gives it up.
    on: Mutex<Option<On>>,
}

/// What a lease is on.
enum On {
    /// A description in the table of the thread that has one for that.
    Table(Number),
    /// One in the table of the threads that look after it, which they can't take it on: a thread of the program has.
    Here(LeaseFile),
}

impl Lease {
    /// Takes the lease, if it is to be had.
    fn take(&self, keeper: lease::Keeper, table: &Table) {
        // The caller has claimed nothing that the keeper could wait for.
        let on = lock(&self.on);
        if self.is_held() {
            return;
        }
        let Some(On::Table(number)) = *on else { return };
        let taken = table.with(number, move |file| file.take_lease(keeper)).unwrap_or(Err(Errno::BADF));
        let state = match taken {
            Ok(()) => UNWRITTEN,
            Err(Errno::AGAIN) => OPEN_FOR_WRITING,
            Err(_) => NO_LEASE,
        };
        self.state.store(state, Ordering::SeqCst);
        if taken.is_ok() && !table.unleased(vec![number]).is_empty() {
            // Somebody has asked for it before the keeper could know that there is one.
            keeper.rouse();
        }
    }

    /// As far as that is known.
    fn is_held(&self) -> bool {
        self.state.load(Ordering::SeqCst) == UNWRITTEN
    }

    /// Gives the lease up for good.
    fn end(&self, table: &Table) {
        let mut on = lock(&self.on);
        self.state.store(NO_LEASE, Ordering::SeqCst);
        if let Some(On::Table(number)) = on.take() {
            table.close(number);
        }
    }
}

/// The files of a runtime.
#[derive(Default)]
pub(crate) struct Files {
    all: Mutex<Vec<Option<Arc<ManagedFile>>>>,
    /// What their leases are on.
    table: Table,
    /// The thread that is told when somebody wants to write.
    keeper: OnceLock<lease::Keeper>,
    /// Whether it is to end.
    ending: AtomicBool,
    /// Leases on files that the program has mapped itself, by the files' numbers.
    known: Mutex<BTreeMap<(u64, u64), Weak<Lease>>>,
    /// Held while what the program has mapped itself comes to be managed, and by who compares what is managed with what is mapped.
    coming: Mutex<()>,
}

impl Files {
    /// The file that is called so.
    pub(crate) fn get(&self, file: FileId) -> Option<Arc<ManagedFile>> {
        lock(&self.all).get(file.index())?.clone()
    }

    /// Opens `file`, to be managed, and maps `pages` pages of it from byte `offset` on.
    pub(crate) fn open(&self, file: OpenFile, offset: u64, pages: PageCount) -> Result<FileId, Errno> {
        let (lease, shadow) = self.table.open(file, offset, pages)?;
        let lease = Lease { state: AtomicU8::new(NO_LEASE), on: Mutex::new(Some(On::Table(lease))) };
        Ok(self.add(ManagedFile { shadow, mapped: None, lease: Arc::new(lease) }))
    }

    fn add(&self, file: ManagedFile) -> FileId {
        let mut all = lock(&self.all);
        let at = all.iter().position(Option::is_none).unwrap_or(all.len());
        if at == all.len() {
            all.push(None);
        }
        all[at] = Some(Arc::new(file));
        FileId::new(u32::try_from(at).unwrap_or(u32::MAX))
    }

    /// `file` is managed no longer: the lease has ended on return, if it was this one's alone and nobody is at work on it.
    pub(crate) fn remove(&self, file: FileId) {
        let removed = lock(&self.all).get_mut(file.index()).and_then(Option::take);
        let Some(removed) = removed else { return };
        if removed.mapped.is_none() {
            return removed.lease.end(&self.table);
        }
        // A look, or the end of a migration, which may wait for a disk: no other begins with it.
        while Arc::strong_count(&removed) > 1 {
            hetmem_sys::thread::backoff_sleep(LOOK_AGAIN_AFTER);
        }
    }

    fn each(&self) -> Vec<(FileId, Arc<ManagedFile>)> {
        let all = lock(&self.all);
        let files = (0..).map(FileId::new).zip(all.iter());
        files.filter_map(|(id, file)| Some((id, Arc::clone(file.as_ref()?)))).collect()
    }

    /// The leases that are held, as far as that is known, each once.
    fn leases(&self) -> Vec<Arc<Lease>> {
        let mut held: Vec<_> = self.each().into_iter().map(|(_, file)| Arc::clone(&file.lease)).collect();
        held.sort_unstable_by_key(Arc::as_ptr);
        held.dedup_by(|a, b| Arc::ptr_eq(a, b));
        held.retain(|lease| lease.is_held());
        held
    }

    /// Those of the leases that others wait for, or that are lost.
    fn wanted(&self) -> Vec<Arc<Lease>> {
        let (mut wanted, mut numbers) = (Vec::new(), Vec::new());
        for lease in self.leases() {
            let on = match *lock(&lease.on) {
                Some(On::Table(number)) => Some(number),
                Some(On::Here(ref file)) if file.has_lease() => continue,
                Some(On::Here(_)) | None => None,
            };
            match on {
                Some(number) => numbers.push((number, lease)),
                None => wanted.push(lease),
            }
        }
        if !numbers.is_empty() {
            let unleased = self.table.unleased(numbers.iter().map(|(number, _)| *number).collect());
            // Both are in the same order.
            let mut unleased = unleased.into_iter().peekable();
            numbers.retain(|(number, _)| unleased.next_if_eq(number).is_some());
            wanted.extend(numbers.into_iter().map(|(_, lease)| lease));
        }
        wanted
    }
}

/// The keeper of a runtime, and the thread that has the table, from the first file on.
pub(crate) type Keeper = Mutex<Option<[JoinHandle<()>; 2]>>;

/// Starts the keeper, if there is none.
pub(crate) fn keep(inner: &Arc<Inner>, keeper: &Keeper) -> Result<(), std::io::Error> {
    let mut keeper = lock(keeper);
    if keeper.is_some() {
        return Ok(());
    }
    inner.engine.expect_files();
    let shared = Arc::clone(inner);
    let run = move || {
        let keeper = *shared.engine.host().files.keeper.get_or_init(lease::Keeper::of_this_thread);
        shared.engine.host().events.advance();
        shared.keep_leases(keeper);
    };
    let files = &inner.engine.host().files;
    let table = files.table.start()?;
    let started = spawn(run).inspect_err(|_| files.table.end())?;
    while files.keeper.get().is_none() {
        hetmem_sys::thread::yield_now();
    }
    *keeper = Some([started, table]);
    Ok(())
}

/// Ends the keeper.
pub(crate) fn end(inner: &Inner, keeper: &Keeper) {
    let Some([keeper, table]) = lock(keeper).take() else { return };
    let files = &inner.engine.host().files;
    files.ending.store(true, Ordering::SeqCst);
    files.keeper.get().inspect(|keeper| keeper.rouse());
    // They do not end by a panic that anybody could do something about.
    let _ = keeper.join();
    files.table.end();
    let _ = table.join();
}

impl Inner {
    /// Gives up leases that others wait for, until it is told to end.
    fn keep_leases(&self, keeper: lease::Keeper) {
        loop {
            let _ = keeper.wait();
            if self.engine.host().files.ending.load(Ordering::SeqCst) {
                return;
            }
            self.look_at_leases();
        }
    }

    /// Gives up the leases that others wait for. How many are held.
    pub(crate) fn look_at_leases(&self) -> usize {
        let files = &self.engine.host().files;
        files.wanted().iter().for_each(|lease| self.let_write(lease));
        files.leases().len()
    }

    /// Somebody wants to write the file of `lease`, or does already: its pages come home, and the lease is given up.
    fn let_write(&self, lease: &Arc<Lease>) {
        let files = &self.engine.host().files;
        let mut on = lock(&lease.on);
        if on.is_none() {
            return;
        }
        lease.state.store(OPEN_FOR_WRITING, Ordering::SeqCst);
        let of_it: BTreeSet<usize> = files
            .each()
            .into_iter()
            .filter(|(_, file)| Arc::ptr_eq(&file.lease, lease))
            .map(|(file, _)| file.index())
            .collect();
        self.bring_home_of(|file| of_it.contains(&file.index()));
        match *on {
            // There may be none any more. Where the process may have none any more (its ids have changed) it ends with its description.
            Some(On::Table(number))
                if files.table.with(number, LeaseFile::give_lease_up) == Some(Err(Errno::ACCESS)) =>
            {
                lease.state.store(NO_LEASE, Ordering::SeqCst);
                *on = None;
                files.table.close(number);
            }
            // It ends with its description: another is to be had by the program's threads only.
            Some(On::Here(_)) => *on = None,
            Some(On::Table(_)) | None => {}
        }
    }

    /// Has nothing stand in for the mapping of any file any more.
    pub(crate) fn bring_files_home(&self) {
        self.bring_home_of(|_| true);
    }

    fn bring_home_of(&self, which: impl Fn(FileId) -> bool) {
        let (start, host) = (Instant::now(), self.engine.host());
        while !self.engine.bring_files_home(&which).is_zero() {
            // Others are at work on them: a touch, another's migration.
            if start.elapsed() > MEMORY_PATIENCE {
                host.stop_the_program(
                    VirtAddr::default(),
                    "the pages of a file could not come home, which others wait to write",
                );
            }
            host.await_events();
        }
        self.tell_of_resting();
    }

    /// Manages `range`, where `file` is mapped from byte `offset` on.
    pub(crate) fn manage_file(&self, range: PageRange, file: FileId, offset: u64) -> Result<(), PageRange> {
        let home = Home::File(FileHome::new(file, range.start(), offset));
        let managed = self.engine.manage_new(range, Region { home, ..Region::default() });
        match managed {
            Ok(()) => self.ask_for_lease(file),
            Err(_) => self.engine.host().files.remove(file),
        }
        managed
    }

    /// Before pages of `ranges` go to a device: asks for the leases that are not held.
    pub(crate) fn ask_for_leases(&self, ranges: &[PageRange]) {
        if !self.engine.has_files() {
            return;
        }
        for (_, region) in ranges.iter().flat_map(|range| self.engine.regions_in(*range)) {
            if let Some(Home::File(home)) = region.map(|region| region.home) {
                self.ask_for_lease(home.file);
            }
        }
    }

    fn ask_for_lease(&self, file: FileId) {
        let files = &self.engine.host().files;
        if let (Some(file), Some(keeper)) = (files.get(file), files.keeper.get()) {
            file.lease.take(*keeper, &files.table);
        }
    }

    /// Ends what `range` has to do with files, which is managed no longer.
    pub(crate) fn forget_files(&self, were: &[FileId]) {
        let used: Vec<FileId> = self.files_in(PageRange::ALL);
        were.iter().filter(|file| !used.contains(file)).for_each(|file| self.engine.host().files.remove(*file));
    }

    /// The files that are managed in `range`.
    pub(crate) fn files_in(&self, range: PageRange) -> Vec<FileId> {
        if !self.engine.has_files() {
            return Vec::new();
        }
        let regions = self.engine.regions_in(range).into_iter().filter_map(|(_, region)| region);
        regions
            .filter_map(|region| match region.home {
                Home::File(home) => Some(home.file),
                Home::Anonymous => None,
            })
            .collect()
    }
}
