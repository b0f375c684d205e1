//! Upstreams or clients that are lost, and those who end them: what the other side notices, and the reason.

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use crate::forward::{assert_ended, assert_pair, assert_reset, pair, relay};
use crate::support::clients::{reset, unread, until_acknowledged, vanish};
use crate::support::connecting::{Peer, assert_gets};
use crate::support::home::{Home, entry, number};
use crate::support::{
    Began, Closed, Server, connect, now, read_to_fin, send_until_stuck, undeafen, until,
    until_another_signal_counts,
};

#[test]
fn an_upstream_that_is_lost_in_mid_stream_is_a_reset_for_its_client() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &[]);
    let (mut client, mut served) = pair(&relay, &upstream);
    served.write_all(b"half of it").unwrap();
    assert_gets(&mut client, b"half of it");
    reset(served);
    assert_reset(&mut client);
    let closed = relay.closed();
    assert_eq!(closed.reason(), "upstream-failed", "{}", closed.line);
}

#[test]
fn a_client_that_is_lost_in_mid_stream_is_a_reset_for_its_upstream() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &[]);
    let (mut client, mut served) = pair(&relay, &upstream);
    client.write_all(b"half of it").unwrap();
    assert_gets(&mut served, b"half of it");
    reset(client);
    assert_reset(&mut served);
    assert_eq!(relay.closed().reason(), "peer-reset");
}

/// Half a request must not look like a whole one.
#[test]
fn a_client_that_is_cut_at_its_read_deadline_is_a_reset_for_its_upstream() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &["-i", "1s"]);
    let (mut client, mut served) = pair(&relay, &upstream);
    client.write_all(b"half of it").unwrap();
    assert_gets(&mut served, b"half of it");
    assert_reset(&mut served);
    assert_ended(&mut client);
    assert_eq!(relay.closed().reason(), "read-timeout");
}

#[test]
fn a_drain_that_cuts_an_upload_says_so() {
    let upstream = Peer::start();
    let args = ["--drain-timeout", "500ms"];
    let mut relay = relay(&[upstream.address()], &args);
    let (mut client, mut served) = pair(&relay, &upstream);
    served.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"");
    client.write_all(b"half of it").unwrap();
    assert_gets(&mut served, b"half of it");
    assert_eq!(relay.drain().code(), Some(1));
    assert_reset(&mut served);
}

/// It is not read meanwhile, but looked after.
#[test]
fn a_client_that_is_lost_while_its_upstream_takes_nothing_is_found() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &["--write-timeout", "off"]);
    let (mut client, _served) = pair(&relay, &upstream);
    send_until_stuck(&mut client, &[7; 65536]);
    reset(client);
    assert_eq!(relay.closed().reason(), "peer-reset");
}

/// A whole answer must not look like half of one, nor half of one like a whole.
#[test]
fn a_half_closed_client_still_learns_that_its_upstream_was_lost() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &[]);
    let (mut client, mut served) = pair(&relay, &upstream);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut served), b"");
    reset(served);
    assert_reset(&mut client);
    assert_eq!(relay.closed().reason(), "upstream-failed");
}

// What comes late: who closes at once resets when something comes yet, such as the goodbye of TLS.

#[test]
fn an_upstream_that_has_said_all_and_resets_late_is_no_loss() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &[]);
    let (mut client, mut served) = pair(&relay, &upstream);
    served.write_all(b"the answer").unwrap();
    drop(served);
    assert_eq!(read_to_fin(&mut client), b"the answer");
    // Nobody is there to hear it: the upstream's system resets.
    client.write_all(b"goodbye").unwrap();
    let closed = relay.closed();
    assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
    assert_eq!(closed.get("late"), "upstream-reset", "{}", closed.line);
}

