//! Connections that were not read for want of memory in the process: they are tried again once some is free.

use std::collections::VecDeque;
use std::time::Duration;

use super::Worker;
use crate::connection::{Connection, Step};
use crate::io::Is;
use crate::liveness::close::{CloseReason, Ending, Note};
use crate::memory::Memory;
use crate::time::deadline::Moment;

/// Connections tried in a turn: events must not wait for all of them.
const BATCH: usize = 256;

/// How soon the system is asked again for memory when it had none.
const AGAIN: Duration = Duration::from_millis(100);

/// And how soon whether it has more than it had then.
const RISES: Duration = Duration::from_secs(1);

/// A worker's connections that wait for memory.
#[derive(Debug)]
pub(super) struct Short {
    memory: Memory,
    keys: VecDeque<usize>,
    /// The keys that are on it. One stays there when its connection goes: whoever has the key next is looked at for
    /// nothing, and nobody has to search for it.
    listed: Vec<bool>,
    /// So many of them are tried in the walk that is under way: each once.
    left: usize,
    /// The next walk begins once less than that is held, or the memory has recovered once more.
    below: usize,
    /// How often the memory had recovered when that was looked at last.
    recovered: usize,
    /// When somebody who holds much and moves nothing is to make room.
    patience: Moment,
    /// When the system is asked next whether it has more.
    rises: Moment,
}

impl Short {
    pub(super) fn new(memory: Memory) -> Self {
        Self {
            memory,
            keys: VecDeque::new(),
            listed: Vec::new(),
            left: 0,
            below: 0,
            recovered: 0,
            patience: Moment::NEVER,
            rises: Moment::at_start(),
        }
    }

    /// Puts the connection with that key there, once: what is held now was too much.
    pub(super) fn push(&mut self, key: usize) {
        if self.listed.len() <= key {
            self.listed.resize(key + 1, false);
        }
        if std::mem::replace(&mut self.listed[key], true) {
            return;
        }
        if self.keys.is_empty() {
            self.below = self.memory.room_to_wait_for();
        }
        self.keys.push_back(key);
    }

    /// Whether there is something to do at once; otherwise the worker is woken for it.
    pub(super) fn is_pressing(&self) -> bool {
        !self.keys.is_empty()
            && (self.left > 0
                || self.memory.recovered() != self.recovered
                || self.memory.wait_until_below(self.below))
    }

    /// Asks the system for memory that it did not have, if it is time for that. Answers when there is something to do next:
    /// that, or to look who could make room.
    pub(super) fn due(&mut self, now: Moment) -> Moment {
        if !self.memory.replenish() {
            return now.after(AGAIN);
        }
        let mut due = Moment::NEVER;
        if !self.keys.is_empty() {
            self.memory.settle();
            due = self.patience;
        }
        if !self.memory.is_lowered() {
            return due;
        }
        if self.rises <= now {
            self.memory.rise();
            self.rises = now.after(RISES);
        }
        due.min(self.rises)
    }

    /// The next one to try, if it is time for that.
    fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            let recovered = self.memory.recovered();
            let is_time = self.memory.held() < self.below || recovered != self.recovered;
            self.recovered = recovered;
            if self.keys.is_empty() || !is_time {
                return None;
            }
            self.left = self.keys.len();
            self.patience = Moment::NEVER;
            self.below = self.memory.room_to_wait_for();
        }
        if self.memory.is_full() {
            self.left = 0;
            return None;
        }
        self.left -= 1;
        let key = self.keys.pop_front()?;
        self.listed[key] = false;
        Some(key)
    }
}

impl Worker {
    /// Those who wait for memory get none for as long as whoever has it keeps still. With output waiting that is a write
    /// stall; with input that no service can use, such as half a line, the one that holds most of it is cut off once
    /// it has kept still as long.
    fn make_room(&mut self) {
        let timeouts = self.origins.iter();
        let timeouts = timeouts.filter_map(|origin| origin.settings.limits.write_timeout);
        let Some(patience) = timeouts.min() else {
            return;
        };
        if self.short.patience == Moment::NEVER {
            self.short.patience = self.now.after(patience);
        }
        if self.now < self.short.patience {
            return;
        }
        self.short.patience = self.now.after(patience / 8);
        let hoards = |connection: &Connection| {
            let origin = &self.origins[usize::from(connection.io.listener)];
            let turn = origin.turn(self.now);
            let limit = turn.limits.write_timeout;
            limit.is_some_and(|limit| connection.io.hoards(&turn, limit))
        };
        let hoarding = self.connections.iter();
        let hoarding = hoarding.filter(|(_, connection)| hoards(connection));
        let most = hoarding.max_by_key(|(_, connection)| connection.io.held());
        if let Some(key) = most.map(|(key, _)| key) {
            self.step(key, |connection, _| {
                connection.io.set_remark(Note::Limit("memory"));
                let ending = Ending::reset(CloseReason::Limit);
                Step::Close(connection.io.cut_off(ending))
            });
        }
    }

    /// Tries some of those that wait for memory, if there is more than there was.
    pub(super) fn serve_short(&mut self) {
        if self.short.keys.is_empty() {
            return;
        }
        self.make_room();
        for _ in 0..BATCH {
            let Some(key) = self.short.next() else { break };
            let Some(connection) = self.connections.get(key) else {
                continue;
            };
            let origin = &self.origins[usize::from(connection.io.listener)];
            if connection.io.is(Is::Short) && !connection.io.has_memory(&origin.turn(self.now)) {
                self.short.push(key);
                continue;
            }
            self.freeze_in_time();
            self.step(key, Connection::advance);
        }
    }
}
