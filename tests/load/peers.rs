//! Peers that say nothing, hang up, or say something else: counted by what they did, and come back to.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::clients::reset;
use crate::support::loading::{Figures, Loading, Peer, figures, load_command, output};
use crate::support::{now, until};

/// What a load comes to when `connections` have come to a peer that does so with each, none of which is an echo: it fails.
#[track_caller]
fn after(
    connections: usize,
    args: &[&str],
    what: impl Fn(usize, TcpStream) + Send + Sync + 'static,
) -> (Figures, Vec<String>) {
    ended_after(connections, args, Loading::failed, what)
}

/// The same with a peer that echoes something.
#[track_caller]
fn after_echoes(
    connections: usize,
    args: &[&str],
    what: impl Fn(usize, TcpStream) + Send + Sync + 'static,
) -> (Figures, Vec<String>) {
    ended_after(connections, args, Loading::interrupted, what)
}

#[track_caller]
fn ended_after(
    connections: usize,
    args: &[&str],
    end: fn(&mut Loading) -> Figures,
    what: impl Fn(usize, TcpStream) + Send + Sync + 'static,
) -> (Figures, Vec<String>) {
    let came = Arc::new(AtomicUsize::new(0));
    let peer = Peer::start({
        let came = Arc::clone(&came);
        move |number, stream| {
            came.fetch_add(1, Ordering::SeqCst);
            what(number, stream);
        }
    });
    let args = [&["--json", "-T", "1m"], args].concat();
    let mut loading = Loading::start(peer.address, &args);
    until("so many connections", || {
        came.load(Ordering::SeqCst) >= connections
    });
    let figures = end(&mut loading);
    // All but the first came after a loss.
    let (connects, reconnects) = (figures.count("connects"), figures.count("reconnects"));
    assert_eq!(reconnects, connects - 1, "{figures:?}");
    // A reset may overtake the end of the handshake.
    let attempts = connects + figures.count("failed");
    assert!(attempts >= connections as u64 - 1, "{figures:?}");
    assert!(figures.count("ended") >= reconnects, "{figures:?}");
    (figures, loading.lines.clone())
}

/// Reads to the end, and answers nothing.
fn discard(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = stream.read(&mut buffer) {}
}

fn read_message(stream: &mut TcpStream) -> Option<[u8; 64]> {
    let mut message = [0; 64];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

#[test]
fn a_peer_that_says_nothing_is_given_up_and_come_back_to() {
    let begun = now();
    let (figures, lines) = after(4, &["--read-timeout", "200ms"], |_, stream| discard(stream));
    let timed_out = figures.ended_all_for("timed_out");
    assert!(timed_out >= 3, "{figures:?}");
    assert_eq!(figures.count("ended_read_timeout"), timed_out);
    let most = begun.elapsed().as_millis() / 200;
    assert!(u128::from(timed_out) <= most, "{most} at most: {figures:?}");
    let bytes = ["lost", "sent_bytes"].map(|name| figures.count(name));
    assert_eq!(bytes[0], bytes[1], "{figures:?}");
    assert!(bytes[0] >= 3 * 64, "{figures:?}");
    assert_eq!(figures.count("echoed"), 0);
    assert!(figures.number("longest_gap_ms") >= 200.0, "{figures:?}");
    let said = "standfast: the peer does not echo: nothing came back";
    assert_eq!(lines.last().map(String::as_str), Some(said));
}

#[test]
fn a_peer_that_stops_answering_is_given_up() {
    let (figures, _) = after_echoes(3, &["--read-timeout", "200ms"], |_, mut stream| {
        for _ in 0..10 {
            let Some(message) = read_message(&mut stream) else {
                return;
            };
            if stream.write_all(&message).is_err() {
                return;
            }
        }
        discard(stream);
    });
    let timed_out = figures.ended_all_for("timed_out");
    assert!(timed_out >= 2, "{figures:?}");
    // The eleventh of each.
    let [lost, rest @ ..] = figures.faults();
    assert!(
        lost == 64 * timed_out || lost == 64 * (timed_out + 1),
        "{figures:?}"
    );
    assert_eq!(rest, [0; 3], "{figures:?}");
    assert_eq!(lost / 64, figures.count("sent") - figures.count("echoed"));
}

#[test]
fn a_peer_that_resets_is_counted_so() {
    let (figures, _) = after(4, &[], |_, mut stream| {
        read_message(&mut stream);
        reset(stream);
    });
    let ended = figures.ended_all_for("reset");
    assert_eq!(figures.count("ended_peer_reset"), ended);
    assert_eq!(figures.count("lost"), figures.count("sent_bytes"));
}

#[test]
fn half_an_answer_and_fin_loses_the_other_half() {
    let (figures, _) = after(4, &[], |_, mut stream| {
        if let Some(message) = read_message(&mut stream) {
            let _ = stream.write_all(&message[..32]);
            let _ = stream.shutdown(Shutdown::Write);
            discard(stream);
        }
    });
    let ended = figures.ended_all_for("ended_peer_closed");
    assert_eq!(figures.faults(), [32 * ended, 0, 0, 0], "{figures:?}");
    assert_eq!((figures.count("sent"), figures.count("echoed")), (ended, 0));
}

#[test]
fn a_whole_answer_and_fin_loses_nothing() {
    // At a rate at which nothing is sent on a connection that is over already.
    let args = ["--rate", "5", "--pipeline", "100"];
    let (figures, _) = after_echoes(3, &args, |_, mut stream| {
        if let Some(message) = read_message(&mut stream) {
            let _ = stream.write_all(&message);
            // A close would reset it, should the next message have been sent.
            let _ = stream.shutdown(Shutdown::Write);
            discard(stream);
        }
    });
    let lost = figures.count("lost");
    assert_eq!(figures.faults(), [lost, 0, 0, 0], "{figures:?}");
    assert_eq!(
        figures.count("sent_bytes"),
        figures.count("received_bytes") + lost
    );
    figures.ended_all_for("ended_peer_closed");
}

#[test]
fn a_peer_that_closes_at_once_for_ever_is_come_back_to_ever_more_slowly() {
    let args = ["--backoff", "20ms:10s", "--connect-timeout", "1s"];
    for closes_with in ["nothing", "fin", "reset"] {
        let begun = now();
        let (figures, _) = after(6, &args, move |_, mut stream| match closes_with {
            "nothing" => drop(stream),
            "fin" => {
                let _ = read_message(&mut stream);
            }
            _ => reset(stream),
        });
        // Retry n is on average 10 ms * 2^n after the loss before: 40 of them in a row would take forever.
        let connects = figures.count("connects");
        assert!(connects <= 40, "{:?}: {figures:?}", begun.elapsed());
        assert_eq!(figures.count("echoed"), 0);
        let dials = figures.count("connect_reset") + figures.count("other_failures");
        assert_eq!(figures.count("failed"), dials, "{figures:?}");
        let reasons = ["ended_peer_closed", "ended_peer_reset"];
        let ended = reasons.map(|name| figures.count(name));
        assert_eq!(ended[0] + ended[1], figures.count("ended"), "{figures:?}");
        match closes_with {
            "fin" => assert_eq!(ended[1], 0, "{figures:?}"),
            "reset" => assert_eq!(ended[0], 0, "{figures:?}"),
            _ => {}
        }
    }
}

#[test]
fn a_peer_that_sends_garbage_is_said_not_to_echo() {
    let (figures, lines) = after(4, &[], |_, mut stream| {
        let garbage = [0xa5; 4096];
        while stream.write_all(&garbage).is_ok() {}
    });
    let foreign = figures.ended_all_for("foreign");
    let [_, duplicated, reordered, corrupted] = figures.faults();
    assert!(corrupted >= 4096 * foreign, "{figures:?}");
    assert_eq!((duplicated, reordered), (0, 0));
    let said = format!(
        "standfast: the peer does not echo: on {foreign} connections it sent something else"
    );
    assert_eq!(lines.last(), Some(&said));
}

/// As many wrong bytes as came.
fn answer_garbage(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&vec![0xa5; count]).is_err() {
            return;
        }
    }
}

