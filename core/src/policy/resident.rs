//! How many pages are in system memory, between two counts of them.

use super::Signs;
use crate::units::PageCount;

/// The last count, and what has come and gone since. Never more than there is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resident(Option<(PageCount, Signs)>);

impl Resident {
    /// How many there are, as far as `signs` tell.
    #[must_use]
    pub fn pages(&self, signs: Signs) -> PageCount {
        let Some((pages, then)) = self.0 else { return signs.anonymous };
        // What is counted where a program can write may be anything.
        let now = pages.get().saturating_add(signs.anonymous.get()).saturating_add(then.own.get());
        PageCount::new(now.saturating_sub(then.anonymous.get()).saturating_sub(signs.own.get())).min(signs.anonymous)
    }

    /// Whether nothing has happened since they were counted. What was counted is an estimate from the next thing on that happens.
    #[must_use]
    pub fn is_exact(&self, signs: Signs) -> bool {
        self.0.is_some_and(|(_, then)| then == signs)
    }

    /// The pages in system memory were counted: there are `pages`, while the program shows `signs`.
    pub const fn count(&mut self, pages: PageCount, signs: Signs) {
        self.0 = Some((pages, signs));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(anonymous: u64, own: u64) -> Signs {
        Signs { anonymous: PageCount::new(anonymous), own: PageCount::new(own), ..Signs::default() }
    }

    #[test]
    fn what_came_since_the_last_count_is_added() {
        let mut resident = Resident::default();
        assert_eq!(resident.pages(signs(70, 0)).get(), 70, "not counted: all that there may be");
        resident.count(PageCount::new(40), signs(70, 5));
        assert_eq!(resident.pages(signs(70, 5)).get(), 40);
        assert_eq!(resident.pages(signs(75, 5)).get(), 45);
        assert_eq!(resident.pages(signs(75, 8)).get(), 42, "what hetmem keeps is not the program's");
        assert_eq!(resident.pages(signs(70, 2)).get(), 43, "and is when pages come home");
        assert_eq!(resident.pages(signs(30, 5)).get(), 0);
        assert_eq!(resident.pages(signs(75, 0)).get(), 50);
        assert_eq!(resident.pages(signs(10_000, 0)).get(), 9975);
        resident.count(PageCount::new(40), signs(10, 5));
        assert_eq!(resident.pages(signs(10, 5)).get(), 10, "never more than there is");
    }

    #[test]
    fn a_count_is_exact_until_anything_happens() {
        let mut resident = Resident::default();
        let at = signs(70, 5);
        assert!(!resident.is_exact(at));
        resident.count(PageCount::new(40), at);
        assert!(resident.is_exact(at) && !resident.is_exact(signs(70, 6)));
        assert!(!resident.is_exact(Signs { changes: 1, ..at }), "there may be more to count");
    }
}
