//! Memory under management: mapped by hetmem or adopted, and released.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use hetmem_core::migrate::{Request, Target};
use hetmem_core::outcome::{KeptReason, PageOutcome};
use hetmem_core::port::FaultPath;
use hetmem_core::space::Region as RegionEntry;
use hetmem_core::units::{ByteLen, PAGE_SIZE, PageCount, PageRange};
use hetmem_sys::errno::Errno;
use hetmem_sys::lease::{OpenFile, unmap};
use hetmem_sys::mapping::{Arena, ArenaOptions, Guard, HugePages, OnFork, Whose};

use crate::error::Error;
use crate::forks;
use crate::host::MAPPING_NAME;
use crate::inner::Inner;
use crate::runtime::{Running, Runtime};
use crate::service::MEMORY_PATIENCE;

impl Runtime {
    /// Maps `len` of managed memory that reads as zeros. It begins at a multiple of 2 MiB.
    ///
    /// The mapping is hetmem's: the program unmaps, protects and moves no part of it. Whole blocks of 2 MiB may go to a coherent DAX device, where
    /// they are used in place; `MADV_DONTNEED` keeps their bytes there, and a transfer by direct I/O, io_uring or RDMA into them is lost if they are
    /// migrated meanwhile: pin them before ([`Advice::Pin`](crate::Advice::Pin)).
    ///
    /// # Errors
    ///
    /// If `len` is zero or not a multiple of the page, if `path` is [`FaultPath::Sigbus`] and the builder was not told so, or if the host
    /// has no address space.
    pub fn map(&self, len: ByteLen, path: FaultPath) -> Result<Mapping, Error> {
        let pages = len.whole_pages().filter(|pages| !pages.is_zero()).ok_or_else(|| {
            Error::invalid(format!("a mapping of {len} is not a positive multiple of the page, {PAGE_SIZE} B"))
        })?;
        self.check_path(path)?;
        let options = ArenaOptions {
            huge_pages: HugePages::Prefer,
            on_fork: OnFork::Inherit,
            name: Some(MAPPING_NAME),
            whose: Whose::Program,
            ..ArenaOptions::default()
        };
        let arena =
            Arena::reserve(pages, &options).map_err(|errno| Error::os(format!("{len} can't be mapped"), errno))?;
        let (range, region) = (arena.range(), RegionEntry { path, owned: true, ..RegionEntry::default() });
        let engine = &self.inner.engine;
        engine.while_no_event_is_read(|| engine.manage(range, region));
        self.was_added(&[range]);
        Ok(Mapping { arena, inner: Arc::clone(&self.inner) })
    }

    /// `madvise(2)` with guard markers on `range`. The kernel tells nobody of these, so in managed memory they are installed and, above all,
    /// removed by this: what is on a device where a marker was removed otherwise comes back. (`hetmem run` sees to it by itself.)
    ///
    /// # Errors
    ///
    /// What `madvise` says; markers may have been installed or removed in a part of the range then.
    ///
    /// # Safety
    ///
    /// With [`Guard::Install`] the contents of the range are lost, and touches end in SIGSEGV.
    #[expect(unsafe_code, reason = "discards memory that is named by number")]
    pub unsafe fn guard(&self, range: PageRange, what: Guard) -> Result<(), Error> {
        if !self.inner.is_of_this_process() {
            return Err(Error::invalid("a forked child has no runtime".to_owned()));
        }
        let (start, len) = (range.start().get(), range.pages().bytes().get());
        // SAFETY: the caller's.
        forks::unparked(&self.inner, || unsafe { self.inner.guard(start, len, what) })
            .map_err(|errno| Error::os(format!("guard markers of {range}"), errno))
    }

