//! What is said, what waits, and what a takeover makes of it.

use super::*;
use crate::services::hub::journey;

fn publish(feed: &Feed, sender: u64, text: &str) {
    let said = crate::services::hub::feed::said(sender, text);
    feed.publish(&said, true, u64::MAX);
}

fn say(said: &mut Said, feed: &Feed, most: usize) -> Option<(u64, u64, u64, String)> {
    let piece = said.next(feed, most)?;
    said.said(&piece, Moment::at_start());
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
    said.said(&piece, Moment::at_start()); // it was under way
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
    let all = journey::pack(&feed, 0, 0, |_| None);
    journey::unpack(&all, &there, || ()).unwrap();
    for length in 0..packed.len() {
        assert!(Said::unpack(&mut &packed[..length], &there, None).is_none());
    }
    let mut rest = packed.as_slice();
    let mut arrived = Said::unpack(&mut rest, &there, None).unwrap();
    assert!(rest.is_empty());
    publish(&there, 1, "two\n");
    let piece = say(&mut arrived, &there, 99);
    assert_eq!(piece, Some((4, 1, 0, "0123456789\ntwo\n".to_owned())));
    assert!(Said::unpack(&mut &[255; 80][..], &there, None).is_none());
}

/// In one go, or as much ahead as can go, whatever the feed at either end keeps.
#[test]
fn what_the_feed_does_not_hold_any_more_goes_along_too() {
    let feed = Feed::new(12);
    let mut said = Said::new(Origin(7), &feed);
    let text: String = (10..40).map(|line| format!("{line:05}\n")).collect();
    for line in text.split_inclusive('\n') {
        publish(&feed, 1, line);
        publish(&feed, REMOTE, "theirs\n");
    }
    assert!(say(&mut said, &feed, 9).is_some());
    // A part of a line.
    assert_eq!(say(&mut said, &feed, 3), Some((6, 1, 0, "000".to_owned())));
    for (reach, is_ahead) in [(12, false), (12, true), (5, true), (1 << 20, false)] {
        let there = Feed::new(reach);
        let held = std::cell::OnceCell::new();
        let hold = || {
            let _: &Cursor = held.get_or_init(|| there.oldest_reader());
        };
        let mut ahead = 0;
        while is_ahead
            && let Some((bytes, then)) =
                journey::pack_ahead(&feed, ahead, |_| said.blocks_behind(&feed, ahead, 20))
        {
            journey::unpack_ahead(&bytes, &there, hold).unwrap();
            ahead = then;
        }
        let all = journey::pack(&feed, ahead, 0, |most| {
            said.blocks_behind(&feed, ahead, most)
        });
        journey::unpack(&all, &there, hold).unwrap();
        let mut packed = Vec::new();
        said.pack(&mut packed);
        let mut rest = packed.as_slice();
        let mut arrived = Said::unpack(&mut rest, &there, held.get()).unwrap();
        assert!(rest.is_empty());
        // All of the line of which a part was said.
        let (left, lines) = said.left(&feed);
        assert_eq!(arrived.left(&there), (left + 3, lines));
        let mut all = String::new();
        while let Some((byte, line, _, piece)) = say(&mut arrived, &there, 50) {
            assert_eq!(byte, 6 + all.len() as u64);
            assert_eq!(line, 1 + all.matches('\n').count() as u64);
            all += &piece;
        }
        assert_eq!(all, text[6..]);
        assert_eq!((arrived.counted().2, arrived.left(&there)), (0, (0, 0)));
    }
}

#[test]
fn what_was_said_a_moment_ago_is_said_again_by_who_takes_over() {
    let (feed, mut said) = begun();
    let at = |seconds| Moment::at(Duration::from_secs(seconds));
    let say_one = |said: &mut Said, line: &str, seconds| {
        publish(&feed, 1, line);
        publish(&feed, REMOTE, "theirs\n");
        let piece = said.next(&feed, 99).unwrap();
        said.said(&piece, at(seconds));
    };
    say_one(&mut said, "one\n", 1);
    said.go_back(&feed, at(5));
    assert_eq!(said.place().byte, 4, "that has come by now");
    say_one(&mut said, "two\n", 10);
    say_one(&mut said, "three\n", 20);
    say_one(&mut said, "four\n", 20);
    publish(&feed, 1, "five\n");
    let under_way = said.next(&feed, 99).unwrap();
    said.go_back(&feed, at(20));
    assert_eq!((said.place().byte, said.counted()), (4, (1, 4, 0)));
    said.said(&under_way, at(20));
    let again = said.next(&feed, 99).unwrap();
    assert_eq!((again.place.byte, again.place.line), (4, 1));
    assert_eq!(again.bytes, b"two\nthree\nfour\nfive\n");
    said.said(&again, at(20));
    said.go_back(&feed, at(20));
    assert_eq!(said.place().byte, 4, "as often as it is taken over");
}

#[test]
fn what_comes_first_is_left_out_first_where_too_much_waits() {
    let feed = Feed::new(6);
    let mut said = Said::new(Origin(7), &feed);
    for line in 10..20 {
        publish(&feed, 1, &format!("{line:05}\n"));
    }
    let mut packed = Vec::new();
    said.pack(&mut packed);
    assert_eq!(
        said.keep_within(&feed, 40),
        4,
        "as little as there has to be"
    );
    assert_eq!(
        say(&mut said, &feed, 6),
        Some((24, 4, 0, "00014\n".to_owned()))
    );
    assert_eq!(said.keep_within(&feed, 1), 4);
    assert_eq!(
        say(&mut said, &feed, 60),
        Some((54, 9, 0, "00019\n".to_owned()))
    );
}

#[test]
fn what_a_feed_that_reaches_less_far_back_does_not_hold_is_lost_and_counted() {
    let (feed, said) = begun();
    let mut packed = Vec::new();
    said.pack(&mut packed);
    for _ in 0..9 {
        publish(&feed, 1, "12345\n");
    }
    let there = Feed::new(12);
    let all = journey::pack(&feed, 0, 0, |_| None);
    journey::unpack(&all, &there, || ()).unwrap();
    let mut arrived = Said::unpack(&mut packed.as_slice(), &there, None).unwrap();
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
