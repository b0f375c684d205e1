//! What came is told in numbers and lines.

use super::*;

fn place(origin: u64, byte: u64, line: u64, within: u64) -> Place {
    let origin = Origin(origin);
    Place {
        origin,
        byte,
        line,
        within,
    }
}

/// Takes it in, and answers what is passed on.
fn hear(heard: &mut Heard, place: Option<Place>, bytes: &[u8]) -> String {
    assert!(heard.take(place, bytes));
    let mut text = Vec::new();
    loop {
        let progress = heard.pass_on(|lines, _| {
            text.extend_from_slice(lines);
            true
        });
        match progress {
            Progress::Nothing => return String::from_utf8(text).unwrap(),
            Progress::Full => panic!("there was room"),
            Progress::Done | Progress::Missed(..) => {}
        }
    }
}

fn counted(heard: &Heard) -> (u64, u64, u64) {
    let Counted {
        lines,
        missed,
        again,
        ..
    } = heard.counted;
    (lines, missed, again)
}

#[test]
fn a_hub_is_heard_once_in_its_order_however_it_was_cut() {
    let mut heard = Heard::new(1 << 20, 1000);
    let mut hear = |byte, line, within, text: &str| {
        hear(
            &mut heard,
            Some(place(1, byte, line, within)),
            text.as_bytes(),
        )
    };
    assert_eq!(hear(0, 0, 0, ""), "");
    assert_eq!(hear(0, 0, 0, "one\n"), "one\n");
    assert_eq!(hear(0, 0, 0, "one\n"), "", "again");
    assert_eq!(hear(0, 0, 0, "one\ntwo\nth"), "two\n");
    assert_eq!(hear(4, 1, 0, "two\nthree\n"), "three\n");
    assert_eq!(hear(14, 3, 0, "fo"), "");
    assert_eq!(hear(16, 3, 2, "u"), "");
    assert_eq!(hear(17, 3, 3, "r\nfive\n"), "four\nfive\n");
    assert_eq!(counted(&heard), (5, 0, 1));
}

#[test]
fn what_is_missing_is_counted_to_the_line_and_no_half_of_one_is_passed_on() {
    let mut heard = Heard::new(1 << 20, 1000);
    let mut say = |byte, line, within, text: &str| {
        hear(
            &mut heard,
            Some(place(1, byte, line, within)),
            text.as_bytes(),
        )
    };
    assert_eq!(
        say(100, 10, 3, "st of one\nwhole\n"),
        "whole\n",
        "the first"
    );
    assert_eq!(say(150, 15, 0, "a\nb"), "a\n", "three are missing");
    assert_eq!(say(160, 17, 0, "c\n"), "c\n", "b and one more");
    assert_eq!(
        say(170, 18, 4, "d\ne\n"),
        "e\n",
        "the one that began is, too"
    );
    assert_eq!(say(190, 20, 0, ""), "", "none");
    assert_eq!(
        say(199, 23, 0, ""),
        "",
        "it says nothing, and more was said"
    );
    assert_eq!(counted(&heard), (4, 3 + 1 + 1 + 3, 0));
    assert_eq!(heard.missed(), [(Origin(1), 8)]);
}

#[test]
fn hubs_are_heard_each_by_itself() {
    let mut heard = Heard::new(1 << 20, 1000);
    assert_eq!(hear(&mut heard, Some(place(1, 0, 0, 0)), b"ha"), "");
    assert_eq!(
        hear(&mut heard, Some(place(2, 7, 1, 0)), b"whole\n"),
        "whole\n"
    );
    assert_eq!(hear(&mut heard, Some(place(1, 2, 0, 2)), b"lf\n"), "half\n");
}

#[test]
fn a_stranger_is_heard_as_it_is_with_an_end() {
    let mut heard = Heard::new(1 << 20, 10);
    assert_eq!(hear(&mut heard, None, b"one\ntwo"), "one\ntwo\n");
    assert_eq!(hear(&mut heard, None, b""), "");
    assert_eq!(hear(&mut heard, None, b"0123456789\nshort\n"), "short\n");
    assert_eq!((heard.counted.foreign, heard.counted.too_long), (3, 1));
}

#[test]
fn what_finds_no_room_waits_and_is_passed_on_once() {
    let mut heard = Heard::new(1 << 20, 1000);
    assert!(heard.take(Some(place(1, 0, 0, 0)), b"one\ntwo\n"));
    assert!(heard.take(None, b"stranger"));
    assert_eq!(heard.pass_on(|_, _| false), Progress::Full);
    assert!(heard.is_waiting());
    assert_eq!(
        hear(&mut heard, None, b"last"),
        "one\ntwo\nstranger\nlast\n"
    );
    assert_eq!(counted(&heard).0, 4);
}

#[test]
fn a_line_longer_than_a_hub_takes_is_left_out_whole() {
    let mut heard = Heard::new(1 << 20, 8);
    let mut say = |byte, line, within, text: &str| {
        hear(
            &mut heard,
            Some(place(1, byte, line, within)),
            text.as_bytes(),
        )
    };
    assert_eq!(say(0, 0, 0, "0123456789\na\n"), "a\n");
    assert_eq!(say(13, 2, 0, "01234"), "");
    assert_eq!(say(18, 2, 5, "5678"), "");
    assert_eq!(say(22, 2, 9, "9\nb\n"), "b\n");
    assert_eq!((heard.counted.too_long, heard.unfinished), (2, 0));
}

