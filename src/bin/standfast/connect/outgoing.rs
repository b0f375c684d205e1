//! Bytes that wait for the server: at most so many, and what becomes of more while there is no connection. Pure; who
//! reads stdin is `input.rs`, who sends is `session.rs`.
//!
//! Every byte taken is given out once, in order, or is dropped as part of a whole line. A line of which a part was given
//! out is never dropped: its rest goes first on the next connection.

use std::collections::VecDeque;

use crate::args::BufferPolicy;

/// What was dropped, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
}

/// The bytes that wait.
#[derive(Debug)]
pub(crate) struct Outgoing {
    most: usize,
    policy: BufferPolicy,
    connected: bool,
    /// What is left of the line that was begun on a connection now lost; kept apart, so that lines behind it are dropped
    /// without moving it. Always empty under `block`.
    rest: VecDeque<u8>,
    /// The end of that line has not come yet: what comes belongs to `rest`.
    rest_is_open: bool,
    lines: VecDeque<u8>,
    /// The last byte given out was not the end of a line.
    begun: bool,
    /// What comes belongs to a line that is dropped, up to its end.
    skipping: bool,
    ended: bool,
    dropped: Dropped,
}

impl Outgoing {
    /// Nothing waits, and there is no connection.
    pub(crate) fn new(most: usize, policy: BufferPolicy) -> Self {
        Self {
            most,
            policy,
            connected: false,
            rest: VecDeque::new(),
            rest_is_open: false,
            lines: VecDeque::new(),
            begun: false,
            skipping: false,
            ended: false,
            dropped: Dropped::default(),
        }
    }

    /// From now on nothing is dropped: what finds no room waits.
    pub(crate) fn connected(&mut self) {
        self.connected = true;
        if self.rest_is_open {
            // Then nothing came behind it.
            std::mem::swap(&mut self.rest, &mut self.lines);
            self.rest_is_open = false;
        }
    }

    /// From now on the policy holds.
    pub(crate) fn disconnected(&mut self) {
        self.connected = false;
        if self.policy == BufferPolicy::Block || !self.begun || !self.rest.is_empty() {
            return;
        }
        let end = self.lines.iter().position(|&byte| byte == b'\n');
        self.rest_is_open = end.is_none();
        let behind = match end {
            Some(end) => self.lines.split_off(end + 1),
            None => VecDeque::new(),
        };
        self.rest = std::mem::replace(&mut self.lines, behind);
    }

    /// Takes what comes from stdin: answers how many bytes, the others have to wait.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let mut left = bytes;
        while !left.is_empty() {
            if self.skipping {
                let (line, others) = left.split_at(line_length(left));
                self.skipping = !line.ends_with(b"\n");
                self.dropped.bytes += line.len() as u64;
                left = others;
                continue;
            }
            let room = self.room();
            if room > 0 {
                let into = if self.rest_is_open {
                    line_length(left)
                } else {
                    left.len()
                };
                let (taken, others) = left.split_at(into.min(room));
                if self.rest_is_open {
                    self.rest_is_open = !taken.ends_with(b"\n");
                    self.rest.extend(taken);
                } else {
                    self.lines.extend(taken);
                }
                left = others;
            } else if self.connected || self.rest_is_open {
                break;
            } else {
                match self.policy {
                    BufferPolicy::Block => break,
                    BufferPolicy::DropOldest => self.drop_oldest(),
                    BufferPolicy::DropNew => self.drop_newest(),
                }
            }
        }
        bytes.len() - left.len()
    }

    /// Drops the line that waits longest; if that is the one that is coming, all of it.
    fn drop_oldest(&mut self) {
        let end = self.lines.iter().position(|&byte| byte == b'\n');
        self.skipping = end.is_none();
        let length = end.map_or(self.lines.len(), |end| end + 1);
        self.lines.drain(..length);
        self.count(length);
    }

    /// Drops the line that is coming, all of it.
    fn drop_newest(&mut self) {
        let length = self.lines.iter().rev().take_while(|&&byte| byte != b'\n');
        let length = length.count();
        self.skipping = true;
        self.lines.truncate(self.lines.len() - length);
        self.count(length);
    }

    fn count(&mut self, bytes: usize) {
        self.dropped.lines += 1;
        self.dropped.bytes += bytes as u64;
    }

    /// stdin is at its end: nothing more comes.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Whether nothing more comes.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The bytes to send next; there may be more behind them.
    pub(crate) fn front(&self) -> &[u8] {
        if self.rest.is_empty() {
            self.lines.as_slices().0
        } else {
            self.rest.as_slices().0
        }
    }

    /// The first `count` bytes of the front were sent.
    pub(crate) fn advance(&mut self, count: usize) {
        let Some(last) = count.checked_sub(1) else {
            return;
        };
        let from = if self.rest.is_empty() {
            &mut self.lines
        } else {
            &mut self.rest
        };
        self.begun = from.get(last).is_some_and(|&byte| byte != b'\n');
        from.drain(..count.min(from.len()));
    }

    /// Whether the last byte given out was not the end of a line.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun
    }

    /// How many bytes wait.
    pub(crate) fn len(&self) -> usize {
        self.rest.len() + self.lines.len()
    }

    /// How many more have room.
    pub(crate) fn room(&self) -> usize {
        self.most.saturating_sub(self.len())
    }

    /// Whether some of what comes next would be taken.
    pub(crate) fn takes_more(&self) -> bool {
        self.room() > 0
            || self.skipping
            || !self.connected && !self.rest_is_open && self.policy != BufferPolicy::Block
    }

    /// What was dropped so far.
    pub(crate) fn dropped(&self) -> Dropped {
        self.dropped
    }
}

/// The length of the first line in `bytes`, its end included, or of all of them.
fn line_length(bytes: &[u8]) -> usize {
    let end = bytes.iter().position(|&byte| byte == b'\n');
    end.map_or(bytes.len(), |end| end + 1)
}

#[cfg(test)]
mod tests;
