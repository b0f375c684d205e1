//! What came back, judged by position: lost, duplicated, reordered, corrupted, each counted in bytes. Pure.
//!
//! As long as what comes is what is expected, this is one comparison. When it is not, the next eight bytes that are a
//! word of this stream ([`Pattern::find`]) tell where the stream goes on, and so what happened in between. A break is
//! taken to be where the first byte differs: two bytes that happen to be equal there may move it by one.

use crate::load::pattern::Pattern;

/// Unexplained bytes kept: one less than always hold a whole word of the pattern, and one.
const KEPT: usize = 15;
const WORD: usize = 8;

/// More wrong bytes than this, with no right piece among them, are no echo of ours.
const FOREIGN: u32 = 4096;

/// Missing ranges remembered. Of those beyond it, the oldest are lost for good.
const MISSING: usize = 64;

/// Fewest bytes that are believed to be the very last ones sent although no whole word of them is there.
const TAIL: usize = 3;

/// What was wrong with an echo, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// Sent, and never came back.
    pub(super) lost: u64,
    /// Came again.
    pub(super) duplicated: u64,
    /// Came later than what stands behind them.
    pub(super) reordered: u64,
    /// Came instead of the right ones, or between them: changed, or never sent.
    pub(super) corrupted: u64,
}

/// Whether a peer echoes at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Peer {
    Echoes,
    /// It sends what has nothing to do with what it was sent.
    Foreign,
}

/// One connection's stream, and how far its echo has come.
#[derive(Debug)]
pub(super) struct Verifier {
    pattern: Pattern,
    /// Bytes the kernel has taken.
    sent: u64,
    /// Every byte below has come, or was taken for corrupted, or is among the missing.
    high: u64,
    /// The byte expected next: `high`, but within a piece that came late or again.
    position: u64,
    /// Bytes that came before the kept ones and are not explained yet.
    skipped: u32,
    /// How many of those would have been right where they came.
    alike: u32,
    kept: [u8; KEPT],
    kept_count: u8,
    /// Wrong bytes since the last right piece, without the unexplained ones.
    barren: u32,
    /// Ranges below `high` that have not come, by age.
    missing: Vec<(u64, u64)>,
}

impl Verifier {
    pub(super) const fn new(pattern: Pattern) -> Self {
        Self {
            pattern,
            sent: 0,
            high: 0,
            position: 0,
            skipped: 0,
            alike: 0,
            kept: [0; KEPT],
            kept_count: 0,
            barren: 0,
            missing: Vec::new(),
        }
    }

    /// Bytes sent so far: where the next one stands.
    pub(super) const fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes whose echo is settled, one way or another.
    pub(super) const fn settled(&self) -> u64 {
        self.high
    }

    /// Whether the byte at a settled position is there, and not missing.
    pub(super) fn has_come(&self, position: u64) -> bool {
        let mut missing = self.missing.iter();
        !missing.any(|(from, to)| (*from..*to).contains(&position))
    }

    /// Writes what is to be sent next.
    pub(super) fn write(&self, out: &mut [u8]) {
        self.pattern.write(self.sent, out);
    }

    /// The kernel took so many bytes.
    pub(super) const fn took(&mut self, count: usize) {
        self.sent += count as u64;
    }

    /// Judges what came.
    pub(super) fn received(&mut self, bytes: &[u8], faults: &mut Faults) -> Peer {
        if self.position == self.high
            && self.is_clear()
            && bytes.len() as u64 <= self.sent - self.high
            && self.pattern.matching(self.high, bytes) == bytes.len()
        {
            self.high += bytes.len() as u64;
            self.position = self.high;
            // Few bytes may be right by chance.
            if bytes.len() >= WORD {
                self.barren = 0;
            }
            return Peer::Echoes;
        }
        self.trace(bytes, faults)
    }

    /// Counts what came, whatever it is: any bytes are an echo, and those beyond what was sent are duplicated.
    pub(super) fn counted(&mut self, count: usize, faults: &mut Faults) {
        let fresh = (count as u64).min(self.sent - self.high);
        self.high += fresh;
        self.position = self.high;
        faults.duplicated += count as u64 - fresh;
    }

    /// Judges what has not come to an end: nothing more will.
    pub(super) fn finish(&mut self, faults: &mut Faults) {
        let unknown = self.unknown();
        if unknown > 0 && !self.is_tail(1, faults) {
            if self.position == self.high && self.high + unknown <= self.sent {
                self.land(self.high + unknown, unknown, faults);
            } else {
                faults.corrupted += unknown;
            }
        }
        let missing: u64 = self.missing.iter().map(|(from, to)| to - from).sum();
        faults.lost += missing + self.sent - self.high;
    }

    const fn is_clear(&self) -> bool {
        self.kept_count == 0
    }

    /// Bytes that came and are not explained.
    const fn unknown(&self) -> u64 {
        self.skipped as u64 + self.kept_count as u64
    }

    fn kept(&self) -> &[u8] {
        &self.kept[..usize::from(self.kept_count)]
    }