    /// Puts existing private anonymous memory under management: any of the process's, such as its heap. Pages that can't be moved
    /// are kept, with a reason, when they are asked to.
    ///
    /// # Errors
    ///
    /// If the range is empty, is managed already, or if `path` is [`FaultPath::Sigbus`] and the builder was not told so.
    ///
    /// # Safety
    ///
    /// Until [`Runtime::release`] or the end of the runtime:
    /// * nothing that hetmem itself uses lies in the range. The range may hold memory of the process's allocator only if hetmem
    ///   doesn't allocate from it, as in the preloaded agent;
    /// * no thread control block lies in it whose thread may end: the kernel writes it then, and can't wait for a page;
    /// * with [`FaultPath::Sigbus`], no system call is given an address in the range whose page is on a private device.
    #[expect(unsafe_code, reason = "the promise can only be the caller's")]
    pub unsafe fn adopt(&self, range: PageRange, path: FaultPath) -> Result<(), Error> {
        self.check_path(path)?;
        if range.is_empty() {
            return Err(Error::invalid("an empty range can't be adopted"));
        }
        let region = RegionEntry { path, ..RegionEntry::default() };
        let managed = |part| Error::invalid(format!("{part} of {range} is managed already"));
        self.inner.engine.manage_new(range, region).map_err(managed)?;
        self.was_added(&[range]);
        Ok(())
    }

    /// Puts those parts of `range` under management that are not managed yet, as [`Runtime::adopt`] does, and returns them, in order. Of several
    /// threads that ask for the same memory at once, one gets each page.
    ///
    /// # Errors
    ///
    /// If `path` is [`FaultPath::Sigbus`] and the builder was not told so.
    ///
    /// # Safety
    ///
    /// As for [`Runtime::adopt`].
    #[expect(unsafe_code, reason = "the promise can only be the caller's")]
    pub unsafe fn adopt_rest(&self, range: PageRange, path: FaultPath) -> Result<Vec<PageRange>, Error> {
        self.check_path(path)?;
        let region = RegionEntry { path, ..RegionEntry::default() };
        let rest = self.inner.engine.manage_rest(range, region);
        self.was_added(&rest);
        Ok(rest)
    }

    /// Maps `len` bytes of `file` from byte `offset` on, to be read, and manages them: pages of the file can be on devices as any others. On a coherent
    /// device they are used in place; the touch of one on a private device brings it home.
    ///
    /// Pages of a file move by blocks of 2 MiB of address space, and by what there is of one at the ends of the mapping: who asks for one page moves its
    /// block. A device has copies of them, as the page cache has the file; so they go home by mapping the file again.
    ///
    /// While anything of the file is on a device, nobody writes to it: hetmem has a read lease (`F_SETLEASE` of fcntl(2)). Who opens it for writing, or
    /// truncates it, waits for its pages to come home, mostly less than a millisecond for each MiB, and is refused with `EWOULDBLOCK` if he opens with
    /// `O_NONBLOCK`. As long as somebody has the file open for writing its pages stay home ([`KeptReason::FileOpenForWriting`]). A lease takes the file's
    /// owner, or `CAP_LEASE`, and a file system of this machine that has leases, such as ext4, XFS, Btrfs, tmpfs; without one they stay home, too
    /// ([`KeptReason::NoLease`]). A process that is stopped for longer than `/proc/sys/fs/lease-break-time` loses its leases, and may read what was
    /// written meanwhile late.
    ///
    /// The memory is like any that mmap(2) maps shared and to be read: a touch behind the end of a file that was truncated raises SIGBUS. The mapping
    /// must not be changed otherwise than by hetmem: not unmapped, moved, or protected; nor is there a use for `madvise` on it. Forks by the C library
    /// bring all pages of files home before, and a child that is forked otherwise has none of what was on devices (its touch raises SIGSEGV).
    ///
    /// `file` may be closed then. Nothing that the program has on the file ends by this: it is opened once more in a table of descriptors of hetmem's own, so
    /// that POSIX locks stay (`F_SETLK` of fcntl(2)), and no forked child has a descriptor of it. It takes address space twice.
    ///
    /// # Errors
    ///
    /// If `offset` is not a multiple of the page, if the file does not have so many bytes or `len` is zero, if it is no regular file, not open to be read, or
    /// can't be opened again for that (which needs `/proc`), if there is a lease for writing on it (`F_WRLCK`), or if the host has no address space.
    pub fn map_file(&self, file: impl AsFd, offset: u64, len: ByteLen) -> Result<FileMapping, Error> {
        if !self.inner.is_of_this_process() {
            return Err(Error::invalid("a forked child has no runtime".to_owned()));
        }
        if !offset.is_multiple_of(PAGE_SIZE) {
            return Err(Error::invalid(format!("offset {offset} is not a multiple of the page, {PAGE_SIZE} B")));
        }
        let found = OpenFile::behind(&file).map_err(|errno| match errno {
            Errno::INVAL => Error::invalid("only regular files can be mapped so"),
            Errno::ACCESS => Error::invalid("the file is not open to be read"),
            Errno::BUSY => Error::invalid("the file has a lease for writing, which would end"),
            errno => Error::os("the file can't be found to open it again", errno),
        })?;
        let has = found.size();
        let end = offset.checked_add(len.get()).filter(|end| *end <= has && len.get() > 0);
        let pages = end.map(|_| PageCount::new(len.get().div_ceil(PAGE_SIZE))).ok_or_else(|| {
            Error::invalid(format!("{len} from byte {offset} on are not in the file, which has {has} B"))
        })?;
        self.inner.expect_files()?;
        let files = &self.inner.engine.host().files;
        let id = files
            .open(found, offset, pages)
            .map_err(|errno| Error::os("the file can't be opened again to be read", errno))?;
        // It was to be open until then.
        drop(file);
        let range = files.get(id).map_or(Err(Errno::BADF), |file| file.shadow.map()).map_err(|errno| {
            files.remove(id);
            Error::os(format!("{len} of the file can't be mapped"), errno)
        })?;
        let mapping = FileMapping { range, len, inner: Arc::clone(&self.inner) };
        let managed = |part| Error::invalid(format!("{part} of {range} is managed already"));
        self.inner.manage_file(range, id, offset).map_err(managed)?;
        self.was_added(&[range]);
        Ok(mapping)
    }

