//! How the processes of a run share its limit on system memory: a rule, without a clock, memory or processes.
//!
//! Each process says what it holds and what it would hold if there were no limit ([`Claim`]). Now and then somebody takes a *turn*: [`share_out`] gives
//! each a new share. What a process is told to hold (`granted`) may be less than where its share is going (`target`): that grows only into what
//! others hold no longer, so that a share that moves from one process to another is never held by both.
//!
//! | | |
//! | --- | --- |
//! | all that is wanted fits | each has what it wants, and of the rest a part as large as what it wants is of all that is wanted |
//! | it doesn't | each keeps its share, up to what it wants, and who comes in begins with an equal part; what is free goes to who wants more |
//! | and some miss pages | what others have and don't use ([cold](Claim::cold)) goes to those, a large part of it each turn |
//! | and that is not enough, and some miss much more than others | of the shares of those who hardly miss anything a small part goes to those each turn |
//!
//! *Hardly anything* is half of the average or less, and who misses as much as the average is given; a process that once missed one and a half of it and
//! soon does so again, when it gave, gives nothing for a while, twice as long each time that happens. So shares come to rest also where a few pages less
//! make all the difference. Nobody gives so much that less than a quarter of an equal part is left (or what it wants, if that is less).
//!
//! A process that has just begun ([`Standing::New`]) has what is free, or a quarter of an equal part if that is more, and nothing is taken from others
//! for it: one that ends soon costs nobody anything. One that doesn't answer ([`Standing::Silent`]: stopped, perhaps) keeps what it holds, which it
//! could not give, as far as a quarter of the limit is left to those who do answer, and no more.
//!
//! *Limits:* who misses much is given more, whether that helps it or not: a scan of more than there is takes from others until they miss a third as
//! much, or have a quarter of an equal part left.

use crate::units::PageCount;

/// Of what a process can spare, one part of so many goes in a turn.
const STEP: u64 = 32;
/// And of what it doesn't use.
const COLD_STEP: u64 = 4;
/// Who gives leaves itself one part of so many of an equal part.
const FLOOR: u64 = 4;
/// Fewer pages that come home in a second are no reason to take from others.
const PRESSURE: u64 = 64;
/// Turns without much missing after which a process gives at first, and the most.
const PATIENCE: u64 = 32;
const MOST_PATIENCE: u64 = 4096;
/// More pages than any process has, and few enough that no sum of them is too large.
const MOST: u64 = 1 << 40;

/// How a process stands to the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It has just begun.
    New,
    /// It says what it holds, and does as it is told.
    Answers,
    /// It has said nothing for a while.
    Silent,
}

/// What a process says, and what it was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// How it stands to the others.
    pub standing: Standing,
    /// The system memory that it holds.
    pub held: PageCount,
    /// What it would hold without a limit: what it has on devices, too.
    pub wanted: PageCount,
    /// What of that it has not used for a while, as far as that is known.
    pub cold: PageCount,
    /// Touches of pages that were away, in a second.
    pub pressure: u64,
    /// What came of the last turn for it.
    pub share: Share,
}

/// What a process has of the limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Share {
    /// Where it is going.
    pub target: PageCount,
    /// What it may hold now.
    pub granted: PageCount,
    /// Turns since it missed much.
    pub quiet: u64,
    /// Turns that it must be quiet for, to give again.
    pub patience: u64,
}

/// Gives each of `claims` its share of `limit`. What is granted to all that are not new is `limit` at most, together.
pub fn share_out(limit: PageCount, claims: &mut [Claim]) {
    let limit = limit.get().min(MOST);
    // Of what others write nothing is trusted.
    for claim in claims.iter_mut() {
        claim.held = claim.held.min(PageCount::new(MOST));
        claim.wanted = claim.wanted.clamp(claim.held, PageCount::new(MOST));
        claim.cold = claim.cold.min(claim.wanted);
        claim.pressure = claim.pressure.min(MOST);
    }
    let among = |of: Standing| move |claim: &&mut Claim| claim.standing == of;
    let count = |claims: &[Claim], of| claims.iter().filter(|claim| claim.standing == of).count() as u64;
    let (answering, new) = (count(claims, Standing::Answers), count(claims, Standing::New));

    // Those who don't answer.
    let kept = if answering + new == 0 { 0 } else { limit.div_ceil(FLOOR) };
    let silent = sum(claims.iter().filter(|claim| claim.standing == Standing::Silent), |claim| claim.held);
    for claim in claims.iter_mut().filter(among(Standing::Silent)) {
        let held = part(claim.held.get(), (limit - kept).min(silent), silent);
        claim.share.target = PageCount::new(held);
        claim.share.granted = claim.share.target;
    }
    let room = limit - silent.min(limit - kept);

    // Those who do.
    let mut answers: Vec<&mut Claim> = claims.iter_mut().filter(among(Standing::Answers)).collect();
    aim(room, &mut answers);
    let holds = |claim: &Claim| match claim.standing {
        Standing::New => PageCount::ZERO,
        Standing::Answers => claim.held,
        Standing::Silent => claim.share.granted,
    };
    let free = limit.saturating_sub(sum(claims.iter(), holds));
    grant(room / FLOOR / answering.max(1), free, claims);

    // Those who have just begun.
    let floor = room / FLOOR / (answering + new).max(1);
    let free = free.saturating_sub(sum(claims.iter().filter(|claim| claim.standing == Standing::New), |c| c.held));
    for claim in claims.iter_mut().filter(among(Standing::New)) {
        let granted = claim.held.get().saturating_add(free / new).min(limit);
        claim.share =
            Share { granted: PageCount::new(if free == 0 { floor } else { granted.max(floor) }), ..Share::default() };
    }
}