/// It has it in hand when the reset comes, and a slow client gets it.
#[test]
fn all_that_an_upstream_said_before_it_reset_late_arrives() {
    let upstream = Peer::start();
    let args = ["--buffer", "4m"];
    let mut relay = relay(&[upstream.address()], &args);
    let (mut client, mut served) = pair(&relay, &upstream);
    served.write_all(&[7; 1 << 20]).unwrap();
    served.shutdown(Shutdown::Write).unwrap();
    until_acknowledged(&served);
    client.write_all(b"goodbye").unwrap();
    until("it has come", || unread(&served) == 7);
    // With something unread it is a reset.
    drop(served);
    assert_eq!(read_to_fin(&mut client).len(), 1 << 20);
    drop(client);
    let closed = relay.closed();
    assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
}

#[test]
fn a_client_that_has_said_all_and_resets_late_is_no_loss() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &[]);
    let (mut client, mut served) = pair(&relay, &upstream);
    client.write_all(b"a question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut served), b"a question");
    served.write_all(b"goodbye").unwrap();
    until("it has come", || unread(&client) == 7);
    // With something unread it is a reset.
    drop(client);
    let closed = relay.closed();
    closed.assert_error("peer-closed", "EPIPE");
    assert_eq!(closed.get("late"), "peer-reset", "{}", closed.line);
}

/// Its FIN was read, but what stands before it has not arrived: that is lost.
#[test]
fn a_client_that_resets_before_all_it_said_has_arrived_is_a_loss() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &["--buffer", "4m"]);
    let (mut client, mut served) = pair(&relay, &upstream);
    // More than the upstream's system takes, and less than the relay does besides.
    let taken = socket2::SockRef::from(&served).recv_buffer_size().unwrap();
    client.write_all(&vec![7; taken + (2 << 20)]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    until_acknowledged(&client);
    served.write_all(b"goodbye").unwrap();
    until("it has come", || unread(&client) == 7);
    drop(client);
    let closed = relay.closed();
    assert_eq!(closed.reason(), "peer-reset", "{}", closed.line);
    assert_eq!(closed.get("late"), "");
}

// Half-open peers. The bound is the shortest there is.

const BOUND: Duration = Duration::from_secs(5);

#[track_caller]
fn assert_found(closed: &Closed, since: Began, reasons: &[&str]) {
    let took = since.unhindered();
    assert!(reasons.contains(&closed.reason()), "{}", closed.line);
    assert!(
        took <= BOUND + Duration::from_millis(1500),
        "after {took:?}: {}",
        closed.line
    );
}

#[test]
fn an_idle_upstream_that_vanished_is_found_and_its_client_told() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &["--dead-after", "5s"]);
    let (mut client, served) = pair(&relay, &upstream);
    let vanished = vanish(&served);
    let closed = relay.closed();
    assert_found(&closed, vanished.at, &["upstream-failed"]);
    assert_reset(&mut client);
}

#[test]
fn an_upstream_that_vanished_with_data_on_its_way_is_found_and_its_client_told() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &["--dead-after", "5s"]);
    let (mut client, served) = pair(&relay, &upstream);
    let vanished = vanish(&served);
    client.write_all(b"into the silence").unwrap();
    let closed = relay.closed();
    assert_found(&closed, vanished.at, &["upstream-failed"]);
    assert_reset(&mut client);
}

#[test]
fn an_upstream_that_vanished_behind_its_closed_window_is_found() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &["--dead-after", "5s"]);
    let (mut client, served) = pair(&relay, &upstream);
    send_until_stuck(&mut client, &[7; 65536]);
    let vanished = vanish(&served);
    let closed = relay.closed();
    assert_found(&closed, vanished.at, &["upstream-failed"]);
    assert_reset(&mut client);
}

#[test]
fn a_client_that_vanished_is_found_and_its_upstream_told() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &["--dead-after", "5s"]);
    // Idle, and with an answer on its way.
    for answered in [false, true] {
        let (client, mut served) = pair(&relay, &upstream);
        let vanished = vanish(&client);
        if answered {
            served.write_all(b"into the silence").unwrap();
        }
        let closed = relay.closed();
        let reason = if answered {
            "unacknowledged"
        } else {
            "keepalive-dead"
        };
        assert_found(&closed, vanished.at, &[reason]);
        assert_reset(&mut served);
        drop(client);
    }
}

