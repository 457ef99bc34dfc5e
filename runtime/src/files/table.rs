//! Descriptions of files for leases, in a table of descriptors of their own, which one thread has.
//!
//! Who closes any descriptor of a file ends the POSIX locks on it (`F_SETLK` of fcntl(2)) that were taken by way of the same table; and a forked child has
//! what is open in the table of who forks. In this table nobody has a lock, and nobody forks: the program keeps its locks, and no child a lease.
//!
//! The thread waits for nobody but who asks, and for the file system. What it is asked for it does in turn.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::PageCount;
use hetmem_sys::errno::Errno;
use hetmem_sys::lease::{LeaseFile, OpenFile, Shadow};
use hetmem_sys::thread::unshare_files;

use crate::runtime::spawn;

/// What the thread has open, and what it does with that.
type Opened = Vec<Option<LeaseFile>>;
type Request = Box<dyn FnOnce(&mut Opened) + Send>;

/// One of the files in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Number(usize);

/// The thread, once there is one.
#[derive(Default)]
pub(super) struct Table {
    asks: Mutex<Option<Sender<Request>>>,
}

impl Table {
    /// Starts the thread.
    pub(super) fn start(&self) -> std::io::Result<JoinHandle<()>> {
        let (asks, asked) = channel();
        let (tell, told) = channel();
        let thread = spawn(move || {
            // SAFETY: this thread uses none that was opened before: what it runs has what it opens here.
            #[expect(unsafe_code, reason = "the promise can only be the caller's")]
            let own = unsafe { unshare_files(None) };
            let has_own = own.is_ok();
            // Who asks waits for the answer.
            let _ = tell.send(own);
            if has_own {
                serve(&asked);
            }
        })?;
        match told.recv() {
            Ok(Ok(())) => {
                *lock(&self.asks) = Some(asks);
                Ok(thread)
            }
            Ok(Err(errno)) => Err(errno.into()),
            Err(_) => Err(Errno::SRCH.into()),
        }
    }

    /// Has the thread end when it has done what it was asked for; with it all ends that it has open.
    pub(super) fn end(&self) {
        drop(lock(&self.asks).take());
    }

    /// Has the thread do `work`, and waits for what comes of it. `None` if there is none.
    fn ask<R: Send + 'static>(&self, work: impl FnOnce(&mut Opened) -> R + Send + 'static) -> Option<R> {
        let (answer, answered) = channel();
        let request: Request = Box::new(move |opened| _ = answer.send(work(opened)));
        let asks = lock(&self.asks).clone()?;
        asks.send(request).ok()?;
        answered.recv().ok()
    }

    /// Opens `file` for a lease, and maps `pages` pages of it from byte `offset` on.
    pub(super) fn open(&self, file: OpenFile, offset: u64, pages: PageCount) -> Result<(Number, Shadow), Errno> {
        let work = move |opened: &mut Opened| {
            let (shadow, lease) = (Shadow::of(&file, offset, pages)?, LeaseFile::open(&file)?);
            let at = opened.iter().position(Option::is_none).unwrap_or(opened.len());
            if at == opened.len() {
                opened.push(None);
            }
            opened[at] = Some(lease);
            Ok((Number(at), shadow))
        };
        self.ask(work).unwrap_or(Err(Errno::SRCH))
    }

    /// What `f` says of a file.
    pub(super) fn with<R: Send + 'static>(
        &self,
        Number(at): Number,
        f: impl FnOnce(&LeaseFile) -> R + Send + 'static,
    ) -> Option<R> {
        self.ask(move |opened| opened.get(at)?.as_ref().map(f))?
    }

    /// Those of the files on which there is no lease, or one that somebody wants to end.
    pub(super) fn unleased(&self, mut files: Vec<Number>) -> Vec<Number> {
        let work = move |opened: &mut Opened| {
            let has_lease = |at: usize| opened.get(at).and_then(Option::as_ref).is_some_and(LeaseFile::has_lease);
            files.retain(|Number(at)| !has_lease(*at));
            files
        };
        self.ask(work).unwrap_or_default()
    }

    /// Closes a file: its lease has ended on return.
    pub(super) fn close(&self, Number(at): Number) {
        // If there is no thread any more, nothing is open.
        let _ = self.ask(move |opened| drop(opened.get_mut(at).and_then(Option::take)));
    }
}

/// The thread: it ends when nobody can ask any more.
fn serve(asked: &Receiver<Request>) {
    let mut opened = Opened::new();
    asked.iter().for_each(|request| request(&mut opened));
}
