//! What other hubs have said: put together to whole lines, each one once, in its sender's order; what is missing counted.
//!
//! Whoever can reach the subject can send anything there. What is kept of it is bounded: messages that wait, unfinished
//! lines, and hubs that are known.
#![warn(clippy::indexing_slicing)]

use std::collections::{HashMap, VecDeque};

use super::place::{Origin, Place, Spot};
use super::remains::{Known, Mark, Remains};
use crate::memory::{Held, Memory, WaitingKind};
use crate::services::hub::journey::{head, take};

/// So many hubs are known at a time: beyond that the one is forgotten that has said nothing for longest.
const HUBS: usize = 1024;

/// What is published in one go, bytes, unless a line is longer.
const PIECE: usize = 32 * 1024;

/// What has come of other hubs.
#[derive(Debug)]
pub(super) struct Heard {
    /// Messages that wait, and what they take; no more than `reach`.
    waiting: VecDeque<Message>,
    size: usize,
    reach: usize,
    /// The longest line.
    max_line: usize,
    hubs: HashMap<Origin, Hub>,
    /// What the unfinished lines take: no more than `reach`.
    unfinished: usize,
    /// How many messages there were: the time by which hubs are forgotten.
    clock: u64,
    held: Held,
    pub(super) counted: Counted,
    /// How far the stream was read, where there is one.
    pub(super) spot: Option<Spot>,
    /// Which stream of which subject that is.
    stream: u64,
    /// What a server that has crashed has left of that.
    pub(super) remains: Option<Remains>,
    /// What it has passed on, while that is read once more.
    known: Option<Known>,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Lines that were passed on, and their bytes.
    pub(super) lines: u64,
    pub(super) bytes: u64,
    /// Lines that other hubs have said, and that did not come.
    pub(super) missed: u64,
    /// Messages that had come before.
    pub(super) again: u64,
    /// Messages of strangers, passed on or not.
    pub(super) foreign: u64,
    /// Lines that were too long for this hub.
    pub(super) too_long: u64,
}

impl Counted {
    /// As they stand in what goes to another process.
    fn numbers(self) -> [u64; 6] {
        let Self {
            lines,
            bytes,
            missed,
            again,
            foreign,
            too_long,
        } = self;
        [lines, bytes, missed, again, foreign, too_long]
    }

    fn of([lines, bytes, missed, again, foreign, too_long]: [u64; 6]) -> Self {
        Self {
            lines,
            bytes,
            missed,
            again,
            foreign,
            too_long,
        }
    }

    /// So many lines of it were passed on.
    fn pass(&mut self, lines: &[u8], count: u64) {
        self.lines += count;
        self.bytes += lines.len() as u64;
    }
}

/// A message, and how far it was passed on.
#[derive(Debug)]
struct Message {
    place: Option<Place>,
    /// Where it stands in the stream, if it is of one.
    spot: Option<Spot>,
    bytes: Vec<u8>,
    done: usize,
}

impl Message {
    fn size(&self) -> usize {
        size_of::<Self>() + self.bytes.capacity()
    }
}

/// What came of one hub.
#[derive(Debug, Default)]
struct Hub {
    /// Bytes and lines up to there.
    byte: u64,
    line: u64,
    /// The line that has not come to its end.
    rest: Vec<u8>,
    /// That one is left out.
    skips: bool,
    missed: u64,
    /// When something came last.
    last: u64,
}

/// What became of the next of what has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// There was nothing more.
    Nothing,
    /// It was passed on, or has nothing new.
    Done,
    /// That many lines of this hub are missing before it; then it was passed on as far as it could be.
    Missed(Origin, u64),
    /// It waits: there is no room for it.
    Full,
}

