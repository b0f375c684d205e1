//! The verifier against the plainest model: each fault at each alignment in chunks of each size, and mixes of them.

use super::*;
use crate::seeded::Seeded;

const STREAM: Pattern = Pattern::new(5);

/// What a connection's echo is made of.
#[derive(Clone, Debug)]
enum Piece {
    /// A range of what was sent.
    Sent(u64, u64),
    /// The next so many bytes, each of them wrong.
    Wrong(u64),
    /// Bytes nobody sent.
    Garbage(Vec<u8>),
}
use Piece::{Garbage, Sent, Wrong};

fn verifier(sent: u64) -> Verifier {
    let mut verifier = Verifier::new(STREAM);
    verifier.took(usize::try_from(sent).unwrap());
    verifier
}

/// The bytes of an echo, and by the plainest means what is wrong with it.
fn model(sent: u64, pieces: &[Piece]) -> (Vec<u8>, Faults) {
    let mut bytes = Vec::new();
    let mut faults = Faults::default();
    let mut has_come = vec![false; usize::try_from(sent).unwrap()];
    let mut high = 0;
    for piece in pieces {
        match piece {
            Sent(from, to) => {
                for at in *from..*to {
                    bytes.push(STREAM.byte(at));
                    let known = &mut has_come[usize::try_from(at).unwrap()];
                    if *known {
                        faults.duplicated += 1;
                    } else if at < high {
                        faults.reordered += 1;
                    }
                    *known = true;
                    high = high.max(at + 1);
                }
            }
            Wrong(count) => {
                for at in high..high + count {
                    bytes.push(STREAM.byte(at) ^ 0x55);
                    has_come[usize::try_from(at).unwrap()] = true;
                }
                faults.corrupted += count;
                high += count;
            }
            Garbage(garbage) => {
                bytes.extend(garbage);
                faults.corrupted += garbage.len() as u64;
            }
        }
    }
    faults.lost = has_come.iter().filter(|known| !**known).count() as u64;
    (bytes, faults)
}

/// What the verifier says of an echo that comes in chunks of these sizes, by turns.
fn judged(sent: u64, bytes: &[u8], chunks: &[usize]) -> Faults {
    let mut faults = Faults::default();
    let mut verifier = verifier(sent);
    let (mut left, mut sizes) = (bytes, chunks.iter().cycle());
    while !left.is_empty() {
        let (chunk, rest) = left.split_at((*sizes.next().unwrap()).min(left.len()));
        assert_eq!(verifier.received(chunk, &mut faults), Peer::Echoes);
        left = rest;
    }
    verifier.finish(&mut faults);
    faults
}

/// Holds the verifier to the model. A little more was sent than is echoed, so that it cannot tell the last byte.
fn check(sent: u64, pieces: &[Piece]) {
    let (bytes, mut expected) = model(sent, pieces);
    expected.lost += 100;
    for chunks in [
        &[1][..],
        &[2],
        &[3],
        &[5],
        &[7],
        &[8],
        &[16],
        &[64],
        &[1 << 20],
        &[1, 9, 30],
    ] {
        let found = judged(sent + 100, &bytes, chunks);
        assert_eq!(found, expected, "{pieces:?} in chunks of {chunks:?}");
    }
}

/// Whether the break between what is expected at `a` and what comes from `b` shows at once.
fn shows(a: u64, b: u64) -> bool {
    STREAM.byte(a) != STREAM.byte(b)
}

#[test]
fn an_echo_is_an_echo_in_any_chunks() {
    for sent in [1, 5, 8, 63, 64, 1000] {
        check(sent, &[Sent(0, sent)]);
    }
}

#[test]
fn losses_are_counted_at_every_alignment() {
    for from in 0..24 {
        for to in from + 1..from + 40 {
            if shows(from, to) {
                check(128, &[Sent(0, from), Sent(to, 128)]);
            }
        }
    }
}