    /// Judges bytes of which some are not what was expected.
    fn trace(&mut self, mut bytes: &[u8], faults: &mut Faults) -> Peer {
        while let Some(first) = bytes.first() {
            if self.is_clear() {
                let owed = usize::try_from(self.sent - self.position).unwrap_or(usize::MAX);
                let owed = &bytes[..bytes.len().min(owed)];
                let count = self.pattern.matching(self.position, owed);
                if count > 0 {
                    self.take(count as u64, faults);
                    if count >= WORD {
                        self.barren = 0;
                    }
                    bytes = &bytes[count..];
                    continue;
                }
            }
            self.wonder(*first, faults);
            bytes = &bytes[1..];
        }
        if self.barren.saturating_add(self.skipped) > FOREIGN {
            return Peer::Foreign;
        }
        // What is owed has come, in length at least: nothing may follow by which it could be told apart.
        let unknown = self.unknown();
        if unknown > 0 && self.position == self.high && self.high + unknown == self.sent {
            let wrong = self.wrong(unknown);
            if wrong > unknown / 2 {
                let wrong = u32::try_from(wrong).unwrap_or(u32::MAX);
                self.barren = self.barren.saturating_add(wrong);
            } else if unknown >= WORD as u64 {
                self.barren = 0;
            }
            self.land(self.sent, unknown, faults);
        } else {
            self.is_tail(TAIL, faults);
        }
        Peer::Echoes
    }

    /// The next `count` bytes from `position` on are there.
    fn take(&mut self, count: u64, faults: &mut Faults) {
        let (from, to) = (self.position, self.position + count);
        if from < self.high {
            let old = (from, to.min(self.high));
            let filled = self.fill(old);
            faults.reordered += filled;
            faults.duplicated += old.1 - old.0 - filled;
        }
        self.position = to;
        self.high = self.high.max(to);
    }

    /// Takes a range that came off what is missing: so many bytes of it were.
    fn fill(&mut self, (from, to): (u64, u64)) -> u64 {
        let mut filled = 0;
        let mut at = 0;
        while let Some(&(start, end)) = self.missing.get(at) {
            let (first, last) = (start.max(from), end.min(to));
            if first >= last {
                at += 1;
                continue;
            }
            filled += last - first;
            let left = [(start, first), (last, end)];
            let left = left.into_iter().filter(|(from, to)| from < to);
            let count = left.clone().count();
            self.missing.splice(at..=at, left);
            at += count;
        }
        filled
    }

    /// One more byte that is not what was expected, or came after such a one.
    fn wonder(&mut self, byte: u8, faults: &mut Faults) {
        let mut count = usize::from(self.kept_count);
        if count == KEPT {
            let here = self.pattern.byte(self.position + u64::from(self.skipped));
            self.alike += u32::from(here == self.kept[0]);
            self.skipped = self.skipped.saturating_add(1);
            self.kept.copy_within(1.., 0);
            count -= 1;
        }
        self.kept[count] = byte;
        count += 1;
        self.kept_count = u8::try_from(count).unwrap_or(u8::MAX);
        let Some((before, word)) = self.kept[..count].split_last_chunk::<WORD>() else {
            return;
        };
        let Some(start) = self.pattern.find(*word) else {
            return;
        };
        if start + WORD as u64 > self.sent {
            return;
        }
        // Bytes before the word that belong to the same piece.
        let own = before.iter().rev().zip((0..start).rev());
        let own = own.take_while(|(byte, at)| **byte == self.pattern.byte(*at));
        let own = own.count() as u64;
        let unknown = u64::from(self.skipped) + before.len() as u64 - own;
        self.barren = 0;
        self.land(start - own, unknown, faults);
        self.take(own + WORD as u64, faults);
    }

    /// The stream goes on at `place`, after so many bytes that are no part of it. They are settled.
    fn land(&mut self, place: u64, unknown: u64, faults: &mut Faults) {
        let in_step = self.position == self.high;
        if in_step && place == self.high + unknown {
            faults.corrupted += self.wrong(unknown);
        } else {
            faults.corrupted += unknown;
            if place > self.high {
                // They came in place of as many.
                let instead = if in_step { unknown } else { 0 };
                let from = place.min(self.high + instead);
                if from < place {
                    self.miss((from, place), faults);
                }
            }
        }
        self.position = place;
        self.high = self.high.max(place);
        self.skipped = 0;
        self.alike = 0;
        self.kept_count = 0;
    }

    /// How many of the first `unknown` unexplained bytes are wrong if they stand where they came.
    fn wrong(&self, unknown: u64) -> u64 {
        let skipped = u64::from(self.skipped);
        let kept = self.kept().iter().zip(skipped..unknown);
        let kept = kept.filter(|(byte, at)| **byte != self.pattern.byte(self.high + at));
        skipped - u64::from(self.alike) + kept.count() as u64
    }

    fn miss(&mut self, range: (u64, u64), faults: &mut Faults) {
        if self.missing.len() == MISSING {
            let (from, to) = self.missing.remove(0);
            faults.lost += to - from;
        }
        self.missing.push(range);
    }

    /// Whether the unexplained bytes, at least so many, are the last ones sent; then they are settled.
    fn is_tail(&mut self, least: usize, faults: &mut Faults) -> bool {
        let kept = self.kept();
        let Some(place) = self.sent.checked_sub(kept.len() as u64) else {
            return false;
        };
        let is_tail = self.skipped == 0
            && kept.len() >= least
            && self.pattern.matching(place, kept) == kept.len();
        if is_tail {
            let count = kept.len() as u64;
            self.land(place, 0, faults);
            self.take(count, faults);
        }
        is_tail
    }
}

#[cfg(test)]
mod tests;
