//! One worker of a load: opens its share of the connections, sends what is due on them, and sees what comes back.
//!
//! What is due goes out in [`Worker::pump`], whenever there may be room for it: a message has become due (`turn`), an echo
//! has come (`input`), the kernel takes output again (`writable`), the connection is there (`connected`).

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use standfast::CloseReason;
use standfast::client::{Caller, End, Link, LinkId, Links, Next};
use standfast::dial::{DialError, DialErrorKind};
use standfast::inspect::TlsInfo;

use crate::Failure;
use crate::args::dial_tls::{OURS, with_hint};
use crate::load::News;
use crate::load::SECOND;
use crate::load::board::Board;
use crate::load::control::Control;
use crate::load::plan::{Mode, Plan, Share};
use crate::load::schedule::Schedule;
use crate::load::slot::{Cause, Slot};
use crate::load::tally::{Latencies, Tally};
use crate::load::verify::Peer;

const FOREVER: u64 = u64::MAX;

/// Bytes generated and sent at a go.
const PIECE: usize = 64 * 1024;

/// Messages sent in one turn because they are due, before the echoes that came get theirs.
const DUE_IN_A_TURN: usize = 512;

/// How often it is looked who has waited too long: this part of the read timeout, within these bounds.
const LOOKS: u64 = 20;
const LOOK_LEAST: u64 = SECOND / 100;
const LOOK_MOST: u64 = SECOND;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Connections are made, nothing is sent.
    Opening,
    Sending,
    /// Nothing new is sent, the last echoes are awaited.
    Ending,
    Over,
}

#[derive(Debug)]
pub(super) struct Worker {
    plan: Plan,
    share: Share,
    control: Arc<Control>,
    board: Arc<Board>,
    news: Sender<News>,
    phase: Phase,
    /// When sending ends, as known in this turn.
    end: u64,
    slots: Vec<Slot>,
    /// Which slot a link is for.
    by_id: Vec<usize>,
    /// Slots without a link.
    free: Vec<usize>,
    /// When each outstanding message was due: a ring for each slot.
    due: Vec<u64>,
    ring: usize,
    /// Links opened at the start, and of these, without an outcome yet.
    opened: usize,
    untried: usize,
    opening: Option<Schedule>,
    last_opened: u64,
    is_settled: bool,
    schedule: Option<Schedule>,
    /// The next message of the schedule that is not due yet; with churn also the next one to be begun.
    cursor: u64,
    begun: u64,
    /// Slots that are owed an echo.
    owing: usize,
    next_look: u64,
    next_post: u64,
    next_stream: u32,
    piece: Box<[u8]>,
    pub(super) tally: Tally,
    /// Since the last post.
    recent: Latencies,
    pub(super) latencies: Latencies,
    /// Of the first connection.
    pub(super) tls: Option<TlsInfo>,
}

impl Worker {
    pub(super) fn new(
        plan: Plan,
        share: Share,
        control: Arc<Control>,
        board: Arc<Board>,
        news: Sender<News>,
    ) -> Result<Self, Failure> {
        let ring = usize::try_from(plan.pipeline).unwrap_or(usize::MAX);
        let ring = ring.next_power_of_two();
        let slots = share.connections;
        let latencies = Latencies::new()?;
        // With a rate, churn makes a connection when it is due.
        let waits = plan.mode == Mode::Churn && plan.rate.is_some();
        let now = control.now();
        Ok(Self {
            plan,
            share,
            board,
            news,
            phase: Phase::Opening,
            end: FOREVER,
            slots: std::iter::repeat_with(Slot::new).take(slots).collect(),
            by_id: Vec::new(),
            free: if waits {
                (0..slots).rev().collect()
            } else {
                Vec::new()
            },
            due: vec![0; slots.saturating_mul(ring)],
            ring,
            opened: if waits { slots } else { 0 },
            untried: 0,
            opening: share.connect_rate.map(|rate| Schedule::new(now, rate)),
            last_opened: now,
            is_settled: false,
            schedule: None,
            cursor: 0,
            begun: 0,
            owing: 0,
            next_look: now,
            next_post: now + plan.every,
            next_stream: u32::try_from(share.number).unwrap_or(0),
            piece: vec![0; PIECE].into_boxed_slice(),
            tally: Tally::default(),
            recent: latencies.clone(),
            latencies,
            tls: None,
            control,
        })
    }

