//! How a hub goes on after a crash of the server before it.
//!
//! What is said stands in a journal before anybody gets it: the feed as far back as it reaches, in memory that outlives the
//! process. So nothing of it is lost, and it is there once, however many are to get it: of a reader no more is noted than a few
//! words (`ledger.rs`). A line that a client is in the middle of is finished out of the feed; only what waits for a slow client
//! beside the feed, the rest of one line, stands in the vault as any other output does. With a line stands how much of its sender's
//! input had been said with it, so that nothing is said twice either: the vault gives input again of which it does not
//! know whether it was used.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::PoisonError;

use super::block::LONGEST;
use super::client::{HubClient, Place};
use super::cursor::Cursor;
use super::feed::{Feed, Said};
use super::ledger::{Ledger, Stood, lost};
use super::nats::Remains;
use crate::os::journal::{Journal, Record};
use crate::service::{Context, Left};

/// No feed comes so far: numbers beyond that are something else.
const FAR: u64 = 1 << 60;

/// In a journal beside twice what the feed reaches back, bytes.
const ROOM: usize = 64 * 1024;

/// Room for what the slowest may have to get yet while all others go on, and for what stands before each piece of it.
pub(super) fn room(buffer: usize) -> usize {
    buffer.saturating_mul(2).saturating_add(ROOM)
}

/// Has `feed` stand in `journal` from here on, and be what another process has left. Answers where its clients stand, how many
/// lines they have lost, and what there is of its place beyond this machine.
pub(super) fn go_on(
    feed: &Feed,
    journal: Journal,
    left: Option<Left>,
) -> (Ledger, u64, Option<Remains>) {
    let ledger = Ledger::new(journal.places(), journal.notes());
    feed.keep_in(journal);
    let Some(Left {
        mut journal,
        living,
    }) = left
    else {
        return (ledger, 0, None);
    };
    let records = journal.records();
    let remains = Remains::of(&journal, &records);
    let mut heard: HashMap<u64, u64> = HashMap::new();
    for (record, _) in &records {
        if living.contains(&record.sender) {
            let known = heard.entry(record.sender).or_default();
            *known = record.heard.max(*known);
        }
    }
    feed.go_on(&records);
    ledger.go_on_from(&journal.places(), &living);
    *ledger.heard.lock().unwrap_or_else(PoisonError::into_inner) = heard;
    let lost = lost(&journal);
    ledger.set_lost(lost);
    (ledger, lost, Some(remains))
}

/// A client of the server before, as its vault and the ledger have it. `None`: it had come, and had been told nothing.
pub(super) fn client(
    feed: &Feed,
    ledger: &Ledger,
    conn: &mut Context<'_>,
    own: Option<u64>,
) -> Option<HubClient> {
    let heard = ledger.heard.lock();
    let heard = heard
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&conn.id());
    conn.skip_input(heard.unwrap_or(0));
    let end = conn.output_end();
    let entry = ledger.found(conn.id(), end);
    if entry.is_none() && end == 0 {
        return None;
    }
    let stands = entry.and_then(|entry| Some((entry, stands(feed, &entry.stood?, end, own)?)));
    let Some((entry, (place, rest))) = stands else {
        log::warn!(id = conn.id(), peer:% = conn.peer(); "nobody knows how much of a line it has got");
        conn.is_lost();
        return Some(HubClient::at(Place::Over));
    };
    let client = HubClient {
        entry: entry.at,
        lost: entry.lost,
        ..HubClient::at(place)
    };
    if let (Place::Here(cursor), false) = (&client.place, rest.is_empty()) {
        conn.write(&cursor.block.bytes[rest]);
        ledger.note(client.entry, cursor, conn.output_end());
    }
    Some(client)
}

/// Where a client stands whose output ends there, and the rest of the line that it has got the beginning of. `None`: nobody
/// knows.
fn stands(feed: &Feed, stood: &Stood, end: u64, own: Option<u64>) -> Option<(Place, Range<usize>)> {
    let sent = usize::try_from(end.checked_sub(stood.end)?).ok()?;
    let resumed = feed.resume(stood.position, sent, own);
    let here = resumed.map(|(cursor, rest)| (Place::Here(cursor), rest));
    // Too far behind, at a line's end: it loses what is not there any more.
    let behind = || (Place::Predecessor(stood.position, stood.line), 0..0);
    here.or_else(|| (sent == 0).then(behind))
}

/// A client has come of another process.
pub(super) fn arrives(client: &mut HubClient, ledger: &Ledger, conn: &Context<'_>) {
    if let Place::Predecessor(position, line) = client.place {
        let end = conn.output_end();
        let stood = Stood {
            position,
            line,
            end,
        };
        client.entry = ledger.arrive(conn.id(), &stood);
        ledger.loses(client.entry, client.lost);
    }
}

impl Feed {
    /// Is the one that was noted: all of that, though it may be more than it reaches back, until something is said.
    fn go_on(&self, records: &[(Record, Vec<u8>)]) {
        let Some((first, _)) = records.first() else {
            return;
        };
        if first.position.max(first.line) > FAR {
            return;
        }
        self.begin_at(first.position, first.line);
        for (record, bytes) in records {
            if bytes.is_empty() || bytes.len() > LONGEST {
                continue;
            }
            self.say_again(&Said {
                sender: record.sender,
                bytes,
                is_whole: record.is_whole,
                heard: record.heard,
            });
        }
        self.close_again();
    }

