//! The old process's side: the conversation, from the comparison to `running`.

use std::collections::HashSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::handle::takeover::Call;
use crate::handle::{Handle, Mail};
use crate::handoff::ahead::Ahead;
use crate::inspect::{Role, Takeover};
use crate::os::socket_file::Place;
use crate::wire::baton::{Baton, Event, FITS, FREEZE, Failure, Fate, Outcome, Sum, late, lost};
use crate::wire::line::{Line, now, shared_clock};
use crate::wire::record::Message;

/// How long the new process may take nothing in.
const STILL: Duration = Duration::from_secs(5);

/// How long it may take to hear that a freeze came too late.
const HEARS: Duration = Duration::from_secs(2);

/// How long it is waited for changes to become fewer, once everything was sent, before a freeze is tried that takes
/// longer than it should; and what is too much for that.
const PATIENCE: Duration = Duration::from_secs(1);
const MUCH: Duration = Duration::from_millis(10);

/// How long parts may go ahead of what connections have in common, once all else was sent: a service that makes more all
/// the while, and as fast, would never let the freeze begin.
const AHEAD: Duration = Duration::from_secs(10);

/// How often a freeze may come too late, and how long everybody is served before the next one: clients that stood still
/// for one are not to stand still for a tenth of the time.
const FREEZES: u32 = 5;
const BETWEEN: Duration = Duration::from_millis(500);

/// How long the new process may take to say that it runs; the connections are its own by then.
const RUNNING: Duration = Duration::from_secs(2);

/// How often it is looked whether the server was told to end.
const GLANCE: Duration = Duration::from_millis(5);

/// What makes paths this server's.
pub(crate) struct Paths<'a> {
    /// The control socket and its lock, then the locks of the listeners' paths.
    pub(crate) descriptors: Vec<BorrowedFd<'a>>,
    /// What stands at the path of each lock.
    pub(crate) places: Vec<Place>,
}

/// Gives this server to the process `pid` at the other end of `line`: from the pre-copy to `running`.
///
/// `past`: it goes on with what is shown here. Answers the line, too: the new process hears by its end that this one has ended.
///
/// # Errors
/// In words, why it was not given; the server goes on as if nothing had happened.
pub(crate) fn give(
    line: Line,
    handle: &Handle,
    pid: u32,
    fates: Vec<Fate>,
    past: bool,
    paths: &Paths<'_>,
) -> Result<(Takeover, Arc<Baton>), String> {
    line.widen();
    let (events, told) = mpsc::channel();
    let conversation = Conversation {
        baton: Arc::new(Baton::new(line, fates, handle.shared.workers.len())),
        handle,
        told,
        past,
    };
    let workers = &handle.shared.workers;
    let share = || Mail::Takeover(Call::Give(Arc::clone(&conversation.baton), events.clone()));
    // The listeners come first: the connections name them.
    workers[0].post(share());
    let announced = conversation.announced();
    if announced.is_ok() {
        for worker in &workers[1..] {
            worker.post(share());
        }
    }
    drop(events);
    let common = handle.shared.takeover.common.get();
    let mut ahead = Ahead::of(common.map_or(&[], Vec::as_slice), &conversation.baton);
    let given = announced.and_then(|()| conversation.complete(&mut ahead, paths));
    match given {
        Ok((sum, frozen)) => {
            let takeover = Takeover {
                role: Role::Gave,
                pid,
                connections: sum.connections,
                staying: sum.staying,
                frozen,
            };
            Ok((takeover, conversation.baton))
        }
        Err(why) => {
            for worker in workers {
                worker.post(Mail::Takeover(Call::Keep));
            }
            // It may have gone itself, or hang.
            let _ = conversation.pass(&Message::Abort(why.clone()), &[], now());
            Err(why)
        }
    }
}

/// The old process's conversation with the new one, over the heads of the workers.
struct Conversation<'a> {
    baton: Arc<Baton>,
    handle: &'a Handle,
    /// What the workers say.
    told: Receiver<Event>,
    /// What is shown goes along.
    past: bool,
}

