//! Peers that change what they echo: each fault in its own column, in bytes, and in no other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::loading::{Figures, Got, Loading, Peer};
use crate::support::until;

/// The message something happens to.
const FAULTY: usize = 10;

/// What a load with 4 messages of 64 bytes outstanding comes to against a peer that answers so, long after the fault.
#[track_caller]
fn against(answer: impl Fn(Got<'_>) -> Vec<u8> + Send + Sync + 'static) -> Figures {
    windowed("4", answer)
}

#[track_caller]
fn windowed(window: &str, answer: impl Fn(Got<'_>) -> Vec<u8> + Send + Sync + 'static) -> Figures {
    let peer = Peer::answering(64, answer);
    let args = ["--json", "-T", "1m", "--pipeline", window];
    let mut loading = Loading::start(peer.address, &args);
    peer.until_answered(100);
    let figures = loading.interrupted();
    figures.assert_unbroken(1);
    assert_eq!(loading.said("does not echo"), 0, "{:?}", loading.lines);
    figures
}

/// Bytes received beyond those sent.
fn surplus(figures: &Figures) -> i64 {
    let bytes = ["received_bytes", "sent_bytes"].map(|name| figures.count(name));
    i64::try_from(bytes[0]).unwrap() - i64::try_from(bytes[1]).unwrap()
}

#[test]
fn a_peer_that_changes_nothing_is_flawless() {
    for window in ["1", "4", "50"] {
        windowed(window, |got| got.bytes).assert_flawless(1, 64);
    }
}

#[test]
fn lost_bytes_are_counted_as_lost() {
    for (from, to) in [(0, 8), (3, 4), (0, 63), (5, 29), (60, 64), (63, 64)] {
        let figures = against(move |mut got| {
            if got.number == FAULTY {
                got.bytes.drain(from..to);
            }
            got.bytes
        });
        let lost = to - from;
        assert_eq!(figures.faults(), [lost as u64, 0, 0, 0], "{from}..{to}");
        assert_eq!(surplus(&figures), -i64::try_from(lost).unwrap());
    }
}

#[test]
fn a_lost_message_is_one_that_is_not_echoed() {
    let figures = against(|got| match got.number {
        FAULTY => Vec::new(),
        _ => got.bytes,
    });
    assert_eq!(figures.faults(), [64, 0, 0, 0], "{figures:?}");
    assert_eq!(figures.count("echoed"), figures.count("sent") - 1);
}

#[test]
fn bytes_that_come_twice_are_counted_as_duplicated() {
    for (from, to) in [(0, 64), (0, 8), (3, 40), (56, 64)] {
        let figures = against(move |mut got| {
            if got.number == FAULTY {
                let again = got.bytes[from..to].to_vec();
                got.bytes.splice(to..to, again);
            }
            got.bytes
        });
        let expected = [0, (to - from) as u64, 0, 0];
        assert_eq!(figures.faults(), expected, "{from}..{to}: {figures:?}");
        assert_eq!(figures.count("echoed"), figures.count("sent"));
    }
}

#[test]
fn an_old_message_that_comes_again_is_counted_as_duplicated() {
    let figures = against(|got| {
        if got.number == 2 {
            got.kept.clone_from(&got.bytes);
        }
        match got.number {
            FAULTY => [&got.kept[..], &got.bytes].concat(),
            _ => got.bytes,
        }
    });
    assert_eq!(figures.faults(), [0, 64, 0, 0], "{figures:?}");
}

#[test]
fn messages_that_overtake_are_counted_as_reordered() {
    let figures = against(|got| match got.number {
        FAULTY => {
            *got.kept = got.bytes;
            Vec::new()
        }
        11 => [&got.bytes[..], &got.kept[..]].concat(),
        _ => got.bytes,
    });
    assert_eq!(figures.faults(), [0, 0, 64, 0], "{figures:?}");
    assert_eq!(surplus(&figures), 0);
}

#[test]
fn halves_of_a_message_that_change_places_are_counted_as_reordered() {
    for window in ["1", "4"] {
        let figures = windowed(window, |mut got| {
            if got.number == FAULTY {
                got.bytes.rotate_left(32);
            }
            got.bytes
        });
        assert_eq!(figures.faults(), [0, 0, 32, 0], "{figures:?}");
    }
}

#[test]
fn a_changed_byte_is_counted_as_corrupted_wherever_it_is() {
    for window in ["1", "4"] {
        for place in [0, 1, 7, 8, 31, 62, 63] {
            let figures = windowed(window, move |mut got| {
                if got.number == FAULTY {
                    got.bytes[place] ^= 0x20;
                }
                got.bytes
            });
            assert_eq!(figures.faults(), [0, 0, 0, 1], "{place}: {figures:?}");
            assert_eq!(surplus(&figures), 0);
        }
    }
}

#[test]
fn bytes_that_were_never_sent_are_counted_as_corrupted() {
    for window in ["1", "4"] {
        for (place, count) in [(0, 10), (20, 1), (32, 64), (64, 10)] {
            let figures = windowed(window, move |mut got| {
                if got.number == FAULTY {
                    got.bytes.splice(place..place, vec![0xa5; count]);
                }
                got.bytes
            });
            let expected = [0, 0, 0, count as u64];
            assert_eq!(figures.faults(), expected, "{place} {count}: {figures:?}");
            assert_eq!(figures.count("echoed"), figures.count("sent"));
        }
    }
}

#[test]
fn bytes_before_they_are_sent_are_no_echo() {
    // A peer that knows the stream can tell what comes next. What is right at the wrong time is wrong.
    let figures = windowed("1", |got| {
        if got.number != FAULTY {
            return got.bytes;
        }
        let words: Vec<u64> = got
            .bytes
            .as_chunks()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word))
            .collect();
        let step = words[1].wrapping_sub(words[0]);
        let next = (1..=8).map(|ahead: u64| words[7].wrapping_add(step.wrapping_mul(ahead)));
        let next = next.flat_map(u64::to_le_bytes);
        got.bytes.iter().copied().chain(next).collect()
    });
    let [lost, duplicated, reordered, corrupted] = figures.faults();
    // Had they been read late, they would have been an echo, and the echo a duplicate.
    assert_eq!((lost, reordered), (0, 0), "{figures:?}");
    assert_eq!(duplicated + corrupted, 64, "{figures:?}");
}

