//! `chaos`: random chunks of everything move to everywhere, without pause: the test of everything else.

use super::registry::{Argument, Entry};
use super::{Move, Plan, Policy, Random, View};
use crate::migrate::{Select, Target};
use crate::units::{PAGE_SIZE, PageCount, PageRange};

/// `chaos`, as the table of policies has it.
pub(super) const ENTRY: Entry = Entry {
    name: "chaos",
    argument: Argument::Drawn("SEED"),
    heat: &[],
    help: "random chunks of everything move to every device and back, without pause, to test programs and hetmem itself; the same SEED makes the same choices",
    make: |argument| Ok(Box::new(Chaos::new(seed(argument)?))),
};

fn seed(text: &str) -> Result<u64, String> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // `from_str_radix` would take a sign.
    let number = digits.chars().all(|c| c.is_digit(radix)).then(|| u64::from_str_radix(digits, radix));
    number
        .and_then(Result::ok)
        .ok_or_else(|| format!("`{text}` is not a seed: a 64-bit number, decimal or with 0x in front"))
}

/// The largest chunk that is moved (256 KiB).
const CHUNK: u64 = 64;
/// Chunks between two looks at the program's mappings.
const CHUNKS_A_LOOK: u32 = 32;

#[derive(Debug)]
struct Chaos {
    seed: u64,
    random: Random,
}

impl Chaos {
    const fn new(seed: u64) -> Self {
        Self { seed, random: Random::new(seed) }
    }

    /// A chunk of `ranges`, each page as likely as any other, and a number below `targets`; `None` if there is no page or no
    /// target.
    fn next(&mut self, ranges: &[PageRange], targets: u64) -> Option<(PageRange, u64)> {
        let total: PageCount = ranges.iter().map(|r| r.pages()).sum();
        if total.is_zero() || targets == 0 {
            return None;
        }
        let mut at = self.random.below(total.get());
        let chunk = ranges.iter().find_map(|range| {
            if at < range.pages().get() {
                // Chunks are aligned, so that they meet again.
                let first = range.start().get() / PAGE_SIZE + at;
                let aligned = (first / CHUNK * CHUNK).max(range.start().get() / PAGE_SIZE);
                let skip = aligned - range.start().get() / PAGE_SIZE;
                return Some(range.slice(PageCount::new(skip), PageCount::new(CHUNK)));
            }
            at -= range.pages().get();
            None
        })?;
        Some((chunk, self.random.below(targets)))
    }
}

impl Policy for Chaos {
    fn plan(&mut self, view: &mut dyn View, plan: &mut Plan) {
        let devices = view.devices();
        let Some((range, choice)) = self.next(view.ranges(), devices.len() as u64 + 1) else { return };
        let device = usize::try_from(choice).ok().and_then(|choice| devices.get(choice));
        let to = vec![device.map_or(Target::System, |device| Target::Device(device.id))];
        plan.push(Move::migrate(range, Select::ALL, to));
    }

    fn argument(&self) -> Option<String> {
        Some(format!("{:#x}", self.seed))
    }

    fn plans_a_look(&self) -> Option<u32> {
        Some(CHUNKS_A_LOOK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::{Model, range};

    #[test]
    fn chaos_reaches_every_page_and_target_and_stays_inside() {
        let ranges = [range(10, 3), range(500, 200)];
        let mut chaos = Chaos::new(1);
        let mut seen = std::collections::BTreeSet::new();
        let mut targets = std::collections::BTreeSet::new();
        for _ in 0..2000 {
            let (chunk, target) = chaos.next(&ranges, 3).unwrap();
            assert!(ranges.iter().any(|r| r.contains_range(chunk)) && !chunk.is_empty());
            seen.extend(chunk.iter());
            targets.insert(target);
        }
        assert_eq!((seen.len(), targets.len()), (203, 3));
        assert!(chaos.next(&[], 3).is_none());
    }

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let ranges = [range(0, 10_000)];
        let run = || (0..50).scan(Chaos::new(7), |c, _| c.next(&ranges, 4)).collect::<Vec<_>>();
        assert_eq!(run(), run());
    }

    #[test]
    fn pages_go_to_every_device_and_home() {
        let mut model = Model::new(&[(0, 1000)], &[1000, 1000]);
        let mut chaos = Chaos::new(3);
        let mut plan = Plan::new(Model::BUDGET);
        let mut targets = std::collections::BTreeSet::new();
        for _ in 0..100 {
            chaos.plan(&mut model, &mut plan);
            targets.extend(plan.moves().map(|of| format!("{:?}", of.act)));
            plan.carry_out(|of| model.carry_out(of), || false);
        }
        assert_eq!(targets.len(), 3);
        assert!(model.moved_home > 0 && model.moved_out > 0);
        let mut nothing = Model::new(&[], &[1000]);
        chaos.plan(&mut nothing, &mut plan);
        assert!(plan.is_empty());
    }
}
