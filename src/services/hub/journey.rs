//! The feed and its readers as bytes, for a process that takes over. Whatever comes in is checked before it is believed.
//!
//! Numbers are little-endian. A block: position, number of its first line, number of lines, number of runs; where each
//! line ends; where each run ends, and its sender; the bytes. Blocks change no more, so they go ahead of the rest: lines
//! lost so far, where the feed ends, the number of the line there, and the blocks that did not go. Before blocks stands
//! how many there are. A reader: position,
//! number of its line, lines lost so far, and what it may not do any more.
#![warn(clippy::indexing_slicing)]

use std::sync::Arc;

use super::block::Block;
use super::feed::Feed;
use crate::service::Exported;

/// The form of what travels to another process.
pub(super) const SCHEMA: u16 = 2;

/// With it: before the rest stands how far it has come with hubs on other machines.
const BEYOND: u16 = 1 << 8;

/// Blocks go in parts of about so many bytes of lines.
const PART: usize = 48 * 1024;

/// So little may be gathered without becoming a block before its time.
const LITTLE: usize = 4 * 1024;

/// The next blocks behind the position `ahead`, and where they end; of those that are `further` back than the feed reaches, where
/// there are such. `None`: there are none, as yet.
pub(super) fn pack_ahead(
    feed: &Feed,
    ahead: u64,
    further: impl Fn(usize) -> Option<Vec<Arc<Block>>>,
) -> Option<(Vec<u8>, u64)> {
    let blocks = further(PART).unwrap_or_else(|| feed.blocks_behind(ahead, PART, LITTLE));
    let end = blocks.last()?.end();
    let mut bytes = Vec::new();
    pack_blocks(&blocks, &mut bytes);
    Some((bytes, end))
}

/// The feed as it is but for the blocks up to the position `ahead`, and `lost`.
pub(super) fn pack(
    feed: &Feed,
    ahead: u64,
    lost: u64,
    further: impl Fn(usize) -> Option<Vec<Arc<Block>>>,
) -> Vec<u8> {
    let all = usize::MAX;
    // Asked first: what is being gathered becomes a block of both.
    feed.seal();
    let blocks = further(all).unwrap_or_else(|| feed.blocks_behind(ahead, all, 1));
    let (end, line) = feed.head();
    let mut bytes = [lost, end, line].map(u64::to_le_bytes).concat();
    pack_blocks(&blocks, &mut bytes);
    bytes
}

fn pack_blocks(blocks: &[Arc<Block>], bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&(blocks.len() as u64).to_le_bytes());
    for block in blocks {
        let (ends, runs) = (block.ends(), block.runs());
        let counts = [ends.len() as u64, runs.len() as u64];
        for number in [block.position, block.first].into_iter().chain(counts) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for end in ends {
            bytes.extend_from_slice(&end.to_le_bytes());
        }
        for (end, sender) in runs {
            bytes.extend_from_slice(&end.to_le_bytes());
            bytes.extend_from_slice(&sender.to_le_bytes());
        }
        bytes.extend_from_slice(&block.bytes);
    }
}

/// Adds the blocks that were packed to `feed`, and says so after each.
///
/// # Errors
/// In words, what is wrong with the bytes; the feed is as before then.
pub(super) fn unpack_ahead(bytes: &[u8], feed: &Feed, added: impl Fn()) -> Result<(), String> {
    let blocks = blocks(bytes).ok_or(UNREADABLE)?;
    for block in blocks {
        feed.append(block);
        added();
    }
    Ok(())
}

/// Makes `feed`, with what came ahead, the one that was packed. Answers the lines lost so far.
///
/// # Errors
/// As [`unpack_ahead`].
pub(super) fn unpack(mut bytes: &[u8], feed: &Feed, added: impl Fn()) -> Result<u64, String> {
    let [lost, end, line] = head(&mut bytes).ok_or(UNREADABLE)?;
    let blocks = blocks(bytes).ok_or(UNREADABLE)?;
    let last = blocks.last().map(|block| (block.end(), block.last()));
    if end.max(line) > u64::MAX >> 1 || last.is_some_and(|last| last != (end, line)) {
        return Err(UNREADABLE.to_owned());
    }
    for block in blocks {
        feed.append(block);
        added();
    }
    feed.begin_at(end, line);
    Ok(lost)
}

