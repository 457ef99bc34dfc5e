//! The userfaultfd contexts of a runtime, and how they are read.
#![expect(unsafe_code, reason = "asks by a MOVE that moves nothing")]

use std::os::fd::{AsRawFd, OwnedFd};

use hetmem_core::port::FaultPath;
use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{PageCount, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::maps::MapsFile;
use hetmem_sys::process;
use hetmem_sys::uffd::{Access, EventBuffer, Features, MoveFlags, OpenError, Userfaultfd};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::fcntl_dupfd_cloexec;

/// What every program context reports.
const EVENTS: Features = Features::EVENT_REMAP.union(Features::EVENT_REMOVE).union(Features::EVENT_UNMAP);
const PROGRAM: Features = Features::PAGEFAULT_FLAG_WP.union(Features::MOVE).union(EVENTS);

/// The userfaultfd contexts of a runtime.
pub(crate) struct Contexts {
    /// A descriptor for that which comes with a fork, if the process has no room for another. Opened first, so that its number is low: what is above
    /// the process's limit can't be opened anew.
    reserve: Mutex<Option<OwnedFd>>,
    pub(crate) thread: Userfaultfd,
    pub(crate) sigbus: Option<Userfaultfd>,
    /// The program's mappings, for what a context can't register as a whole.
    pub(crate) maps: MapsFile,
    /// Whether forks that nobody announces are noticed, which takes a privilege.
    pub(crate) fork_events: bool,
}

impl Contexts {
    /// Opens them; `sigbus` says whether regions will be served by SIGBUS.
    pub(crate) fn open(sigbus: bool, maps: MapsFile) -> Result<Self, OpenError> {
        let reserve = Mutex::new(eventfd(0, EventfdFlags::CLOEXEC).ok());
        let program = |extra: Features| match Userfaultfd::open(PROGRAM | extra | Features::EVENT_FORK, Access::Full) {
            Err(OpenError::ForkEventNotPermitted) => Ok((Userfaultfd::open(PROGRAM | extra, Access::Full)?, false)),
            other => Ok((other?, true)),
        };
        let (thread, fork_events) = program(Features::NONE)?;
        let sigbus = if sigbus { Some(program(Features::SIGBUS)?.0) } else { None };
        Ok(Self { reserve, thread, sigbus, maps, fork_events })
    }

    pub(crate) fn program(&self, path: FaultPath) -> &Userfaultfd {
        match (path, &self.sigbus) {
            (FaultPath::Sigbus, Some(uffd)) => uffd,
            (FaultPath::Sigbus | FaultPath::Thread, _) => &self.thread,
        }
    }

    /// Reads what there is of `uffd`, one of these; 0 if there is nothing. After what was read is applied, [`Contexts::keep_reserve`] is due.
    ///
    /// # Errors
    ///
    /// `EMFILE` or `ENFILE` if there is a fork's event, and no descriptor for the child's context even with that which is kept for it.
    pub(crate) fn read_events(&self, uffd: &Userfaultfd, buffer: &mut EventBuffer) -> Result<usize, Errno> {
        match uffd.read_events(buffer) {
            Err(Errno::MFILE | Errno::NFILE) => {
                drop(lock(&self.reserve).take());
                uffd.read_events(buffer)
            }
            read => read,
        }
    }

    /// Has a descriptor for the next fork, if there is room for one.
    pub(crate) fn keep_reserve(&self) {
        let mut reserve = lock(&self.reserve);
        if reserve.is_none() {
            // What it names does not matter; an agent's thread may do this, and open nothing.
            *reserve = fcntl_dupfd_cloexec(&self.thread, 0).ok();
        }
    }

    /// Whether the event of a fork could be read if there were one.
    pub(crate) fn has_room_for_forks(&self) -> bool {
        let limit = process::descriptor_limit();
        lock(&self.reserve).as_ref().is_some_and(|fd| u64::try_from(fd.as_raw_fd()).is_ok_and(|number| number < limit))
    }

    /// Whether the program is changing a mapping that is registered with the context of `path`: from before the change until
    /// the event of it was read and the changer has gone on (`mmap_changing` of the kernel's context).
    pub(crate) fn is_changing(&self, path: FaultPath) -> bool {
        let nothing = VirtAddr::new(hetmem_core::units::PAGE_SIZE);
        // SAFETY: the kernel looks for changes first, and then finds that nothing is registered at these addresses.
        let probe = unsafe { self.program(path).move_pages(nothing, nothing, PageCount::ONE, MoveFlags::DONT_WAKE) };
        probe.stop == Some(Errno::AGAIN)
    }
}
