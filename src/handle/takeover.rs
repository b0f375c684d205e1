//! What the threads of a server share for a takeover, on either side of it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::past::Past;
use super::{Handle, Mail, Shared};
use crate::inspect::{EndedInfo, Takeover};
use crate::io::chronicle::Told;
use crate::io::stats::{Counts, Summary};
use crate::time::deadline::Moment;
use crate::wire::baton::{Baton, Event, Outcome};

/// A server's part in takeovers.
#[derive(Default)]
pub(crate) struct Succession {
    /// The workers are to stop between two events.
    pub(crate) freezing: AtomicBool,
    /// Another process has the listeners.
    was_given: AtomicBool,
    /// What all connections of each service have in common, for a process that takes over.
    pub(crate) common: OnceLock<Vec<Common>>,
    before: OnceLock<Before>,
    /// The process that stays; 0: there is none, or none any more.
    keeper: AtomicU32,
    /// Servers that it has seen crash.
    crashes: AtomicU64,
    /// Each connection of this server can go on in the next one, and is where that finds it.
    pub(crate) outlives: AtomicBool,
    /// The process at the other end of a takeover; 0: there is none.
    partner: AtomicU32,
    /// The takeover this server came from, and the one it ended in.
    pub(crate) took: OnceLock<Takeover>,
    pub(crate) gave: OnceLock<Takeover>,
}

/// What predecessors counted and noted.
struct Before {
    /// By listener.
    counts: Vec<Counts>,
    counted_for: Duration,
    /// The connections that ended last there, and when.
    ended: Vec<(Moment, EndedInfo)>,
}

impl Succession {
    pub(crate) fn keeper(&self) -> Option<u32> {
        Some(self.keeper.load(Ordering::Relaxed)).filter(|&pid| pid != 0)
    }

    /// How many servers have crashed, where there is a keeper.
    pub(super) fn crashes(&self) -> Option<u64> {
        self.keeper()?;
        Some(self.crashes.load(Ordering::Relaxed))
    }

    pub(crate) fn set_partner(&self, pid: Option<u32>) {
        self.partner.store(pid.unwrap_or(0), Ordering::Release);
    }

    pub(super) fn partner(&self) -> Option<u32> {
        Some(self.partner.load(Ordering::Acquire)).filter(|&pid| pid != 0)
    }

    /// Whom this server has taken over from.
    pub(super) fn took(&self) -> Option<u32> {
        self.took.get().map(|took| took.pid)
    }

    /// What is shown of takeovers.
    pub(super) fn last(&self) -> Option<&Takeover> {
        self.gave.get().or_else(|| self.took.get())
    }

    /// For how long predecessors counted.
    pub(super) fn counted_for(&self) -> Duration {
        let before = self.before.get();
        before.map_or(Duration::ZERO, |before| before.counted_for)
    }

    /// Adds what predecessors counted for a listener.
    pub(super) fn go_on(&self, listener: usize, sum: &mut Summary) {
        let before = self.before.get();
        if let Some(counts) = before.and_then(|before| before.counts.get(listener)) {
            sum.go_on(counts);
        }
    }

    /// The connections that ended last in predecessors.
    pub(super) fn ended_before(&self, now: Moment) -> impl Iterator<Item = EndedInfo> {
        let before = self.before.get().into_iter();
        let ended = before.flat_map(|before| &before.ended);
        ended.map(move |(at, one)| EndedInfo {
            ago: now.since(*at),
            ..one.clone()
        })
    }
}

/// What all connections of a service have in common. An error says in words what went wrong.
pub(crate) struct Common {
    /// The listeners with that service.
    pub(crate) listeners: Vec<u16>,
    /// The next part that may go ahead of the rest, and how far that is then; given how far it was.
    pub(crate) ahead: Ask<(Formed, u64)>,
    /// The rest. Called while no worker serves.
    pub(crate) rest: Ask<Formed>,
}

/// Asks a service for what there is of that, given how far it has gone ahead.
type Ask<T> = Box<dyn Fn(u64) -> Result<Option<T>, String> + Send + Sync>;

/// Bytes, behind the number of the form they are in.
pub(crate) type Formed = (u16, Vec<u8>);

