//! Files that are mapped to be read and managed: which they are, and who sees to it that nobody writes them while anything of them is on a device.
//!
//! Each has a description of hetmem's own, by which its pages are read, and mapped again when they come home, and on which a read lease is taken
//! ([`hetmem_sys::lease`]). One thread of the runtime, the *keeper*, is told when somebody wants to write:
//!
//! ```text
//! writer                          keeper
//! ---------------------------     -------------------------------------------------
//! open(), waits in the kernel ──► SIGIO: the file is written from here on, to us
//!                                 brings its pages home
//! goes on ◄────────────────────── gives the lease up
//! ```
//!
//! The next migration to a device asks for the lease again, and gets it when nobody has the file open for writing any more.
//!
//! In somebody else's program the keeper is a thread of the agent's, which can open no files and take few leases: that of a new mapping is taken by the
//! program's thread that maps it, on a description that the keeper then has from there ([`Inner::adopt_file`]). And as no thread of the program may hold
//! hetmem's locks, on whose stack a page may be away, the keeper does what they ask for: a [`Request`].
//!
//! *Limits:* a process that is stopped for longer than `/proc/sys/fs/lease-break-time` loses its leases. When it goes on, all pages of such files come
//! home; what its threads read before that may be what the file had then.

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use hetmem_core::home::{FileHome, FileId, Home};
use hetmem_core::outcome::KeptReason;
use hetmem_core::port::Host as _;
use hetmem_core::space::Region;
use hetmem_core::sync::{Condvar, Mutex, lock};
use hetmem_core::units::{PAGE_SIZE, PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::lease::{MappedFile, Sharing, await_break, reaches, rouse, user_of_this_thread};
use hetmem_sys::process::with_signals_blocked;

use crate::inner::Inner;
use crate::service::MEMORY_PATIENCE;

/// Whether anybody may be writing a file: nobody, as a lease is held; somebody; or that can't be known.
const UNWRITTEN: u8 = 0;
const OPEN_FOR_WRITING: u8 = 1;
const NO_LEASE: u8 = 2;

/// A file that is managed.
pub(crate) struct ManagedFile {
    pub(crate) file: MappedFile,
    pub(crate) sharing: Sharing,
    /// One of the three above. Written with the lock held.
    state: AtomicU8,
    /// The description with the lease, for who takes it, or gives it up; not the one that is mapped, so that the lease ends with this if it can't be
    /// given up otherwise.
    lease: Mutex<Option<MappedFile>>,
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
    fn take_lease(&self, keeper: u32) {
        // The caller has claimed nothing that the keeper could wait for.
        let lease = lock(&self.lease);
        let Some(file) = lease.as_ref().filter(|_| self.state.load(Ordering::SeqCst) != UNWRITTEN) else { return };
        let state = take_lease(file, keeper);
        self.state.store(state, Ordering::SeqCst);
        if state == UNWRITTEN && !file.has_lease() {
            // Somebody has asked for it before the keeper could know that there is one.
            rouse(keeper);
        }
    }

    /// Whether it seems to be had still, and somebody wants it.
    fn is_wanted(&self) -> bool {
        let has_lease = || lock(&self.lease).as_ref().is_some_and(MappedFile::has_lease);
        self.state.load(Ordering::SeqCst) == UNWRITTEN && !has_lease()
    }

    /// Gives the lease up for good.
    fn end_lease(&self) {
        if let Some(lease) = lock(&self.lease).take() {
            // It ends with the last descriptor at the latest.
            let _ = lease.give_lease_up();
        }
    }

    fn close_in_child(&self) {
        self.file.close_in_child();
        if let Ok(lease) = self.lease.try_lock() {
            lease.iter().for_each(MappedFile::close_in_child);
        }
    }
}

/// Takes a lease on `file`, of which the keeper is told when it is to be given up; what came of it.
fn take_lease(file: &MappedFile, keeper: u32) -> u8 {
    match if file.is_local() { file.take_lease(keeper) } else { Err(Errno::INVAL) } {
        Ok(()) => UNWRITTEN,
        Err(Errno::AGAIN) => OPEN_FOR_WRITING,
        Err(_) => NO_LEASE,
    }
}

/// What a thread of the program asks of the keeper.
#[derive(Clone, Copy)]
enum Request {
    /// That the file is managed which is mapped in the range from a byte on, by two descriptors of the program's, if they are of that one; the second is
    /// for the lease, of which is told what came.
    Manage { range: PageRange, fds: [RawFd; 2], identity: (u64, u64), offset: u64, sharing: Sharing, state: u8 },
    /// That all of files in the range is home.
    Home(PageRange),
    /// That it is, and not managed any more.
    Release(PageRange),
    /// That no file is managed any more, nor will be.
    End,
}

#[derive(Default)]
struct Requests {
    /// The last ticket.
    asked: u64,
    waiting: Vec<(u64, Request)>,
    /// No file is to be managed any more.
    ended: bool,
    done: Vec<u64>,
}

/// The files of a runtime.
#[derive(Default)]
pub(crate) struct Files {
    all: Mutex<Vec<Option<Arc<ManagedFile>>>>,
    /// The thread that is told when somebody wants to write, and its user.
    keeper: AtomicU32,
    user: AtomicU32,
    /// The process, in whose descriptors the keeper finds those that it is told of.
    process: OnceLock<OwnedFd>,
    requests: Mutex<Requests>,
    answered: Condvar,
    /// Whether it is to end.
    ending: AtomicBool,
}

impl Files {
    /// The file that is called so.
    pub(crate) fn get(&self, file: FileId) -> Option<Arc<ManagedFile>> {
        lock(&self.all).get(file.index())?.clone()
    }

    /// Manages `file` from now on.
    fn add(&self, file: MappedFile, sharing: Sharing, (lease, state): (Option<MappedFile>, u8)) -> FileId {
        let file = ManagedFile { file, sharing, state: AtomicU8::new(state), lease: Mutex::new(lease) };
        let mut all = lock(&self.all);
        let at = all.iter().position(Option::is_none).unwrap_or(all.len());
        if at == all.len() {
            all.push(None);
        }
        all[at] = Some(Arc::new(file));
        FileId::new(u32::try_from(at).unwrap_or(u32::MAX))
    }

    /// `file` is managed no longer: the lease ends with its description.
    fn remove(&self, file: FileId) {
        let removed = lock(&self.all).get_mut(file.index()).and_then(Option::take);
        // Somebody may have the value still; and a forked child the description.
        removed.into_iter().for_each(|file| file.end_lease());
    }

    /// In a forked child, which must not keep its parent's leases.
    pub(crate) fn close_in_child(&self) {
        // A thread that is not here may have it.
        if let Ok(all) = self.all.try_lock() {
            all.iter().flatten().for_each(|file| file.close_in_child());
        }
    }

    fn each(&self) -> Vec<(FileId, Arc<ManagedFile>)> {
        let all = lock(&self.all);
        let files = (0..).map(FileId::new).zip(all.iter());
        files.filter_map(|(id, file)| Some((id, Arc::clone(file.as_ref()?)))).collect()
    }
}

/// The keeper of a runtime, from the first file on.
pub(crate) type Keeper = Mutex<Option<JoinHandle<()>>>;

/// Starts the keeper, if there is none.
pub(crate) fn keep(inner: &Arc<Inner>, keeper: &Keeper) -> Result<(), std::io::Error> {
    let mut keeper = lock(keeper);
    if keeper.is_some() {
        return Ok(());
    }
    inner.engine.expect_files();
    let shared = Arc::clone(inner);
    let run = move || shared.keep_leases();
    // It waits for a signal that the program may have a use for elsewhere.
    let started = with_signals_blocked(|| std::thread::Builder::new().name("hetmem".to_owned()).spawn(run))?;
    while inner.engine.host().files.keeper.load(Ordering::SeqCst) == 0 {
        hetmem_sys::thread::yield_now();
    }
    *keeper = Some(started);
    Ok(())
}

/// Ends the keeper.
pub(crate) fn end(inner: &Inner, keeper: &Keeper) {
    let Some(thread) = lock(keeper).take() else { return };
    inner.end_keeper();
    // It does not end by a panic that anybody could do something about.
    let _ = thread.join();
}

impl Inner {
    /// Gives up leases that others wait for, and does what is asked for, until it is told to end. The calling thread has SIGIO blocked.
    pub(crate) fn keep_leases(&self) {
        let files = &self.engine.host().files;
        files.user.store(user_of_this_thread(), Ordering::SeqCst);
        files.keeper.store(hetmem_sys::thread::current_tid(), Ordering::SeqCst);
        loop {
            self.answer_requests();
            if files.ending.load(Ordering::SeqCst) {
                return;
            }
            for (id, file) in files.each() {
                if file.is_wanted() {
                    self.let_write(id, &file);
                }
            }
            await_break(None);
        }
    }

    /// Ends [`Inner::keep_leases`].
    pub(crate) fn end_keeper(&self) {
        let files = &self.engine.host().files;
        files.ending.store(true, Ordering::SeqCst);
        rouse(files.keeper.load(Ordering::SeqCst));
    }

    fn answer_requests(&self) {
        let files = &self.engine.host().files;
        loop {
            // Let go of before the request is carried out.
            let (next, ended) = {
                let mut requests = lock(&files.requests);
                (requests.waiting.pop(), requests.ended)
            };
            let Some((ticket, request)) = next else { return };
            match request {
                Request::Manage { .. } if ended => {}
                Request::Manage { range, fds, identity, offset, sharing, state } => {
                    let process = files.process.get().map(AsFd::as_fd);
                    let found = |fd| {
                        let file = MappedFile::of_the_process(process?, fd).ok()?;
                        // One that is another's now leaves the mapping to the program.
                        (file.identity() == Ok(identity)).then_some(file)
                    };
                    if let [Some(file), Some(lease)] = fds.map(found) {
                        let _ = self.manage_file(range, file, offset, sharing, (lease, Some(state)));
                    }
                }
                Request::Home(range) => self.bring_home_in(range),
                Request::Release(range) => self.release_files(range),
                Request::End => {
                    lock(&files.requests).ended = true;
                    self.release_files(PageRange::ALL);
                }
            }
            lock(&files.requests).done.push(ticket);
            files.answered.notify_all();
        }
    }

    /// Has the keeper do what is asked for, and waits until it has.
    fn ask_keeper(&self, request: Request) {
        let files = &self.engine.host().files;
        let mut requests = lock(&files.requests);
        requests.asked += 1;
        let ticket = requests.asked;
        requests.waiting.push((ticket, request));
        rouse(files.keeper.load(Ordering::SeqCst));
        loop {
            if let Some(at) = requests.done.iter().position(|done| *done == ticket) {
                requests.done.swap_remove(at);
                return;
            }
            requests = files.answered.wait(requests).expect("no thread panicked while it held this lock");
        }
    }

    /// What threads of the program ask for is done from now on, by the thread that is about to [keep leases](Inner::keep_leases).
    pub(crate) fn expect_requests(&self, process: OwnedFd) {
        self.engine.expect_files();
        // There is none yet.
        let _ = self.engine.host().files.process.set(process);
    }

    /// The calling thread of the program has mapped `range` of the file behind `fd`, to be read, from byte `offset` on: it is managed from now on, unless
    /// the file can't be had.
    pub(crate) fn adopt_file(&self, range: PageRange, fd: impl AsFd, offset: u64, sharing: Sharing) {
        let (Ok(file), Ok(leased)) = (MappedFile::open(&fd), MappedFile::open(&fd)) else { return };
        let (Ok(identity), Ok(size)) = (file.identity(), file.size()) else { return };
        let pages = PageCount::new(size.saturating_sub(offset).div_ceil(PAGE_SIZE));
        let range = range.slice(PageCount::ZERO, pages);
        let files = &self.engine.host().files;
        let keeper = files.keeper.load(Ordering::SeqCst);
        if range.is_empty() || keeper == 0 {
            return;
        }
        let told = reaches(files.user.load(Ordering::SeqCst));
        let state = if told { take_lease(&leased, keeper) } else { NO_LEASE };
        // The keeper has the descriptions when this returns, and the lease with one.
        let fds = [file.number(), leased.number()];
        self.ask_keeper(Request::Manage { range, fds, identity, offset, sharing, state });
    }

    /// A thread of the program is about to change what is mapped in `range`: what of it is a file's is home when this returns, and hetmem's no longer.
    pub(crate) fn give_files_up(&self, range: PageRange) {
        if !self.files_in(range).is_empty() {
            self.ask_keeper(Request::Release(range));
        }
    }

    /// All of files is home when this returns, and hetmem's no longer, nor will be.
    pub(crate) fn end_files(&self) {
        self.ask_keeper(Request::End);
    }

    /// A thread of the program asks what is there in `range`: what of it is a file's is home when this returns.
    pub(crate) fn have_files_home(&self, range: PageRange) {
        if !self.files_in(range).is_empty() {
            self.ask_keeper(Request::Home(range));
        }
    }

    fn bring_home_in(&self, range: PageRange) {
        let files = self.files_in(range);
        self.bring_home_of(|file| files.contains(&file));
    }

    /// Brings what there is of files in `range` home, and manages it no longer.
    fn release_files(&self, range: PageRange) {
        let start = Instant::now();
        let parts: Vec<(PageRange, FileId)> = self.file_parts(range);
        for (part, _) in &parts {
            loop {
                self.bring_home_in(*part);
                // Somebody may have taken something of it out again.
                if self.engine.end_management(*part).is_ok() {
                    break;
                }
                if start.elapsed() > MEMORY_PATIENCE {
                    self.engine.host().stop_the_program(part.start(), "pages of a file could not come home");
                }
            }
        }
        let files: Vec<FileId> = parts.into_iter().map(|(_, file)| file).collect();
        self.forget_files(&files);
    }

    /// The parts of `range` that are managed files'.
    pub(crate) fn file_parts(&self, range: PageRange) -> Vec<(PageRange, FileId)> {
        if !self.engine.has_files() {
            return Vec::new();
        }
        let file_of = |(part, region): (PageRange, Option<Region>)| match region?.home {
            Home::File(home) => Some((part, home.file)),
            Home::Anonymous => None,
        };
        self.engine.regions_in(range).into_iter().filter_map(file_of).collect()
    }

    /// Somebody wants to write `file`, or does already: its pages come home, and the lease is given up.
    fn let_write(&self, id: FileId, file: &ManagedFile) {
        let mut lease = lock(&file.lease);
        file.state.store(OPEN_FOR_WRITING, Ordering::SeqCst);
        self.bring_file_home(id);
        // If this thread may not (it is none of the file's owner's any more), the lease ends with its description; nor is there another to be had.
        if lease.as_ref().is_some_and(|lease| lease.give_lease_up() == Err(Errno::ACCESS)) {
            file.state.store(NO_LEASE, Ordering::SeqCst);
            *lease = None;
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

    /// Manages `range`, where `file` is mapped from byte `offset` on; the other description is for its lease. What came of that is told, if somebody has
    /// asked for it.
    pub(crate) fn manage_file(
        &self,
        range: PageRange,
        file: MappedFile,
        offset: u64,
        sharing: Sharing,
        (lease, state): (MappedFile, Option<u8>),
    ) -> Result<(), PageRange> {
        let files = &self.engine.host().files;
        let id = files.add(file, sharing, (Some(lease), state.unwrap_or(NO_LEASE)));
        let home = Home::File(FileHome::new(id, range.start(), offset));
        let managed = self.engine.manage_new(range, Region { home, ..Region::default() });
        match managed {
            Ok(()) if state.is_none() => self.ask_for_lease(id),
            Ok(()) => {}
            Err(_) => files.remove(id),
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
        if let Some(file) = files.get(file) {
            file.take_lease(files.keeper.load(Ordering::SeqCst));
        }
    }

    /// Ends what `range` has to do with files, which is managed no longer.
    pub(crate) fn forget_files(&self, were: &[FileId]) {
        let used: Vec<FileId> = self.files_in(PageRange::ALL);
        were.iter().filter(|file| !used.contains(file)).for_each(|file| self.engine.host().files.remove(*file));
    }

    /// The files that are managed in `range`.
    pub(crate) fn files_in(&self, range: PageRange) -> Vec<FileId> {
        self.file_parts(range).into_iter().map(|(_, file)| file).collect()
    }
}