impl Heard {
    /// Nothing as yet. At most `reach` bytes wait, and a line is at most `max_line` bytes long.
    pub(super) fn new(reach: usize, max_line: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            size: 0,
            reach,
            max_line,
            hubs: HashMap::new(),
            unfinished: 0,
            clock: 0,
            held: Held::default(),
            counted: Counted::default(),
            spot: None,
            stream: 0,
            remains: None,
            known: None,
        }
    }

    /// What it hears stands in the stream of that number.
    pub(super) fn of_stream(mut self, number: u64) -> Self {
        self.stream = number;
        self
    }

    /// Counts what it takes in `memory`.
    pub(super) fn count_in(&mut self, memory: &Memory) {
        self.held.count_in(memory, WaitingKind::Hub);
        self.note_size();
    }

    /// Takes a message in: of the hub that says so in `place`, or of a stranger. Answers whether there was room.
    pub(super) fn take(&mut self, place: Option<Place>, payload: &[u8]) -> bool {
        let mut bytes = Vec::new();
        let message = size_of::<Message>() + payload.len() + 1;
        if self.size + message > self.reach || bytes.try_reserve_exact(payload.len() + 1).is_err() {
            return false;
        }
        bytes.extend_from_slice(payload);
        if place.is_none() && !bytes.is_empty() && !bytes.ends_with(b"\n") {
            bytes.push(b'\n');
        }
        let message = Message {
            place,
            spot: None,
            bytes,
            done: 0,
        };
        self.size += message.size();
        self.waiting.push_back(message);
        self.note_size();
        true
    }

    /// As [`take`](Self::take), of what stands at `spot` of the stream, unless that came already. What nothing waits before
    /// always has room, or nothing behind it would ever come.
    pub(super) fn take_at(&mut self, spot: Spot, place: Option<Place>, payload: &[u8]) -> bool {
        if self.has(spot) {
            return true;
        }
        let reach = self.reach;
        if self.waiting.is_empty() {
            self.reach = usize::MAX;
        }
        let taken = self.take(place, payload);
        self.reach = reach;
        if taken {
            self.spot = Some(spot);
            if let Some(message) = self.waiting.back_mut() {
                message.spot = Some(spot);
            }
        }
        taken
    }

    /// Whether what stands at `spot` of the stream has come.
    pub(super) fn has(&self, spot: Spot) -> bool {
        let known = self.spot.filter(|known| known.made == spot.made);
        known.is_some_and(|known| spot.sequence <= known.sequence)
    }

    /// How far the stream was read that was made then and ends at `last` now: not at all, if it is another one than before, and
    /// no further than it goes, if it has lost something itself.
    pub(super) fn sequence_in(&mut self, made: u64, last: u64) -> u64 {
        let last = Spot {
            made,
            sequence: last,
        };
        if let Some(remains) = self.remains.take()
            && let Some((spot, known)) = remains.within(self.stream, last)
        {
            (self.spot, self.known) = (Some(spot), Some(known));
        }
        let known = self.spot.filter(|spot| spot.made == made);
        let sequence = known.map_or(0, |spot| spot.sequence.min(last.sequence));
        self.known = self.known.filter(|_| known.is_some());
        self.spot = Some(Spot { made, sequence });
        sequence
    }

    /// Whether what stands there was passed on by a server that has crashed.
    pub(super) fn is_known(&self, sequence: u64) -> bool {
        self.known.is_some_and(|known| sequence < known.before)
    }

    /// The last message that was passed on, unless that is older than what was before.
    pub(super) fn mark(&self) -> Option<Mark> {
        let spot = self.passed_on().filter(|_| self.known.is_none());
        spot.map(|spot| Mark::of(self.stream, spot))
    }

    /// How far the stream was passed on: what waits comes again for whoever goes on from there.
    fn passed_on(&self) -> Option<Spot> {
        let first = self.waiting.front().and_then(|message| message.spot);
        let before = first.map(|Spot { made, sequence }| Spot {
            made,
            sequence: sequence.saturating_sub(1),
        });
        before.or(self.spot)
    }

    /// Whether something waits.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The hub that the next message is of, and where it ends in what that has said.
    pub(super) fn next(&self) -> Option<(Origin, u64)> {
        let message = self.waiting.front()?;
        let place = message.place?;
        Some((place.origin, place.byte + message.bytes.len() as u64))
    }

    /// Leaves the next message out.
    pub(super) fn skip(&mut self) {
        if let Some(message) = self.waiting.pop_front() {
            self.size -= message.size();
            self.note_size();
        }
    }

    /// Has the next message passed on by `publish`, which takes whole lines, with the message's mark, and answers whether it did.
    pub(super) fn pass_on(&mut self, mut publish: impl FnMut(&[u8], u64) -> bool) -> Progress {
        let Some(mut message) = self.waiting.pop_front() else {
            return Progress::Nothing;
        };
        let sequence = message.spot.map_or(u64::MAX, |spot| spot.sequence);
        let mark = message.spot.map_or(0, |spot| Mark::of(self.stream, spot).0);
        let before = self.is_known(sequence).then_some(self.counted);
        let mut known = self.known.filter(|known| sequence <= known.before);
        let mut publish = |lines: &[u8]| {
            let has_it = |known: &mut Known| known.has(sequence, lines.len());
            known.as_mut().is_some_and(has_it) || publish(lines, mark)
        };
        let progress = match message.place {
            Some(place) => self.pass_hub_on(place, &mut message, &mut publish),
            None => self.pass_foreign_on(&mut message, &mut publish),
        };
        let (passed, mut missed) = progress;
        if let Some(before) = before {
            // All that was counted then.
            self.counted = before;
            if let Some((origin, lines)) = missed.take()
                && let Some(hub) = self.hubs.get_mut(&origin)
            {
                hub.missed = hub.missed.saturating_sub(lines);
            }
        }
        self.known = known;
        if passed {
            self.size -= message.size();
        } else {
            self.waiting.push_front(message);
        }
        self.note_size();
        match missed {
            Some((origin, lines)) => Progress::Missed(origin, lines),
            None if passed => Progress::Done,
            None => Progress::Full,
        }
    }

    /// Lines that are missing, by the hub that has said them.
    pub(super) fn missed(&self) -> Vec<(Origin, u64)> {
        let hubs = self.hubs.iter().filter(|(_, hub)| hub.missed > 0);
        let mut missed: Vec<_> = hubs.map(|(&origin, hub)| (origin, hub.missed)).collect();
        missed.sort_by_key(|&(origin, lines)| (std::cmp::Reverse(lines), origin.0));
        missed
    }

    /// How many hubs are known.
    pub(super) fn hubs(&self) -> usize {
        self.hubs.len()
    }

    fn pass_foreign_on(
        &mut self,
        message: &mut Message,
        publish: &mut impl FnMut(&[u8]) -> bool,
    ) -> (bool, Option<(Origin, u64)>) {
        while let Some(rest) = message
            .bytes
            .get(message.done..)
            .filter(|rest| !rest.is_empty())
        {
            let piece = whole_lines(rest).unwrap_or(rest);
            let Some((run, _)) = pass_lines(piece, self.max_line, &mut self.counted, publish)
            else {
                return (false, None);
            };
            message.done += run;
        }
        self.counted.foreign += 1;
        (true, None)
    }

    fn pass_hub_on(
        &mut self,
        place: Place,
        message: &mut Message,
        publish: &mut impl FnMut(&[u8]) -> bool,
    ) -> (bool, Option<(Origin, u64)>) {
        self.clock += 1;
        self.make_room_for(place.origin);
        let Self {
            hubs,
            unfinished,
            counted,
            max_line,
            reach,
            clock,
            ..
        } = self;
        let mut missed = None;
        let is_new = !hubs.contains_key(&place.origin);
        let hub = hubs.entry(place.origin).or_default();
        hub.last = *clock;
        if is_new || place.byte > hub.byte {
            // It goes on from there. Of a line whose beginning is missing the end is of no use.
            *unfinished -= std::mem::take(&mut hub.rest).len();
            let lines = place.line.saturating_sub(hub.line) + u64::from(place.within > 0);
            // That one was counted when it began to be left out.
            let lines = lines.saturating_sub(u64::from(hub.skips));
            hub.skips = place.within > 0;
            (hub.byte, hub.line) = (place.byte, place.line);
            if !is_new {
                // Whoever can reach the subject may say that it is any number.
                hub.missed = hub.missed.saturating_add(lines);
                counted.missed = counted.missed.saturating_add(lines);
                missed = Some((place.origin, lines));
            }
        }
        let known = usize::try_from(hub.byte - place.byte).unwrap_or(usize::MAX);
        if message.done == 0 && !message.bytes.is_empty() && known >= message.bytes.len() {
            counted.again += 1;
        }
        message.done = message.done.max(known);
        while let Some(rest) = message
            .bytes
            .get(message.done..)
            .filter(|rest| !rest.is_empty())
        {
            let used = match whole_lines(rest) {
                Some(piece) if hub.skips || !hub.rest.is_empty() => {
                    let line = first_line(piece);
                    if hub.skips {
                        hub.skips = false;
                    } else {
                        let begun = hub.rest.len();
                        hub.rest.extend_from_slice(line);
                        if pass_lines(&hub.rest, *max_line, counted, publish).is_none() {
                            hub.rest.truncate(begun);
                            return (false, missed);
                        }
                        hub.rest = Vec::new();
                        *unfinished -= begun;
                    }
                    hub.line += 1;
                    line.len()
                }
                Some(piece) => {
                    let Some((run, lines)) = pass_lines(piece, *max_line, counted, publish) else {
                        return (false, missed);
                    };
                    hub.line += lines;
                    run
                }
                None => {
                    let room = (*max_line).saturating_sub(hub.rest.len());
                    let fits = rest.len() < room && *unfinished + rest.len() <= *reach;
                    if !hub.skips && fits {
                        hub.rest.extend_from_slice(rest);
                        *unfinished += rest.len();
                    } else if !hub.skips {
                        *unfinished -= std::mem::take(&mut hub.rest).len();
                        hub.skips = true;
                        counted.too_long += 1;
                    }
                    rest.len()
                }
            };
            message.done += used;
            hub.byte += used as u64;
        }
        (true, missed)
    }

    /// Makes sure that one more hub may be known.
    fn make_room_for(&mut self, origin: Origin) {
        if self.hubs.len() < HUBS || self.hubs.contains_key(&origin) {
            return;
        }
        let oldest = self.hubs.iter().min_by_key(|(_, hub)| hub.last);
        if let Some((&oldest, _)) = oldest
            && let Some(hub) = self.hubs.remove(&oldest)
        {
            self.unfinished -= hub.rest.len();
        }
    }

    fn note_size(&mut self) {
        self.held.set(self.size + self.unfinished);
    }
}

