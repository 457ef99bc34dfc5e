//! Answers requests.
//!
//! What takes an agent is asked of it one request at a time, and waited for no longer than [`PATIENCE`]: a process may be stopped, or about to end, and
//! whoever looks at it does not hang for that.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use hetmem_agent::requests::{Reply, Request as Asked, State as Asking};
use hetmem_core::advice::Advice;
use hetmem_core::migrate::Target;
use hetmem_core::policy::with_limit;
use hetmem_core::sync::{Arc, Condvar, Mutex, lock};
use hetmem_core::units::{ByteLen, DeviceId, PAGE_SHIFT, PAGE_SIZE, PageCount, PageRange, VirtAddr};
use rustix::event::PollFlags;

use super::figures::{Earlier, Subject};
use super::protocol::{
    Address, Advised, Answer, Cell, Heat, Migrated, Range, Regions, Request, Residency, Resident, Said, Set, State,
    Statistics,
};
use super::wire;

/// How long an agent is waited for: its longest nap, and time for the work.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long processes are waited for that count what is in system memory.
const FRESHNESS: Duration = Duration::from_millis(500);
/// How long a migration may go on for one request.
const MIGRATION: Duration = Duration::from_secs(10);
/// How often it is looked whether an answer is there.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(3);
/// Parts that heat is told in if nobody says, and at most.
const CELLS: u32 = 80;
const MOST_CELLS: u32 = 1024;

/// Answers for one run, to several at once.
#[derive(Debug)]
pub(super) struct Answerer {
    pub(super) subject: Arc<Subject>,
    /// Whether somebody asks an agent.
    asking: Mutex<bool>,
    done: Condvar,
}

/// Who asks: once he has gone nobody waits for his answer.
pub(super) type Client<'a> = BorrowedFd<'a>;

impl Answerer {
    pub(super) fn new(subject: Arc<Subject>) -> Self {
        Self { subject, asking: Mutex::new(false), done: Condvar::new() }
    }

    /// Answers `request`, which is no subscription.
    pub(super) fn answer(&self, request: Request, client: Client<'_>) -> Answer {
        let answered = match request {
            Request::Run {} => Ok(Answer::Run(self.subject.run())),
            Request::Statistics {} | Request::Subscribe { .. } => Ok(Answer::Statistics(self.fresh(client).0)),
            Request::Regions { pid, from } => self.regions(pid, from, client),
            Request::Residency { pid, from } => self.residency(pid, from, client),
            Request::Heat { pid, cells } => self.heat(pid, cells.unwrap_or(CELLS), client),
            Request::Set { system_limit_bytes } => self.set(ByteLen::new(system_limit_bytes)),
            Request::Migrate { pid, start, end, to } => self.migrate(pid, (start, end), &to, client),
            Request::Advise { pid, start, end, advice, to } => {
                self.advise(pid, (start, end), advice, to.as_deref(), client)
            }
        };
        answered.unwrap_or_else(Answer::Error)
    }

    /// Statistics for which every process that can has counted.
    pub(super) fn fresh(&self, client: Client<'_>) -> (Statistics, Earlier) {
        let look = self.subject.ledger.look();
        let until = Instant::now() + FRESHNESS;
        loop {
            let (statistics, now) = self.subject.statistics(look, None);
            let is_awaited = |state| matches!(state, State::Running | State::Sleeping);
            let all_have = statistics.processes.iter().all(|process| process.is_fresh || !is_awaited(process.state));
            if all_have || Instant::now() >= until || has_gone(client) {
                return (statistics, now);
            }
        }
    }

    fn regions(&self, pid: u32, from: Option<Address>, client: Client<'_>) -> Result<Answer, String> {
        let reply = self.ask(pid, Asked::Regions { from: start(from) }, client)?;
        let range = |row: &[u64]| Some(Range { start: address(row[0])?, end: address(row[0].checked_add(row[1])?)? });
        let regions = reply.words.chunks_exact(2).map(range).collect::<Option<_>>().ok_or_else(|| nonsense(pid))?;
        Ok(Answer::Regions(Regions { pid, regions, next: reply.next.map(Address) }))
    }