    /// Makes connections, as fast as is allowed. When to go on.
    fn open(&mut self, links: &mut Links<'_>, now: u64) -> u64 {
        while self.opened < self.slots.len() && self.untried < self.share.under_way {
            if let Some(opening) = &self.opening {
                let due = opening.due(self.opened as u64);
                if due > now {
                    return due;
                }
            }
            let at = self.opened;
            self.slots[at].due = self.control.now();
            self.open_slot(links, at);
            self.opened += 1;
            self.last_opened = now;
        }
        FOREVER
    }

    fn open_slot(&mut self, links: &mut Links<'_>, at: usize) {
        let id = links.open();
        match self.by_id.get_mut(id) {
            Some(slot) => *slot = at,
            None => self.by_id.push(at),
        }
        self.slots[at].id = id;
        self.slots[at].is_tried = false;
        self.untried += 1;
    }

    /// Says once that all connections are up, or have had their time. When that will be.
    fn settle(&mut self, known: u64) -> u64 {
        if self.is_settled || self.phase != Phase::Opening {
            return FOREVER;
        }
        let until = match self.plan.connect_timeout {
            _ if self.plan.mode == Mode::Churn || self.tally.up == self.slots.len() as u64 => 0,
            Some(timeout) if self.opened == self.slots.len() => self.last_opened + timeout,
            _ => FOREVER,
        };
        if until > known {
            return until;
        }
        self.is_settled = true;
        // The main thread waits for it, or has ended.
        let _ = self.news.send(News::Settled {
            connects: self.tally.connects,
        });
        FOREVER
    }

    /// Begins to send.
    fn begin(&mut self, links: &mut Links<'_>, start: u64) {
        self.phase = Phase::Sending;
        // The seconds count from here.
        self.publish();
        self.next_post = start + self.plan.every;
        let rate = self.share.rate;
        self.schedule = rate.map(|rate| Schedule::new(start + self.share.offset, rate));
        if self.schedule.is_none() {
            for at in 0..self.slots.len() {
                self.pump_at(links, at);
            }
        }
    }

    /// Sends what has become due. When something will.
    fn dispatch(&mut self, links: &mut Links<'_>, now: u64) -> u64 {
        let Some(schedule) = self.schedule else {
            return FOREVER;
        };
        let due_now = schedule.before(self.end.min(now + 1));
        let mut left = DUE_IN_A_TURN;
        if self.plan.mode == Mode::Churn {
            while self.begun < due_now
                && left > 0
                && let Some(at) = self.free.pop()
            {
                self.slots[at].due = schedule.due(self.begun);
                self.slots[at].is_counted = false;
                self.begun += 1;
                self.open_slot(links, at);
                left -= 1;
            }
            self.cursor = due_now;
        }
        // Sending what is due on a connection sends all of it: no connection is looked at twice.
        let round = self.slots.len() as u64;
        self.cursor = self.cursor.max(due_now.saturating_sub(round));
        while self.cursor < due_now {
            if left == 0 {
                return now;
            }
            let at = self.cursor % round;
            self.cursor += 1;
            self.pump_at(links, usize::try_from(at).unwrap_or(0));
            left -= 1;
        }
        let due = schedule.due(self.cursor);
        if due < self.end { due } else { FOREVER }
    }