#[test]
fn lines_around_one_that_is_too_long_are_passed_on() {
    let mut heard = Heard::new(1 << 20, 8);
    let text = b"a\nb\n0123456789\n0123456\n01234567\nc\n";
    assert_eq!(hear(&mut heard, None, text), "a\nb\n0123456\nc\n");
    let mut say = |byte, line, within, text: &str| {
        let place = place(1, byte, line, within);
        hear(&mut heard, Some(place), text.as_bytes())
    };
    assert_eq!(say(0, 0, 0, "0123"), "");
    assert_eq!(say(4, 0, 4, "456789\na\n0123456789\nb\n01"), "a\nb\n");
    assert_eq!(say(28, 4, 2, "23\nc\n"), "0123\nc\n");
    assert_eq!((heard.counted.too_long, heard.unfinished), (4, 0));
    assert_eq!((heard.counted.missed, heard.counted.lines), (0, 8));
}

/// Of its own number, of which any may come.
#[test]
fn whoever_says_that_very_much_is_missing_stops_nobody() {
    let mut heard = Heard::new(1 << 20, 100);
    for origin in 0..40 {
        assert_eq!(hear(&mut heard, Some(place(origin, 0, 0, 0)), b""), "");
        let far = place(origin, 1 << 60, 1 << 60, 0);
        assert_eq!(hear(&mut heard, Some(far), b"far\n"), "far\n");
    }
    assert_eq!(heard.counted.missed, u64::MAX);
}

#[test]
fn strangers_take_no_more_memory_than_they_may() {
    let mut heard = Heard::new(64 * 1024, 60_000);
    let mut taken = 0;
    while heard.take(None, &[b'x'; 1000]) {
        taken += 1;
    }
    assert!((50..64).contains(&taken), "{taken}");
    while heard.pass_on(|_, _| true) != Progress::Nothing {}
    assert_eq!((heard.size, heard.unfinished), (0, 0));
    // As many hubs as they like, each with half a line.
    for origin in 0..5000 {
        hear(&mut heard, Some(place(origin, 0, 0, 0)), &[b'x'; 500]);
    }
    assert!(heard.hubs.len() <= HUBS && heard.unfinished <= 64 * 1024);
    let rests = heard.hubs.values().map(|hub| hub.rest.len());
    assert_eq!(rests.sum::<usize>(), heard.unfinished);
}

#[test]
fn what_is_known_goes_along() {
    let mut heard = Heard::new(1 << 20, 1000);
    hear(&mut heard, Some(place(1, 0, 0, 0)), b"one\nha");
    hear(&mut heard, Some(place(2, 9, 3, 1)), b"the rest");
    hear(&mut heard, Some(place(1, 20, 4, 0)), b"two\nha");
    let mut packed = Vec::new();
    heard.pack(&mut packed);
    let mut arrived = Heard::new(1 << 20, 1000);
    for length in 0..packed.len() {
        assert!(arrived.unpack(&mut &packed[..length]).is_none());
    }
    assert!(arrived.unpack(&mut &[255; 500][..]).is_none());
    let mut rest = packed.as_slice();
    assert!(arrived.unpack(&mut rest).is_some() && rest.is_empty());
    assert_eq!(counted(&arrived), (2, 3, 0));
    assert_eq!(
        hear(&mut arrived, Some(place(1, 20, 4, 0)), b"two\nhalf\n"),
        "half\n"
    );
    assert_eq!(
        hear(&mut arrived, Some(place(2, 17, 3, 9)), b"of it\nb\n"),
        "b\n"
    );
}

/// Pieces in their order, some of them lost, some again, cut anew: nothing comes twice, all that does not is counted.
#[test]
fn whatever_happens_on_the_way_lines_heard_and_missed_are_all_that_were_said() {
    // Knuth's, the same each time.
    let mut state = 5_u64;
    let mut below = |limit: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % limit
    };
    for round in 0..2000 {
        let lines = 1 + below(40);
        let text: String = (0..lines)
            .map(|line| format!("{line:03}{}\n", "x".repeat(below(9))))
            .collect();
        let at = |byte: usize| {
            let before = &text[..byte];
            let ended = before.matches('\n').count() as u64;
            let within = before.len() - before.rfind('\n').map_or(0, |end| end + 1);
            place(1, byte as u64, ended, within as u64)
        };
        let mut heard = Heard::new(1 << 20, 1000);
        hear(&mut heard, Some(at(0)), b"");
        let (mut all, mut from) = (String::new(), 0);
        while from < text.len() {
            let to = (from + 1 + below(20)).min(text.len());
            if below(4) > 0 {
                // From further back, as after a takeover.
                let again = from - below(from.min(9) + 1);
                all += &hear(&mut heard, Some(at(again)), &text.as_bytes()[again..to]);
            }
            from = to;
        }
        all += &hear(&mut heard, Some(at(text.len())), b"");
        let known: Vec<&str> = text.split_inclusive('\n').collect();
        let mut last = None;
        for line in all.split_inclusive('\n') {
            let found = known.iter().position(|known| *known == line);
            assert!(found.is_some() && found > last, "{round}: {line:?}");
            last = found;
        }
        let (passed, missed, _) = counted(&heard);
        assert_eq!(passed, all.matches('\n').count() as u64);
        assert_eq!(
            passed + missed,
            known.len() as u64,
            "{round}: {all:?} of {text:?}"
        );
    }
}