/// Says where the shares of those who answer are going.
fn aim(room: u64, claims: &mut [&mut Claim]) {
    let number = claims.len() as u64;
    if number == 0 {
        return;
    }
    let wanted = sum(claims.iter().map(|claim| &**claim), |claim| claim.wanted);
    let equal = room / number;
    for claim in claims.iter_mut() {
        let wants = claim.wanted.get();
        let target = match (wanted <= room, claim.share.target.get()) {
            // One page more than it wants, so that who has nothing yet has a part, too.
            (true, _) => wants.saturating_add(part(wants + 1, room - wanted, wanted + number)),
            (false, 0) => equal.min(wants),
            (false, before) => before.clamp((equal / FLOOR).min(wants), wants),
        };
        claim.share.target = PageCount::new(target);
    }
    if wanted > room {
        fit(room, wanted, equal, claims);
        pass_on(equal, claims);
    }
}

/// Makes the targets `room` together, of which there is less than is `wanted`.
fn fit(room: u64, wanted: u64, equal: u64, claims: &mut [&mut Claim]) {
    let floor = |claim: &Claim| (equal / FLOOR).min(claim.wanted.get());
    let targets = sum(claims.iter().map(|claim| &**claim), |claim| claim.share.target);
    let floors = claims.iter().map(|claim| floor(claim)).sum::<u64>();
    for claim in claims {
        let (target, least) = (claim.share.target.get(), floor(claim));
        claim.share.target = PageCount::new(match targets > room {
            true => least + part(target - least, room - floors, targets - floors),
            false => target + part(claim.wanted.get() - target, room - targets, wanted - targets),
        });
    }
}

/// Has those who don't use what they have, or hardly miss anything, give to those who miss much.
fn pass_on(equal: u64, claims: &mut [&mut Claim]) {
    let pressures = claims.iter().map(|claim| claim.pressure).sum::<u64>();
    let average = pressures / claims.len() as u64;
    for claim in claims.iter_mut() {
        let (misses, share) = (claim.pressure > (average + average / 2).max(PRESSURE), &mut claim.share);
        share.patience = share.patience.clamp(PATIENCE, MOST_PATIENCE);
        if misses && share.quiet > 0 {
            let soon = share.quiet / 4 < share.patience;
            share.patience = if soon { (2 * share.patience).min(MOST_PATIENCE) } else { PATIENCE };
        }
        share.quiet = if misses { 0 } else { share.quiet.saturating_add(1) };
    }
    let gives = |claim: &Claim| claim.pressure <= average / 2;
    let beyond = |claim: &Claim, least: u64| {
        let least = least.max((equal / FLOOR).min(claim.wanted.get()));
        if gives(claim) { claim.share.target.get().saturating_sub(least) } else { 0 }
    };
    let cold = |claim: &Claim| beyond(claim, (claim.wanted - claim.cold).get()) / COLD_STEP;
    if claims.iter().any(|claim| cold(claim) > 0) {
        return pass(average, claims, cold);
    }
    let is_patient = |claim: &Claim| claim.share.quiet >= claim.share.patience;
    pass(average, claims, |claim| if is_patient(claim) { beyond(claim, 0) / STEP } else { 0 });
}

/// Has each give what it `spares`, as far as those who miss as much as the `average` lack it.
fn pass(average: u64, claims: &mut [&mut Claim], spares: impl Fn(&Claim) -> u64) {
    let lacks = |claim: &Claim| match claim.pressure >= average.max(PRESSURE) {
        true => claim.wanted.get() - claim.share.target.get(),
        false => 0,
    };
    let spared = claims.iter().map(|claim| spares(claim)).sum::<u64>();
    let lacking = claims.iter().map(|claim| lacks(claim)).sum::<u64>();
    let mut moved = 0;
    for claim in claims.iter_mut() {
        let given = part(spares(claim), spared.min(lacking), spared);
        claim.share.target = claim.share.target - PageCount::new(given);
        moved += given;
    }
    let (mut lacking, mut left) = (lacking, moved);
    for claim in claims.iter_mut() {
        // All of it arrives: what got lost would be shared out again, among all.
        let lack = lacks(claim);
        let taken = part(lack, left, lacking);
        claim.share.target += PageCount::new(taken);
        (lacking, left) = (lacking - lack, left - taken);
    }
}

/// Grants those who answer what they aim at, as far as others hold it no longer: `free` is what nobody holds.
fn grant(floor: u64, free: u64, claims: &mut [Claim]) {
    let answers = |claim: &&mut Claim| claim.standing == Standing::Answers;
    let more = |claim: &Claim| claim.share.target.get().saturating_sub(claim.held.get());
    let growth = claims.iter().filter(|claim| claim.standing == Standing::Answers).map(more).sum::<u64>();
    for claim in claims.iter_mut().filter(answers) {
        let (held, target) = (claim.held.get(), claim.share.target.get());
        let granted = match growth > free && target > held {
            true => (held + part(more(claim), free, growth)).max(floor.min(target)),
            false => target,
        };
        claim.share.granted = PageCount::new(granted);
    }
}

fn sum<'a>(claims: impl Iterator<Item = &'a Claim>, what: impl Fn(&Claim) -> PageCount) -> u64 {
    claims.map(|claim| what(claim).get()).sum()
}

/// `whole` in the proportion `of` to `all`, rounded down.
fn part(of: u64, whole: u64, all: u64) -> u64 {
    let part = u128::from(of) * u128::from(whole) / u128::from(all.max(1));
    u64::try_from(part).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