    fn pump_at(&mut self, links: &mut Links<'_>, at: usize) {
        let slot = &self.slots[at];
        // One without room sends on when its echo comes.
        if slot.up
            && slot.outstanding() < self.plan.pipeline
            && let Some(mut link) = links.link(self.slots[at].id)
        {
            let now = self.control.now();
            self.pump(at, &mut link, now);
        }
    }

    /// Begins the messages that are due and for which there is room, and sends what the kernel takes.
    #[inline]
    fn pump(&mut self, at: usize, link: &mut Link<'_>, now: u64) {
        let slot = &mut self.slots[at];
        if slot.cause.is_some() {
            return;
        }
        if self.phase == Phase::Sending {
            let ring = &mut self.due[at * self.ring..(at + 1) * self.ring];
            while slot.outstanding() < self.plan.pipeline {
                let due = match (self.plan.mode, &self.schedule) {
                    (Mode::Idle, _) => break,
                    (Mode::Churn, _) if slot.begun > 0 => break,
                    (Mode::Churn, _) => slot.due,
                    (Mode::Echo, None) => now,
                    (Mode::Echo, Some(schedule)) => {
                        let number = at as u64 + slot.next * self.share.connections as u64;
                        schedule.due(number)
                    }
                };
                if due > now || due >= self.end {
                    break;
                }
                let place = usize::try_from(slot.begun).unwrap_or(usize::MAX) & (self.ring - 1);
                ring[place] = due;
                slot.begun += 1;
                slot.begun_at += self.plan.size;
                slot.next += u64::from(!slot.is_counted);
                slot.is_counted = self.plan.mode == Mode::Churn;
                self.tally.sent += 1;
            }
        }
        while slot.verifier.sent() < slot.begun_at {
            let left = usize::try_from(slot.begun_at - slot.verifier.sent());
            let piece = &mut self.piece[..left.unwrap_or(usize::MAX).min(PIECE)];
            if self.plan.verify {
                slot.verifier.write(piece);
            }
            let taken = link.send(piece);
            slot.verifier.took(taken);
            self.tally.sent_bytes += taken as u64;
            if taken < piece.len() {
                break;
            }
        }
        let owed = slot.verifier.settled() < slot.begun_at;
        if owed != slot.owed {
            slot.owed = owed;
            slot.waits_since = now;
            if owed {
                self.owing += 1;
            } else {
                self.owing -= 1;
            }
        }
    }

    /// Counts the messages whose last byte is settled, which came with nothing wrong beside them, or not.
    #[inline]
    fn settle_messages(&mut self, at: usize, now: u64, is_right: bool) {
        let slot = &mut self.slots[at];
        let ring = &self.due[at * self.ring..(at + 1) * self.ring];
        while slot.settled < slot.begun && slot.settled_at <= slot.verifier.settled() {
            if slot.verifier.has_come(slot.settled_at - 1) {
                let place = usize::try_from(slot.settled).unwrap_or(usize::MAX) & (self.ring - 1);
                self.recent.record(now.saturating_sub(ring[place]));
                self.tally.echoed += 1;
                self.tally.is_proven |= is_right;
            }
            slot.settled += 1;
            slot.settled_at += self.plan.size;
        }
    }

    /// Gives up those who have waited too long for what is `known` to have come. When to look again.
    fn look(&mut self, links: &mut Links<'_>, now: u64, known: u64) -> u64 {
        if self.plan.mode == Mode::Idle {
            return FOREVER;
        }
        if now >= self.next_look {
            let every = (self.plan.read_timeout / LOOKS).clamp(LOOK_LEAST, LOOK_MOST);
            self.next_look = now + every;
            for slot in &mut self.slots {
                let waited = known.saturating_sub(slot.waits_since);
                if slot.up
                    && slot.owed
                    && slot.cause.is_none()
                    && waited >= self.plan.read_timeout
                    && let Some(mut link) = links.link(slot.id)
                {
                    slot.cause = Some(Cause::TimedOut);
                    link.abort();
                }
            }
        }
        self.next_look
    }