    /// A reader that has got so many bytes that are not `own` behind that place, where a line begins; and the rest of the line that it is
    /// in the middle of, which is behind its place then. `None`: it is not there any more, or there are not as many.
    fn resume(
        &self,
        position: u64,
        sent: usize,
        own: Option<u64>,
    ) -> Option<(Cursor, Range<usize>)> {
        if position < self.oldest() || position > self.end() {
            return None;
        }
        let (mut cursor, _) = self.reader_at(position, 0);
        let there: usize = cursor.stretches(own, self.end()).map(<[u8]>::len).sum();
        if cursor.position() != position || there < sent {
            return None;
        }
        if sent == 0 {
            return Some((cursor, 0..0));
        }
        cursor.advance(sent, own);
        let at = cursor.at;
        if cursor.block.line_start(at) < at {
            cursor.at = cursor.block.line_end(at);
        }
        let rest = at..cursor.at;
        Some((cursor, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::super::feed::said;
    use super::*;

    fn journal() -> Journal {
        Journal::new(b"", 4, 16 * 1024).unwrap()
    }

    fn say(feed: &Feed, sender: u64, text: &str) {
        feed.publish(&said(sender, text), false, u64::MAX);
    }

    fn after(journal: &Journal, feed: &Feed) {
        let (mut found, _) = Journal::found(journal.file().try_clone().unwrap()).unwrap();
        feed.go_on(&found.records());
    }

    fn heard(mut cursor: Cursor, own: Option<u64>) -> String {
        let mut heard = String::new();
        while let Some(stretch) = cursor.next_stretch(own) {
            cursor.at = stretch.end;
            heard.push_str(std::str::from_utf8(&cursor.block.bytes[stretch]).unwrap());
        }
        heard
    }

    #[test]
    fn a_feed_is_the_same_after_a_crash_and_after_the_next_one() {
        let file = journal();
        let (first, _) = Journal::found(file.file().try_clone().unwrap()).unwrap();
        let feed = Feed::new(40);
        feed.keep_in(first);
        feed.begin_at(1000, 70);
        for number in 0..20 {
            say(&feed, number % 3, &format!("number {number}\n"));
        }
        // Gathered, and not in a block yet.
        let (end, line) = (feed.end(), feed.head().1);
        let second = journal();
        let (copy, _) = Journal::found(second.file().try_clone().unwrap()).unwrap();
        let next = Feed::new(40);
        next.keep_in(copy);
        after(&file, &next);
        assert!(next.end() >= end && next.head().1 >= line);
        let all = |feed: &Feed| heard(feed.oldest_reader(), None);
        assert!(all(&next).starts_with("number 0\n") && all(&next).ends_with("number 19\n"));
        assert_eq!(next.head().1, 90);
        let third = Feed::new(40);
        after(&second, &third);
        assert_eq!((all(&third), third.head()), (all(&next), next.head()));
        assert_eq!(
            heard(third.oldest_reader(), Some(1))
                .matches("number")
                .count(),
            13
        );
    }

    #[test]
    fn what_came_in_a_takeover_is_there_after_a_crash_lines_or_not() {
        let (there, file) = (Feed::new(1000), journal());
        say(&there, 1, "one\n");
        say(&there, 2, "two\nthree\n");
        let raw = Said {
            is_whole: true,
            ..said(2, "raw\nand")
        };
        there.publish(&raw, false, u64::MAX);
        there.seal();
        let (copy, _) = Journal::found(file.file().try_clone().unwrap()).unwrap();
        let feed = Feed::new(1000);
        feed.keep_in(copy);
        let blocks = there.blocks_behind(0, usize::MAX, 1);
        for block in &blocks {
            let bytes = super::super::journey::pack(&there, 0, 0, |_| None);
            assert!(!block.bytes.is_empty());
            super::super::journey::unpack(&bytes, &feed, || ()).unwrap();
        }
        let next = Feed::new(1000);
        after(&file, &next);
        assert_eq!(
            heard(next.oldest_reader(), None),
            "one\ntwo\nthree\nraw\nand"
        );
        assert_eq!(next.head(), (21, 4));
    }

    #[test]
    fn a_reader_goes_on_in_the_midst_of_its_line() {
        let feed = Feed::new(1000);
        for (sender, text) in [
            (1, "mine\n"),
            (2, "one\n"),
            (3, "two\n"),
            (1, "mine\n"),
            (2, "three\n"),
        ] {
            say(&feed, sender, text);
            feed.seal();
        }
        for (sent, own, rest, then) in [
            (0, Some(1), "", "one\ntwo\nthree\n"),
            (3, Some(1), "\n", "two\nthree\n"),
            (4, Some(1), "", "two\nthree\n"),
            (5, Some(1), "wo\n", "three\n"),
            (9, Some(1), "hree\n", ""),
            (14, Some(1), "", ""),
            (2, None, "ne\n", "one\ntwo\nmine\nthree\n"),
        ] {
            let (cursor, place) = feed.resume(0, sent, own).unwrap();
            let block = std::sync::Arc::clone(&cursor.block);
            let said = std::str::from_utf8(&block.bytes[place]).unwrap();
            assert_eq!((said, heard(cursor, own).as_str()), (rest, then), "{sent}");
        }
        assert!(feed.resume(0, 15, Some(1)).is_none(), "more than there is");
        assert!(feed.resume(3, 1, None).is_none(), "no line begins there");
        assert!(feed.resume(99, 0, None).is_none(), "behind the end");
    }
}
