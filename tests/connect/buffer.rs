//! What waits for a server that is not there: by which policy, whole lines, and counted.

use crate::support::clients::reset;
use crate::support::connecting::{Connecting, Peer, Port, assert_gets};
use crate::support::read_to_fin;

/// `line 00`, `line 01`, ... of eight bytes each.
fn numbered(numbers: std::ops::Range<u32>) -> String {
    numbers
        .map(|number| format!("line {number:02}\n"))
        .collect()
}

/// What arrives of `typed` at a server that listens only after all of it was read; and the program, which has ended.
#[track_caller]
fn arrives(args: &[&str], typed: &[&str]) -> (String, Connecting) {
    let port = Port::new();
    let mut connecting = Connecting::start(port.address(), args);
    connecting.says("cannot connect to ");
    let mut count = 0;
    for typed in typed {
        connecting.types(*typed);
        count += typed.len();
        connecting.until_read(count);
    }
    connecting.ends_stdin();
    let peer = port.listen();
    let mut server = peer.accept();
    let arrived = read_to_fin(&mut server);
    drop(server);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    (String::from_utf8(arrived).unwrap(), connecting)
}

/// It said once how much was dropped in all.
#[track_caller]
fn assert_dropped(connecting: &Connecting, what: &str) {
    let line = format!("standfast: dropped {what} while disconnected");
    let said = connecting.lines.iter().filter(|said| **said == line);
    assert!(said.count() >= 1, "{:?}", connecting.lines);
    let others = connecting.said("dropped") - connecting.said(&line);
    assert_eq!(others, 0, "{:?}", connecting.lines);
}

#[test]
fn drop_oldest_keeps_the_newest_lines() {
    let args = ["--buffer", "100", "--buffer-policy", "drop-oldest"];
    let (arrived, connecting) = arrives(&args, &[&numbered(0..20)]);
    assert_eq!(arrived, numbered(8..20));
    assert_dropped(&connecting, "8 lines, 64 bytes");
}

#[test]
fn drop_new_keeps_the_oldest_lines() {
    let args = ["--buffer", "100", "--buffer-policy", "drop-new"];
    let (arrived, connecting) = arrives(&args, &[&numbered(0..20)]);
    assert_eq!(arrived, numbered(0..12));
    assert_dropped(&connecting, "8 lines, 64 bytes");
}

#[test]
fn lines_that_come_in_pieces_are_dropped_whole() {
    let pieces: Vec<String> = numbered(0..20)
        .as_bytes()
        .chunks(5)
        .map(|piece| String::from_utf8(piece.to_vec()).unwrap())
        .collect();
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    for (policy, kept) in [("drop-oldest", 8..20), ("drop-new", 0..12)] {
        let args = ["--buffer", "100", "--buffer-policy", policy];
        let (arrived, connecting) = arrives(&args, &pieces);
        assert_eq!(arrived, numbered(kept), "{policy}");
        assert_dropped(&connecting, "8 lines, 64 bytes");
    }
}

#[test]
fn a_line_longer_than_the_buffer_is_dropped_whole() {
    let long = format!("{}\n", "x".repeat(299));
    for policy in ["drop-oldest", "drop-new"] {
        let args = ["--buffer", "100", "--buffer-policy", policy];
        let (arrived, connecting) = arrives(&args, &[&long, "short\n"]);
        assert_eq!(arrived, "short\n", "{policy}");
        assert_dropped(&connecting, "1 line, 300 bytes");
    }
}

#[test]
fn what_fits_is_not_dropped() {
    for policy in ["block", "drop-oldest", "drop-new"] {
        let args = ["--buffer", "160", "--buffer-policy", policy];
        let (arrived, connecting) = arrives(&args, &[&numbered(0..20)]);
        assert_eq!(arrived, numbered(0..20), "{policy}");
        assert_eq!(connecting.said("dropped"), 0, "{:?}", connecting.lines);
    }
}

