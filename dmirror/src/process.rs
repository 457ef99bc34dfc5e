//! What this process has open, and the gate that everything passes which works on it.
//!
//! Whoever is inside ([`enter`]) runs with all signals blocked, and a fork waits for the last one. A thread that is inside and comes by again (the
//! library calls functions of the C library that it stands in front of itself) is let through to those.
//!
//! ```text
//! fork:  before   the gate is closed, and everybody is outside; pages come home, tables are emptied
//!        parent   the gate opens
//!        child    nothing is open; what the parent had is forgotten, not dropped; the gate opens
//! ```
#![expect(unsafe_code, reason = "what is kept over a fork")]

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use hetmem::mirror::Event;
use hetmem_core::sync::{Condvar, Mutex, MutexGuard, lock};
use hetmem_core::units::PageRange;
use hetmem_interpose::fork::Handlers;
use hetmem_sys::errno::Errno;
use hetmem_sys::process::SignalMask;
use hetmem_sys::thread::current_tid;
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;

use crate::descriptors::{self, Identity};
use crate::file::{Devices, OpenFile, is_managed_already, refused};
use crate::stacks;

/// The process that this memory belongs to. A child of `vfork` shares it, and is another.
static PROCESS: AtomicU32 = AtomicU32::new(0);
/// Whether something is open, so that others pass by at once.
static ANY: AtomicBool = AtomicBool::new(false);
/// Whether descriptors may have come from a parent.
static INHERITED: AtomicBool = AtomicBool::new(false);

/// Whether this process has forked while something was open: then children may share pages of the devices.
static FORKED: AtomicBool = AtomicBool::new(false);

/// Whether this process has forked while something was open. Asked by who is inside.
pub(crate) fn has_forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

struct Open {
    files: Vec<Arc<OpenFile>>,
    devices: Weak<Devices>,
}

static OPEN: Mutex<Open> = Mutex::new(Open { files: Vec::new(), devices: Weak::new() });

/// Who is inside.
struct Gate {
    inside: Vec<u32>,
    /// Forks that wait for everybody to be outside.
    forks: u32,
}

static GATE: Mutex<Gate> = Mutex::new(Gate { inside: Vec::new(), forks: 0 });
static CHANGED: Condvar = Condvar::new();

/// At the library's start.
pub(crate) fn begin() {
    PROCESS.store(std::process::id(), Ordering::Relaxed);
    // Where forks are not noticed the device can't be opened.
    if !FORKS.register() {
        PROCESS.store(0, Ordering::Relaxed);
    }
}

/// Whether something is open here.
pub(crate) fn is_active() -> bool {
    // Relaxed: who relies on what another thread opened has synchronised with it.
    ANY.load(Ordering::Relaxed)
}

/// Whether descriptors may be devices' of a parent.
pub(crate) fn may_have_inherited() -> bool {
    INHERITED.load(Ordering::Relaxed)
}

/// Whether `fd` is an open device's, asked by who is outside.
pub(crate) fn is_open(fd: c_int) -> bool {
    enter().is_some_and(|inside| inside.file(fd).is_some())
}

/// The calling thread's signals, blocked until this is dropped.
struct Blocked(SignalMask);

impl Blocked {
    fn all() -> Self {
        Self(SignalMask::block_all())
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.0.restore();
    }
}

/// Being inside, until this is dropped.
pub(crate) struct Inside {
    _blocked: Blocked,
}

/// Enters; `None` for who is inside already, and in a process that only borrows this memory.
pub(crate) fn enter() -> Option<Inside> {
    if PROCESS.load(Ordering::Relaxed) != std::process::id() {
        return None;
    }
    let tid = current_tid();
    let blocked = Blocked::all();
    let mut gate = lock(&GATE);
    if gate.inside.contains(&tid) {
        return None;
    }
    while gate.forks > 0 {
        gate = CHANGED.wait(gate).expect("no thread panicked while it held this lock");
    }
    gate.inside.push(tid);
    Some(Inside { _blocked: blocked })
}

impl Drop for Inside {
    fn drop(&mut self) {
        let tid = current_tid();
        let mut gate = lock(&GATE);
        gate.inside.retain(|other| *other != tid);
        if gate.forks > 0 {
            CHANGED.notify_all();
        }
    }
}

/// Something of [`OPEN`], kept while it is used. It is let go of with the lock held, so that what its end brings with it is over before somebody
/// opens a device anew.
pub(crate) struct Kept<T>(Option<Arc<T>>);

impl<T> std::ops::Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("there until it is dropped")
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        let _open = lock(&OPEN);
        drop(self.0.take());
    }
}

