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

mod table;

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
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

use crate::inner::Inner;
use crate::runtime::spawn;
use crate::service::MEMORY_PATIENCE;
use table::{Number, Table};

/// Whether anybody may be writing a file: nobody, as a lease is held; somebody; or that can't be known.
const UNWRITTEN: u8 = 0;
const OPEN_FOR_WRITING: u8 = 1;
const NO_LEASE: u8 = 2;

/// A file that is managed.
pub(crate) struct ManagedFile {
    /// All that is mapped of it.
    pub(crate) shadow: Shadow,
    /// One of the three above. Written with the lock held.
    state: AtomicU8,
    /// What its lease is on, until that is closed. Held by who takes the lease, or gives it up.
    lease: Mutex<Option<Number>>,
}

impl ManagedFile {
    /// Whether nobody writes it: a lease is held.
    pub(crate) fn is_unwritten(&self) -> Result<(), KeptReason> {
        // SeqCst: whoever finds it so has claimed its part of the file before, which who lets somebody write looks for after.
        match self.state.load(Ordering::SeqCst) {
            UNWRITTEN => Ok(()),
            OPEN_FOR_WRITING => Err(KeptReason::FileOpenForWriting),
            _ => Err(KeptReason::NoLease),
        }
    }

    /// Takes the lease, if it is to be had.
    fn take_lease(&self, keeper: lease::Keeper, table: &Table) {
        // The caller has claimed nothing that the keeper could wait for.
        let lease = lock(&self.lease);
        let Some(number) = lease.filter(|_| self.state.load(Ordering::SeqCst) != UNWRITTEN) else { return };
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

    /// What the lease is on that is held, as far as that is known.
    fn leased(&self) -> Option<Number> {
        if self.state.load(Ordering::SeqCst) == UNWRITTEN { *lock(&self.lease) } else { None }
    }

    /// Gives the lease up for good.
    fn end_lease(&self, table: &Table) {
        let mut lease = lock(&self.lease);
        self.state.store(NO_LEASE, Ordering::SeqCst);
        if let Some(number) = lease.take() {
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
}

impl Files {
    /// The file that is called so.
    pub(crate) fn get(&self, file: FileId) -> Option<Arc<ManagedFile>> {
        lock(&self.all).get(file.index())?.clone()
    }

    /// Opens `file`, to be managed, and maps `pages` pages of it from byte `offset` on.
    pub(crate) fn open(&self, file: OpenFile, offset: u64, pages: PageCount) -> Result<FileId, Errno> {
        let (lease, shadow) = self.table.open(file, offset, pages)?;
        let file = ManagedFile { shadow, state: AtomicU8::new(NO_LEASE), lease: Mutex::new(Some(lease)) };
        let mut all = lock(&self.all);
        let at = all.iter().position(Option::is_none).unwrap_or(all.len());
        if at == all.len() {
            all.push(None);
        }
        all[at] = Some(Arc::new(file));
        Ok(FileId::new(u32::try_from(at).unwrap_or(u32::MAX)))
    }

    /// `file` is managed no longer: the lease has ended on return.
    pub(crate) fn remove(&self, file: FileId) {
        let removed = lock(&self.all).get_mut(file.index()).and_then(Option::take);
        // Somebody may have the value still.
        removed.into_iter().for_each(|file| file.end_lease(&self.table));
    }

    fn each(&self) -> Vec<(FileId, Arc<ManagedFile>)> {
        let all = lock(&self.all);
        let files = (0..).map(FileId::new).zip(all.iter());
        files.filter_map(|(id, file)| Some((id, Arc::clone(file.as_ref()?)))).collect()
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
        let files = &self.engine.host().files;
        loop {
            keeper.wait();
            if files.ending.load(Ordering::SeqCst) {
                return;
            }
            let leased = |(id, file): (FileId, Arc<ManagedFile>)| Some((file.leased()?, id, file));
            let leased: Vec<_> = files.each().into_iter().filter_map(leased).collect();
            let unleased = match leased.iter().map(|(number, ..)| *number).collect::<Vec<_>>() {
                none if none.is_empty() => none,
                numbers => files.table.unleased(numbers),
            };
            // Both are in the same order.
            let mut unleased = unleased.into_iter().peekable();
            for (_, id, file) in leased.iter().filter(|(number, ..)| unleased.next_if_eq(number).is_some()) {
                self.let_write(*id, file);
            }
        }
    }

    /// Somebody wants to write `file`, or does already: its pages come home, and the lease is given up.
    fn let_write(&self, id: FileId, file: &ManagedFile) {
        let table = &self.engine.host().files.table;
        let mut lease = lock(&file.lease);
        let Some(number) = *lease else { return };
        file.state.store(OPEN_FOR_WRITING, Ordering::SeqCst);
        self.bring_file_home(id);
        // There may be none any more. Where the process may have none any more (its ids have changed) it ends with its description.
        if table.with(number, LeaseFile::give_lease_up) == Some(Err(Errno::ACCESS)) {
            file.state.store(NO_LEASE, Ordering::SeqCst);
            *lease = None;
            table.close(number);
        }
    }

    /// Has nothing stand in for the mappings of `file` any more.
    fn bring_file_home(&self, file: FileId) {
        self.bring_home_of(|other| other == file);
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
            file.take_lease(*keeper, &files.table);
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