    fn check_path(&self, path: FaultPath) -> Result<(), Error> {
        if path == FaultPath::Sigbus && !self.inner.sigbus {
            return Err(Error::invalid("faults by SIGBUS must be allowed when the runtime is built (Builder::sigbus)"));
        }
        Ok(())
    }

    /// `ranges` were put under management.
    fn was_added(&self, ranges: &[PageRange]) {
        for range in ranges {
            self.inner.engine.counters().adopted_bytes.fetch_add(range.pages().bytes().get(), Relaxed);
            if self.inner.engine.is_mirrored(*range) {
                self.inner.watch(*range);
            }
        }
    }

    /// Brings the pages of `range` home, pinned ones, too, and ends its management.
    ///
    /// # Errors
    ///
    /// If a page could not come home. The range stays managed then, and its advice holds; other pages of it may have come home.
    pub fn release(&self, range: PageRange) -> Result<(), Error> {
        release(&self.inner, range)
    }
}

/// Brings the pages of `range` home and ends its management, as [`Runtime::release`] says.
pub(crate) fn release(inner: &Inner, range: PageRange) -> Result<(), Error> {
    if !inner.is_of_this_process() {
        return Err(Error::invalid(format!(
            "{range} is managed by the runtime of the process that this one was forked from"
        )));
    }
    let engine = &inner.engine;
    let start = Instant::now();
    let files = inner.files_in(range);
    loop {
        // Anew each time, as another's attempt at a part of it may have failed.
        engine.change_region(range, |region| region.ending = true);
        // What is left of them is told below.
        let _ = engine.bring_files_home(|file| files.contains(&file));
        let outcomes = inner.migrate(&engine.migrated_parts(range), Request::all_to(Target::System));
        let left = match engine.end_management(range) {
            Ok(managed) => {
                engine.counters().adopted_bytes.fetch_sub(managed.bytes().get(), Relaxed);
                break;
            }
            Err(left) => left,
        };
        let why = outcomes.iter().flat_map(|o| o.as_slice()).find_map(|o| match o {
            PageOutcome::Kept(
                KeptReason::AlreadyThere | KeptReason::Hole | KeptReason::Unmanaged | KeptReason::Raced,
            )
            | PageOutcome::Moved => None,
            PageOutcome::Kept(reason) => Some(reason.label()),
        });
        if why.is_some() || start.elapsed() > MEMORY_PATIENCE {
            let why = why.unwrap_or("raced");
            engine.change_region(range, |region| region.ending = false);
            return Err(Error::invalid(format!(
                "{left} pages of {range} could not come home ({why})",
                left = left.get()
            )));
        }
        // Somebody works on them: a fault, or another's migration.
        hetmem_sys::thread::yield_now();
    }
    inner.forget_files(&files);
    // So the end of the mapping raises no event, which would come over what is mapped there next.
    inner.unregister(range);
    Ok(())
}

