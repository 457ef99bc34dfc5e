//! The decisions of hetmem, with no operating system in them. What they ask of the outside are the traits of `port`.
//!
//! ```text
//! engine        what migrations, faults and events work on, in one place; its methods are in the modules below
//! managed       what is under management, as the floors above see and change it
//!
//! migrate       pages to where a request sends them: collect, copy, finalize
//! fault         a touch of a page that the program doesn't map
//! events        what the program does to its mappings
//! install       the one way of a page into the program
//! transfer      copies from frames to frames
//! exchange      another mapping takes the place of a block's
//! strays        mapped pages that have left their device's memory
//!
//! space         the memory under management: regions, blocks of slots, the gate
//! slot          where a page's bytes are
//! home          what a page is where no frame holds it
//! heat          which pages were used lately
//! advice        what the program says of the use of its memory, and gives up of it
//! frames        frames of devices and of the pool, and references to them
//! physmap       frame numbers, and whose they are
//!
//! mirror        where pages are and what they allow, for who mirrors them
//! notifier      who mirrors memory is told before it changes
//! device_table  the page table of a device that mirrors
//!
//! policy        which pages go where, and when
//! budget        how the processes of a run share a limit
//! port          what is asked of the floors above: a program's memory, devices
//! outcome       what became of each page, and why
//! stats         counters
//! record        what is recorded of a run
//! units         addresses, pages, bytes, frame numbers
//! quantity      sizes, rates and durations as people write them
//! range_map     values of ranges of pages
//! sync          locks and atomics, the model checker's where it runs
//! ```
#![forbid(unsafe_code)]

pub mod advice;
pub mod budget;
pub mod device_table;
pub mod engine;
pub mod events;
pub mod exchange;
pub mod fault;
pub mod frames;
pub mod heat;
pub mod home;
mod install;
pub mod managed;
pub mod migrate;
pub mod mirror;
pub mod notifier;
pub mod outcome;
pub mod physmap;
pub mod policy;
pub mod port;
pub mod quantity;
pub mod range_map;
pub mod record;
pub mod slot;
pub mod space;
pub mod stats;
pub mod strays;
pub mod sync;
mod transfer;
pub mod units;
