//! Which mirrors a touch concerns.

use super::MAX_AROUND;
use crate::notifier::Event;
use crate::units::{PageCount, PageRange, VirtAddr};

/// What mirrors must be told before a touch is served.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Notify {
    pub(super) range: PageRange,
    pub(super) event: Event,
}

impl Notify {
    /// A touch of `page` takes it from whoever holds it exclusively, in a frame with an address, or else brings it home, perhaps
    /// with those `around` it.
    pub(super) fn of_touch(page: VirtAddr, has_address: bool, around: bool) -> Self {
        if has_address {
            return Self { range: PageRange::page_of(page), event: Event::Exclusive(None) };
        }
        let block = page.block().range();
        let most = if around { PageCount::new(u64::from(MAX_AROUND)) } else { PageCount::ONE };
        let range = block.slice(page.pages_since(block.start()), most);
        Self { range, event: Event::Migrate(None) }
    }
}