/// What comes while all is packed is not passed on by this process any more.
#[test]
fn who_takes_over_goes_on_in_the_stream_behind_what_was_passed_on() {
    let mut heard = Heard::new(1 << 20, 1000);
    let spot = |sequence| Spot { made: 9, sequence };
    let arrives = |heard: &Heard| {
        let mut packed = Vec::new();
        heard.pack(&mut packed);
        let mut arrived = Heard::new(1 << 20, 1000);
        arrived.unpack(&mut packed.as_slice()).unwrap();
        arrived.spot
    };
    assert_eq!(arrives(&heard), None);
    assert!(heard.take_at(spot(5), Some(place(1, 0, 0, 0)), b"one\n"));
    assert_eq!(arrives(&heard), Some(spot(4)));
    while heard.pass_on(|_, _| true) != Progress::Nothing {}
    assert_eq!(arrives(&heard), Some(spot(5)));
    assert!(heard.take_at(spot(7), Some(place(1, 4, 1, 0)), b"two\n"));
    assert!(heard.take_at(spot(8), None, b"three\n"));
    assert!(heard.take_at(spot(7), None, b"again\n"), "it has come");
    assert_eq!(arrives(&heard), Some(spot(6)));
    assert_eq!(heard.pass_on(|_, _| false), Progress::Full);
    assert_eq!(arrives(&heard), Some(spot(6)));
    while heard.pass_on(|_, _| true) != Progress::Nothing {}
    assert_eq!((arrives(&heard), heard.counted.lines), (Some(spot(8)), 3));
}

/// A crash in the middle of a message: what was passed on of it is not again, and no line that had begun is missing.
#[test]
fn after_a_crash_what_was_passed_on_is_not_once_more() {
    let spot = |sequence| Spot { made: 9, sequence };
    let long = "x".repeat(PIECE) + "\n";
    let messages = [
        (place(1, 0, 0, 0), "one\nha".to_owned()),
        (place(2, 0, 0, 0), format!("of two\n{long}more\n")),
        (place(1, 6, 1, 2), "lf\n".to_owned()),
    ];
    let read = |heard: &mut Heard, from: u64, room: usize| {
        let (mut said, mut marks) = (Vec::new(), Vec::new());
        for (number, (place, text)) in (1..).zip(&messages) {
            if number > from {
                assert!(heard.take_at(spot(number), Some(*place), text.as_bytes()));
            }
        }
        loop {
            let progress = heard.pass_on(|lines, mark| {
                let has_room = said.len() < room;
                if has_room {
                    said.push(String::from_utf8(lines.to_vec()).unwrap());
                    marks.push(mark);
                }
                has_room
            });
            if matches!(progress, Progress::Nothing | Progress::Full) {
                return (said, marks);
            }
        }
    };
    let (all, marks) = read(&mut Heard::new(1 << 20, 1 << 20), 0, usize::MAX);
    assert_eq!(all.concat(), format!("one\nof two\n{long}more\nhalf\n"));
    assert!(all.len() > 4, "in pieces");
    for killed in 0..=all.len() {
        // What the journal has then; and what it does not, a moment later.
        let mut before = Heard::new(1 << 20, 1 << 20);
        let (said, its) = read(&mut before, 0, killed);
        assert_eq!((&said[..], &its[..]), (&all[..killed], &marks[..killed]));
        for passed in [before.mark(), None] {
            let begun = its.last().copied().unwrap_or(0);
            let pieces = said.iter().zip(&its).filter(|(_, mark)| **mark == begun);
            let bytes = pieces.map(|(piece, _)| piece.len() as u64).sum();
            let passed = passed.unwrap_or(Mark(0));
            let mut after = Heard::new(1 << 20, 1 << 20);
            after.remains = Some(Remains::found(passed, Mark(begun), bytes));
            let from = after.sequence_in(9, 3);
            let mut packed = Vec::new();
            after.pack(&mut packed);
            let mut next = Heard::new(1 << 20, 1 << 20);
            next.unpack(&mut packed.as_slice()).unwrap();
            // One that takes over meanwhile may miss the rest of a message, but doubles nothing.
            let from_there = next.sequence_in(9, 3);
            let (its, _) = read(&mut next, from_there, usize::MAX);
            assert!(its.iter().all(|piece| all[killed..].contains(piece)));
            let (rest, _) = read(&mut after, from, usize::MAX);
            assert_eq!(rest, all[killed..], "{killed}");
            assert_eq!(after.counted.missed, 0);
        }
    }
}
