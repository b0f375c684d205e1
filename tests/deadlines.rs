//! Read deadline, write stall, half-close timeout: kept, renewed by what they say, and no other end before them.

/// Those who read slowly for two minutes. Here, so that it begins early: it is by far the longest.
mod slow_readers;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use standfast::{Context, Listen, Service};

use crate::support::clients::{
    Stream, connect_with_window, send_all, unread, until_acknowledged, vanish,
};
use crate::support::embedded::{Embedded, listen};
use crate::support::{
    Began, Closed, Server, assert_echoes, connect, now, pass, read_to_fin, standfast, until,
};

/// Asserts that a connection ended for `reason`, at least `earliest` after it began and not much later.
#[track_caller]
fn assert_ended(closed: &Closed, reason: &str, earliest: Duration) {
    assert_ended_hindered(closed, reason, earliest, Duration::ZERO);
}

/// The same where somebody waited for a processor for so long meanwhile.
#[track_caller]
fn assert_ended_hindered(closed: &Closed, reason: &str, earliest: Duration, hindered: Duration) {
    assert_eq!(closed.reason(), reason, "{}", closed.line);
    // A stall is noticed an eighth late, counted from a first look; a FIN is lingered over for a second.
    let latest = earliest + earliest / 4 + Duration::from_secs(2) + hindered;
    let age = closed.age();
    assert!((earliest..latest).contains(&age), "{}", closed.line);
}

#[test]
fn a_client_that_never_says_anything_is_closed_at_its_read_deadline() {
    let mut server = Server::start(&["echo", "--read-timeout", "1s"]);
    let mut client = server.connect();
    assert!(read_to_fin(&mut client).is_empty());
    drop(client);
    assert_ended(&server.closed(), "read-timeout", Duration::from_secs(1));
}

#[test]
fn each_byte_renews_the_read_deadline() {
    let mut server = Server::start(&["echo", "-i", "1500ms"]);
    let mut client = server.connect();
    let began = now();
    for _ in 0..6 {
        pass(Duration::from_millis(500));
        assert_echoes(&mut client, b".");
    }
    let spoke = began.elapsed();
    assert!(read_to_fin(&mut client).is_empty());
    drop(client);
    // On a busy machine the connection's age begins later than the client's.
    let silent = spoke + Duration::from_secs(1);
    assert_ended(&server.closed(), "read-timeout", silent);
}

/// Acknowledgements are no bytes: a client that only reads is silent.
#[test]
fn what_a_client_reads_does_not_renew_its_read_deadline() {
    let mut server = Server::start(&["echo", "-i", "2s"]);
    let began = Began::now();
    let mut client = connect_with_window(server.address(), 4096);
    let sent = Stream::default().peek(60_000);
    client.write_all(&sent).unwrap();
    // Half of it is read within the deadline, the other half after.
    let mut echo = Stream::default();
    for _ in 0..30 {
        pass(Duration::from_millis(100));
        echo.read(&mut client, 2000);
    }
    assert_eq!(echo.read_to_fin(&mut client), 60_000);
    drop(client);
    let (closed, hindered) = (server.closed(), began.hindered());
    assert_ended_hindered(&closed, "read-timeout", Duration::from_secs(2), hindered);
}

#[test]
fn without_a_read_deadline_silence_is_no_reason() {
    for off in [["--read-timeout", "off"], ["--idle-timeout", "off"]] {
        let mut command = standfast();
        command.args(["serve", "echo", "-l", "0"]).args(off);
        let mut server = Server::spawn(command, 1);
        let line = server.log_line("its settings", |line| line.contains(" listening "));
        assert!(line.contains(" read_timeout=off"), "{line}");
        let mut client = server.connect();
        pass(Duration::from_secs(1));
        assert_echoes(&mut client, b"still here");
    }
}

