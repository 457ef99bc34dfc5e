//! `manual`: nothing moves unless the program asks for it.

use super::registry::{Argument, Entry};
use super::{Plan, Policy, View};

/// `manual`, as the table of policies has it.
pub(super) const ENTRY: Entry = Entry {
    name: "manual",
    argument: Argument::None,
    heat: &[],
    help: "nothing moves unless the program asks for it",
    make: |_| Ok(Box::new(Manual)),
};

#[derive(Debug)]
struct Manual;

impl Policy for Manual {
    fn plan(&mut self, _view: &mut dyn View, _plan: &mut Plan) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::Model;

    #[test]
    fn nothing_moves_and_nothing_is_asked() {
        let mut model = Model::new(&[(0, 1000)], &[100]);
        let mut plan = Plan::new(Model::BUDGET);
        Manual.plan(&mut model, &mut plan);
        assert!(plan.is_empty());
        assert_eq!(model.asked, [""; 0]);
    }
}