    /// Puts up what was counted, from time to time.
    fn post(&mut self, now: u64) -> u64 {
        if now >= self.next_post {
            self.publish();
            let every = self.plan.every;
            self.next_post += every * ((now - self.next_post) / every + 1);
        }
        self.next_post
    }

    fn publish(&mut self) {
        let now = self.control.now();
        self.board
            .post(self.share.number, now, &self.tally, &self.recent);
        self.latencies.add(&self.recent);
        self.recent.clear();
    }

    /// Sends nothing new from now on.
    fn wind_down(&mut self) {
        self.phase = Phase::Ending;
        self.tally.echoed_in_time = self.tally.echoed;
        self.tally.received_in_time = self.tally.received_bytes;
        self.free.clear();
        for slot in self.slots.iter_mut().filter(|slot| slot.up) {
            self.tally.sent -= slot.give_back(self.plan.size);
            if slot.owed && slot.verifier.settled() >= slot.begun_at {
                slot.owed = false;
                self.owing -= 1;
            }
        }
    }

    fn finish(&mut self, links: &mut Links<'_>, now: u64) {
        self.phase = Phase::Over;
        for at in 0..self.slots.len() {
            if self.slots[at].up {
                self.conclude(at, now);
                self.tally.up += 1;
            }
        }
        if let Some(schedule) = &self.schedule {
            let sent: u64 = self.slots.iter().map(|slot| slot.next).sum();
            self.tally.unsent = schedule.before(self.end).saturating_sub(sent);
        }
        self.publish();
        links.end();
    }

    /// The end of a connection, for whatever reason: what is outstanding on it will not come.
    fn conclude(&mut self, at: usize, now: u64) {
        let slot = &mut self.slots[at];
        self.tally.up -= 1;
        if slot.owed {
            slot.owed = false;
            self.owing -= 1;
            let gap = now.saturating_sub(slot.waits_since);
            self.tally.longest_gap = self.tally.longest_gap.max(gap);
        }
        if self.plan.mode != Mode::Idle {
            slot.verifier.finish(&mut self.tally.faults);
        }
        slot.up = false;
        self.tally.sent -= slot.give_back(self.plan.size);
    }

    fn at(&self, id: LinkId) -> usize {
        self.by_id.get(id).copied().unwrap_or(0)
    }

    fn tried(&mut self, at: usize) {
        if !std::mem::replace(&mut self.slots[at].is_tried, true) {
            self.untried -= 1;
        }
    }
}

impl Caller for Worker {
    fn connected(&mut self, link: &mut Link<'_>) {
        let at = self.at(link.id());
        self.tried(at);
        self.tally.connects += 1;
        self.tally.up += 1;
        let was_lost = std::mem::take(&mut self.slots[at].was_lost);
        self.tally.reconnects += u64::from(was_lost);
        if self.tls.is_none() {
            self.tls = link.tls();
        }
        self.slots[at].connected(self.next_stream, self.plan.size);
        let workers = u32::try_from(self.plan.workers).unwrap_or(1);
        self.next_stream = self.next_stream.wrapping_add(workers);
        let now = self.control.now();
        self.pump(at, link, now);
    }

    #[inline]
    fn input(&mut self, link: &mut Link<'_>, bytes: &[u8]) {
        let now = self.control.now();
        let at = self.at(link.id());
        self.tally.received_bytes += bytes.len() as u64;
        let slot = &mut self.slots[at];
        if slot.cause.is_some() || self.plan.mode == Mode::Idle {
            return;
        }
        if slot.owed {
            let gap = now.saturating_sub(slot.waits_since);
            self.tally.longest_gap = self.tally.longest_gap.max(gap);
        }
        slot.waits_since = now;
        let faults = &mut self.tally.faults;
        let corrupted = faults.corrupted;
        if self.plan.verify {
            if slot.verifier.received(bytes, faults) == Peer::Foreign {
                slot.cause = Some(Cause::Foreign);
                return link.abort();
            }
        } else {
            slot.verifier.counted(bytes.len(), faults);
        }
        let is_right = faults.corrupted == corrupted;
        self.settle_messages(at, now, is_right);
        self.pump(at, link, now);
        let slot = &mut self.slots[at];
        if self.plan.mode == Mode::Churn && slot.begun > 0 && slot.outstanding() == 0 {
            slot.cause = Some(Cause::Done);
            link.leave();
        }
    }

