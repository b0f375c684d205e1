//! What this hub says to the others: all of its feed but what came from them, each byte at a place that is counted from the
//! first one on, over takeovers.

use std::sync::Arc;
use std::time::Duration;

use super::place::{Origin, Place};
use crate::services::hub::block::Block;
use crate::services::hub::cursor::Cursor;
use crate::services::hub::feed::{Feed, REMOTE};
use crate::services::hub::journey::head;
use crate::time::deadline::Moment;

/// What is said in one message, at most: larger ones gain nothing.
const MESSAGE: usize = 256 * 1024;

/// What was said to a server that acknowledges nothing may be on its way for so long: a process that takes over, whose own
/// connection may be faster, says it again, and whoever has heard it knows.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// And where the server is slow, or stands still, for so long.
const SLOWLY: Duration = Duration::from_secs(10);

/// How far this hub has said its feed.
#[derive(Debug)]
pub(super) struct Said {
    /// Behind what was said.
    place: Place,
    /// Its blocks hold on to one another: it may be further behind than the feed reaches.
    cursor: Cursor,
    /// Bytes that were said, and lines that will not be: nobody took them in time.
    bytes: u64,
    lines: u64,
    lost: u64,
    /// How far it was, a while ago and longer ago.
    marks: [Option<Mark>; 2],
    /// When something was said last.
    last: Option<Moment>,
}

/// How far it was at a time.
#[derive(Debug)]
struct Mark {
    time: Moment,
    place: Place,
    cursor: Cursor,
    bytes: u64,
    lines: u64,
}

/// What is said in one message.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) place: Place,
    pub(super) bytes: Vec<u8>,
}

impl Said {
    /// Nothing of `feed`, which has nothing yet.
    pub(super) fn new(origin: Origin, feed: &Feed) -> Self {
        Self {
            place: Place {
                origin,
                byte: 0,
                line: 0,
                within: 0,
            },
            cursor: feed.reader(0),
            bytes: 0,
            lines: 0,
            lost: 0,
            marks: [None, None],
            last: None,
        }
    }

    /// Where what is said next stands.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Lines and bytes that were said, and lines that never will be.
    pub(super) fn counted(&self) -> (u64, u64, u64) {
        (self.lines, self.bytes, self.lost)
    }

    /// What is to be said next, in at most `most` bytes: whole lines, or a part of one that is longer.
    pub(super) fn next(&mut self, feed: &Feed, most: usize) -> Option<Piece> {
        self.find(feed);
        let most = most.clamp(1, MESSAGE);
        let mut bytes = Vec::new();
        for stretch in self.cursor.stretches(Some(REMOTE), feed.end()) {
            let room = most - bytes.len();
            bytes.extend_from_slice(stretch.get(..room).unwrap_or(stretch));
            if stretch.len() >= room {
                let whole = bytes.iter().rposition(|&byte| byte == b'\n');
                bytes.truncate(whole.map_or(bytes.len(), |end| end + 1));
                break;
            }
        }
        if bytes.is_empty() {
            // Past what came from others: none of it is to be kept for this.
            self.cursor.next_stretch(Some(REMOTE));
            return None;
        }
        let place = self.place;
        Some(Piece { place, bytes })
    }

    /// That was said, or some of it is left out by now.
    pub(super) fn said(&mut self, piece: &Piece, now: Moment) {
        let Some(known) = self.place.byte.checked_sub(piece.place.byte) else {
            // It went back meanwhile: that is said again.
            return;
        };
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        if piece.place.origin != self.place.origin {
            return;
        }
        let Some(new) = piece.bytes.get(known..).filter(|new| !new.is_empty()) else {
            return;
        };
        let lines = ends(new);
        self.mark(now);
        self.cursor.advance(new.len(), Some(REMOTE));
        self.bytes += new.len() as u64;
        self.lines += lines;
        self.pass(new.len() as u64, lines, new.ends_with(b"\n"));
    }

    /// Notes how far it is, where that was not done for a while.
    fn mark(&mut self, time: Moment) {
        self.last = Some(time);
        let is_due = |mark: &Mark| time.since(mark.time) > ON_ITS_WAY;
        if !self.marks[0].as_ref().is_none_or(is_due) {
            return;
        }
        let Cursor { block, at } = &self.cursor;
        let mark = Mark {
            time,
            place: self.place,
            cursor: Cursor {
                block: Arc::clone(block),
                at: *at,
            },
            bytes: self.bytes,
            lines: self.lines,
        };
        self.marks[1] = self.marks[0].replace(mark);
    }

    /// Goes back to before what may be on its way yet, as far as `feed` has it.
    pub(super) fn go_back(&mut self, feed: &Feed, now: Moment) {
        let marks = std::mem::take(&mut self.marks);
        let old = |mark: &Mark| now.since(mark.time) > ON_ITS_WAY;
        let old = marks.iter().flatten().position(old);
        let within = marks.into_iter().flatten().take(old.map_or(2, |at| at + 1));
        let of_this = within.filter(|mark| {
            mark.place.origin == self.place.origin && mark.cursor.position() >= feed.oldest()
        });
        let is_recent = self.last.is_some_and(|last| now.since(last) <= ON_ITS_WAY);
        if let Some(mark) = of_this.last().filter(|_| is_recent) {
            (self.place, self.cursor) = (mark.place, mark.cursor);
            (self.bytes, self.lines) = (mark.bytes, mark.lines);
        }
    }

