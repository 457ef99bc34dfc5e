//! The control socket of a run: how one asks `hetmem run` what its program does while that runs, and has it do something else.
//!
//! ```text
//! server    accepts, as many as there is room for: a thread for each who asks
//! answer    answers: from the statistics memory, or by asking an agent, for a while
//! figures   the statistics of the moment, from that memory and from /proc
//! client    whoever asks: finds runs, waits for answers with a limit
//! place     where sockets are
//! protocol  what is said; docs/control.md describes it for users
//! wire      lines over a socket, both ways, with bounds
//! ```
//!
//! None of this is needed by the run. It begins when the program has been started; where it can't, the run goes without. As long as nobody asks, one
//! thread sleeps. Nothing waits for it at the end.

mod answer;
pub(crate) mod client;
pub(crate) mod figures;
pub(crate) mod place;
pub(crate) mod protocol;
mod server;
mod wire;

pub(crate) use figures::Subject;
pub(crate) use server::Server;
pub(crate) use wire::wait;
