//! What the pool gives back to the host.

use crate::model::{PRIVATE, StepKind, World};
use hetmem_core::migrate::Target;

/// The host has to read an event for each time: nothing moves meanwhile.
#[test]
fn what_is_in_stock_beyond_its_limit_is_given_back_together() {
    const PAGES: u64 = 1024;
    let world = World::with_overlays(false).with_pages(0, PAGES);
    let range = world.at(0, PAGES);
    world.model.lock().calm();
    assert_eq!(world.migrate(range, Target::Device(PRIVATE)).moved(), range.pages());
    let discards = world.model.lock().steps().iter().filter(|step| **step == StepKind::Discard).count();
    assert_eq!(discards, 1, "two blocks, one after the other");
    world.engine.check();
}
