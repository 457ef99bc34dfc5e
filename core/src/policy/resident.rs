//! How many pages are in system memory, between two counts of them.

use super::Signs;
use crate::units::PageCount;

/// The last count, and what has come and gone since. Never more than there is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resident(Option<Counted>);

#[derive(Clone, Copy, Debug)]
struct Counted {
    pages: PageCount,
    signs: Signs,
    /// Whether nothing moved since.
    exact: bool,
}

impl Resident {
    /// How many there are, as far as `signs` tell.
    #[must_use]
    pub fn pages(&self, signs: Signs) -> PageCount {
        let Some(counted) = self.0 else { return signs.anonymous };
        let came = signs.home.saturating_sub(counted.signs.home);
        // What is counted where a program can write may be anything.
        let now = counted.pages.get().saturating_add(signs.anonymous.get()).saturating_add(came);
        PageCount::new(now.saturating_sub(counted.signs.anonymous.get())).min(signs.anonymous)
    }

    /// Whether nothing has happened since they were counted. What was counted is an estimate from the next thing on that the program does, and what
    /// it did while pages left is not known at all.
    #[must_use]
    pub fn is_exact(&self, signs: Signs) -> bool {
        self.0.is_some_and(|counted| counted.exact && counted.signs == signs)
    }

    /// The pages in system memory were counted: there are `pages`, while the program shows `signs`.
    pub fn count(&mut self, pages: PageCount, signs: Signs) {
        self.0 = Some(Counted { pages, signs, exact: true });
    }

    /// `moved` pages have left system memory, or been asked to; `before` that the program showed one thing, now it shows another.
    pub fn left(&mut self, moved: PageCount, before: Signs, now: Signs) {
        let was = self.pages(before);
        let exact = moved.is_zero() && self.is_exact(before);
        self.0 = Some(Counted { pages: was - moved.min(was), signs: now, exact });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(anonymous: u64, home: u64) -> Signs {
        Signs { anonymous: PageCount::new(anonymous), home, faults: 0, changes: 0 }
    }

    #[test]
    fn what_came_since_the_last_count_is_added() {
        let mut resident = Resident::default();
        assert_eq!(resident.pages(signs(70, 0)).get(), 70, "not counted: all that there may be");
        resident.count(PageCount::new(40), signs(70, 5));
        assert_eq!(resident.pages(signs(70, 5)).get(), 40);
        assert_eq!(resident.pages(signs(75, 8)).get(), 48);
        assert_eq!(resident.pages(signs(30, 5)).get(), 0);
        assert_eq!(resident.pages(signs(75, u64::MAX)).get(), 75, "never more than there is");
    }

    #[test]
    fn a_count_is_exact_until_anything_happens() {
        let mut resident = Resident::default();
        let at = signs(70, 5);
        assert!(!resident.is_exact(at));
        resident.count(PageCount::new(40), at);
        assert!(resident.is_exact(at) && !resident.is_exact(signs(70, 6)));
        assert!(!resident.is_exact(Signs { changes: 1, ..at }), "there may be more to count");
        resident.left(PageCount::ZERO, at, at);
        assert!(resident.is_exact(at), "nothing moved");
        resident.left(PageCount::new(10), at, signs(90, 5));
        assert!(!resident.is_exact(signs(90, 5)));
        assert_eq!(resident.pages(signs(90, 5)).get(), 30, "what frames took is not the program's");
    }
}
