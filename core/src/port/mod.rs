//! What the decisions ask of the floors above: the traits through which pages really move.
//!
//! `runtime` answers [`Host`] with userfaultfd, `devices` answer [`Device`]; the tests answer both with a model that can fail at
//! every step. No method may touch memory of the program that could be away, except through the kernel.

mod device;
mod host;

pub use device::{Astray, Device, Direction, NoBacking, Packing, Progress, Reach, Ticket, Transfer, TransferError};
pub use host::{
    Access, Arrived, Backing, CannotFault, FaultPath, Host, How, InstallStop, Instead, MappedRange, MirrorHost,
    Present, Taken,
};
