//! What the processes of a run share: its limit on system memory, the frames of devices that have one size for the run, and the memory that such devices
//! pack pages into. Part of the statistics
//! memory.
//!
//! ```text
//! process A                           members                              process B
//! ---------                           -------                              ---------
//! worker looks: Member::share ──────> A: held, wanted, cold, …   <──────── worker looks
//!              it is time for a turn: all that are alive are read,
//!              `core::budget` says what each has, and it is written
//!              <───────────────────── A: granted       B: granted ───────> evicts, if that is less than it holds
//!
//! frames are taken ─────────────────> A: taken += n; the sum of all that are alive is more than the device has: some of it back again
//! ```
//!
//! There is nobody above the processes: whoever looks first after a while ([`PERIOD`]) takes the turn for all. One that is killed in the middle leaves
//! shares of two turns, and the next turn, by another, sets all of them anew.
//!
//! **Who is alive** is said by a [`Lease`] in each member, which a thread of its agent has: the kernel gives it back when that process is killed, ends,
//! or executes another program, and everything that the member had counts no more from that moment on. So nobody has to clear up behind anybody.
//!
//! *Limits:* [`MEMBERS`] processes alive at a time. Others have no frames of devices that are shared, so that what they have stays in system memory, and
//! counts for nobody. A process that has another clock (a time namespace) may cause more turns than are needed.
#![expect(
    unsafe_code,
    reason = "a type is declared fit for shared memory, and joining says of a thread what the caller knows"
)]

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use hetmem_core::budget::{Claim, Share, Standing, share_out};
use hetmem_core::frames::Quota;
use hetmem_core::stats::MAX_DEVICES;
use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{DeviceId, PageCount};
use hetmem_sys::mapping::SharedLayout;
use hetmem_sys::thread::{Lease, time_since_boot};

/// Processes that share at a time.
pub(super) const MEMBERS: usize = 1024;
/// How long a turn holds at least.
const PERIOD: Duration = Duration::from_millis(25);
/// Turns after which a process is new no longer: a fifth of a second, where somebody is busy.
const NEW: u64 = 8;
/// Turns after which one that has said nothing is silent. A worker that naps says something each tenth.
const SILENT: u64 = 40;
/// Frames that are taken, and given back, at a time, if the device has many. What is taken and not in use others don't have.
const BATCH: u64 = 512;
/// And one part of so many of the device's frames, if it has fewer.
const BATCHES: u64 = 256;
/// By how much of the difference what is known of a process's misses comes nearer to what it misses now, in a quarter of a second.
const MEMORY: Duration = Duration::from_millis(250);

/// What is counted together: the frames of each device, and the memory that each packs pages into.
const GOODS: usize = 2 * MAX_DEVICES;

/// Something that is counted together, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Good {
    /// The frames of a device.
    Frames(DeviceId),
    /// The memory that a device packs pages into.
    Memory(DeviceId),
}

impl Good {
    const fn index(self) -> usize {
        match self {
            Self::Frames(device) => device.index(),
            Self::Memory(device) => MAX_DEVICES + device.index(),
        }
    }
}

/// The members of a run. All zeros: there are none.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Members {
    /// How many turns there were, and when the last began, in nanoseconds since the machine was booted.
    turns: AtomicU64,
    turned: AtomicU64,
    /// How many of the places were ever taken: the first ones.
    known: AtomicU64,
    /// The most of each good that was ever taken at a time.
    peaks: [AtomicU64; GOODS],
    all: [Member; MEMBERS],
}

/// What a process says of itself, and what it is told. In pages.
#[repr(C)]
#[derive(Debug)]
struct Member {
    lease: Lease,
    /// How many processes had this place before.
    tenancy: AtomicU64,
    /// The turns in which it began, and in which it last said something.
    began: AtomicU64,
    heard: AtomicU64,
    held: AtomicU64,
    wanted: AtomicU64,
    cold: AtomicU64,
    pressure: AtomicU64,
    target: AtomicU64,
    granted: AtomicU64,
    quiet: AtomicU64,
    patience: AtomicU64,
    /// What it has of each good.
    taken: [AtomicU64; GOODS],
}

// SAFETY: `repr(C)`, made of `AtomicU64`, arrays of it, and `Lease`, which is a `SharedLayout` itself.
unsafe impl SharedLayout for Members {}

impl Members {
    /// Makes the process of the calling thread one of the members, if there are not too many, as long as that thread lives.
    ///
    /// # Safety
    ///
    /// As [`Lease::take`].
    pub(super) unsafe fn join(&'static self) -> Part {
        for (at, member) in self.all.iter().enumerate() {
            if member.lease.is_held() {
                continue;
            }
            // SAFETY: the caller's.
            match unsafe { member.lease.take() } {
                Ok(true) => {}
                Ok(false) => continue,
                Err(_) => break,
            }
            self.known.fetch_max(at as u64 + 1, SeqCst);
            let tenancy = member.begin(self.turns.load(Relaxed));
            return Part(Some(Membership { members: self, at, tenancy }));
        }
        Part(None)
    }