/// Managed memory from [`Runtime::map`], unmapped when it is dropped. As long as it lives the runtime does, too, whether the [`Runtime`] is there or
/// not.
#[must_use]
pub struct Mapping {
    // Unmapped before the runtime ends, should this have been what kept it.
    arena: Arena,
    pub(crate) inner: Arc<Running>,
}

impl Mapping {
    /// The mapping's pages.
    #[must_use]
    pub fn range(&self) -> PageRange {
        self.arena.range()
    }

    /// The mapping's first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        let address = usize::try_from(self.range().start().get()).unwrap_or(0);
        std::ptr::with_exposed_provenance_mut(address)
    }

    /// The mapping's contents. Words are atomic, as other threads may use the pointer; a touch of a page that is on a private device brings
    /// it home.
    #[must_use]
    #[expect(unsafe_code, reason = "memory named by number is lent")]
    pub fn words(&self) -> &[AtomicU64] {
        let first = self.as_ptr().cast::<AtomicU64>().cast_const();
        // SAFETY: readable and writable memory of that length, aligned to a page, which lives as long as the mapping; any bytes are
        // valid. Pages leave and come back with their contents, which no touch can tell from their having stayed.
        unsafe { std::slice::from_raw_parts(first, self.len() / 8) }
    }

    /// The mapping's length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.range().pages().bytes().as_usize()
    }

    /// Whether the mapping has no byte; never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range().is_empty()
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mapping").field(&self.range()).finish()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let range = self.range();
        if !self.inner.is_of_this_process() {
            return;
        }
        // A page that can't come home still has its slot, which lets go of the frame below.
        let _ = release(&self.inner, range);
        // Nor may a block of a device be laid over what is mapped there next.
        self.inner.engine.end_overlays(range);
        {
            let events = self.inner.engine.events();
            self.inner.engine.unmapped(&events, range);
        }
        self.inner.tell_of_resting();
        // The arena goes last: from then on the address may be another mapping's, and what the books say of it is that one's.
    }
}

/// Managed memory from [`Runtime::map_file`], unmapped when it is dropped. As long as it lives the runtime does, too, whether the [`Runtime`] is there or
/// not.
#[must_use]
pub struct FileMapping {
    // Invariant: mapped by this value, to be read.
    range: PageRange,
    len: ByteLen,
    pub(crate) inner: Arc<Running>,
}

impl FileMapping {
    /// The mapping's pages.
    #[must_use]
    pub const fn range(&self) -> PageRange {
        self.range
    }

    /// The first of the file's bytes that are mapped. What is behind it changes if somebody writes to the file.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        std::ptr::with_exposed_provenance(usize::try_from(self.range.start().get()).unwrap_or(0))
    }

    /// How many of the file's bytes are mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.as_usize()
    }

    /// Whether none is; never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len.get() == 0
    }
}

impl fmt::Debug for FileMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileMapping").field(&self.range).finish()
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        if self.inner.is_of_this_process() {
            // What can't come home goes with the mapping; the file has it.
            let _ = release(&self.inner, self.range);
            let files = self.inner.files_in(self.range);
            self.inner.engine.await_exchanges(self.range);
            {
                let events = self.inner.engine.events();
                self.inner.engine.unmapped(&events, self.range);
            }
            self.inner.forget_files(&files);
            self.inner.tell_of_resting();
        }
        // SAFETY: by the invariant this value's.
        #[expect(unsafe_code, reason = "unmaps memory that is named by number")]
        let unmapped = unsafe { unmap(self.range) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}