/// What a worker is to do in a takeover.
#[derive(Debug)]
pub(crate) enum Call {
    /// Send a copy of every connection to the process that takes over.
    Give(Arc<Baton>, Sender<Event>),
    /// The takeover failed: the copies do not count.
    Keep,
    /// Stand still, send the rest until then, and learn what came of it.
    Freeze(Instant, Receiver<Outcome>),
}

impl Handle {
    /// Has every worker stand still, with all connections where the next server finds them, for a process that ends at once then:
    /// to its clients that is a crash which nobody notices. Answers whether all of them are there, within `bound`; `None`, and nothing
    /// has changed: there is no [keeper](crate::Config::keeper), a listener's service does not go on with its connections, or
    /// another process has them.
    #[must_use]
    pub fn leave(&self, bound: Duration) -> Option<bool> {
        let shared = &self.shared;
        let goes = shared.takeover.outlives.load(Ordering::Acquire);
        if !goes || shared.is_freezing() || shared.was_given() {
            return None;
        }
        let mut whole = true;
        // The first accepts: what it has sent the others is before this in their mailboxes.
        for worker in &shared.workers {
            let (left, is_whole) = mpsc::channel();
            worker.post(Mail::Leave(left));
            whole &= is_whole.recv_timeout(bound).unwrap_or(false);
        }
        Some(whole)
    }
}

impl Shared {
    /// Process `pid` stays when this one ends, and has seen so many servers crash.
    pub(crate) fn keep(&self, pid: u32, crashes: u64) {
        self.takeover.keeper.store(pid, Ordering::Relaxed);
        self.takeover.crashes.store(crashes, Ordering::Relaxed);
    }

    /// No process does any more.
    pub(super) fn keep_no_more(&self) {
        self.takeover.keeper.store(0, Ordering::Relaxed);
    }

    pub(crate) fn last_id(&self) -> u64 {
        self.accepting.last_id.load(Ordering::Relaxed)
    }

    /// Numbers go on behind `id`.
    pub(crate) fn continue_from(&self, id: u64) {
        self.accepting.last_id.fetch_max(id, Ordering::Relaxed);
    }

    /// The same of every listener, for the next process.
    pub(crate) fn counts(&self) -> Vec<Counts> {
        let listeners = 0..self.shown.listeners.len();
        listeners.map(|at| self.counted(at).counts()).collect()
    }

    /// Counting and showing go on where a predecessor ended: `counts` are those of its listeners, which are here the `ours`th.
    pub(crate) fn go_on_counting(
        &self,
        (counts, counted_for, told): (Vec<Counts>, Duration, Told),
        ours: &[u16],
        past: Vec<Past>,
    ) {
        self.chronicle.go_on(told);
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self.go_on_showing(past, &mut samples);
        let mut before = vec![Counts::default(); self.shown.listeners.len()];
        for (counts, &at) in counts.into_iter().zip(ours) {
            if let Some(before) = before.get_mut(usize::from(at)) {
                *before = counts;
            }
        }
        // Once, at the takeover this process begins with. While that was under way the other one counted.
        let _ = self.takeover.before.set(Before {
            counts: before,
            counted_for: counted_for.saturating_sub(self.uptime()),
            ended,
        });
    }

    /// Has the server beside this one accept nobody, or go on: once this returns, whoever comes waits in the backlog, which
    /// both processes of a takeover share. So nobody hears less of this process than another has said already.
    pub(crate) fn shut_beside(&self, shut: bool) {
        if let Some(beside) = self.beside.get() {
            let about = &beside.handle.shared;
            let alone = about.accepting.descriptors.lock();
            about.accepting.shut.store(shut, Ordering::Relaxed);
            drop(alone);
            about.wake_all();
        }
    }

    /// Another process has the listeners.
    pub(crate) fn given(&self) {
        self.takeover.was_given.store(true, Ordering::Release);
        self.accepting.closed.store(true, Ordering::Release);
        // Who asks next asks that one: this one accepts nobody by now, and leaves those who wait to it.
        if let Some(beside) = self.beside.get() {
            beside.handle.drain();
        }
    }

    /// Whether another process has the listeners.
    pub(crate) fn was_given(&self) -> bool {
        self.takeover.was_given.load(Ordering::Acquire)
    }

    /// Nobody serves: the workers stand still, and another process may be about to go on in their place.
    pub(crate) fn is_freezing(&self) -> bool {
        self.takeover.freezing.load(Ordering::Acquire)
    }
}
