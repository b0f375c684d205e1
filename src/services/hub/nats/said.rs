//! What this hub says to the others: all of its feed but what came from them, each byte at a place that is counted from the
//! first one on, over takeovers.

use std::sync::Arc;

use super::place::{Origin, Place};
use crate::services::hub::cursor::Cursor;
use crate::services::hub::feed::{Feed, REMOTE};
use crate::services::hub::journey::head;

/// What is said in one message, at most: larger ones gain nothing.
const MESSAGE: usize = 256 * 1024;

/// How far this hub has said its feed.
#[derive(Debug)]
pub(super) struct Said {
    /// Behind what was said.
    place: Place,
    cursor: Cursor,
    /// Bytes that were said, and lines that will not be: nobody took them in time.
    bytes: u64,
    lines: u64,
    lost: u64,
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
        let place = self.place;
        (!bytes.is_empty()).then_some(Piece { place, bytes })
    }

    /// That was said, or some of it is left out by now.
    pub(super) fn said(&mut self, piece: &Piece) {
        let known = self.place.byte.saturating_sub(piece.place.byte);
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        if piece.place.origin != self.place.origin {
            return;
        }
        let Some(new) = piece.bytes.get(known..).filter(|new| !new.is_empty()) else {
            return;
        };
        let lines = new.iter().filter(|&&byte| byte == b'\n').count() as u64;
        self.cursor.advance(new.len(), Some(REMOTE));
        self.bytes += new.len() as u64;
        self.lines += lines;
        self.pass(new.len() as u64, lines, new.ends_with(b"\n"));
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
        lost
    }

    /// Bytes and lines that were not said yet.
    pub(super) fn left(&self, feed: &Feed) -> (u64, u64) {
        let stretches = self.cursor.stretches(Some(REMOTE), feed.end());
        stretches.fold((0, 0), |(bytes, lines), stretch| {
            let ends = stretch.iter().filter(|&&byte| byte == b'\n').count();
            (bytes + stretch.len() as u64, lines + ends as u64)
        })
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

    /// The same in this process, whose `feed` is the one that it was packed of. `None`: these bytes are none.
    pub(super) fn unpack(rest: &mut &[u8], feed: &Feed) -> Option<Self> {
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
        let (cursor, missing) = feed.reader_at(position, at);
        let mut said = Self {
            place,
            cursor,
            bytes,
            lines,
            lost: lost.checked_add(missing)?,
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
mod tests {
    use super::*;

    fn publish(feed: &Feed, sender: u64, text: &str) {
        let said = crate::services::hub::feed::said(sender, text);
        feed.publish(&said, true, u64::MAX);
    }

    fn say(said: &mut Said, feed: &Feed, most: usize) -> Option<(u64, u64, u64, String)> {
        let piece = said.next(feed, most)?;
        said.said(&piece);
        let text = String::from_utf8(piece.bytes).unwrap();
        let Place {
            byte, line, within, ..
        } = piece.place;
        Some((byte, line, within, text))
    }

    fn begun() -> (Feed, Said) {
        let feed = Feed::new(1 << 20);
        let said = Said::new(Origin(7), &feed);
        (feed, said)
    }

    #[test]
    fn all_is_said_but_what_came_from_others() {
        let (feed, mut said) = begun();
        publish(&feed, 1, "one\n");
        publish(&feed, REMOTE, "theirs\n");
        publish(&feed, 2, "two\nthree\n");
        let piece = say(&mut said, &feed, 100);
        assert_eq!(piece, Some((0, 0, 0, "one\ntwo\nthree\n".to_owned())));
        assert_eq!(say(&mut said, &feed, 100), None);
        publish(&feed, REMOTE, "theirs\n");
        assert_eq!(say(&mut said, &feed, 100), None);
        publish(&feed, 1, "four\n");
        assert_eq!(said.left(&feed), (5, 1));
        let piece = say(&mut said, &feed, 100);
        assert_eq!(piece, Some((14, 3, 0, "four\n".to_owned())));
        assert_eq!((said.counted(), said.left(&feed)), ((4, 19, 0), (0, 0)));
    }

    #[test]
    fn a_message_has_whole_lines_or_a_part_of_one() {
        let (feed, mut said) = begun();
        publish(&feed, 1, "a\nbb\n0123456789\nc\n");
        for (byte, line, within, text) in [
            (0, 0, 0, "a\nbb\n"),
            (5, 2, 0, "012345"),
            (11, 2, 6, "6789\n"),
            (16, 3, 0, "c\n"),
        ] {
            let piece = say(&mut said, &feed, 6);
            assert_eq!(piece, Some((byte, line, within, text.to_owned())));
        }
    }

    #[test]
    fn what_lies_too_far_back_is_left_out_and_counted_others_see_the_gap() {
        let (feed, mut said) = begun();
        for line in ["1\n", "22\n", "333\n"] {
            publish(&feed, 1, line);
            publish(&feed, REMOTE, "theirs\n");
        }
        assert_eq!(said.keep_within(&feed, 30), 0);
        let piece = said.next(&feed, 2).unwrap();
        assert_eq!(said.keep_within(&feed, 11), 2);
        said.said(&piece); // it was under way
        assert_eq!(
            say(&mut said, &feed, 9),
            Some((5, 2, 0, "333\n".to_owned()))
        );
        assert_eq!(said.counted(), (1, 4, 2));
    }

    #[test]
    fn a_takeover_goes_on_where_it_was_in_the_middle_of_a_line_too() {
        let (feed, mut said) = begun();
        publish(&feed, 1, "one\n0123456789\n");
        assert!(say(&mut said, &feed, 5).is_some());
        assert!(say(&mut said, &feed, 5).is_some());
        let mut packed = Vec::new();
        said.pack(&mut packed);
        let there = Feed::new(1 << 20);
        let all = crate::services::hub::journey::pack(&feed, 0, 0);
        crate::services::hub::journey::unpack(&all, &there).unwrap();
        for length in 0..packed.len() {
            assert!(Said::unpack(&mut &packed[..length], &there).is_none());
        }
        let mut rest = packed.as_slice();
        let mut arrived = Said::unpack(&mut rest, &there).unwrap();
        assert!(rest.is_empty());
        publish(&there, 1, "two\n");
        let piece = say(&mut arrived, &there, 99);
        assert_eq!(piece, Some((4, 1, 0, "0123456789\ntwo\n".to_owned())));
        assert!(Said::unpack(&mut &[255; 72][..], &there).is_none());
    }

    #[test]
    fn what_the_feed_does_not_hold_any_more_is_lost_and_counted() {
        let (feed, said) = begun();
        let mut packed = Vec::new();
        said.pack(&mut packed);
        for _ in 0..9 {
            publish(&feed, 1, "12345\n");
        }
        let there = Feed::new(12);
        let all = crate::services::hub::journey::pack(&feed, 0, 0);
        crate::services::hub::journey::unpack(&all, &there).unwrap();
        let mut arrived = Said::unpack(&mut packed.as_slice(), &there).unwrap();
        let (byte, line, _, text) = say(&mut arrived, &there, 99).unwrap();
        assert_eq!(byte + text.len() as u64, 54);
        assert_eq!((line, arrived.counted().2), (byte / 6, byte / 6));
    }

    #[test]
    fn a_feed_that_was_made_anew_is_found_again() {
        let (feed, mut said) = begun();
        publish(&feed, 1, "one\n");
        assert!(say(&mut said, &feed, 9).is_some());
        feed.begin_at(777, 50);
        assert_eq!(say(&mut said, &feed, 9), None);
        publish(&feed, 1, "two\n");
        assert_eq!(
            say(&mut said, &feed, 9),
            Some((4, 1, 0, "two\n".to_owned()))
        );
    }
}