#[test]
fn what_was_dropped_is_said_when_connected_again() {
    let port = Port::new();
    let args = ["--buffer", "100", "--buffer-policy", "drop-new"];
    let mut connecting = Connecting::start(port.address(), &args);
    connecting.types(numbered(0..20));
    connecting.until_read(160);
    let peer = port.listen();
    let mut server = peer.accept();
    connecting.says("dropped 8 lines, 64 bytes while disconnected");
    assert_gets(&mut server, numbered(0..12).as_bytes());
    // Connected, nothing is.
    let more = numbered(20..100).repeat(100);
    connecting.types(more.clone());
    assert_gets(&mut server, more.as_bytes());
    assert_eq!(connecting.said("dropped"), 1, "{:?}", connecting.lines);
}

#[test]
fn connected_it_reads_stdin_as_fast_as_the_server_takes_it_and_drops_nothing() {
    for policy in ["block", "drop-oldest", "drop-new"] {
        let peer = Peer::start();
        let args = ["--buffer", "1k", "--buffer-policy", policy];
        let mut connecting = Connecting::start(peer.address(), &args);
        let mut server = peer.accept();
        connecting.connects(peer.address());
        let typed = numbered(0..100).repeat(20_000);
        connecting.types(typed.clone());
        // The server takes nothing for a while: whoever types has to wait.
        let taken = connecting.until_stuck();
        assert!(taken < typed.len(), "{taken} of {}", typed.len());
        connecting.ends_stdin();
        assert!(read_to_fin(&mut server) == typed.as_bytes(), "{policy}");
        drop(server);
        assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
        assert_eq!(connecting.said("dropped"), 0, "{:?}", connecting.lines);
    }
}

#[test]
fn block_makes_whoever_types_wait_and_loses_nothing() {
    let port = Port::new();
    let mut connecting = Connecting::start(port.address(), &["--buffer", "1k"]);
    let typed: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
    connecting.types(typed.clone());
    for _ in 0..8 {
        connecting.says("cannot connect to ");
    }
    connecting.until_idle();
    let taken = connecting.taken();
    assert!(taken <= 65536 + 2048, "{taken} bytes taken");
    connecting.ends_stdin();
    let peer = port.listen();
    let mut server = peer.accept();
    assert!(read_to_fin(&mut server) == typed);
    drop(server);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(connecting.said("dropped"), 0, "{:?}", connecting.lines);
}

/// Bytes that tell where they belong, without a line end in them.
fn positions(count: u32) -> String {
    (0..count).map(|at| format!("{at:07},")).collect()
}

#[test]
fn a_line_that_was_begun_is_ended_on_the_next_connection_and_nothing_is_sent_twice() {
    for policy in ["block", "drop-oldest", "drop-new"] {
        let peer = Peer::start();
        let args = ["--buffer", "4k", "--buffer-policy", policy];
        let mut connecting = Connecting::start(peer.address(), &args);
        let mut first = peer.accept();
        connecting.connects(peer.address());
        let line = positions(2_000_000);
        connecting.types(format!("{line}\n"));
        connecting.types(numbered(0..3));
        assert_gets(&mut first, &line.as_bytes()[..8000]);
        // Until the kernel takes no more of it.
        connecting.until_stuck();
        reset(first);
        connecting.says("lost ");
        let mut second = peer.accept();
        connecting.ends_stdin();
        let arrived = String::from_utf8(read_to_fin(&mut second)).unwrap();
        drop(second);
        assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
        let (rest, behind) = arrived.split_once('\n').unwrap();
        assert!(
            rest.len() + 8000 < line.len() && line.ends_with(rest),
            "{policy}: {} bytes that are not its end",
            rest.len()
        );
        assert_eq!(behind, numbered(0..3), "{policy}");
        assert_eq!(connecting.said("dropped"), 0, "{:?}", connecting.lines);
    }
}
