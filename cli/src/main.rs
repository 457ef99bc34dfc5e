//! The hetmem command.
fn main() {}