    fn residency(&self, pid: u32, from: Option<Address>, client: Client<'_>) -> Result<Answer, String> {
        let reply = self.ask(pid, Asked::Residency { from: start(from) }, client)?;
        let places = self.subject.place_names();
        let resident = |row: &[u64]| {
            let bytes = row[2..].iter().map(|pages| pages.saturating_mul(PAGE_SIZE)).collect();
            Some(Resident { start: address(row[0])?, end: address(row[0].checked_add(row[1])?)?, bytes })
        };
        let rows = reply.words.chunks_exact(2 + places.len());
        let regions = rows.map(resident).collect::<Option<_>>().ok_or_else(|| nonsense(pid))?;
        Ok(Answer::Residency(Residency { pid, places, regions, next: reply.next.map(Address) }))
    }

    fn heat(&self, pid: u32, cells: u32, client: Client<'_>) -> Result<Answer, String> {
        if cells == 0 || cells > MOST_CELLS {
            return Err(format!("{cells} cells can't be told; 1 to {MOST_CELLS} can"));
        }
        let reply = self.ask(pid, Asked::Heat { cells }, client)?;
        let cell = |row: &[u64]| {
            let heat = u8::try_from(row[2]).ok()?;
            Some(Cell { start: address(row[0])?, bytes: row[1].checked_mul(PAGE_SIZE)?, heat })
        };
        let cells = reply.words.chunks_exact(3).map(cell).collect::<Option<_>>().ok_or_else(|| nonsense(pid))?;
        Ok(Answer::Heat(Heat { pid, cells }))
    }

    fn set(&self, limit: ByteLen) -> Result<Answer, String> {
        let Subject { ledger, policy, stock, memory, .. } = &*self.subject;
        if policy.limit().is_none() {
            return Err(format!("policy {policy} has no limit; {} have one", with_limit(" and ")));
        }
        // The policy says what is no limit.
        policy.with(&limit.get().to_string()).map_err(|error| error.to_string())?;
        if limit > *memory {
            return Err(format!("the limit {limit} is larger than this machine's memory ({memory})"));
        }
        if limit <= *stock {
            return Err(format!("the stock of {stock} leaves nothing of the limit {limit}; it must be more"));
        }
        ledger.set_system_limit(limit);
        Ok(Answer::Set(Set { system_limit_bytes: limit.get() }))
    }

    fn migrate(
        &self,
        pid: u32,
        (Address(start), Address(end)): (Address, Address),
        to: &str,
        client: Client<'_>,
    ) -> Result<Answer, String> {
        let mut left = range(start, end)?;
        let to = self.place(to)?;
        let until = Instant::now() + MIGRATION;
        let (mut moved, mut kept) = (0_u64, 0_u64);
        loop {
            let reply = self.ask(pid, Asked::Migrate { range: left, to }, client)?;
            let [here, there] = reply.words[..] else { return Err(nonsense(pid)) };
            (moved, kept) = (moved.saturating_add(here), kept.saturating_add(there));
            // It goes on behind what was done, or not at all.
            let rest =
                reply.next.and_then(|next| PageRange::between(next, end)).filter(|rest| rest.pages() < left.pages());
            let Some(rest) = rest.filter(|rest| !rest.is_empty()) else {
                return Ok(Answer::Migrate(Migrated { pages_moved: moved, pages_kept: kept, next: None }));
            };
            if Instant::now() >= until {
                let next = Some(Address(rest.start()));
                return Ok(Answer::Migrate(Migrated { pages_moved: moved, pages_kept: kept, next }));
            }
            left = rest;
        }
    }