#[test]
fn a_living_end_that_does_not_read_is_not_taken_for_a_vanished_one() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &["--dead-after", "5s"]);
    let (mut client, mut served) = pair(&relay, &upstream);
    let asked = send_until_stuck(&mut client, &[7; 65536]);
    let answered = send_until_stuck(&mut served, &[8; 65536]);
    crate::support::pass(BOUND + Duration::from_secs(3));
    assert!(relay.closed_so_far().is_empty());
    for (stream, count) in [(&mut client, answered), (&mut served, asked)] {
        let mut got = vec![0; count];
        std::io::Read::read_exact(stream, &mut got).unwrap();
    }
    assert_pair(&mut client, &mut served);
}

#[test]
fn an_upstream_that_hears_again_in_time_goes_on() {
    let upstream = Peer::start();
    let relay = relay(&[upstream.address()], &["--dead-after", "10s"]);
    let (mut client, mut served) = pair(&relay, &upstream);
    vanish(&served);
    client.write_all(b"into the silence").unwrap();
    crate::support::pass(Duration::from_secs(2));
    undeafen(&served);
    assert_gets(&mut served, b"into the silence");
    assert_pair(&mut client, &mut served);
}

#[test]
fn an_upstream_that_acknowledges_nothing_new_is_a_write_stall() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &["--write-timeout", "5s"]);
    let (mut client, mut served) = pair(&relay, &upstream);
    send_until_stuck(&mut client, &[7; 65536]);
    let closed = relay.closed();
    assert!(
        ["upstream-failed", "write-stall"].contains(&closed.reason()),
        "{}",
        closed.line
    );
    assert_reset(&mut client);
    // What had arrived is there, and then the reset.
    let mut buffer = vec![0; 65536];
    loop {
        match std::io::Read::read(&mut served, &mut buffer) {
            Ok(0) => panic!("a FIN: cut off, and it looks whole"),
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                break;
            }
        }
    }
}

// Those who end them.

#[test]
fn a_client_that_is_killed_ends_its_pair_and_no_other() {
    let home = Home::new();
    let upstream = Peer::start();
    let to = upstream.address().to_string();
    let mut relay = home.serve(&["forward", &to]);
    let (mut client, mut served) = pair(&relay, &upstream);
    let (mut other, mut serves_other) = pair(&relay, &upstream);
    let list = home.json(&["list"]);
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    let killed = entry(&list, &client);
    assert_eq!(killed["service"], "forward", "{killed}");
    assert_eq!(number(&killed["read"]), 10, "{killed}");
    assert_eq!(number(&killed["written"]), 10, "{killed}");
    let id = number(&killed["id"]).to_string();
    home.answer(&["kill", &id]);
    let closed = relay.closed();
    assert_eq!((closed.reason(), closed.get("id")), ("killed", &*id));
    assert_ended(&mut client);
    assert_ended(&mut served);
    assert_pair(&mut other, &mut serves_other);
}

#[test]
fn a_drain_lets_pairs_run_until_they_are_done() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &["--drain-timeout", "30s"]);
    let (mut client, mut served) = pair(&relay, &upstream);
    relay.signal(rustix::process::Signal::TERM);
    relay.log_line("the drain", |line| line.contains(" info draining "));
    for _ in 0..3 {
        assert_pair(&mut client, &mut served);
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut served), b"");
    served.write_all(b"the last word").unwrap();
    drop(served);
    assert_eq!(read_to_fin(&mut client), b"the last word");
    assert_eq!(relay.wait().code(), Some(0), "{:#?}", relay.lines);
}

#[test]
fn a_drain_resets_what_is_left_at_its_timeout() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &["--drain-timeout", "1s"]);
    let (mut client, mut served) = pair(&relay, &upstream);
    let began = now();
    assert_eq!(relay.drain().code(), Some(1), "{:#?}", relay.lines);
    assert!(began.elapsed() >= Duration::from_millis(950));
    assert_reset(&mut client);
    assert_reset(&mut served);
    assert_eq!(relay.summary()["drain"], "1");
}