#[test]
fn garbage_in_place_of_each_answer_is_said_not_to_be_an_echo() {
    for (window, size) in [("1", "64"), ("4", "64"), ("4", "13")] {
        let args = ["--pipeline", window, "--size", size];
        let (figures, lines) = after(3, &args, |_, stream| answer_garbage(stream));
        assert!(figures.ended_all_for("foreign") >= 2, "{figures:?}");
        let [_, duplicated, reordered, corrupted] = figures.faults();
        assert!(corrupted >= 2 * 4096, "{figures:?}");
        assert_eq!((duplicated, reordered), (0, 0), "{figures:?}");
        let last = lines.last().unwrap();
        assert!(last.contains("the peer does not echo: on "), "{last}");
    }
}

#[test]
fn garbage_of_single_bytes_is_said_not_to_be_an_echo() {
    // One of 256 is right by chance.
    for size in ["1", "2"] {
        let (figures, _) = after(2, &["--size", size], |_, stream| answer_garbage(stream));
        assert!(figures.ended_all_for("foreign") >= 1, "{figures:?}");
    }
}

#[test]
fn a_peer_that_greets_and_then_echoes_is_found_out() {
    let peer = Peer::start(|_, mut stream| {
        let _ = stream.write_all(b"220 mail.example ESMTP\r\n");
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    });
    let figures = figures(
        peer.address,
        &["-T", "300ms", "-r", "100", "--pipeline", "100"],
    );
    figures.assert_unbroken(1);
    assert_eq!(figures.faults(), [0, 0, 0, 24], "{figures:?}");
    assert_eq!((figures.count("sent"), figures.count("echoed")), (30, 30));
}

#[test]
fn no_end_of_the_load_makes_it_wait_longer_than_the_read_timeout_for_what_does_not_come() {
    let peer = Peer::start(|_, stream| discard(stream));
    let begun = now();
    let args = ["-T", "100ms", "--read-timeout", "300ms", "--quiet"];
    let (code, table, stderr) = output(load_command(peer.address, &args));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(code, 1, "{stderr}");
    assert!(table.contains("no message was echoed"), "{table}");
}

#[test]
fn a_peer_that_changes_every_message_is_a_failure_although_all_of_them_come_back() {
    let peer = Peer::answering(64, |mut got| {
        got.bytes[5] ^= 0x20;
        got.bytes
    });
    let mut loading = Loading::start(peer.address, &["--json", "-T", "1m"]);
    peer.until_answered(20);
    let figures = loading.failed();
    assert!(figures.count("echoed") >= 19, "{figures:?}");
    let said = "standfast: no message came back as it was sent";
    assert_eq!(loading.lines.last().map(String::as_str), Some(said));
}

#[test]
fn a_run_that_got_no_echo_is_a_failure_in_every_mode() {
    let peer = Peer::start(|_, stream| discard(stream));
    for mode in ["--pipeline=4", "--no-verify", "--churn"] {
        let args = [mode, "-T", "100ms", "--read-timeout", "100ms", "-q"];
        let (code, _, stderr) = output(load_command(peer.address, &args));
        assert_eq!(code, 1, "{mode}: {stderr}");
        let said = "standfast: the peer does not echo: nothing came back";
        assert_eq!(stderr, said, "{mode}");
    }
}
