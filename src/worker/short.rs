//! Connections that were not read for want of memory in the process: they are tried again once some is free.

use std::collections::VecDeque;
use std::time::Duration;

use crate::memory::Memory;
use crate::time::deadline::Moment;

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

    /// Whether those who hold much have had that `patience` to move some, and an eighth of it for each that was cut off since.
    pub(super) fn is_out_of_patience(&mut self, now: Moment, patience: Duration) -> bool {
        if self.patience == Moment::NEVER {
            self.patience = now.after(patience);
        }
        let is_out = self.patience <= now;
        if is_out {
            self.patience = now.after(patience / 8);
        }
        is_out
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The next one to try, if it is time for that.
    pub(super) fn next(&mut self) -> Option<usize> {
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