impl Conversation<'_> {
    /// Waits until worker 0 has sent the listeners.
    fn announced(&self) -> Result<(), String> {
        match self.told.recv_timeout(STILL) {
            Ok(Event::Announced) => Ok(()),
            Ok(Event::Failed(why)) => Err(why.into_words()),
            Ok(_) | Err(_) => Err("the listeners could not be sent".to_owned()),
        }
    }

    /// Sends everything, freezes, and commits; a freeze that comes too late is followed by another.
    fn complete(
        &self,
        ahead: &mut Ahead<'_>,
        paths: &Paths<'_>,
    ) -> Result<(Sum, Duration), String> {
        let mut earliest = now();
        let mut freezes = 0;
        let mut past = HashSet::new();
        if self.past {
            let shown = Message::Past(self.handle.shared.past(&mut past));
            let sent = self.baton.pass(&shown, &[], Some(now() + STILL));
            sent.map_err(|error| lost(&error))?;
        }
        loop {
            freezes += 1;
            self.pre_copy(ahead, earliest)?;
            let began = now();
            let why = match self.freeze(ahead, &mut past, paths) {
                Ok(given) => return Ok(given),
                Err(Failure::Late(why)) if freezes == FREEZES => {
                    return Err(format!("in {freezes} freezes {why}"));
                }
                Err(Failure::Late(why)) => why,
                Err(Failure::Over(why)) => return Err(why),
            };
            let frozen_ms = now().saturating_duration_since(began).as_millis();
            log::info!(frozen_ms, reason = why.as_str(); "late in the freeze, serving until the next one");
            self.thaw()?;
            earliest = now() + BETWEEN;
        }
    }

    /// Waits until every worker has sent everything, however long that takes, and what has changed since is known to
    /// fit into the freeze, which is not to begin before `earliest`.
    fn pre_copy(&self, ahead: &mut Ahead<'_>, earliest: Instant) -> Result<(), String> {
        let mut patience = now() + STILL;
        let mut convergence = Convergence::default();
        let mut alone: Option<Instant> = None;
        let mut holds_up: Option<Instant> = None;
        loop {
            self.nobody_failed()?;
            self.give_way(&mut holds_up);
            let left = self.baton.left();
            let behind = alone.map_or(Duration::ZERO, |since| {
                now().saturating_duration_since(since)
            });
            if ahead.advance(&self.baton, behind < AHEAD)? {
                if now() >= earliest
                    && left.is_some_and(|left| self.is_time(left, &mut convergence))
                {
                    return Ok(());
                }
            } else if left.is_some() {
                alone.get_or_insert_with(now);
                if behind > PATIENCE {
                    // They make more of it in common than can be copied.
                    self.baton.hold();
                }
            }
            self.not_ending()?;
            match self.baton.line.take(now() + GLANCE) {
                Ok((Message::Taken { work, micros }, _)) => {
                    patience = now() + STILL;
                    holds_up = None;
                    self.taken(work, micros);
                }
                Ok((message, _)) => return Err(out_of_turn(message)),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    if now() >= patience {
                        let who = match self.baton.under_way() {
                            0 if left.is_some() => continue,
                            0 => "the running server was too busy and sent nothing",
                            _ => "the new process took nothing in",
                        };
                        return Err(format!("{who} for {} s", STILL.as_secs()));
                    }
                }
                Err(error) => return Err(lost(&error)),
            }
        }
    }

    /// Has nobody held up for longer than a freeze may take, counted from `since`, while the new process takes nothing in: it
    /// may hang.
    fn give_way(&self, since: &mut Option<Instant>) {
        if !self.baton.is_holding() || self.baton.under_way() == 0 {
            *since = None;
        } else if now() >= *since.get_or_insert_with(now) + FREEZE {
            self.baton.give_way();
            self.handle.shared.wake_all();
        }
    }

    /// Whether to freeze now, with `left` to be sent in that.
    fn is_time(&self, left: Duration, convergence: &mut Convergence) -> bool {
        if left <= FITS {
            return self.baton.under_way() == 0;
        }
        let without_progress = convergence.note(left, now());
        without_progress >= PATIENCE && left <= MUCH || without_progress >= STILL
    }

    /// The new process has taken a message in.
    fn taken(&self, work: u64, micros: u64) {
        if self.baton.taken(work, Duration::from_micros(micros)) {
            self.handle.shared.wake_all();
        }
    }

    /// While they serve.
    fn nobody_failed(&self) -> Result<(), String> {
        while let Ok(event) = self.told.try_recv() {
            if let Event::Failed(why) = event {
                return Err(self.last_words(why.into_words()));
            }
        }
        Ok(())
    }

    /// What the new process said before it was lost, rather than `why` that was noticed here.
    fn last_words(&self, why: String) -> String {
        loop {
            match self.baton.line.take(now() + GLANCE) {
                Ok((Message::Abort(its), _)) => return its,
                Ok(_) => {}
                Err(_) => return why,
            }
        }
    }

    fn not_ending(&self) -> Result<(), String> {
        if self.handle.is_ending() {
            return Err("the running server was told to end".to_owned());
        }
        Ok(())
    }

    /// Stops the workers, has them send the rest, and commits; whatever goes wrong before that, they thaw. Answers what
    /// was given, and how long nobody served.
    fn freeze(
        &self,
        ahead: &Ahead<'_>,
        past: &mut HashSet<u64>,
        paths: &Paths<'_>,
    ) -> Result<(Sum, Duration), Failure> {
        let frozen_at = shared_clock();
        let until = now() + FREEZE;
        let outcomes = self.tell_to_stop(until);
        let mut serving = outcomes.len();
        let stopped = self.stopped(&mut serving, until);
        let given = stopped.and_then(|sum| {
            ahead.send_rest(&self.baton, until)?;
            self.send_counts(past, until)?;
            self.commit(&sum, frozen_at, until, paths)?;
            self.owned()?;
            self.handle.shared.given();
            // The workers let go only then: the new process is to start before that work is done.
            Ok((sum, self.running()))
        });
        let shared = &self.handle.shared;
        shared.takeover.freezing.store(false, Ordering::Release);
        if given.is_err() {
            shared.lifecycle.gives(false);
            shared.shut_beside(false);
        }
        self.baton.release();
        for worker in outcomes {
            // A worker that has ended needs none.
            let _ = worker.send(match given {
                Ok(_) => Outcome::Committed,
                Err(_) => Outcome::Thawed,
            });
        }
        if let Err(Failure::Late(_)) = given {
            self.all_told(serving)?;
        }
        given
    }

    /// Tells every worker to stand still and to send what the new process does not know.
    fn tell_to_stop(&self, until: Instant) -> Vec<Sender<Outcome>> {
        let shared = &self.handle.shared;
        shared.takeover.freezing.store(true, Ordering::Release);
        shared.shut_beside(true);
        let workers = self.handle.shared.workers.iter();
        let told = workers.map(|worker| {
            let (outcome, known) = mpsc::channel();
            worker.post(Mail::Takeover(Call::Freeze(until, known)));
            outcome
        });
        told.collect()
    }

    /// Waits until all of them have done so; `serving` have not said anything yet.
    fn stopped(&self, serving: &mut usize, until: Instant) -> Result<Sum, Failure> {
        let mut sum = Sum::default();
        while *serving > 0 {
            // A worker that is late says so itself; this is for one that says nothing.
            let left = until.saturating_duration_since(now()) + GLANCE;
            match self.told.recv_timeout(left) {
                Ok(Event::Frozen(part)) => {
                    sum.connections += part.connections;
                    sum.ids = sum.ids.wrapping_add(part.ids);
                    sum.staying += part.staying;
                    *serving -= 1;
                }
                Ok(Event::Failed(Failure::Over(why))) => return Err(self.last_words(why).into()),
                Ok(Event::Failed(late)) => {
                    *serving -= 1;
                    return Err(late);
                }
                Ok(Event::Announced) => {}
                Err(RecvTimeoutError::Timeout) => {
                    let limit = FREEZE.as_millis();
                    let why = format!("the workers did not stop within {limit} ms");
                    return Err(Failure::Late(why));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err("the running server has ended".to_owned().into());
                }
            }
        }
        Ok(sum)
    }

    /// Waits until the last workers, still `serving`, have said what became of a freeze that is over.
    fn all_told(&self, serving: usize) -> Result<(), String> {
        for _ in 0..serving {
            match self.told.recv_timeout(STILL) {
                Ok(Event::Failed(Failure::Over(why))) => return Err(self.last_words(why)),
                Ok(_) => {}
                Err(_) => return Err("the running server's workers do not turn".to_owned()),
            }
        }
        Ok(())
    }

    /// Tells the new process that the freeze came too late, and waits until it has heard that.
    fn thaw(&self) -> Result<(), String> {
        self.pass(&Message::Thaw, &[], now() + HEARS)
            .map_err(Failure::into_words)?;
        let until = now() + HEARS;
        loop {
            self.nobody_failed()?;
            self.not_ending()?;
            match self.baton.line.take(until.min(now() + GLANCE)) {
                Ok((Message::Taken { work, micros }, _)) => self.taken(work, micros),
                // It was ready, too late.
                Ok((Message::Prepared, _)) => {}
                Ok((Message::Thaw, _)) => return Ok(()),
                Ok((message, _)) => return Err(out_of_turn(message)),
                Err(error) if error.kind() == io::ErrorKind::TimedOut && now() < until => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    let seconds = HEARS.as_secs();
                    return Err(format!("the new process heard nothing for {seconds} s"));
                }
                Err(error) => return Err(lost(&error)),
            }
        }
    }

    /// Sends what was counted, and who has ended but for those of the `past` that is there: nobody counts any more.
    fn send_counts(&self, past: &mut HashSet<u64>, until: Instant) -> Result<(), Failure> {
        let shared = &self.handle.shared;
        if let Some(shown) = shared.past_rest(past).filter(|_| self.past) {
            let shown = Message::Past(shown);
            self.baton.pass(&shown, &[], Some(until))?;
        }
        let counts = Message::Counts {
            listeners: shared.counts(),
            counted_for: u64::try_from(shared.counted_for().as_micros()).unwrap_or(u64::MAX),
            told: shared.chronicle.tell(),
        };
        Ok(self.baton.pass(&counts, &[], Some(until))?)
    }

    fn commit(
        &self,
        sum: &Sum,
        frozen_at: u64,
        until: Instant,
        paths: &Paths<'_>,
    ) -> Result<(), Failure> {
        let last = Message::Final {
            connections: sum.connections,
            sum: sum.ids,
            last_id: self.handle.shared.last_id(),
        };
        self.pass(&last, &[], until)?;
        loop {
            match self.baton.line.take(until) {
                Ok((Message::Prepared, _)) => break,
                Ok((Message::Taken { work, micros }, _)) => self.taken(work, micros),
                Ok((message, _)) => return Err(out_of_turn(message).into()),
                Err(error) => return Err(error.into()),
            }
        }
        self.not_ending()?;
        if now() > until {
            return Err(Failure::Late(late()));
        }
        let commit = Message::Commit {
            frozen_at,
            staying: sum.staying,
            places: paths.places.clone(),
        };
        self.handle.shared.lifecycle.gives(true);
        // Once this is in the queue, no connection is touched here any more, unless the new process ends first.
        self.pass(&commit, &paths.descriptors, until)
    }

    /// Waits for the new process's word that the connections are its own. However long that takes: without it nobody
    /// may touch them, and if it ends first, they are this one's as before.
    ///
    /// # Errors
    /// In words, that it never came to that.
    fn owned(&self) -> Result<(), String> {
        let mut said = false;
        loop {
            match self.baton.line.take(now() + RUNNING) {
                Ok((Message::Owned, _)) => return Ok(()),
                Ok((Message::Abort(why), _)) => return Err(why),
                Ok(_) => {}
                Err(error) if error.kind() != io::ErrorKind::TimedOut => return Err(lost(&error)),
                // Told to end, this process waits for nobody, and the new one may come to it yet.
                Err(_) if self.handle.is_ending() => return Ok(()),
                Err(_) if said => {}
                Err(_) => {
                    said = true;
                    log::error!(
                        "the new process has everything and does not go on: nobody serves until it does, or ends"
                    );
                }
            }
        }
    }

    /// Waits for the new process's word, how long nobody served; it serves with or without it.
    fn running(&self) -> Duration {
        let start = now();
        loop {
            match self.baton.line.take(start + RUNNING) {
                Ok((Message::Running { frozen }, _)) => return Duration::from_micros(frozen),
                Ok(_) => {}
                Err(error) => {
                    if error.kind() == io::ErrorKind::TimedOut {
                        log::error!(
                            "the new process took the connections over and does not say that it runs"
                        );
                    }
                    return now().saturating_duration_since(start);
                }
            }
        }
    }

    fn pass(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
        until: Instant,
    ) -> Result<(), Failure> {
        let bytes = message.encode()?;
        Ok(self.baton.line.pass(&bytes, descriptors, Some(until))?)
    }
}

/// How what is left to be sent becomes less.
#[derive(Default)]
struct Convergence {
    /// The least that was left so far, and since when.
    least: Option<(Duration, Instant)>,
}

impl Convergence {
    /// So much is left. Answers for how long that has not become less by half.
    fn note(&mut self, left: Duration, now: Instant) -> Duration {
        match self.least {
            Some((least, since)) if left > least / 2 => now.saturating_duration_since(since),
            _ => {
                self.least = Some((left, now));
                Duration::ZERO
            }
        }
    }
}

fn out_of_turn(message: Message) -> String {
    match message {
        Message::Abort(why) => why,
        _ => "the new process said something out of turn".to_owned(),
    }
}

#[cfg(test)]
mod tests;