    fn writable(&mut self, link: &mut Link<'_>) {
        let at = self.at(link.id());
        let now = self.control.now();
        self.pump(at, link, now);
    }

    fn ended(&mut self, id: LinkId, end: &End) -> Next {
        let at = self.at(id);
        let now = self.control.now();
        self.conclude(at, now);
        let cause = self.slots[at].cause;
        match cause {
            Some(Cause::Done) => {}
            Some(Cause::TimedOut) => self.tally.ended(CloseReason::ReadTimeout),
            Some(Cause::Foreign) => self.tally.foreign += 1,
            None => self.tally.ended(end.reason),
        }
        if end.refuses_certificate() {
            self.tally.failed.certificate += 1;
            let alert = end.tls.unwrap_or_default();
            let why = format!("{} refuses the certificate: {alert}{OURS}", end.server);
            if self.control.failed(why, true).is_some() {
                let _ = self.news.send(News::Refused);
            }
            return Next::Drop;
        }
        if matches!(self.phase, Phase::Ending | Phase::Over) {
            return Next::Drop;
        }
        let slot = &mut self.slots[at];
        if cause != Some(Cause::Done) {
            slot.was_lost = true;
            return Next::Retry;
        }
        if self.schedule.is_some() {
            self.free.push(at);
            return Next::Drop;
        }
        slot.due = now;
        Next::RetryNow
    }

    fn failed(&mut self, id: LinkId, error: &DialError) -> Next {
        let at = self.at(id);
        self.tried(at);
        self.tally.failed.count(error.kind());
        let is_refused = error.kind() == DialErrorKind::Certificate;
        if let Some(why) = self.control.failed(with_hint(error), is_refused) {
            let _ = self.news.send(match is_refused {
                true => News::Refused,
                false => News::Trouble(why),
            });
        }
        match self.phase {
            _ if is_refused => Next::Drop,
            Phase::Opening | Phase::Sending => Next::Retry,
            Phase::Ending | Phase::Over => Next::Drop,
        }
    }

    fn stood_still(&mut self, length: Duration) {
        // Said by one of them: all have stood still.
        if self.share.number == 0 {
            let _ = self.news.send(News::StoodStill(length));
        }
    }

    fn turn(&mut self, links: &mut Links<'_>) -> Option<Instant> {
        let now = self.control.nanos(links.now());
        let known = self.control.nanos(links.known());
        let mut next = FOREVER;
        self.end = self.control.end();
        if matches!(self.phase, Phase::Opening | Phase::Sending) {
            next = next.min(self.open(links, now)).min(self.settle(known));
        }
        if self.phase == Phase::Opening {
            let start = self.control.start();
            if start <= now {
                self.begin(links, start);
            }
        }
        if self.phase == Phase::Sending {
            let due = self.dispatch(links, now);
            next = next.min(due).min(self.end);
            // What became due before the end is sent, if it can be.
            if now >= self.end && due > now {
                self.wind_down();
            }
        }
        next = next.min(self.look(links, now, known)).min(self.post(now));
        if self.phase == Phase::Ending {
            // Each is awaited as long as it is not silent for the read timeout.
            if self.owing == 0 || self.control.is_cut() {
                self.finish(links, now);
                return None;
            }
        }
        (next < FOREVER).then(|| self.control.instant(next))
    }
}

#[cfg(test)]
mod tests;