/// A client that sends more than it takes is not read from; that its bytes do not come in then is not its silence.
#[test]
fn the_read_deadline_stands_still_while_the_outbox_is_full() {
    let mut server = Server::start(&["echo", "-i", "1s", "--buffer", "64k"]);
    let mut client = connect_with_window(server.address(), 64 << 10);
    let count = 48 << 20;
    let sender = send_all(&client, count);
    // Nothing is read until long after the deadline, and the sender is stuck meanwhile.
    pass(Duration::from_millis(3500));
    assert!(!sender.is_finished(), "all of it fits somewhere");
    assert!(server.closed_so_far().is_empty(), "{:?}", server.lines);
    let mut echo = Stream::default();
    echo.read(&mut client, count);
    sender.join().unwrap();
    assert_eq!(echo.read_to_fin(&mut client), count);
    drop(client);
    assert_eq!(server.closed().reason(), "peer-closed");
}

#[test]
fn the_read_deadline_stands_still_while_the_service_waits() {
    /// Takes no byte until it is told to.
    struct Waits;
    impl Service for Waits {
        type State = bool;

        fn open(&self, _: &mut Context<'_>) -> bool {
            false
        }

        fn input(&self, waited: &mut bool, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
            if std::mem::replace(waited, true) {
                conn.write(bytes);
                return bytes.len();
            }
            conn.pause();
            0
        }
    }
    let server = Embedded::start(Listen {
        read_timeout: Some(Duration::from_secs(1)),
        ..listen(Waits)
    });
    let mut client = server.connect();
    client.write_all(b"hello").unwrap();
    pass(Duration::from_millis(2500));
    server.handle.resume();
    let mut echo = [0; 5];
    client.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"hello");
    // From here on it runs again.
    assert!(read_to_fin(&mut client).is_empty());
    let closed = server.closed(&client);
    assert_ended(&closed, "read-timeout", Duration::from_millis(3300));
}

#[test]
fn a_living_client_that_never_reads_stalls() {
    let mut server = Server::start(&["echo", "--write-timeout", "2s"]);
    let mut client = connect_with_window(server.address(), 4096);
    client.write_all(&Stream::default().peek(200_000)).unwrap();
    assert_ended(&server.closed(), "write-stall", Duration::from_secs(2));
    // It is reset: what was delivered before is there, and then the end is told for what it is.
    let mut got = Vec::new();
    let error = client.read_to_end(&mut got).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    Stream::default().verify(&got);
}

#[test]
fn a_client_with_a_full_outbox_stalls() {
    let mut server = Server::start(&["echo", "--write-timeout", "2s", "--buffer", "64k"]);
    let client = server.connect();
    let sender = {
        let mut client = client.try_clone().unwrap();
        std::thread::spawn(move || while client.write_all(&[7; 65536]).is_ok() {})
    };
    let closed = server.closed();
    assert_eq!(closed.reason(), "write-stall", "{}", closed.line);
    assert!(closed.age() >= Duration::from_secs(2), "{}", closed.line);
    sender.join().unwrap();
}

/// Reads far slower than the server would send, and still takes something within each timeout of 8 s: a reader's
/// window opens in leaps, seconds apart.
fn read_slowly(client: &mut TcpStream, echo: &mut Stream) {
    let began = now();
    let mut piece = vec![0; 32 << 10];
    while began.elapsed() < Duration::from_secs(15) {
        let got = client.read(&mut piece).unwrap();
        assert!(got > 0, "cut after {:?}", began.elapsed());
        echo.verify(&piece[..got]);
        pass(Duration::from_millis(250));
    }
}

#[test]
fn a_client_that_reads_slowly_does_not_stall() {
    let mut server = Server::start(&["echo", "--write-timeout", "8s"]);
    let mut client = server.connect();
    let count = 6 << 20;
    let sender = send_all(&client, count);
    let mut echo = Stream::default();
    read_slowly(&mut client, &mut echo);
    assert!(echo.at < count, "not slow enough");
    assert_eq!(echo.read_to_fin(&mut client), count);
    sender.join().unwrap();
    drop(client);
    assert_eq!(server.closed().reason(), "peer-closed");
}

#[test]
fn without_a_write_timeout_a_client_may_stop_reading() {
    let mut server = Server::start(&["echo", "--write-timeout", "off", "--dead-after", "5s"]);
    let mut client = connect_with_window(server.address(), 4096);
    client.write_all(&Stream::default().peek(200_000)).unwrap();
    pass(Duration::from_secs(7));
    assert!(server.closed_so_far().is_empty(), "{:?}", server.lines);
    Stream::default().read(&mut client, 200_000);
}