    /// The most of `good` that was taken at a time, by all.
    pub(super) fn peak(&self, good: Good) -> PageCount {
        PageCount::new(self.peaks[good.index()].load(Relaxed))
    }

    /// What of `good` all have now who are alive.
    pub(super) fn taken(&self, good: Good) -> PageCount {
        // Of what others write nothing is trusted.
        let each = self.alive().map(|member| member.taken[good.index()].load(SeqCst));
        PageCount::new(each.fold(0, u64::saturating_add))
    }

    /// What all would hold who are alive, if there were no limit.
    fn wanted(&self) -> PageCount {
        // Of what others write nothing is trusted.
        let each = self.alive().map(|member| member.wanted.load(Relaxed).max(member.held.load(Relaxed)));
        PageCount::new(each.fold(0, u64::saturating_add))
    }

    fn alive(&self) -> impl Iterator<Item = &Member> {
        // Places that nobody had are not to be made by a look at them.
        let known = usize::try_from(self.known.load(SeqCst)).unwrap_or(MEMBERS).min(MEMBERS);
        self.all[..known].iter().filter(|member| member.lease.is_held())
    }

    /// Takes a turn, if it is time for one.
    fn turn(&self, limit: PageCount) {
        let now = nanoseconds(time_since_boot());
        let last = self.turned.load(Relaxed);
        // What lies ahead is another clock's.
        if last <= now && now - last < nanoseconds(PERIOD) {
            return;
        }
        // Relaxed, here and below: whoever reads half of a turn reads the whole of the next.
        if self.turned.compare_exchange(last, now, Relaxed, Relaxed).is_err() {
            return;
        }
        let turn = self.turns.fetch_add(1, Relaxed).wrapping_add(1);
        let members: Vec<&Member> = self.alive().collect();
        let mut claims: Vec<Claim> = members.iter().map(|member| member.claim(turn)).collect();
        share_out(limit, &mut claims);
        for (member, claim) in members.iter().zip(&claims) {
            member.told(claim.share);
        }
    }
}

impl Member {
    /// Nothing is left of who was here before. Returns how many have been here by now.
    fn begin(&self, turn: u64) -> u64 {
        let said = [&self.held, &self.wanted, &self.cold, &self.pressure];
        let told = [&self.target, &self.granted, &self.quiet, &self.patience];
        said.into_iter().chain(told).chain(&self.taken).for_each(|word| word.store(0, SeqCst));
        self.began.store(turn, SeqCst);
        self.heard.store(turn, SeqCst);
        self.tenancy.fetch_add(1, SeqCst).wrapping_add(1)
    }

    fn claim(&self, turn: u64) -> Claim {
        let since = |word: &AtomicU64| turn.saturating_sub(word.load(Relaxed));
        let pages = |word: &AtomicU64| PageCount::new(word.load(Relaxed));
        let standing = match () {
            () if since(&self.began) < NEW => Standing::New,
            () if since(&self.heard) > SILENT => Standing::Silent,
            () => Standing::Answers,
        };
        Claim {
            standing,
            held: pages(&self.held),
            wanted: pages(&self.wanted),
            cold: pages(&self.cold),
            pressure: self.pressure.load(Relaxed),
            share: Share {
                target: pages(&self.target),
                granted: pages(&self.granted),
                quiet: self.quiet.load(Relaxed),
                patience: self.patience.load(Relaxed),
            },
        }
    }

    fn told(&self, share: Share) {
        self.target.store(share.target.get(), Relaxed);
        self.granted.store(share.granted.get(), Relaxed);
        self.quiet.store(share.quiet, Relaxed);
        self.patience.store(share.patience, Relaxed);
    }
}

/// The place of one process among the members, which others may have had before, or after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Membership {
    members: &'static Members,
    at: usize,
    tenancy: u64,
}

/// What a process has in the run: a place among the members, if there was one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part(Option<Membership>);

impl Membership {
    fn member(&self) -> &'static Member {
        &self.members.all[self.at]
    }

    /// Whether the process whose place it is is alive.
    pub(super) fn is_alive(&self) -> bool {
        let member = self.member();
        member.lease.is_held() && member.tenancy.load(SeqCst) == self.tenancy
    }

    /// Says what this process needs, and how many pages it misses in a second. Returns what it may hold of the run's `limit`.
    fn say(&self, limit: PageCount, need: Need, pressure: u64) -> PageCount {
        let member = self.member();
        member.held.store(need.held.get(), Relaxed);
        member.wanted.store(need.wanted.get(), Relaxed);
        member.cold.store(need.cold.get(), Relaxed);
        member.pressure.store(pressure, Relaxed);
        member.heard.store(self.members.turns.load(Relaxed), Relaxed);
        self.members.turn(limit);
        self.told(limit, need.held)
    }

    /// What this process, which holds `held`, was told that it may hold.
    fn told(&self, limit: PageCount, held: PageCount) -> PageCount {
        let granted = PageCount::new(self.member().granted.load(Relaxed));
        // Before the first turn that knows it nothing is asked of it; and the last turn knows what was said before it: of who has grown since then
        // nothing is asked as long as all that is wanted fits.
        if granted.is_zero() {
            limit
        } else if granted < held && self.members.wanted() <= limit {
            held
        } else {
            granted.min(limit)
        }
    }
}