#[test]
fn duplicates_are_counted_at_every_alignment() {
    for from in 0..24 {
        for to in from + 1..from + 40 {
            if shows(to, from) {
                check(128, &[Sent(0, to), Sent(from, 128)]);
                // As a whole, and as a piece after which it goes on where it was.
                if to - from >= 15 && to < 60 && shows(to, 90) {
                    check(128, &[Sent(0, 90), Sent(from, to), Sent(90, 128)]);
                }
            }
        }
    }
}

#[test]
fn reordered_pieces_are_counted_at_every_alignment() {
    for from in 0..20 {
        for middle in from + 15..from + 30 {
            let to = middle + 21;
            if shows(from, middle) && shows(to, from) && shows(middle, to) {
                let pieces = [
                    Sent(0, from),
                    Sent(middle, to),
                    Sent(from, middle),
                    Sent(to, 128),
                ];
                check(128, &pieces);
            }
        }
    }
}

#[test]
fn wrong_bytes_are_counted_at_every_alignment() {
    for from in 0..24 {
        for count in 1..40 {
            check(128, &[Sent(0, from), Wrong(count), Sent(from + count, 128)]);
        }
    }
}

#[test]
fn equal_bytes_between_wrong_ones_are_not_wrong() {
    let mut bytes = vec![0; 100];
    STREAM.write(0, &mut bytes);
    for at in [3, 5, 9, 20, 21, 27, 40] {
        bytes[at] ^= 1;
    }
    let expected = Faults {
        corrupted: 7,
        ..Faults::default()
    };
    for chunk in 1..100 {
        assert_eq!(judged(100, &bytes, &[chunk]), expected);
    }
}

#[test]
fn inserted_bytes_are_counted_at_every_alignment() {
    for from in 0..24_u64 {
        for count in 1..40 {
            let mut garbage = vec![0; count];
            Pattern::new(6).write(from, &mut garbage);
            garbage[0] = !STREAM.byte(from);
            if from > 0 {
                *garbage.last_mut().unwrap() = !STREAM.byte(from - 1);
            }
            if garbage[0] == STREAM.byte(from) {
                continue;
            }
            check(128, &[Sent(0, from), Garbage(garbage), Sent(from, 128)]);
        }
    }
}

#[test]
fn the_last_bytes_are_recognised_without_a_whole_word() {
    for sent in 100..116 {
        for from in sent - 14..sent {
            if !shows(50, from) {
                continue;
            }
            let (bytes, expected) = model(sent, &[Sent(0, 50), Sent(from, sent)]);
            for chunk in [1, 2, 3, 7, 200] {
                assert_eq!(
                    judged(sent, &bytes, &[chunk]),
                    expected,
                    "{sent} {from} {chunk}"
                );
            }
        }
    }
}

#[test]
fn a_wrong_byte_of_a_short_message_is_settled_with_it() {
    for size in 1..20_usize {
        let (mut verifier, mut faults) = (verifier(0), Faults::default());
        for _ in 0..50 {
            let mut message = vec![0; size];
            verifier.write(&mut message);
            verifier.took(size);
            message[size / 2] ^= 0xff;
            assert_eq!(verifier.received(&message, &mut faults), Peer::Echoes);
            assert_eq!(verifier.settled(), verifier.sent(), "{size}");
        }
        verifier.finish(&mut faults);
        let expected = Faults {
            corrupted: 50,
            ..Faults::default()
        };
        assert_eq!(faults, expected, "{size}");
    }
}

#[test]
fn bytes_of_another_stream_are_corrupted_and_too_many_are_foreign() {
    let mut other = vec![0; 9000];
    Pattern::new(6).write(0, &mut other);
    for chunk in [1, 100, 9000] {
        let (mut verifier, mut faults) = (verifier(64), Faults::default());
        let mut chunks = other.chunks(chunk);
        let came = chunks.by_ref().map_while(|chunk| {
            let peer = verifier.received(chunk, &mut faults);
            (peer == Peer::Echoes).then_some(chunk.len())
        });
        let came: usize = came.sum();
        assert!(
            came <= 4112 + 64 + chunk,
            "{came} bytes before it was noticed"
        );
        verifier.finish(&mut faults);
        // Taken for the echo while as much is owed, a few bytes of them are right by chance.
        assert!(faults.corrupted > 4090 && faults.lost <= 64, "{faults:?}");
    }
    let (mut verifier, mut faults) = (verifier(4000), Faults::default());
    assert_eq!(verifier.received(&other[..3000], &mut faults), Peer::Echoes);
    verifier.finish(&mut faults);
    assert!((2950..=3000).contains(&faults.corrupted), "{faults:?}");
    assert_eq!(faults.lost, 1000);
}