/// What waits is for it to take, as for any client: so it has as long as any.
#[test]
fn a_half_closed_client_that_takes_nothing_runs_out_of_time() {
    let args = [
        "echo",
        "--half-close-timeout",
        "500ms",
        "--write-timeout",
        "2s",
    ];
    let mut server = Server::start(&args);
    let mut client = connect_with_window(server.address(), 4096);
    client.write_all(&Stream::default().peek(200_000)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    until("some of the echo is there", || unread(&client) > 0);
    let closed = server.closed();
    assert_ended(&closed, "write-stall", Duration::from_secs(2));
}

/// One that reads slowly behind a full buffer acknowledges nothing for long.
#[test]
fn a_half_closed_client_that_pauses_for_longer_than_its_deadline_gets_all_its_answer() {
    let mut server = Server::start(&["echo", "--half-close-timeout", "1s"]);
    let mut client = connect_with_window(server.address(), 4096);
    let count = 100_000;
    client.write_all(&Stream::default().peek(count)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    pass(Duration::from_secs(4));
    assert_eq!(
        Stream::default().read_to_fin(&mut client),
        count as u64,
        "{:?}",
        server.closed_so_far()
    );
    drop(client);
    assert_eq!(server.closed().reason(), "peer-closed");
}

#[test]
fn a_half_closed_client_whose_service_goes_on_runs_out_of_time() {
    struct Keeps;
    impl Service for Keeps {
        type State = ();

        fn open(&self, _: &mut Context<'_>) {}

        fn input(&self, (): &mut (), _: &mut Context<'_>, bytes: &[u8]) -> usize {
            bytes.len()
        }

        fn end(&self, (): &mut (), _: &mut Context<'_>, _: &[u8]) {}
    }
    let server = Embedded::start(Listen {
        half_close_timeout: Some(Duration::from_secs(2)),
        ..listen(Keeps)
    });
    let client = server.connect();
    client.shutdown(Shutdown::Write).unwrap();
    let closed = server.closed(&client);
    assert_ended(&closed, "half-close-timeout", Duration::from_secs(2));
}

/// What moves renews it: a slow reader of a long answer has all the time it needs.
#[test]
fn a_half_closed_client_that_reads_slowly_gets_all_its_answer() {
    let mut server = Server::start(&["echo", "--half-close-timeout", "8s", "--buffer", "4m"]);
    let mut client = server.connect();
    let count = 4 << 20;
    send_all(&client, count).join().unwrap();
    until_acknowledged(&client);
    let mut echo = Stream::default();
    read_slowly(&mut client, &mut echo);
    assert!(echo.at < count, "not slow enough");
    assert_eq!(echo.read_to_fin(&mut client), count);
    drop(client);
    assert_eq!(server.closed().reason(), "peer-closed");
}

/// The server's own FIN, at a read deadline, is a half-close too: a client that never answers it is not waited for.
#[test]
fn a_client_that_keeps_its_side_open_after_our_fin_is_let_go() {
    let mut server = Server::start(&["echo", "-i", "1s"]);
    let mut client = connect(server.address());
    assert!(read_to_fin(&mut client).is_empty());
    let closed = server.closed();
    assert_ended(&closed, "read-timeout", Duration::from_secs(1));
    drop(client);
}

/// A client that vanished is not given the whole write timeout, nor the half-close timeout.
#[test]
fn long_deadlines_do_not_put_the_bound_off() {
    let mut server = Server::start(&["echo", "--dead-after", "5s"]);
    let mut client = connect_with_window(server.address(), 4096);
    client.write_all(&Stream::default().peek(100_000)).unwrap();
    until_acknowledged(&client);
    client.shutdown(Shutdown::Write).unwrap();
    let vanished = vanish(&client);
    let closed = server.closed();
    assert_eq!(closed.reason(), "unacknowledged", "{}", closed.line);
    assert!(vanished.at.unhindered() < Duration::from_millis(6500));
}