    fn advise(
        &self,
        pid: u32,
        (Address(start), Address(end)): (Address, Address),
        said: Said,
        to: Option<&str>,
        client: Client<'_>,
    ) -> Result<Answer, String> {
        let range = range(start, end)?;
        let advice = match (said, to) {
            (Said::PreferredLocation, Some(to)) => match self.place(to)? {
                Target::Device(device) => Advice::PreferredLocation(device),
                Target::System => {
                    return Err(
                        "a preferred location is a device; system memory is where nothing is preferred".to_owned()
                    );
                }
            },
            (Said::PreferredLocation, None) => return Err("`to` is missing; it is the name of a device".to_owned()),
            (_, Some(_)) => return Err("only preferred_location has a `to`".to_owned()),
            (Said::Pin, None) => Advice::Pin,
            (Said::Unpin, None) => Advice::Unpin,
            (Said::ReadMostly, None) => Advice::ReadMostly,
            (Said::NoPreference, None) => Advice::NoPreference,
            (Said::Soon, None) => Advice::Soon,
            (Said::NotSoon, None) => Advice::NotSoon,
        };
        let reply = self.ask(pid, Asked::Advise { range, advice }, client)?;
        let [first, pages] = reply.words[..] else { return Err(nonsense(pid)) };
        let unmanaged = match pages {
            0 => None,
            _ => {
                let end = first.checked_add(pages).and_then(address);
                Some(address(first).zip(end).map(|(start, end)| Range { start, end }).ok_or_else(|| nonsense(pid))?)
            }
        };
        Ok(Answer::Advise(Advised { unmanaged }))
    }

    /// The place of this name.
    fn place(&self, name: &str) -> Result<Target, String> {
        let names = self.subject.place_names();
        match names.iter().position(|place| place == name) {
            Some(0) => Ok(Target::System),
            Some(place) => Ok(Target::Device(DeviceId::new(u8::try_from(place - 1).unwrap_or(u8::MAX)))),
            None => Err(format!("`{name}` is no place of this run; they are {}", names.join(", "))),
        }
    }

    /// Asks process `pid`, in turn with others.
    fn ask(&self, pid: u32, request: Asked, client: Client<'_>) -> Result<Reply, String> {
        self.subject.can_answer(pid)?;
        let until = Instant::now() + PATIENCE;
        let _turn = self.turn(until).ok_or_else(|| "others are asking; ask again".to_owned())?;
        let ledger = &self.subject.ledger;
        let mut number = ledger.ask(pid, request);
        loop {
            match ledger.state(number) {
                Asking::Answered(reply) => return Ok(reply),
                Asking::Mixed => number = ledger.ask(pid, request),
                Asking::Waiting => {}
            }
            if Instant::now() >= until || has_gone(client) {
                return Err(format!("process {pid} does not answer"));
            }
        }
    }

    /// The turn to ask an agent, if it comes in time.
    fn turn(&self, until: Instant) -> Option<Turn<'_>> {
        let mut asking = lock(&self.asking);
        while *asking {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            asking = self.done.wait_timeout(asking, left).expect("no thread panicked while it held this lock").0;
        }
        *asking = true;
        Some(Turn(self))
    }
}

/// Nobody else asks an agent.
struct Turn<'a>(&'a Answerer);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.asking) = false;
        self.0.done.notify_one();
    }
}

/// Waits a moment; whether the client has hung up meanwhile.
fn has_gone(client: Client<'_>) -> bool {
    let seen = wire::wait(client, PollFlags::empty(), Some(LOOK_AGAIN_AFTER));
    seen.intersects(PollFlags::HUP | PollFlags::ERR)
}

fn range(start: VirtAddr, end: VirtAddr) -> Result<PageRange, String> {
    let range = PageRange::between(start, end).filter(|range| !range.is_empty());
    range.ok_or_else(|| "the range ends before it begins".to_owned())
}

fn start(from: Option<Address>) -> VirtAddr {
    from.map_or(VirtAddr::new(0), |Address(from)| from)
}

/// The address of page number `page`; `None` if there is none.
fn address(page: u64) -> Option<Address> {
    let range = PageRange::new(VirtAddr::new(page.checked_mul(1 << PAGE_SHIFT)?), PageCount::ZERO)?;
    Some(Address(range.start()))
}

/// Whatever stands in memory that the program can write, it harms nobody.
fn nonsense(pid: u32) -> String {
    format!("process {pid} answers nonsense")
}