#[test]
fn a_client_that_waits_for_its_upstream_may_wait_on_in_a_drain() {
    let port = crate::support::connecting::Port::new();
    let mut relay = relay(&[port.address()], &["--drain-timeout", "30s"]);
    let mut client = connect(relay.address());
    client.write_all(b"early").unwrap();
    until_acknowledged(&client);
    crate::support::pass(Duration::from_millis(100));
    relay.signal(rustix::process::Signal::TERM);
    relay.log_line("the drain", |line| line.contains(" info draining "));
    let mut served = port.listen().accept();
    assert_gets(&mut served, b"early");
    assert_pair(&mut client, &mut served);
    drop((client, served));
    assert_eq!(relay.wait().code(), Some(0), "{:#?}", relay.lines);
}

#[test]
fn a_second_signal_ends_pairs_at_once() {
    let upstream = Peer::start();
    let mut relay: Server = relay(&[upstream.address()], &["--drain-timeout", "off"]);
    let (mut client, mut served) = pair(&relay, &upstream);
    relay.signal(rustix::process::Signal::TERM);
    relay.log_line("the drain", |line| line.contains(" info draining "));
    assert_pair(&mut client, &mut served);
    until_another_signal_counts();
    assert_eq!(relay.drain().code(), Some(1));
    assert_reset(&mut client);
    assert_reset(&mut served);
}

/// As a server does that refuses what is too much: it answers and closes, and has not read all.
#[test]
fn what_an_upstream_said_before_it_reset_arrives_at_a_client_that_is_still_sending() {
    let upstream = Peer::start();
    let mut relay = relay(&[upstream.address()], &[]);
    for _ in 0..30 {
        let mut client = relay.connect();
        let sending = client.try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            let mut sending = sending;
            loop {
                if let Err(error) = sending.write_all(&[7; 65536]) {
                    return error.kind();
                }
            }
        });
        let mut served = upstream.accept();
        assert_gets(&mut served, &[7; 65536]);
        served.write_all(b"that is too much").unwrap();
        // Bytes that nobody has read make it a reset.
        until("there is more", || unread(&served) > 0);
        drop(served);
        assert_gets(&mut client, b"that is too much");
        // A reset, of which the system tells the one who asks first.
        let wrote = sending.join().unwrap();
        let read = std::io::Read::read(&mut client, &mut [0; 64]).map_err(|error| error.kind());
        let reset = std::io::ErrorKind::ConnectionReset;
        assert!(wrote == reset || read == Err(reset), "{wrote:?} {read:?}");
        assert_eq!(relay.closed().reason(), "upstream-failed");
    }
}

#[test]
fn a_client_that_waits_can_be_seen_and_killed() {
    let home = Home::new();
    let port = crate::support::connecting::Port::new();
    let to = port.address().to_string();
    let mut relay = home.serve(&["forward", &to, "--upstream-wait", "1m"]);
    let mut client = relay.connect();
    until("it is listed", || {
        home.json(&["list"]).as_array().unwrap().len() == 1
    });
    let id = number(&entry(&home.json(&["list"]), &client)["id"]).to_string();
    home.answer(&["kill", &id]);
    assert_eq!(relay.closed().reason(), "killed");
    assert_ended(&mut client);
}

#[test]
fn a_client_that_vanished_while_it_waits_is_found() {
    let port = crate::support::connecting::Port::new();
    let args = ["--dead-after", "5s", "--upstream-wait", "1m"];
    let mut relay = relay(&[port.address()], &args);
    let client = relay.connect();
    let vanished = vanish(&client);
    let closed = relay.closed();
    assert_found(&closed, vanished.at, &["keepalive-dead"]);
}

/// Its silence cannot be told from its waiting.
#[test]
fn the_read_deadline_does_not_end_a_client_that_waits() {
    let port = crate::support::connecting::Port::new();
    let mut relay = relay(&[port.address()], &["-i", "1s", "--upstream-wait", "1m"]);
    let mut client = relay.connect();
    crate::support::pass(Duration::from_millis(2500));
    assert!(relay.closed_so_far().is_empty());
    let mut served = port.listen().accept();
    assert_pair(&mut client, &mut served);
    assert_eq!(relay.closed().reason(), "read-timeout");
}
