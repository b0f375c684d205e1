//! Half-open peers: found, in time, with the exact reason. And those who are not: peers that reset, or hear again.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use standfast::{Context, Keepalive, Listen, Service};

use crate::support::clients::{
    Stream, Vanished, connect_with_window, reset, unread, until_acknowledged, vanish,
};
use crate::support::embedded::{Embedded, listen};
use crate::support::{
    Closed, GUARD, Server, assert_echoes, cannot_run, connect, now, pass, read_to_fin, row,
    undeafen, until,
};

/// The bound that most tests here ask for, the shortest there is.
const BOUND: Duration = Duration::from_secs(5);

/// Longest time from a peer's vanishing to the line: the bound, and what a busy machine may add.
fn late(bound: Duration) -> Duration {
    bound + bound / 10 + Duration::from_secs(1)
}

/// Asserts that a peer was found within `bound`, but not before it had been silent for `earliest`; and that nothing
/// of the connection is left in the kernel.
#[track_caller]
fn assert_reaped(
    closed: &Closed,
    client: &TcpStream,
    vanished: Vanished,
    earliest: Duration,
    bound: Duration,
) {
    let took = vanished.at.unhindered();
    assert!(took <= late(bound), "after {took:?}: {}", closed.line);
    let silence = vanished.heard.elapsed();
    assert!(
        silence >= earliest,
        "after {silence:?} already: {}",
        closed.line
    );
    let (server, peer) = (client.peer_addr().unwrap(), client.local_addr().unwrap());
    // The line comes just before the close.
    until("the connection is gone", || {
        let left = row(server, peer);
        assert!(
            left.as_ref().is_none_or(|left| !left.orphan),
            "{left:?}: {}",
            closed.line
        );
        left.is_none()
    });
}

/// Idle: after 2 s, two probes of a second each go unanswered.
#[track_caller]
fn assert_keepalive_dead(closed: &Closed, client: &TcpStream, vanished: Vanished) {
    assert_eq!(
        ["reason", "errno", "probes", "retransmits"].map(|key| closed.get(key)),
        ["keepalive-dead", "ETIMEDOUT", "2", "0"],
        "{}",
        closed.line
    );
    assert_reaped(closed, client, vanished, Duration::from_secs(4), BOUND);
}

/// Output waited and the peer was silent for nearly the bound: our own verdict, for the kernel is not that fast.
#[track_caller]
fn assert_unacknowledged(closed: &Closed, client: &TcpStream, vanished: Vanished, bound: Duration) {
    assert_eq!(
        (closed.reason(), closed.get("errno")),
        ("unacknowledged", ""),
        "{}",
        closed.line
    );
    // A peer behind a closed window was last heard of when it answered a probe, up to a second before.
    let earliest = bound / 20 * 19 - Duration::from_millis(1100);
    assert_reaped(closed, client, vanished, earliest, bound);
}

fn asked_for(closed: &Closed, key: &str) -> u64 {
    closed.get(key).parse().unwrap_or(0)
}

/// A server that speaks only when the test says so, and until then leaves what its clients send.
#[derive(Clone, Default)]
struct Speaker {
    told: Arc<Mutex<HashSet<SocketAddr>>>,
}

const WORDS: &[u8] = b"words from the server";

impl Speaker {
    fn start(&self, settings: impl FnOnce(Listen) -> Listen) -> Embedded {
        Embedded::start(settings(within(BOUND, listen(self.clone()))))
    }

    /// Makes the server write to `client`, now.
    fn tell(&self, server: &Embedded, client: &TcpStream) {
        self.told
            .lock()
            .unwrap()
            .insert(client.local_addr().unwrap());
        server.handle.resume();
    }

    /// Speaks if it was told to, waits otherwise.
    fn speak(&self, conn: &mut Context<'_>) -> bool {
        let told = self.told.lock().unwrap();
        let told = told
            .iter()
            .any(|told| standfast::Peer::from(*told) == conn.peer());
        if told {
            conn.write(WORDS);
        } else {
            conn.pause();
        }
        told
    }
}

impl Service for Speaker {
    type State = ();

    fn open(&self, _: &mut Context<'_>) {}

    fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        if self.speak(conn) { bytes.len() } else { 0 }
    }