/// Has `publish` take the lines that `piece`, which is whole lines, begins with, up to one that is too long; or leaves that
/// one out, if it is the first. Answers how many bytes and lines these were; `None`: there is no room for them.
fn pass_lines(
    piece: &[u8],
    max_line: usize,
    counted: &mut Counted,
    publish: &mut impl FnMut(&[u8]) -> bool,
) -> Option<(usize, u64)> {
    let first = first_line(piece);
    if first.len() > max_line {
        counted.too_long += 1;
        return Some((first.len(), 1));
    }
    let lines = piece.split_inclusive(|&byte| byte == b'\n');
    let lines = lines.take_while(|line| line.len() <= max_line);
    let (run, count) = lines.fold((0, 0), |(run, count), line| (run + line.len(), count + 1));
    let run = piece.get(..run)?;
    if !publish(run) {
        return None;
    }
    counted.pass(run, count);
    Some((run.len(), count))
}

/// The whole lines that `bytes` begins with, a piece of them or one that is longer.
fn whole_lines(bytes: &[u8]) -> Option<&[u8]> {
    let piece = bytes.get(..PIECE).unwrap_or(bytes);
    let is_end = |&byte: &u8| byte == b'\n';
    let end = piece.iter().rposition(is_end);
    let end = end.or_else(|| bytes.iter().position(is_end))?;
    bytes.get(..=end)
}

