//! Devices of the program's own: what hetmem asks of one, and the suite that tries it.
//!
//! A device has *frames*, numbered from 0, each of which holds a page of 4 KiB, and copies pages into them and out of them. hetmem decides which page
//! is in which frame, and keeps the books in the device's [`Pagemap`], which the device makes ([`Pagemap::new`]: its id, which is its place among the
//! builder's devices; its type; the owner of its pages; how many frames) and then leaves alone. [`Builder::custom`](crate::Builder::custom) takes the
//! device. The example `custom_device` compresses pages in memory.
//!
//! A device must have `pagemap`, `reach`, `transfer` and `clear`. The other methods have a default, which is right for a private device that copies
//! while it is asked.
//!
//! # The contract
//!
//! *Private or coherent.* [`Device::reach`] says how the frames are reached, always the same:
//!
//! | | a private device | a coherent one, by moving | a coherent one, by laying |
//! | --- | --- | --- | --- |
//! | it answers | [`Reach::Copied`] | [`Reach::Movable`] | [`Reach::Laid`] |
//! | the frames are | the device's business | a private anonymous mapping of this process, readable and writable, with `MADV_DONTFORK`, which nobody else uses | a shared mapping of whole blocks of 2 MiB, with `MADV_DONTFORK` |
//! | a page goes there | by a [`Transfer`], and comes home with a touch, by another | by a transfer, and the frame's page is then *moved* into the program (`UFFDIO_MOVE`): the frame is a hole as long as the program has it | by a transfer, and the frame is mapped a second time, over the program's |
//!
//! *What is called when.*
//!
//! | method | when | the frames are |
//! | --- | --- | --- |
//! | `prepare` | after frames were chosen for a page, before anything is copied into them | in no other use |
//! | `transfer`, in | after that, at most once for a page, or not at all (where the frames of a coherent device are copied to directly) | in no other use |
//! | `transfer`, `submit`, out | for a page whose transfer in has succeeded, as often as hetmem likes | perhaps read by others at the same time |
//! | `completions` | when `completion_descriptor` is readable, or just so | |
//! | `released` | when a page has left, once for each time that its frame was chosen; before it can be chosen again | in no other use |
//! | `clear` | some time after that, or never | in no other use |
//! | `astray` | when hetmem wants to know where the program's pages really are | mapped by the program |
//! | `pagemap`, `reach`, `device_side`, `completion_descriptor`, `room`, `packing` | at any time | |
//!
//! A run of frames is at most 512 long, and a batch has any number of transfers. Calls for the same frame come one after the other, each after the
//! one before has returned and with its effects seen, but for several transfers out. Calls for other frames come from other threads *at the same
//! time*. After a transfer in has ended well the bytes are in the frames: transfers out give them back until the next transfer in, or `released`.
//!
//! *Late.* A device with a queue may leave what is submitted under way ([`Progress::UnderWay`]), and says by its descriptor and `completions` when it
//! has ended: hetmem's thread serves other touches meanwhile. One that copies while it is asked implements `transfer` and nothing else of that.
//!
//! *Who calls.* `prepare` and transfers in: a thread that migrates. Transfers out: a thread that migrates, and, where memory is mapped with
//! [`FaultPath::Sigbus`](crate::FaultPath::Sigbus), *a signal handler* of the touching thread. `submit` and `completions`: hetmem's own thread, which
//! serves touches. `clear`: the same. `released` and `astray`: any of them, with locks of hetmem's held.
//!
//! *What a device may do.* It touches the memory that it is given, which is hetmem's (never the program's own), and what belongs to itself. It
//! touches no managed memory and calls nothing of hetmem's, as hetmem waits for it. It may take locks of its own, also in a transfer out and thus in
//! a signal handler, if nobody touches managed memory while he holds one: then no thread whose touch is served has it. It allocates only from a heap
//! that is not adopted; in a program that has called [`Builder::own_allocator`](crate::Builder::own_allocator), not from the C library's. `transfer`
//! may take its time: somebody waits for it.
//!
//! *Failure.* Each transfer of a batch has its own result. An error of `prepare` keeps the page where it was as
//! [`KeptReason::NoFrame`](crate::KeptReason::NoFrame), and so does [`TransferError::Full`]: the device has frames, and no room for what is in the
//! page. The others of a transfer in are [`KeptReason::DeviceError`](crate::KeptReason::DeviceError). One that fails on its way out keeps a
//! migration's page on the device; if the page was touched, the transfer is tried again, unless the contents are [`TransferError::Lost`], and if the
//! device goes on failing the program is stopped, as there are no other bytes to give it. A panic in a thread that migrates leaves the pages where
//! they were; in a thread that serves touches it stops the program.
//!
//! *Safety.* What a device says and gives back is what the program gets: `reach` names memory as described above that lives as long as the device,
//! `device_side` likewise, and a transfer out writes the bytes of the last transfer in, to the pages that are named and nowhere else.
//!
//! # Trying it
//!
//! [`conformance::check`] runs a device through what can be tried without a program: contents survive, frames are apart, used at once by several
//! threads, cleared, used again, and run out. Then let the program migrate through it, and compare what it reads.

pub use hetmem_core::fault::MAX_UNDER_WAY;
pub use hetmem_core::frames::FrameRun;
pub use hetmem_core::frames::FrameTable;
pub use hetmem_core::physmap::Pagemap;
pub use hetmem_core::port::{
    Astray, Device, Direction, NoBacking, Packing, Progress, Reach, Ticket, Transfer, TransferError,
};
#[doc(inline)]
pub use hetmem_devices::conformance;