    /// Leaves out what lies further back in `feed` than `reach` bytes. Answers how many lines that were.
    pub(super) fn keep_within(&mut self, feed: &Feed, reach: u64) -> u64 {
        self.find(feed);
        let mut lost = 0;
        while feed.end().saturating_sub(self.cursor.position()) > reach {
            let Some(next) = self.cursor.block.next.get().map(Arc::clone) else {
                break;
            };
            lost += self.leave_block_out();
            self.cursor.block = next;
            self.cursor.at = 0;
        }
        self.lost += lost;
        let oldest = feed.oldest();
        for mark in &mut self.marks {
            // What is lost was not said, and is not to be said later on; and no block is kept for a mark alone.
            if lost > 0
                || mark
                    .as_ref()
                    .is_some_and(|it| it.cursor.position() < oldest)
            {
                *mark = None;
            }
        }
        lost
    }

    /// Bytes that were not said yet.
    pub(super) fn waiting(&self, feed: &Feed) -> u64 {
        let stretches = self.cursor.stretches(Some(REMOTE), feed.end());
        stretches.map(|stretch| stretch.len() as u64).sum()
    }

    /// Whether something was said so lately that it may be on its way yet, even where the way is slow.
    pub(super) fn was_recent(&self, now: Moment) -> bool {
        self.last.is_some_and(|last| now.since(last) <= SLOWLY)
    }

    /// Bytes and lines that were not said yet.
    pub(super) fn left(&self, feed: &Feed) -> (u64, u64) {
        let stretches = self.cursor.stretches(Some(REMOTE), feed.end());
        stretches.fold((0, 0), |(bytes, lines), stretch| {
            (bytes + stretch.len() as u64, lines + ends(stretch))
        })
    }

    /// The blocks behind the position `from`, of at most `most` bytes unless one alone has more, where `feed` does not reach
    /// back so far, and what is to be said does. `None`: it is the feed that has them.
    pub(super) fn blocks_behind(
        &self,
        feed: &Feed,
        from: u64,
        most: usize,
    ) -> Option<Vec<Arc<Block>>> {
        let oldest = feed.oldest();
        if from >= oldest || self.cursor.position() >= oldest {
            return None;
        }
        let mut size = 0;
        let mut blocks = Vec::new();
        let mut next = Some(&self.cursor.block);
        while let Some(block) = next {
            if block.end() > from && !block.bytes.is_empty() {
                size += block.bytes.len();
                if size > most && !blocks.is_empty() {
                    break;
                }
                blocks.push(Arc::clone(block));
            }
            next = block.next.get();
        }
        Some(blocks)
    }

    /// Somebody else speaks as this hub: it goes on as another, from where it is.
    pub(super) fn become_another(&mut self, origin: Origin) {
        self.place = Place {
            origin,
            byte: self.place.within,
            line: 0,
            within: self.place.within,
        };
    }

    /// Passes over what its block has left; answers how many lines that are.
    fn leave_block_out(&mut self) -> u64 {
        let (block, from) = (Arc::clone(&self.cursor.block), self.cursor.at);
        let mut bytes = 0;
        let mut at = from;
        loop {
            let stretch = block.stretch(at, Some(REMOTE));
            if stretch.is_empty() {
                break;
            }
            bytes += stretch.len() as u64;
            at = stretch.end;
        }
        let lines = block.lines_from(from, Some(REMOTE));
        if bytes > 0 {
            self.pass(bytes, lines, true);
        }
        lines
    }

    fn pass(&mut self, bytes: u64, lines: u64, whole: bool) {
        self.place.byte += bytes;
        self.place.line += lines;
        self.place.within = if whole { 0 } else { self.place.within + bytes };
    }

    /// Begins where `feed` ends if that was made anew meanwhile, as by a server that goes on after a crash.
    fn find(&mut self, feed: &Feed) {
        // Asked first: a block that comes meanwhile has its place in the chain before the feed ends there.
        let end = feed.end();
        if self.cursor.block.end() < end && self.cursor.block.next.get().is_none() {
            self.cursor = feed.reader(0);
            self.place.within = 0;
        }
    }
}

/// How many lines end in `bytes`.
fn ends(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// How far a hub had come, for a process that takes over.
impl Said {
    pub(super) fn pack(&self, bytes: &mut Vec<u8>) {
        let Place {
            origin,
            byte,
            line,
            within,
        } = self.place;
        let (position, at) = (self.cursor.position(), self.cursor.line());
        let counted = [self.bytes, self.lines, self.lost];
        let place = [origin.0, byte, line, within, position, at];
        let numbers = place.into_iter().chain(counted);
        bytes.extend(numbers.flat_map(u64::to_le_bytes));
    }

    /// The same in this process, whose `feed` is the one that it was packed of; `held` is what came of it first. `None`: these
    /// bytes are none.
    pub(super) fn unpack(rest: &mut &[u8], feed: &Feed, held: Option<&Cursor>) -> Option<Self> {
        let [origin, byte, line, within, position, at] = head(rest)?;
        let [bytes, lines, lost] = head(rest)?;
        let place = Place {
            origin: Origin(origin),
            byte,
            line,
            within,
        };
        // Within bounds, too.
        let place: Place = place.to_string().parse().ok()?;
        let held = held.filter(|_| position < feed.oldest());
        let held = held.and_then(|held| held.line_at(position));
        let held = held.map(|cursor| (cursor, 0));
        let (cursor, missing) = held.unwrap_or_else(|| feed.reader_at(position, at));
        let mut said = Self {
            place,
            cursor,
            bytes,
            lines,
            lost: lost.checked_add(missing)?,
            marks: [None, None],
            last: None,
        };
        match said.cursor.position().checked_sub(position) {
            Some(0) => {}
            // A part of a line was said. All of it is said again: who has heard it knows.
            None => {
                said.place.byte = byte.checked_sub(within)?;
                said.place.within = 0;
            }
            Some(bytes) => said.pass(bytes, missing, true),
        }
        Some(said)
    }
}

#[cfg(test)]
mod tests;
