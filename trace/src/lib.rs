//! Traces: what was recorded of a run, and what policies make of it without a program.
//!
//! ```text
//! source     a file with a trace, whoever recorded it
//! format     hetmem's own: frames of records, compressed
//! import     traces of other tools, as records
//! error      what is wrong with one, and where
//! space      which pages are simulated, and by which numbers
//! model      a program without a process, as a policy sees it
//! replay     policies at limits, over one look at a trace
//! baseline   textbook policies, to compare with
//! ```
#![forbid(unsafe_code)]

mod baseline;
mod error;
pub mod format;
mod import;
mod model;
mod replay;
mod source;
mod space;

pub use error::TraceError;
pub use model::SimulatedDevice;
pub use replay::{Outcome, Outcomes, Replay, Setup};
pub use source::{Format, Played, play};
pub use space::{Sampling, Survey};
