//! How far a hub was in its stream, noted where the next server finds it, should this one crash: so that one hears what was
//! said meanwhile, and nothing of what its clients have got already.
//!
//! What was passed on of a message stands in the journal with that message's mark; once all of it was, the mark stands in a word of
//! its own. The next server reads the last messages before that once more, and passes none of them on, to know how far each
//! hub was; and goes on where the former one was, within a message, too.

use super::place::{Origin, Spot};
use crate::os::journal::Notes;
#[cfg(control)]
use crate::os::journal::{Journal, Record};
#[cfg(control)]
use crate::services::hub::feed::REMOTE;

/// Words of the journal, behind the ledger's: the mark of the last message that was passed on, and the hub's name, in two parts.
const PASSED: usize = 1;
const FAMILY: usize = 2;
const GENERATION: usize = 3;

/// Bits of a mark that are the message's number. Those above are of the stream: another one's marks mean nothing.
const NUMBER: u32 = 40;

/// So many messages are read once more, at least.
const AGAIN: u64 = 256;

/// A message of a stream, in one word: 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(pub(super) u64);

impl Mark {
    /// Of what stands at `spot` of the stream and subject of that number.
    pub(super) fn of(stream: u64, spot: Spot) -> Self {
        let which = (stream ^ spot.made).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - 19);
        if spot.sequence >> NUMBER > 0 {
            // Farther than can be said.
            return Self(0);
        }
        Self((which << NUMBER | spot.sequence) & ((1 << 59) - 1))
    }

    fn number(self) -> u64 {
        self.0 & ((1 << NUMBER) - 1)
    }

    fn is_of(self, other: Self) -> bool {
        self.0 >> NUMBER == other.0 >> NUMBER
    }
}

/// Notes the hub's name.
pub(super) fn note_name(notes: &Notes, origin: Origin) {
    let (family, generation) = origin.parts();
    notes.set(FAMILY, family);
    notes.set(GENERATION, generation);
}

/// All of that message was passed on.
pub(super) fn note_passed(notes: &Notes, mark: Mark) {
    notes.set(PASSED, mark.0);
}

/// What a server before this one has left of that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remains {
    name: Origin,
    passed: Mark,
    /// The last message that something was passed on of, and how many bytes.
    begun: Mark,
    bytes: u64,
}

impl Remains {
    #[cfg(control)]
    pub(crate) fn of(journal: &Journal, records: &[(Record, Vec<u8>)]) -> Self {
        let remote = records
            .iter()
            .filter(|(record, _)| record.sender == REMOTE && record.heard != 0);
        let begun = remote
            .clone()
            .next_back()
            .map_or(0, |(record, _)| record.heard);
        let its = remote.filter(|(record, _)| record.heard == begun);
        Self {
            name: Origin::of(journal.noted(FAMILY), journal.noted(GENERATION)),
            passed: Mark(journal.noted(PASSED)),
            begun: Mark(begun),
            bytes: its.map(|(_, bytes)| bytes.len() as u64).sum(),
        }
    }

    #[cfg(test)]
    pub(super) fn found(passed: Mark, begun: Mark, bytes: u64) -> Self {
        let name = Origin::of(1, 0);
        Self {
            name,
            passed,
            begun,
            bytes,
        }
    }

    /// What the hub goes by that goes on: what it hears of those before it is its own.
    pub(super) fn next_name(&self) -> Option<Origin> {
        self.name.next()
    }

    pub(super) fn passed(&self) -> Mark {
        self.passed
    }

    /// Where that is in the stream and subject of that number, which ends at `last`; `None`: it is another stream.
    pub(super) fn within(&self, stream: u64, last: Spot) -> Option<(Spot, Known)> {
        let this = Mark::of(stream, last);
        let ours = |mark: Mark| (mark.0 != 0 && mark.is_of(this)).then(|| mark.number());
        let (passed, begun) = (ours(self.passed), ours(self.begun));
        let end = passed.map_or(0, |number| number + 1);
        let known = match begun {
            Some(begun) if begun >= end => Known {
                before: begun,
                bytes: self.bytes,
            },
            _ => Known {
                before: passed.map(|_| end)?,
                bytes: 0,
            },
        };
        // It has lost something itself, maybe: numbers are given again then.
        let is_there = known.before <= last.sequence;
        let known = Known {
            before: known.before.min(last.sequence + 1),
            bytes: if is_there { known.bytes } else { 0 },
        };
        let sequence = known.before.saturating_sub(1 + AGAIN);
        Some((Spot { sequence, ..last }, known))
    }
}

/// What of a stream was passed on already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// All of the messages before that number.
    pub(super) before: u64,
    /// And so many bytes of the message of that number.
    bytes: u64,
}

impl Known {
    /// The last message of which nothing is to be passed on any more by who does not know the hubs.
    pub(super) fn last(&self) -> u64 {
        self.before - u64::from(self.bytes == 0).min(self.before)
    }

    /// Whether so many bytes, which come next of the message of that number, were passed on.
    pub(super) fn has(&mut self, sequence: u64, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let is_begun = sequence == self.before && bytes <= self.bytes;
        if is_begun {
            self.bytes -= bytes;
        }
        is_begun || sequence < self.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: Spot = Spot {
        made: 1_700_000_000_000_000_000,
        sequence: 5000,
    };

    fn remains(passed: u64, begun: u64, bytes: u64) -> Remains {
        let mark = |sequence| Mark::of(7, Spot { sequence, ..LAST });
        let or_none = |number| if number == 0 { Mark(0) } else { mark(number) };
        Remains::found(or_none(passed), or_none(begun), bytes)
    }

    #[test]
    fn it_goes_on_where_the_former_was() {
        for ((passed, begun, bytes), before, rest) in [
            ((4000, 3990, 50), 4001, 0),
            ((4000, 4000, 50), 4001, 0),
            ((4000, 4003, 50), 4003, 50),
            ((0, 4003, 50), 4003, 50),
            ((4000, 0, 0), 4001, 0),
            ((9000, 9001, 50), 5001, 0),
            ((4999, 5000, 50), 5000, 50),
        ] {
            let (spot, known) = remains(passed, begun, bytes).within(7, LAST).unwrap();
            assert_eq!(
                (known.before, known.bytes),
                (before, rest),
                "{passed} {begun}"
            );
            assert_eq!((spot.made, spot.sequence), (LAST.made, before - 257));
        }
        assert!(remains(0, 0, 0).within(7, LAST).is_none());
        assert!(
            remains(4000, 4001, 5).within(8, LAST).is_none(),
            "of another subject"
        );
        let anew = Spot {
            made: 5,
            sequence: 9,
        };
        assert!(remains(4000, 4001, 5).within(7, anew).is_none());
        let (spot, _) = remains(3, 0, 0).within(7, LAST).unwrap();
        assert_eq!(spot.sequence, 0);
    }

    #[test]
    fn a_mark_is_one_word_that_a_journal_believes() {
        for sequence in [0, 1, (1 << NUMBER) - 1] {
            let mark = Mark::of(u64::MAX, Spot { sequence, ..LAST });
            assert!(mark.0 < 1 << 60 && mark.number() == sequence);
        }
        let far = Spot {
            sequence: 1 << NUMBER,
            ..LAST
        };
        assert_eq!(Mark::of(7, far), Mark(0));
    }
}