fn first_line(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&byte| byte == b'\n');
    bytes
        .get(..end.map_or(bytes.len(), |end| end + 1))
        .unwrap_or(bytes)
}

/// What is known of other hubs, for a process that takes over: what waits it hears itself.
impl Heard {
    pub(super) fn pack(&self, bytes: &mut Vec<u8>) {
        let mut numbers = |of: &[u64]| bytes.extend(of.iter().flat_map(|it| it.to_le_bytes()));
        let spot = self.passed_on().map(|it| Spot {
            sequence: self.known.map_or(it.sequence, |known| known.last()),
            ..it
        });
        let spot = spot.map_or([0; 3], |it| [1, it.made, it.sequence]);
        numbers(&spot);
        numbers(&self.counted.numbers());
        numbers(&[self.clock, self.hubs.len() as u64]);
        for (origin, hub) in &self.hubs {
            let skips = u64::from(hub.skips);
            let rest = hub.rest.len() as u64;
            let mut numbers = |of: &[u64]| bytes.extend(of.iter().flat_map(|it| it.to_le_bytes()));
            numbers(&[
                origin.0, hub.byte, hub.line, hub.missed, hub.last, skips, rest,
            ]);
            bytes.extend_from_slice(&hub.rest);
        }
    }

    /// Goes on with it. `None`: these bytes are none.
    pub(super) fn unpack(&mut self, bytes: &mut &[u8]) -> Option<()> {
        let [has_spot, made, sequence] = head(bytes)?;
        let counted = head(bytes)?;
        let [clock, count] = head(bytes)?;
        let mut hubs = HashMap::new();
        let mut unfinished = 0;
        if count > HUBS as u64 {
            return None;
        }
        for _ in 0..count {
            let [origin, byte, line, missed, last, skips, rest] = head(bytes)?;
            let rest = take(bytes, usize::try_from(rest).ok()?)?.to_vec();
            byte.checked_add(1 << 61)?;
            unfinished += rest.len();
            let hub = Hub {
                byte,
                line,
                rest,
                skips: skips != 0,
                missed,
                last,
            };
            hubs.insert(Origin(origin), hub);
        }
        self.counted = Counted::of(counted);
        // Without one: what was heard came from no stream, and it goes on from where this process has found that.
        if has_spot == 1 {
            self.spot = Some(Spot { made, sequence });
        }
        (self.hubs, self.unfinished, self.clock) = (hubs, unfinished, clock);
        self.note_size();
        Some(())
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test that indexes wrongly fails")]
mod tests;