impl Inside {
    /// The open file behind `fd`, if it is one.
    pub(crate) fn file(&self, fd: c_int) -> Option<Kept<OpenFile>> {
        let identity = descriptors::identity(descriptors::borrow(fd)?)?;
        let open = lock(&OPEN);
        open.files.iter().find(|file| file.identity == identity).map(|file| Kept(Some(Arc::clone(file))))
    }

    /// The runtime, while something is open.
    pub(crate) fn devices(&self) -> Option<Kept<Devices>> {
        lock(&OPEN).devices.upgrade().map(|devices| Kept(Some(devices)))
    }

    /// Opens device `minor`.
    pub(crate) fn open(&self, minor: u8, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut open = lock(&OPEN);
        release_closed(&mut open);
        if is_managed_already() {
            return Err(Errno::BUSY);
        }
        let devices = match open.devices.upgrade() {
            Some(devices) => devices,
            None => Devices::start().map_err(|error| refused(minor, &error))?,
        };
        let (fd, identity) = descriptors::make(minor, flags)?;
        let file = OpenFile::new(Arc::clone(&devices), minor, identity).map_err(|error| refused(minor, &error))?;
        open.devices = Arc::downgrade(&devices);
        open.files.push(Arc::new(file));
        ANY.store(true, Ordering::Relaxed);
        Ok(fd)
    }

    /// Runs `close`, which closes descriptors, and releases the files of which it closed the last.
    pub(crate) fn closing<R>(&self, close: impl FnOnce() -> R) -> R {
        // With the lock held, so that no descriptor goes while the others are counted.
        let mut open = lock(&OPEN);
        let result = close();
        release_closed(&mut open);
        result
    }
}

fn release_closed(open: &mut Open) {
    let files: Vec<Identity> = open.files.iter().map(|file| file.identity).collect();
    // Who can't count has no descriptor to spare: the next close or open sees to it.
    let Ok(closed) = descriptors::closed(&files) else { return };
    open.files.retain(|file| !closed.contains(&file.identity));
    ANY.store(!open.files.is_empty(), Ordering::Relaxed);
}

/// What is done around a fork.
pub(crate) static FORKS: Handlers = Handlers { before: before_fork, in_parent, in_child };

/// What is held over a fork.
struct Held {
    gate: MutexGuard<'static, Gate>,
    _blocked: Blocked,
}

// SAFETY: taken out by the thread that put it in, or by its copy in the child.
unsafe impl Send for Held {}

static HELD: Mutex<Option<Held>> = Mutex::new(None);

/// In a thread that is about to fork.
extern "C" fn before_fork() {
    if PROCESS.load(Ordering::Relaxed) != std::process::id() {
        return;
    }
    let blocked = Blocked::all();
    let mut gate = lock(&GATE);
    gate.forks += 1;
    while !gate.inside.is_empty() {
        gate = CHANGED.wait(gate).expect("no thread panicked while it held this lock");
    }
    if let Some(devices) = lock(&OPEN).devices.upgrade() {
        devices.runtime.announce(PageRange::ALL, Event::ProtectionPage, || {});
        // What stays away although everybody is outside is served by the fork's event, where the privilege for that is there.
        let _ = devices.runtime.bring_home();
    }
    *lock(&HELD) = Some(Held { gate, _blocked: blocked });
}

/// In the parent, after a fork or an attempt at one.
extern "C" fn in_parent() {
    if let Some(mut held) = lock(&HELD).take() {
        if let Some(devices) = lock(&OPEN).devices.upgrade() {
            FORKED.store(true, Ordering::Relaxed);
            devices.runtime.notice_copies();
        }
        held.gate.forks -= 1;
        CHANGED.notify_all();
    }
}

/// In the child.
extern "C" fn in_child() {
    // First of all: the old heap may be locked by a thread that is not here.
    // SAFETY: a handler of `pthread_atfork`, or of `_Fork`, in the child.
    unsafe { crate::ALLOCATOR.restart_in_child() };
    let Some(mut held) = lock(&HELD).take() else { return };
    hetmem_sys::mapping::forget_omitted();
    PROCESS.store(std::process::id(), Ordering::Relaxed);
    INHERITED.fetch_or(is_active(), Ordering::Relaxed);
    ANY.store(false, Ordering::Relaxed);
    let mut open = lock(&OPEN);
    // The runtime has no thread here, and its descriptors name the parent's memory.
    #[expect(clippy::mem_forget, reason = "what ends in the parent does not end in the child")]
    std::mem::forget(std::mem::replace(&mut *open, Open { files: Vec::new(), devices: Weak::new() }));
    // SAFETY: as above.
    unsafe { stacks::restart_in_child() };
    held.gate.forks = 0;
}