impl Part {
    /// The place, if there is one.
    pub(super) const fn membership(&self) -> Option<Membership> {
        self.0
    }
}

/// What a process says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    /// The system memory that it holds.
    pub(super) held: PageCount,
    /// What it would hold without a limit.
    pub(super) wanted: PageCount,
    /// What of that it has not used for a while, as far as that is known.
    pub(super) cold: PageCount,
}

/// The share of one process, as its worker sees it.
#[derive(Debug)]
pub(super) struct Budget {
    part: Part,
    misses: Misses,
}

impl Budget {
    pub(super) const fn new(part: Part) -> Self {
        Self { part, misses: Misses { touches: 0, at: None, rate: 0 } }
    }

    /// Whether it was ever asked for a share.
    pub(super) const fn was_asked(&self) -> bool {
        self.misses.at.is_some()
    }

    /// Whether there are other processes to share with.
    pub(super) fn is_shared(&self) -> bool {
        self.part.0.is_none_or(|membership| membership.members.alive().nth(1).is_some())
    }

    /// What this process may hold of the run's `limit`, which needs what `need` says, and has had `touches` of pages that were away.
    pub(super) fn share(&mut self, limit: PageCount, need: Need, touches: u64) -> PageCount {
        let pressure = self.misses.rate(touches, time_since_boot());
        match &self.part.0 {
            Some(membership) => membership.say(limit, need, pressure),
            None => PageCount::new(limit.get() / MEMBERS as u64 / 4),
        }
    }
}

/// How many pages a process misses in a second, of late.
#[derive(Debug)]
struct Misses {
    touches: u64,
    at: Option<Duration>,
    rate: u64,
}

impl Misses {
    fn rate(&mut self, touches: u64, now: Duration) -> u64 {
        let Some(at) = self.at.replace(now) else {
            self.touches = touches;
            return 0;
        };
        let time = nanoseconds(now.saturating_sub(at)).max(1);
        let more = touches.saturating_sub(self.touches);
        self.touches = touches;
        let memory = u128::from(nanoseconds(MEMORY));
        // The rate meanwhile is more / time, and counts for time / (time + memory).
        let seconds = u128::from(more) * u128::from(nanoseconds(Duration::from_secs(1)));
        let rate = (u128::from(self.rate) * memory + seconds) / (memory + u128::from(time));
        self.rate = u64::try_from(rate).unwrap_or(u64::MAX);
        self.rate
    }
}

/// What this process has of something that all count together.
pub(super) struct Shared {
    part: Part,
    good: Good,
    capacity: PageCount,
    /// How many were taken and are not in use.
    spare: Mutex<u64>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("good", &self.good).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) const fn new(part: Part, good: Good, capacity: PageCount) -> Self {
        Self { part, good, capacity, spare: Mutex::new(0) }
    }

    fn batch(&self) -> u64 {
        BATCH.min(self.capacity.get() / BATCHES).max(1)
    }

    /// Takes up to `want`, and at least as many as are left of that; how many it got.
    fn reserve(&self, of: &Membership, want: u64) -> u64 {
        let own = &of.member().taken[self.good.index()];
        // SeqCst: of two that take the last ones at the same time, at least one sees what the other took.
        own.fetch_add(want, SeqCst);
        let all = of.members.taken(self.good).get();
        let beyond = all.saturating_sub(self.capacity.get()).min(want);
        if beyond > 0 {
            own.fetch_sub(beyond, SeqCst);
        }
        of.members.peaks[self.good.index()].fetch_max((all - beyond).min(self.capacity.get()), Relaxed);
        want - beyond
    }
}

impl Quota for Shared {
    fn take(&self, want: PageCount) -> PageCount {
        let Some(of) = &self.part.0 else { return PageCount::ZERO };
        let (want, mut spare) = (want.get(), lock(&self.spare));
        if *spare < want {
            let mut got = self.reserve(of, (want - *spare).max(self.batch()));
            // Of two that ask at the same time both may have been told that the other has it.
            if got == 0 {
                got = self.reserve(of, 1);
            }
            *spare += got;
        }
        let taken = want.min(*spare);
        *spare -= taken;
        PageCount::new(taken)
    }

    fn give(&self, pages: PageCount) {
        let Some(of) = &self.part.0 else { return };
        let mut spare = lock(&self.spare);
        *spare += pages.get();
        let back = if *spare >= 2 * self.batch() { *spare - self.batch() } else { 0 };
        *spare -= back;
        of.member().taken[self.good.index()].fetch_sub(back, SeqCst);
    }

    fn left(&self) -> PageCount {
        let Some(of) = &self.part.0 else { return PageCount::ZERO };
        let spare = *lock(&self.spare);
        let taken = of.members.taken(self.good);
        PageCount::new(self.capacity.get().saturating_sub(taken.get()).saturating_add(spare))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
