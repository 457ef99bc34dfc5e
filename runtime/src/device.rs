//! Devices of the program's own: what hetmem asks of one, and the suite that tries it.
//!
//! A device has *frames*, numbered from 0, each of which holds a page of 4 KiB, and copies pages into them and out of them. hetmem decides which page
//! is in which frame, and keeps the books in the device's [`Pagemap`], which the device makes ([`Pagemap::new`]: its id, which is its place among the
//! builder's devices; its type; the owner of its pages; how many frames) and then leaves alone. [`Builder::custom`](crate::Builder::custom) takes the
//! device. The example `custom_device` compresses pages in memory.
//!
//! # The contract
//!
//! *Private or coherent.* A private device answers `None` to [`Device::frames_start`] and [`Device::overlay_start`]: pages go there, and come home
//! with a touch, by [`Device::copy_in`] and [`Device::copy_out`]. A coherent device's frames are memory of this process, of one of two kinds:
//!
//! | | [`Device::frames_start`] | [`Device::overlay_start`] |
//! | --- | --- | --- |
//! | the memory | a private anonymous mapping, readable and writable, with `MADV_DONTFORK`, which nobody else uses | a shared mapping of whole blocks of 2 MiB, with `MADV_DONTFORK` |
//! | a page goes there | copied into its frame, whose page is then *moved* into the program (`UFFDIO_MOVE`): the frame is a hole as long as the program has it | copied into its frame, which is mapped a second time, over the program's |
//!
//! *What is called when.*
//!
//! | method | when | the frames are |
//! | --- | --- | --- |
//! | `prepare` | after frames were chosen for pages, before anything is copied into them | in no other use |
//! | `copy_in` | then, once; not where the pages come from another device, which copies them straight into the frames of a coherent one | in no other use |
//! | `copy_out` | as often as hetmem likes, while the frames hold pages | perhaps read by others at the same time |
//! | `clear` | after pages have left, perhaps much later, or never | in no other use |
//! | `astray` | when hetmem wants to know where the program's pages really are | mapped by the program |
//! | `pagemap`, `frames_start`, `overlay_start`, `device_side` | at any time; the answer is always the same | |
//!
//! A run of frames is at most 512 long. Of calls for the same frame each begins after the one before has returned, and sees what that has done, but
//! for several `copy_out`s. Calls for other frames come from other threads *at the same time*. What `copy_in` has put into frames `copy_out` gives
//! back, until the next `copy_in` or `clear`; in the frames of a coherent device the program writes, too.
//!
//! *Who calls.* `prepare` and `copy_in`: a thread that migrates. `copy_out`: a thread that migrates, or forks; hetmem's own thread, which serves
//! touches; and, where memory is mapped with [`FaultPath::Sigbus`](crate::FaultPath::Sigbus), *a signal handler* of the touching thread. `clear`:
//! hetmem's thread. `astray`: any of them, with locks of hetmem's held.
//!
//! *What a device may do.* It touches the memory that it is given, which is hetmem's (never the program's own), and what belongs to itself. It
//! touches no managed memory and calls nothing of hetmem's, as hetmem waits for it. A lock that it takes is held by nobody who touches managed memory
//! meanwhile; then it may be taken in `copy_out`, too, also in a signal handler. It allocates only from a heap that is not adopted; in a program that
//! has called [`Builder::own_allocator`](crate::Builder::own_allocator), not from the C library's. It may take its time: somebody waits for a
//! `copy_out`.
//!
//! *Failure.* An error of `prepare` or `copy_in` keeps the page where it was ([`KeptReason::NoFrame`](crate::KeptReason::NoFrame),
//! [`KeptReason::DeviceError`](crate::KeptReason::DeviceError)). One of `copy_out` keeps a migration's page on the device; that of a page that was
//! touched is tried again, and if the device goes on failing the program is stopped, as there are no other bytes to give it. A panic in a thread that
//! migrates leaves the pages where they were; in a thread that serves touches it stops the program.
//!
//! *The end.* The device is dropped with the runtime, by whichever thread drops the last handle of that; never in a forked child, and not while pages
//! are left that it does not give back.
//!
//! *Safety.* What a device says and gives back is what the program gets: `frames_start` and `overlay_start` name memory as described above that lives
//! as long as the device, `device_side` likewise, and `copy_out` writes the bytes of the last `copy_in`, to the pages that are named and nowhere
//! else.
//!
//! # Trying it
//!
//! [`conformance::check`] runs a device through what can be tried without a program: contents survive, frames are apart, used at once by several
//! threads, cleared, used again, and run out. Then let the program migrate through it, and compare what it reads.

pub use hetmem_core::frames::FrameRun;
pub use hetmem_core::frames::FrameTable;
pub use hetmem_core::physmap::Pagemap;
pub use hetmem_core::port::{Astray, Device, DeviceError, NoBacking};
#[doc(inline)]
pub use hetmem_devices::conformance;