#[test]
fn what_was_never_sent_is_not_expected() {
    let (mut verifier, mut faults) = (verifier(64), Faults::default());
    let mut bytes = vec![0; 128];
    STREAM.write(0, &mut bytes);
    assert_eq!(verifier.received(&bytes, &mut faults), Peer::Echoes);
    assert_eq!(verifier.settled(), 64);
    verifier.finish(&mut faults);
    let expected = Faults {
        corrupted: 64,
        ..Faults::default()
    };
    assert_eq!(faults, expected);
}

#[test]
fn the_oldest_of_too_many_missing_ranges_is_lost_for_good() {
    let (mut pieces, mut at) = (Vec::new(), 0);
    while pieces.len() < 200 {
        pieces.push(Sent(at, at + 32));
        at += 64;
        while !shows(at - 32, at) {
            at += 1;
        }
    }
    let (bytes, expected) = model(at, &pieces);
    assert_eq!(judged(at, &bytes, &[64]), expected);
}

#[test]
fn without_verifying_only_the_number_of_bytes_counts() {
    let (mut verifier, mut faults) = (verifier(100), Faults::default());
    verifier.counted(60, &mut faults);
    assert_eq!(verifier.settled(), 60);
    verifier.counted(50, &mut faults);
    verifier.took(5);
    verifier.finish(&mut faults);
    let expected = Faults {
        lost: 5,
        duplicated: 10,
        ..Faults::default()
    };
    assert_eq!(faults, expected);
}

/// Any mix of faults, each piece long enough to be recognised and each break in sight.
#[test]
fn a_random_mix_of_faults_is_what_the_model_says() {
    let mut seeded = Seeded::new(1);
    let mut random = |limit: u64| seeded.below(limit);
    for _ in 0..400 {
        // `at` is where the stream would go on, `high` where its fresh part would.
        let (mut pieces, mut at, mut high) = (Vec::new(), 0, 0);
        while high < 3000 {
            let length = 15 + random(60);
            match random(8) {
                // On from here.
                0..3 => {
                    let to = at + length;
                    pieces.push(Sent(at, to));
                    at = to;
                    high = high.max(to);
                }
                // A leap ahead.
                3 => {
                    let from = high + 1 + random(80);
                    if shows(at, from) {
                        pieces.push(Sent(from, from + length));
                        at = from + length;
                        high = at;
                    }
                }
                // Back to anywhere.
                4 | 5 if high > 100 => {
                    let from = random(high - 80);
                    if shows(at, from) && from + length < high {
                        pieces.push(Sent(from, from + length));
                        at = from + length;
                    }
                }
                // Back in step.
                6 if shows(at, high) => {
                    pieces.push(Sent(high, high + length));
                    at = high + length;
                    high = at;
                }
                7 if at == high && high > 0 => {
                    let count = 1 + random(30);
                    pieces.push(Wrong(count));
                    pieces.push(Sent(high + count, high + count + length));
                    at = high + count + length;
                    high = at;
                }
                _ => {}
            }
        }
        check(high, &pieces);
    }
}

#[test]
fn answers_of_the_right_length_and_nothing_right_in_them_are_foreign() {
    let (mut verifier, mut faults) = (verifier(0), Faults::default());
    let answered = (0..100).take_while(|_| {
        verifier.took(64);
        verifier.received(&[b'x'; 64], &mut faults) == Peer::Echoes
    });
    let answered = answered.count();
    assert!(
        (64..68).contains(&answered),
        "{answered} answers before it was noticed"
    );
    verifier.finish(&mut faults);
    assert_eq!(faults.lost, 0);
}
