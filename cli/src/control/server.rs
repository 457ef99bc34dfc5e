//! The socket's owner: accepts whoever may ask, and serves each in a thread of his own.
//!
//! | bound | |
//! | --- | --- |
//! | who | the user of the run, and root (`SO_PEERCRED`) |
//! | how many at once | [`MOST_CLIENTS`]; others are told, and hung up on |
//! | a request | [`LONGEST_REQUEST`] bytes; who sends a longer one is told, and hung up on |
//! | silence | [`SILENCE`], without a subscription |
//! | a line that is not read | [`SLOWNESS`]; then he is hung up on |

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hetmem_core::sync::Arc;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt::socket_peercred};

use super::answer::Answerer;
use super::figures::{Earlier, Subject};
use super::place::{self, Name};
use super::protocol::{Answer, INTERVAL_MS, LONGEST_INTERVAL_MS, LONGEST_REQUEST, Request, SHORTEST_INTERVAL_MS};
use super::wire::{self, Lines, NoLine};

/// How many may be connected.
const MOST_CLIENTS: usize = 16;
/// How long one may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a line may take to be read.
const SLOWNESS: Duration = Duration::from_secs(2);
/// How long to wait before it is tried again to accept where there is no room for another descriptor.
const NO_ROOM: Duration = Duration::from_millis(250);
/// Bytes of the stack of a thread.
const STACK: usize = 256 << 10;

/// The socket of this process, whose name is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    _name: Name,
}

impl Server {
    /// Listens for whoever asks about `subject`; `None` where that can't be. Nothing is to be waited for when this is dropped: who is answered at that
    /// moment is answered as long as the process lives.
    pub(crate) fn start(subject: Arc<Subject>) -> Option<Self> {
        let (socket, name) = place::listen(std::process::id()).ok()?;
        let answerer = Arc::new(Answerer::new(subject));
        thread(move || accept_all(&socket, &answerer)).ok()?;
        Some(Self { _name: name })
    }
}

fn thread(body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("control".to_owned()).stack_size(STACK).spawn(body).map(|_| ())
}

fn accept_all(socket: &OwnedFd, answerer: &Arc<Answerer>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        match accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(client) => begin(client, answerer, &clients),
            Err(Errno::AGAIN) => {
                wire::wait(socket.as_fd(), PollFlags::IN, None);
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            // Without a descriptor, or memory. Whoever waits to be accepted goes on waiting.
            Err(_) => {
                wire::wait(socket.as_fd(), PollFlags::empty(), Some(NO_ROOM));
            }
        }
    }
}

/// Serves a client, if he may ask and there is room.
fn begin(client: OwnedFd, answerer: &Arc<Answerer>, clients: &Arc<AtomicUsize>) {
    let own = rustix::process::geteuid();
    let may_ask = socket_peercred(&client).is_ok_and(|peer| peer.uid == own || peer.uid.is_root());
    let refuse = |why: &str| {
        // As much as goes without waiting.
        let _ = wire::send(&client, Answer::Error(why.to_owned()).line().as_bytes(), Duration::ZERO);
    };
    if !may_ask {
        return refuse("only the user of this run, and root, may ask about it");
    }
    let guard = Counted(clients.clone());
    if clients.fetch_add(1, Relaxed) >= MOST_CLIENTS {
        return refuse("too many ask at once; ask again later");
    }
    let answerer = answerer.clone();
    // Without a thread he is hung up on.
    let _ = thread(move || {
        let _counted = guard;
        serve(client.as_fd(), &answerer);
    });
}

/// One of those who are connected.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// What a client wants to be told again and again.
struct Subscription {
    interval: Duration,
    next: Instant,
    /// The look for which the next message has the figures.
    look: u64,
    earlier: Earlier,
}

/// Serves one client until he hangs up, or is hung up on.
fn serve(client: BorrowedFd<'_>, answerer: &Answerer) {
    let mut lines = Lines::new(LONGEST_REQUEST);
    let mut subscription: Option<Subscription> = None;
    let mut has_said_all = false;
    let mut heard = Instant::now();
    let say = |answer: &Answer| wire::send(client, answer.line().as_bytes(), SLOWNESS).is_ok();
    loop {
        let until = subscription.as_ref().map_or(heard + SILENCE, |subscription| subscription.next);
        let left = until.saturating_duration_since(Instant::now());
        let what = if has_said_all { PollFlags::empty() } else { PollFlags::IN };
        if !left.is_zero() {
            let seen = wire::wait(client, what, Some(left));
            if seen.intersects(PollFlags::HUP | PollFlags::ERR) && !seen.contains(PollFlags::IN) {
                return;
            }
        }
        // Even if a message is due all the time, who asks is answered.
        while !has_said_all {
            match lines.next(client) {
                Ok(line) => {
                    heard = Instant::now();
                    let answer = match Request::read(&line) {
                        Ok(Request::Subscribe { interval_ms }) => match subscribe(interval_ms, answerer, client) {
                            Ok((statistics, begun)) => {
                                subscription = Some(begun);
                                statistics
                            }
                            Err(error) => Answer::Error(error),
                        },
                        Ok(request) => answerer.answer(request, client),
                        Err(error) => Answer::Error(error),
                    };
                    if !say(&answer) {
                        return;
                    }
                }
                Err(NoLine::Yet) => break,
                Err(NoLine::End) => has_said_all = true,
                Err(NoLine::TooLong) => {
                    say(&Answer::Error(format!("a request has at most {LONGEST_REQUEST} bytes")));
                    return;
                }
            }
        }
        let Some(subscription) = &mut subscription else {
            if has_said_all || heard.elapsed() >= SILENCE {
                return;
            }
            continue;
        };
        if Instant::now() >= subscription.next && !say(&subscription.message(&answerer.subject)) {
            return;
        }
    }
}

/// The first message, and what is needed for the next.
fn subscribe(
    interval_ms: Option<u64>,
    answerer: &Answerer,
    client: BorrowedFd<'_>,
) -> Result<(Answer, Subscription), String> {
    let interval = interval_ms.unwrap_or(INTERVAL_MS);
    if !(SHORTEST_INTERVAL_MS..=LONGEST_INTERVAL_MS).contains(&interval) {
        return Err(format!("an interval has {SHORTEST_INTERVAL_MS} to {LONGEST_INTERVAL_MS} milliseconds"));
    }
    let interval = Duration::from_millis(interval);
    let (statistics, earlier) = answerer.fresh(client);
    let look = answerer.subject.ledger.look();
    Ok((Answer::Statistics(statistics), Subscription { interval, next: Instant::now() + interval, look, earlier }))
}

impl Subscription {
    fn message(&mut self, subject: &Subject) -> Answer {
        let (statistics, now) = subject.statistics(self.look, Some(&self.earlier));
        self.earlier = now;
        // They have until the next message.
        self.look = subject.ledger.look();
        // Not from `next` on: who was kept waiting, as the machine was asleep, is not told many times at once.
        self.next = Instant::now() + self.interval;
        Answer::Statistics(statistics)
    }
}