/// What all have in common: the feed, and before it how far that has come with other machines, where it goes there.
pub(super) fn joined(beyond: Option<&[u8]>, feed: Vec<u8>) -> Exported {
    let Some(beyond) = beyond else {
        let (schema, bytes) = (SCHEMA, feed);
        return Exported { schema, bytes };
    };
    let length = (beyond.len() as u64).to_le_bytes();
    Exported {
        schema: SCHEMA | BEYOND,
        bytes: [&length, beyond, &feed].concat(),
    }
}

/// The two parts of that.
///
/// # Errors
/// As [`unpack_ahead`].
pub(super) fn split(common: &Exported) -> Result<(Option<&[u8]>, &[u8]), String> {
    let mut bytes = common.bytes.as_slice();
    if common.schema & BEYOND == 0 {
        return known(common).map(|()| (None, bytes));
    }
    if common.schema != SCHEMA | BEYOND {
        known(common)?;
    }
    let length = head(&mut bytes).and_then(|[length]| usize::try_from(length).ok());
    let parts = length.and_then(|length| bytes.split_at_checked(length));
    let (beyond, feed) = parts.ok_or(UNREADABLE)?;
    Ok((Some(beyond), feed))
}

/// Whether this process can read what another one exported.
///
/// # Errors
/// In words, that it cannot.
pub(super) fn known(exported: &Exported) -> Result<(), String> {
    if exported.schema == SCHEMA {
        return Ok(());
    }
    Err(format!(
        "a hub of form {}, this one reads {SCHEMA}",
        exported.schema
    ))
}

const UNREADABLE: &str = "a feed that cannot be read";

fn blocks(mut rest: &[u8]) -> Option<Vec<Block>> {
    let mut blocks = Vec::new();
    let [count] = head(&mut rest)?;
    for _ in 0..count {
        let [position, first, lines, runs] = head(&mut rest)?;
        let ends = take(&mut rest, usize::try_from(lines).ok()?.checked_mul(4)?)?;
        let ends = ends.as_chunks().0.iter().copied().map(u32::from_le_bytes);
        let runs = take(&mut rest, usize::try_from(runs).ok()?.checked_mul(12)?)?;
        let runs = runs.as_chunks::<12>().0.iter().map(|run| {
            let (end, sender) = run.split_at(4);
            let end = end.first_chunk().copied().map_or(0, u32::from_le_bytes);
            (end, number(sender))
        });
        let ends: Box<[u32]> = ends.collect();
        let size = ends.last().copied().unwrap_or(0);
        let bytes = take(&mut rest, usize::try_from(size).ok()?)?;
        blocks.push(Block::of((position, first), ends, runs.collect(), bytes)?);
    }
    rest.is_empty().then_some(blocks)
}

/// A reader's place, and what it has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reader {
    pub(super) position: u64,
    pub(super) line: u64,
    pub(super) lost: u64,
    /// It said something too long, and is heard no more.
    pub(super) cut: bool,
    /// It leaves once it has got what there is.
    pub(super) leaving: bool,
    /// It got all that it gets.
    pub(super) over: bool,
}

impl Reader {
    pub(super) fn pack(self) -> Vec<u8> {
        let flags = u64::from(self.cut) | u64::from(self.over) << 1 | u64::from(self.leaving) << 2;
        let numbers = [self.position, self.line, self.lost, flags];
        numbers.map(u64::to_le_bytes).concat()
    }

    /// # Errors
    /// In words, that these bytes are none.
    pub(super) fn unpack(mut bytes: &[u8]) -> Result<Self, String> {
        match head(&mut bytes) {
            Some([position, line, lost, flags @ 0..8]) if bytes.is_empty() => Ok(Self {
                position,
                line,
                lost,
                cut: flags & 1 != 0,
                leaving: flags & 4 != 0,
                over: flags & 2 != 0,
            }),
            _ => Err("a reader that cannot be read".to_owned()),
        }
    }
}

/// The numbers that come first of `rest`, which has what is behind them then.
pub(super) fn head<const N: usize>(rest: &mut &[u8]) -> Option<[u64; N]> {
    let mut numbers = [0; N];
    for place in &mut numbers {
        *place = number(take(rest, 8)?);
    }
    Some(numbers)
}