    /// A half-closed client is kept: the service does not finish.
    fn end(&self, (): &mut (), conn: &mut Context<'_>, _: &[u8]) {
        self.speak(conn);
    }
}

/// An echo that does not finish when its client does.
struct Keeps;

impl Service for Keeps {
    type State = ();

    fn open(&self, _: &mut Context<'_>) {}

    fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        conn.write(bytes);
        bytes.len()
    }

    fn end(&self, (): &mut (), _: &mut Context<'_>, _: &[u8]) {}
}

/// The settings that `--dead-after` alone makes.
fn within(bound: Duration, listen: Listen) -> Listen {
    Listen {
        keepalive: Some(Keepalive::within(bound).unwrap()),
        dead_after: Some(bound),
        ..listen
    }
}

/// A client that waits for the speaker: it has sent a byte, which the service left.
fn listener_of(server: &Embedded) -> TcpStream {
    let mut client = server.connect();
    client.write_all(b"?").unwrap();
    until_acknowledged(&client);
    client
}

/// A client that has sent much, and reads nothing of its echo: its window is closed, output for it waits.
fn stuffed(address: SocketAddr) -> TcpStream {
    let mut client = connect_with_window(address, 4096);
    client.write_all(&Stream::default().peek(STUFFING)).unwrap();
    until_acknowledged(&client);
    until("some of the echo is there", || unread(&client) > 0);
    client
}

const STUFFING: usize = 100_000;

#[test]
fn an_idle_peer_that_vanished_is_found() {
    let mut server = Server::start(&["echo", "--dead-after", "5s"]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let vanished = vanish(&client);
    let closed = server.closed();
    assert_keepalive_dead(&closed, &client, vanished);
    assert_eq!((closed.get("read"), closed.get("written")), ("5", "5"));
}

#[test]
fn a_peer_that_vanished_before_its_first_byte_is_found() {
    let mut server = Server::start(&["echo", "--dead-after", "5s"]);
    let client = server.connect();
    let vanished = vanish(&client);
    assert_keepalive_dead(&server.closed(), &client, vanished);
}

#[test]
fn an_ipv6_peer_that_vanished_is_found() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return cannot_run("an_ipv6_peer_that_vanished_is_found", "IPv6");
    }
    let mut server = Server::start(&["echo", "--dead-after", "5s", "-l", "[::1]:0"]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let vanished = vanish(&client);
    assert_keepalive_dead(&server.closed(), &client, vanished);
}

#[test]
fn a_peer_that_vanished_with_data_in_flight_is_found() {
    let speaker = Speaker::default();
    let server = speaker.start(|listen| listen);
    let client = listener_of(&server);
    let vanished = vanish(&client);
    speaker.tell(&server, &client);
    let closed = server.closed(&client);
    assert_unacknowledged(&closed, &client, vanished, BOUND);
    assert!(asked_for(&closed, "retransmits") >= 1, "{}", closed.line);
    assert_eq!(closed.get("probes"), "0", "{}", closed.line);
}

#[test]
fn a_longer_bound_is_kept_with_data_in_flight() {
    let bound = Duration::from_secs(10);
    let speaker = Speaker::default();
    let server = speaker.start(|listen| within(bound, listen));
    let client = listener_of(&server);
    let vanished = vanish(&client);
    speaker.tell(&server, &client);
    assert_unacknowledged(&server.closed(&client), &client, vanished, bound);
}

#[test]
fn a_peer_that_vanished_behind_its_closed_window_is_found() {
    let mut server = Server::start(&["echo", "--dead-after", "5s"]);
    let client = stuffed(server.address());
    let vanished = vanish(&client);
    let closed = server.closed();
    assert_unacknowledged(&closed, &client, vanished, BOUND);
    assert!(asked_for(&closed, "probes") >= 2, "{}", closed.line);
}

/// The kernel asks ever more rarely whether a window has opened; not so rarely that the bound could not be kept.
#[test]
fn a_peer_that_vanished_long_after_its_window_closed_is_found() {
    let mut server = Server::start(&["echo", "--dead-after", "5s"]);
    let client = stuffed(server.address());
    pass(Duration::from_millis(13_500));
    let vanished = vanish(&client);
    assert_unacknowledged(&server.closed(), &client, vanished, BOUND);
}

/// Some of it in the kernel, most of it in the outbox.
#[test]
fn a_peer_that_vanished_with_more_waiting_than_the_kernel_takes_is_found() {
    struct Greets;
    impl Service for Greets {
        type State = ();

        fn open(&self, conn: &mut Context<'_>) {
            conn.write(&vec![7; 16 << 20]);
        }

        fn input(&self, (): &mut (), _: &mut Context<'_>, bytes: &[u8]) -> usize {
            bytes.len()
        }
    }
    let server = Embedded::start(within(BOUND, listen(Greets)));
    let client = connect_with_window(server.address(), 4096);
    until("some of the greeting is there", || unread(&client) > 0);
    let vanished = vanish(&client);
    assert_unacknowledged(&server.closed(&client), &client, vanished, BOUND);
}

#[test]
fn a_half_closed_peer_that_vanished_before_its_answer_was_out_is_found() {
    let mut server = Server::start(&["echo", "--dead-after", "5s"]);
    let client = stuffed(server.address());
    client.shutdown(Shutdown::Write).unwrap();
    let vanished = vanish(&client);
    assert_unacknowledged(&server.closed(), &client, vanished, BOUND);
}

/// After its FIN `read` says 0 for ever: only the socket's error tells of the time-out.
#[test]
fn a_half_closed_peer_that_vanished_is_found_while_its_service_goes_on() {
    let server = Embedded::start(within(BOUND, listen(Keeps)));
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    client.shutdown(Shutdown::Write).unwrap();
    let vanished = vanish(&client);
    assert_keepalive_dead(&server.closed(&client), &client, vanished);
}

#[test]
fn a_half_closed_peer_that_vanished_is_found_when_it_is_written_to() {
    let speaker = Speaker::default();
    let server = speaker.start(|listen| listen);
    let client = server.connect();
    client.shutdown(Shutdown::Write).unwrap();
    let vanished = vanish(&client);
    speaker.tell(&server, &client);
    assert_unacknowledged(&server.closed(&client), &client, vanished, BOUND);
}

/// Says so much at first, and waits then, as one does that has yet to reach an upstream for its client.
struct Waits(usize);

impl Service for Waits {
    type State = ();

