//! What a policy is shown.

use crate::migrate::{Survey, Target};
use crate::physmap::MemoryType;
use crate::units::{DeviceId, PageCount, PageRange, VirtAddr};

/// What there is, for as much of it as a policy asks: each answer is found when it is asked for.
///
/// The agent answers of a program that runs, tests of a model.
pub trait View {
    /// What the program has shown by now. Costs a file that is read.
    fn signs(&mut self) -> Signs;

    /// How much of system memory this process may have now, where the policy was told that it is `told`: a part of that, if the processes of a run
    /// share it. It changes at any time. Costs a few words.
    fn system_limit(&mut self, told: PageCount) -> PageCount {
        told
    }

    /// The managed ranges, in order of address. Costs nothing.
    fn ranges(&self) -> &[PageRange];

    /// How much system memory they take: their pages that are there, as far as is known while the program shows `signs`, and never more than
    /// [`Signs::anonymous`], and what is kept populated for others to come home. Pages may be counted for it, which costs far more than anything else
    /// here: it is asked when it decides something.
    fn resident(&mut self, signs: Signs) -> PageCount;

    /// The devices, in the order of their ids. Costs a few words.
    fn devices(&self) -> Vec<DeviceState>;

    /// The device on which the page at `page` is best kept, if the program said so. Costs a search.
    fn preferred(&self, page: VirtAddr) -> Option<DeviceId>;

    /// Up to `most` pages that the program has said are not used soon, the next in order of address; it is told once. Costs next to nothing if there
    /// are none.
    fn take_not_soon(&mut self, _most: PageCount) -> Option<PageRange> {
        None
    }

    /// Whether something of `chunk`, which lies in one [chunk](crate::heat), was brought home by a touch since this was asked last. Costs a search.
    fn take_warmth(&mut self, chunk: PageRange) -> bool;

    /// How long it has been since some moment in the past, in microseconds. Costs next to nothing.
    fn now(&self) -> u64;

    /// How much time of processors the program has used by now, in microseconds, with what hetmem used in it. Costs a system call.
    fn used(&self) -> u64;

    /// How much time of processors was used by now, in microseconds, to plan and to carry out what was planned. Costs a system call.
    fn spent(&self) -> u64;

    /// Whether pages may be taken out as samples. What is not sampled shows no more than the touches that bring it home.
    fn takes_samples(&self) -> bool {
        true
    }

    /// What has gone from one place to the other by now. Costs a few words.
    fn turnover(&self) -> Turnover {
        Turnover::default()
    }

    /// Where each page of `range` is, which lies in one block, and how [warm](crate::heat). Costs a look at as many entries of the page table.
    fn survey(&mut self, range: PageRange, survey: &mut Survey);
}

/// By what it shows that a program does something: while nothing here changes, nothing has happened that would be noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Signs {
    /// Anonymous memory of the process, hetmem's included.
    pub anonymous: PageCount,
    /// What of it hetmem keeps for itself, as far as that is known: populated frames, of the pool and of devices, that may be empty of pages.
    pub own: PageCount,
    /// Pages that have come home.
    pub home: u64,
    /// Touches that were served.
    pub faults: u64,
    /// How often something else was found to be managed than before: what was counted or tried is no longer all there is.
    pub changes: u64,
}

/// How much memory was turned over: what has left, and what of that was wanted again at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Turnover {
    /// Pages that have moved to devices.
    pub left: u64,
    /// Pages that touches have brought home less than a minute after they had left.
    pub refaults: u64,
}

/// A device, and what room it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceState {
    /// By which it is named.
    pub id: DeviceId,
    /// What the CPU can do with its memory.
    pub memory_type: MemoryType,
    /// Its pages.
    pub capacity: PageCount,
    /// How many of them are taken.
    pub used: PageCount,
}

impl DeviceState {
    /// How many more pages it takes.
    #[must_use]
    pub fn room(&self) -> PageCount {
        PageCount::new(self.capacity.get().saturating_sub(self.used.get()))
    }
}

/// Where pages from the start of `range` on may go, of `devices` the best first: as they are, but for what is preferred there.
pub(super) fn to(devices: &[DeviceState], view: &dyn View, range: PageRange) -> Vec<Target> {
    let preferred = view.preferred(range.start()).map(Target::Device);
    let mut to: Vec<Target> = devices.iter().map(|device| Target::Device(device.id)).collect();
    to.sort_by_key(|target| preferred != Some(*target));
    to
}