pub(super) fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, more) = rest.split_at_checked(count)?;
    *rest = more;
    Some(taken)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().copied().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test that indexes wrongly fails")]
mod tests {
    use super::super::feed::said;
    use super::*;
    use crate::seeded::Seeded;

    fn feed() -> Feed {
        let feed = Feed::new(1000);
        for (sender, text) in [(7, "one\n"), (7, "two\n"), (8, "three\n")] {
            feed.publish(&said(sender, text), false, u64::MAX);
        }
        feed.seal();
        // Gathered, and not in a block yet.
        feed.publish(&said(7, "four\n"), false, u64::MAX);
        feed
    }

    fn heard(feed: &Feed, own: Option<u64>) -> String {
        let mut cursor = feed.oldest_reader();
        let mut heard = String::new();
        while let Some(stretch) = cursor.next_stretch(own) {
            cursor.at = stretch.end;
            heard.push_str(std::str::from_utf8(&cursor.block.bytes[stretch]).unwrap());
        }
        heard
    }

    /// Has `feed` arrive in `there`, as much ahead as can go; answers in how many parts.
    fn carry(feed: &Feed, there: &Feed, lost: u64) -> usize {
        let (mut ahead, mut parts) = (0, 0);
        while let Some((bytes, then)) = pack_ahead(feed, ahead, |_| None) {
            assert_eq!(unpack_ahead(&bytes, there, || ()), Ok(()));
            assert!(then > ahead);
            (ahead, parts) = (then, parts + 1);
        }
        assert_eq!(
            unpack(&pack(feed, ahead, lost, |_| None), there, || ()),
            Ok(lost)
        );
        parts
    }

    #[test]
    fn a_feed_arrives_as_it_was_and_goes_on() {
        let arrived = Feed::new(1000);
        assert_eq!(
            carry(&feed(), &arrived, 5),
            1,
            "what is gathered comes last"
        );
        arrived.publish(&said(9, "five\n"), true, u64::MAX);
        assert_eq!(heard(&arrived, None), "one\ntwo\nthree\nfour\nfive\n");
        assert_eq!(heard(&arrived, Some(7)), "three\nfive\n");
        assert_eq!(arrived.end(), 24);
        let (cursor, missed) = arrived.reader_at(8, 2);
        assert_eq!((cursor.position(), cursor.line(), missed), (8, 2, 0));
        // And once more, from there.
        let again = Feed::new(8);
        carry(&arrived, &again, 6);
        assert_eq!(again.end(), 24);
        assert!(heard(&again, None).ends_with("four\nfive\n"));
    }

    #[test]
    fn a_feed_without_a_line_arrives_where_it_is() {
        let empty = Feed::new(9);
        empty.begin_at(77, 5);
        let arrived = Feed::new(9);
        assert_eq!(carry(&empty, &arrived, 1), 0);
        assert_eq!((arrived.head(), arrived.oldest()), ((77, 5), 77));
    }

    fn say(feed: &Feed, line: &'static str) {
        feed.publish(&said(1, line), true, u64::MAX);
    }

    /// A feed, the one it goes to, and how far: its first line is there.
    fn one_ahead() -> (Feed, Feed, u64) {
        let (here, there) = (Feed::new(1000), Feed::new(1000));
        say(&here, "one\n");
        let (bytes, ahead) = pack_ahead(&here, 0, |_| None).unwrap();
        assert_eq!(unpack_ahead(&bytes, &there, || ()), Ok(()));
        (here, there, ahead)
    }

    #[test]
    fn what_is_published_while_parts_go_ahead_arrives_too() {
        let (here, there, ahead) = one_ahead();
        let publish = |text| say(&here, text);
        assert_eq!(pack_ahead(&here, ahead, |_| None), None);
        publish("two\n");
        let (bytes, ahead) = pack_ahead(&here, ahead, |_| None).unwrap();
        assert_eq!(unpack_ahead(&bytes, &there, || ()), Ok(()));
        publish("three\n");
        assert_eq!(
            unpack(&pack(&here, ahead, 0, |_| None), &there, || ()),
            Ok(0)
        );
        assert_eq!(heard(&there, None), "one\ntwo\nthree\n");
    }