    fn open(&self, conn: &mut Context<'_>) {
        conn.write(&vec![7; self.0]);
        conn.pause();
    }

    fn input(&self, (): &mut (), _: &mut Context<'_>, bytes: &[u8]) -> usize {
        bytes.len()
    }
}

#[test]
fn a_peer_that_vanished_is_found_while_its_service_waits() {
    let server = Embedded::start(within(BOUND, listen(Waits(0))));
    let client = server.connect();
    let vanished = vanish(&client);
    assert_keepalive_dead(&server.closed(&client), &client, vanished);
}

#[test]
fn a_peer_that_vanished_with_output_waiting_is_found_while_its_service_waits() {
    let server = Embedded::start(within(BOUND, listen(Waits(STUFFING))));
    let client = connect_with_window(server.address(), 4096);
    until("some of the output is there", || unread(&client) > 0);
    let vanished = vanish(&client);
    assert_unacknowledged(&server.closed(&client), &client, vanished, BOUND);
}

#[test]
fn a_reset_is_noticed_while_the_service_waits() {
    let server = Embedded::start(listen(Waits(0)));
    let client = server.connect();
    let local = client.local_addr().unwrap();
    reset(client);
    let closed = server.closed_from(local);
    assert_eq!(closed.reason(), "peer-reset", "{}", closed.line);
}

/// What a client said is served first, even if the client vanished and the service took its time.
#[test]
fn what_came_before_a_peer_vanished_is_served_before_the_verdict() {
    let speaker = Speaker::default();
    let server = speaker.start(|listen| listen);
    let client = listener_of(&server);
    vanish(&client);
    pass(BOUND + Duration::from_secs(1));
    speaker.tell(&server, &client);
    let closed = server.closed(&client);
    assert_eq!(
        (closed.get("errno"), closed.get("read")),
        ("ETIMEDOUT", "1"),
        "{}",
        closed.line
    );
}

/// The kernel stops probing once something is written, and starts to count anew.
#[test]
fn writing_into_the_silence_does_not_put_the_bound_off() {
    let speaker = Speaker::default();
    let server = speaker.start(|listen| listen);
    thread::scope(|clients| {
        for silence in [1000, 2000, 3000] {
            let (speaker, server) = (&speaker, &server);
            clients.spawn(move || {
                // On a busy machine the words may come once the kernel has given up: then once more.
                let is_written = (0..5).any(|_| {
                    let client = listener_of(server);
                    let vanished = vanish(&client);
                    pass(Duration::from_millis(silence).saturating_sub(vanished.heard.elapsed()));
                    speaker.tell(server, &client);
                    let closed = server.closed(&client);
                    let is_written = closed.get("written") != "0";
                    if is_written {
                        assert_unacknowledged(&closed, &client, vanished, BOUND);
                    }
                    is_written
                });
                assert!(is_written, "the bound ends before anything is written");
            });
        }
    });
}

#[test]
fn a_peer_that_hears_again_in_time_gets_its_bytes() {
    let outage = Duration::from_secs(3);
    let speaker = Speaker::default();
    let talking = speaker.start(|listen| listen);
    let echoing = Server::start(&["echo", "--dead-after", "5s"]);
    let patient = Server::start(&["echo", "--dead-after", "10s"]);
    let (echo, patient_echo) = (echoing.address(), patient.address());
    thread::scope(|clients| {
        // Data in flight.
        clients.spawn(|| {
            let mut client = listener_of(&talking);
            vanish(&client);
            speaker.tell(&talking, &client);
            pass(outage);
            undeafen(&client);
            let mut heard = vec![0; WORDS.len()];
            client.read_exact(&mut heard).unwrap();
            assert_eq!(heard, WORDS);
            pass(BOUND);
            client.write_all(b"?").unwrap();
            client.read_exact(&mut heard).unwrap();
        });
        // A closed window.
        clients.spawn(|| {
            let mut client = stuffed(echo);
            vanish(&client);
            pass(outage);
            undeafen(&client);
            pass(BOUND);
            Stream::default().read(&mut client, STUFFING as u64);
        });
        // Idle, the first probes unanswered.
        clients.spawn(|| {
            let mut client = connect(patient_echo);
            assert_echoes(&mut client, b"hello");
            pass(Duration::from_millis(3300));
            vanish(&client);
            pass(outage);
            undeafen(&client);
            pass(BOUND);
            assert_echoes(&mut client, b"still here");
        });
    });
}

/// `TCP_USER_TIMEOUT` makes the kernel itself give up, by retransmissions and by window probes.
#[test]
fn what_the_kernel_gave_up_is_told_by_its_errno() {
    let wait = Duration::from_secs(3);
    let speaker = Speaker::default();
    let server = speaker.start(|listen| Listen {
        user_timeout: Some(wait),
        ..within(Duration::from_secs(60), listen)
    });
    let client = listener_of(&server);
    let vanished = vanish(&client);
    speaker.tell(&server, &client);
    let closed = server.closed(&client);
    assert_eq!(
        (closed.reason(), closed.get("errno"), closed.get("probes")),
        ("unacknowledged", "ETIMEDOUT", "0"),
        "{}",
        closed.line
    );
    assert!(asked_for(&closed, "retransmits") >= 1, "{}", closed.line);
    assert_reaped(&closed, &client, vanished, wait, wait);

    let mut server = Server::start(&["echo", "--dead-after", "60s", "--user-timeout", "3s"]);
    let client = stuffed(server.address());
    vanish(&client);
    let closed = server.closed();
    assert_eq!(
        (
            closed.reason(),
            closed.get("errno"),
            closed.get("retransmits")
        ),
        ("unacknowledged", "ETIMEDOUT", "0"),
        "{}",
        closed.line
    );
    assert!(asked_for(&closed, "probes") >= 1, "{}", closed.line);
}

#[test]
fn a_reset_is_told_from_a_fin() {
    let mut server = Server::start(&["echo"]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    reset(client);
    let closed = server.closed();
    closed.assert_error("peer-reset", "ECONNRESET");

    // With output waiting for it.
    let client = stuffed(server.address());
    reset(client);
    let closed = server.closed();
    closed.assert_error("peer-reset", "ECONNRESET");
}

/// `read` says 0 for ever then: only the socket's error tells.
#[test]
fn a_reset_after_a_fin_is_not_taken_for_a_good_end() {
    let server = Embedded::start(listen(Keeps));
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    client.shutdown(Shutdown::Write).unwrap();
    until_acknowledged(&client);
    let local = client.local_addr().unwrap();
    reset(client);
    let closed = server.closed_from(local);
    closed.assert_error("peer-reset", "EPIPE");

    // Our own FIN waits behind the output: the kernel has another name for that.
    let mut server = Server::start(&["echo"]);
    let client = stuffed(server.address());
    client.shutdown(Shutdown::Write).unwrap();
    until_acknowledged(&client);
    reset(client);
    let closed = server.closed();
    closed.assert_error("peer-reset", "ECONNRESET");
}

#[test]
fn what_came_before_a_reset_is_served() {
    let mut server = Server::start(&["print"]);
    for round in 0..20 {
        let mut client = server.connect();
        // Half of them without the end of a line, which the service keeps until the end.
        let end = if round % 2 == 0 { "\n" } else { "" };
        let words = format!("last words {round}{end}");
        client.write_all(words.as_bytes()).unwrap();
        reset(client);
        assert_eq!(server.stdout_bytes(words.len()), words.as_bytes());
        let closed = server.closed();
        assert_eq!(
            (closed.reason(), closed.get("read")),
            ("peer-reset", words.len().to_string().as_str()),
            "{}",
            closed.line
        );
    }
}

#[test]
fn a_silent_client_gets_all_its_answer_and_a_clean_fin() {
    let mut server = Server::start(&["echo", "--read-timeout", "1s"]);
    let mut client = connect_with_window(server.address(), 4096);
    let sent = Stream::default().peek(300_000);
    client.write_all(&sent).unwrap();
    until_acknowledged(&client);
    let silent = now();
    // The deadline comes and goes before the first byte is read.
    pass(Duration::from_millis(1500));
    assert_eq!(Stream::default().read_to_fin(&mut client), 300_000);
    assert!(silent.elapsed() >= Duration::from_secs(1));
    drop(client);
    let closed = server.closed();
    assert_eq!(closed.reason(), "read-timeout", "{}", closed.line);
    assert_eq!(closed.get("written"), "300000");
}

/// A byte that crosses the server's FIN on the wire: served or not, it must not turn the end into a reset.
#[test]
fn a_byte_sent_when_the_read_deadline_comes_does_no_harm() {
    let mut server = Server::start(&["echo", "--read-timeout", "1s"]);
    let address = server.address();
    let count = 60;
    thread::scope(|clients| {
        for at in 0..count {
            clients.spawn(move || {
                let mut client = connect(address);
                let began = now();
                assert_echoes(&mut client, b"first");
                // Around the deadline, 2 ms apart.
                pass(Duration::from_millis(940 + 2 * at).saturating_sub(began.elapsed()));
                if let Err(error) = client.write_all(b"!") {
                    assert_ne!(error.kind(), ErrorKind::ConnectionReset);
                }
                let in_time = began.elapsed() < Duration::from_millis(998);
                let rest = read_to_fin(&mut client);
                assert!(rest.is_empty() || rest == b"!", "{rest:?}");
                assert!(!in_time || rest == b"!", "lost at {at}");
            });
        }
    });
    for _ in 0..count {
        let closed = server.closed();
        assert_eq!(closed.reason(), "read-timeout", "{}", closed.line);
        assert!(closed.age() >= Duration::from_secs(1), "{}", closed.line);
    }
}

/// A deadline of ours that fires while probes go unanswered says for how long there was silence.
#[test]
fn a_deadline_on_a_peer_that_vanished_tells_of_the_silence() {
    let mut server = Server::start(&["echo", "--dead-after", "10s", "-i", "6s"]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let vanished = vanish(&client);
    let closed = server.closed();
    assert_eq!(closed.reason(), "read-timeout", "{}", closed.line);
    assert!(vanished.at.unhindered() < late(Duration::from_secs(10)));
    let silent: f64 = closed.get("silent_for").parse().unwrap();
    assert!(silent > 5.0, "{}", closed.line);
}

#[test]
fn an_idle_peer_that_answers_is_not_reaped() {
    let mut server = Server::start(&["echo", "--dead-after", "5s"]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    pass(BOUND * 2);
    assert_echoes(&mut client, b"still here");
    drop(client);
    assert_eq!(server.closed_within(GUARD).reason(), "peer-closed");
}
