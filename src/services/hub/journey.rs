//! The feed and its readers as bytes, for a process that takes over. Whatever comes in is checked before it is believed.
//!
//! Numbers are little-endian. The feed: position, number of the first line, lines lost so far, number of lines, number
//! of runs; each line's length; each run's sender and number of lines; the bytes. A reader: position, number of its line,
//! lines lost so far, and what it may not do any more.
#![warn(clippy::indexing_slicing)]

use super::block::{Block, LONGEST};
use super::feed::Feed;

/// The most of a feed that travels, in bytes of lines: the server stands still meanwhile. Who is further behind loses
/// what is older.
const MOST: usize = 512 * 1024;

/// The feed as it is, and `lost`.
pub(super) fn pack(feed: &Feed, lost: u64) -> Vec<u8> {
    let blocks = feed.newest(MOST);
    let (mut lengths, mut runs, mut text) = (Vec::new(), Vec::new(), Vec::new());
    let (mut lines, mut count) = (0_u64, 0_u64);
    for block in &blocks {
        let (of_lines, of_runs) = block.anatomy();
        for length in of_lines {
            lengths.extend_from_slice(&length.to_le_bytes());
            lines += 1;
        }
        for (sender, lines) in of_runs {
            runs.extend_from_slice(&sender.to_le_bytes());
            runs.extend_from_slice(&(lines as u64).to_le_bytes());
            count += 1;
        }
        text.extend_from_slice(&block.bytes);
    }
    let first = blocks.first().map(AsRef::as_ref);
    let nothing = Block::default();
    let Block {
        position, first, ..
    } = first.unwrap_or(&nothing);
    let head = [*position, *first, lost, lines, count].map(u64::to_le_bytes);
    [head.concat(), lengths, runs, text].concat()
}

/// Makes `feed` the one that was packed. Answers the lines lost so far.
///
/// # Errors
/// In words, what is wrong with the bytes; the feed is as before then.
pub(super) fn unpack(bytes: &[u8], feed: &Feed) -> Result<u64, String> {
    parse(bytes, feed).ok_or_else(|| "a feed that cannot be read".to_owned())
}

fn parse(bytes: &[u8], feed: &Feed) -> Option<u64> {
    let mut rest = bytes;
    let [position, first, lost, lines, count] = head(&mut rest)?;
    let lengths = take(&mut rest, usize::try_from(lines).ok()?.checked_mul(4)?)?;
    let runs = take(&mut rest, usize::try_from(count).ok()?.checked_mul(16)?)?;
    // Nothing may overflow later, however long the feed goes on.
    position.checked_add(1 << 60)?;
    first.checked_add(1 << 60)?;
    let lengths = lengths.as_chunks().0.iter();
    let lengths = lengths.map(|&length| usize::try_from(u32::from_le_bytes(length)).unwrap_or(0));
    let mut size = 0_usize;
    for length in lengths.clone() {
        size = size.checked_add(length)?;
        if length == 0 || length > LONGEST {
            return None;
        }
    }
    let runs = runs.as_chunks::<16>().0.iter().map(|run| {
        let (sender, lines) = run.split_at(8);
        (number(sender), number(lines))
    });
    let mut said = 0_u64;
    for (_, lines) in runs.clone() {
        said = said.checked_add(lines)?;
    }
    if said != lines || size != rest.len() {
        return None;
    }
    let senders = runs.flat_map(|(sender, lines)| (0..lines).map(move |_| sender));
    let lines = senders.zip(lengths).map_while(|(sender, length)| {
        let (line, more) = rest.split_at_checked(length)?;
        rest = more;
        Some((sender, line))
    });
    feed.restore(position, first, lines);
    Some(lost)
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

fn head<const N: usize>(rest: &mut &[u8]) -> Option<[u64; N]> {
    let mut numbers = [0; N];
    for place in &mut numbers {
        *place = number(take(rest, 8)?);
    }
    Some(numbers)
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
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
    use super::*;

    fn feed() -> Feed {
        let feed = Feed::new(1000);
        for (sender, text) in [(7, "one\n"), (7, "two\n"), (8, "three\n")] {
            feed.publish(sender, std::iter::once(text.as_bytes()), false, u64::MAX);
        }
        feed.seal();
        // Gathered, and not in a block yet.
        feed.publish(7, std::iter::once(&b"four\n"[..]), false, u64::MAX);
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

    #[test]
    fn a_feed_arrives_as_it_was_and_goes_on() {
        let packed = pack(&feed(), 5);
        let arrived = Feed::new(1000);
        assert_eq!(unpack(&packed, &arrived), Ok(5));
        arrived.publish(9, std::iter::once(&b"five\n"[..]), true, u64::MAX);
        assert_eq!(heard(&arrived, None), "one\ntwo\nthree\nfour\nfive\n");
        assert_eq!(heard(&arrived, Some(7)), "three\nfive\n");
        assert_eq!(arrived.end(), 24);
        let (cursor, missed) = arrived.reader_at(8, 2);
        assert_eq!((cursor.position(), cursor.line(), missed), (8, 2, 0));
        // And once more, from there.
        let again = Feed::new(8);
        assert_eq!(unpack(&pack(&arrived, 6), &again), Ok(6));
        assert_eq!(again.end(), 24);
        assert!(heard(&again, None).ends_with("four\nfive\n"));
    }

    #[test]
    fn truncated_and_damaged_bytes_are_errors_and_never_a_panic() {
        let packed = pack(&feed(), 5);
        for length in 0..packed.len() {
            assert!(unpack(&packed[..length], &Feed::new(9)).is_err());
        }
        let mut random = 1_u64;
        let mut draw = move |below: usize| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(random >> 33).unwrap() % below
        };
        for _ in 0..50_000 {
            let mut bytes = packed.clone();
            for _ in 0..=draw(3) {
                let at = draw(bytes.len());
                bytes[at] = u8::try_from(draw(256)).unwrap();
            }
            let _ = unpack(&bytes, &Feed::new(9));
        }
    }

    #[test]
    fn a_feed_of_short_lines_of_many_arrives_whole() {
        let reach = 256 * 1024;
        let feed = Feed::new(reach);
        for sender in 0..200_000 {
            feed.publish(sender, std::iter::once(b"a\n"), false, u64::MAX);
        }
        let packed = pack(&feed, 0);
        let arrived = Feed::new(reach);
        assert_eq!(unpack(&packed, &arrived), Ok(0));
        assert!(arrived.end() - arrived.oldest() >= reach as u64);
        assert_eq!(arrived.end(), feed.end());
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