    #[test]
    fn what_comes_again_after_a_late_freeze_takes_nothing_of_what_is_there() {
        let (here, there, ahead) = one_ahead();
        let publish = |text| say(&here, text);
        publish("two\n");
        // The freeze, too late: the old process serves on.
        assert_eq!(
            unpack(&pack(&here, ahead, 0, |_| None), &there, || ()),
            Ok(0)
        );
        publish("three\n");
        let (bytes, ahead) = pack_ahead(&here, ahead, |_| None).unwrap();
        assert_eq!(unpack_ahead(&bytes, &there, || ()), Ok(()));
        publish("four\n");
        assert_eq!(
            unpack(&pack(&here, ahead, 0, |_| None), &there, || ()),
            Ok(0)
        );
        assert_eq!(heard(&there, None), "one\ntwo\nthree\nfour\n");
        assert_eq!((there.oldest(), there.head()), (here.oldest(), here.head()));
    }

    #[test]
    fn a_feed_that_runs_ahead_of_its_parts_begins_anew() {
        let (here, there) = (Feed::new(8), Feed::new(8));
        say(&here, "one\n");
        let (bytes, ahead) = pack_ahead(&here, 0, |_| None).unwrap();
        assert_eq!(unpack_ahead(&bytes, &there, || ()), Ok(()));
        for _ in 0..9 {
            say(&here, "more\n");
        }
        assert_eq!(
            unpack(&pack(&here, ahead, 0, |_| None), &there, || ()),
            Ok(0)
        );
        assert_eq!(heard(&there, None), heard(&here, None));
        assert_eq!((there.oldest(), there.head()), (here.oldest(), here.head()));
    }

    #[test]
    fn little_is_left_for_the_rest_however_much_was_published() {
        let feed = Feed::new(512 * 1024);
        for sender in 0..200_000 {
            feed.publish(&said(sender, "a\n"), false, u64::MAX);
        }
        let mut ahead = 0;
        while let Some((_, then)) = pack_ahead(&feed, ahead, |_| None) {
            ahead = then;
        }
        // Each line of another sender: the most there is beside it.
        assert!(pack(&feed, ahead, 0, |_| None).len() <= 100 + LITTLE * 9);
        let arrived = Feed::new(512 * 1024);
        assert!(carry(&feed, &arrived, 0) > 5);
        assert_eq!(heard(&arrived, None), heard(&feed, None));
    }

    #[test]
    fn truncated_and_damaged_bytes_are_errors_and_never_a_panic() {
        let feed = feed();
        let (ahead, _) = pack_ahead(&feed, 0, |_| None).unwrap();
        let rest = pack(&feed, 0, 5, |_| None);
        for length in 0..rest.len() {
            assert!(unpack(&rest[..length], &Feed::new(9), || ()).is_err());
        }
        for length in 1..ahead.len() {
            assert!(unpack_ahead(&ahead[..length], &Feed::new(9), || ()).is_err());
        }
        let mut random = Seeded::new(1);
        let mut draw = move |limit: usize| random.below(limit);
        for round in 0..50_000 {
            let mut bytes = if round % 2 == 0 { &ahead } else { &rest }.clone();
            for _ in 0..=draw(3) {
                let at = draw(bytes.len());
                bytes[at] = u8::try_from(draw(256)).unwrap();
            }
            let feed = Feed::new(9);
            let damaged = match round % 2 {
                0 => unpack_ahead(&bytes, &feed, || ()),
                _ => unpack(&bytes, &feed, || ()).map(drop),
            };
            if damaged.is_ok() {
                // Whatever it is, it can be read and goes on.
                say(&feed, "more\n");
                let mut cursor = feed.oldest_reader();
                while let Some(stretch) = cursor.next_stretch(Some(7)) {
                    cursor.at = stretch.end;
                }
            }
        }
    }

    #[test]
    fn a_reader_arrives_as_it_was() {
        let reader = Reader {
            position: 1 << 40,
            line: 3,
            lost: 4,
            cut: false,
            leaving: true,
            over: true,
        };
        let packed = reader.pack();
        assert_eq!(Reader::unpack(&packed), Ok(reader));
        for length in 0..packed.len() {
            assert!(Reader::unpack(&packed[..length]).is_err());
        }
        assert!(Reader::unpack(&[packed, vec![0]].concat()).is_err());
        assert!(Reader::unpack(&[255; 32]).is_err());
    }
}