#[test]
fn bytes_of_another_connection_are_counted_as_corrupted() {
    let other: Arc<Mutex<Vec<u8>>> = Arc::default();
    let happened = Arc::new(AtomicBool::new(false));
    let peer = Peer::answering(64, {
        let happened = Arc::clone(&happened);
        move |got| {
            let mut other = other.lock().unwrap();
            if got.connection == 0 {
                other.clone_from(&got.bytes);
            } else if got.number >= FAULTY
                && !other.is_empty()
                && !happened.swap(true, Ordering::SeqCst)
            {
                return other.clone();
            }
            got.bytes
        }
    });
    let args = ["--json", "-T", "1m", "-c", "2", "--pipeline", "4"];
    let mut loading = Loading::start(peer.address, &args);
    until("the fault", || happened.load(Ordering::SeqCst));
    peer.until_answered(100);
    let figures = loading.interrupted();
    figures.assert_unbroken(2);
    let [lost, duplicated, reordered, corrupted] = figures.faults();
    assert_eq!((lost, duplicated, reordered), (0, 0, 0), "{figures:?}");
    // One or the other byte is the same by chance.
    assert!((48..=64).contains(&corrupted), "{figures:?}");
}

#[test]
fn faults_add_up_over_messages_and_workers() {
    let counters: Arc<[AtomicUsize; 4]> = Arc::default();
    let peer = Peer::answering(64, {
        let counters = Arc::clone(&counters);
        move |mut got| {
            match got.number {
                10 => got.bytes[5] ^= 1,
                20 => drop(got.bytes.drain(8..24)),
                30 => got.bytes.rotate_left(16),
                40 => got.bytes.extend_from_within(..),
                _ => {}
            }
            counters[got.connection].store(got.number, Ordering::SeqCst);
            got.bytes
        }
    });
    let args = ["-c", "4", "--workers", "2", "--pipeline", "4"];
    let args = [&args[..], &["--json", "-T", "1m"]].concat();
    let mut loading = Loading::start(peer.address, &args);
    until("every connection is beyond its faults", || {
        let mut counters = counters.iter();
        counters.all(|at| at.load(Ordering::SeqCst) > 60)
    });
    let figures = loading.interrupted();
    figures.assert_unbroken(4);
    assert_eq!(figures.faults(), [64, 256, 64, 4], "{figures:?}");
}
