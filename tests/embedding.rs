//! An embedder's server: the library from outside, several listeners, panicking services.

/// Descriptors, alarms and sockets beside the bytes.
mod beside;
/// The other door: links that dial, are lost, and come back.
mod client;
/// Listeners that the program made itself.
mod given;
/// Turns that take long.
mod late;
/// Orders for a worker that hangs.
mod orders;
/// Services with output of their own.
mod prompt;
/// Takeovers of services that let nothing go, or fail at it.
mod takeover;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use standfast::control::{ControlSocket, Replace};
use standfast::services::{Discard, Echo};
use standfast::{
    CloseReason, Config, Context, Exported, Handle, Keepalive, Listen, Server, Service,
};

use crate::support::clients::{Stream, connect_with_window, send_all, until_acknowledged};
use crate::support::embedded::{Embedded, listen};
use crate::support::{assert_echoes, connect, now, pass, read_to_fin, until};

#[test]
fn an_echo_server_takes_twenty_lines() {
    struct Shout;

    impl Service for Shout {
        type State = ();

        fn open(&self, _: &mut Context<'_>) {}

        fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
            conn.write(&bytes.to_ascii_uppercase());
            bytes.len()
        }
    }

    let server = Server::bind(Config {
        listen: vec![Listen::new("127.0.0.1:0".parse().unwrap(), Shout)],
        ..Config::default()
    })
    .unwrap();
    let (address, handle) = (server.addresses()[0].tcp().unwrap(), server.handle());
    let serving = thread::spawn(|| server.run());

    let mut client = connect(address);
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"HELLO");

    handle.drain();
    let summary = serving.join().unwrap().unwrap();
    assert_eq!((summary.accepted, summary.read, summary.written), (1, 5, 5));
    assert_eq!(summary.closed(CloseReason::PeerClosed), 1);
    assert_eq!((summary.cut, summary.finished), (0, true));
}

/// Greets, and remembers of each connection how many lines it had.
struct Count;

impl Service for Count {
    type State = u64;

    fn open(&self, conn: &mut Context<'_>) -> u64 {
        conn.write(b"hello\n");
        0
    }

    fn input(&self, lines: &mut u64, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        let mut used = 0;
        for line in bytes
            .split_inclusive(|&byte| byte == b'\n')
            .filter(|line| line.ends_with(b"\n"))
        {
            *lines += 1;
            conn.write(format!("{lines} {}\n", line.len() - 1).as_bytes());
            used += line.len();
        }
        used
    }

    fn end(&self, lines: &mut u64, conn: &mut Context<'_>, rest: &[u8]) {
        conn.write(format!("{lines} lines, and {}\n", rest.len()).as_bytes());
        conn.finish();
    }
}

#[track_caller]
fn assert_hears(client: &mut TcpStream, words: &str) {
    let mut heard = vec![0; words.len()];
    client.read_exact(&mut heard).unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), words);
}

#[test]
fn what_a_service_leaves_comes_again_with_more_behind_it() {
    let server = Embedded::start(listen(Count));
    let mut client = server.connect();
    assert_hears(&mut client, "hello\n");
    client.write_all(b"o").unwrap();
    until_acknowledged(&client);
    client.write_all(b"ne\ntw").unwrap();
    assert_hears(&mut client, "1 3\n");
    // A longer line than is read at once, in many pieces.
    let long = vec![b'o'; 200_000];
    client.write_all(&long).unwrap();
    client.write_all(b"\nthree\nrest").unwrap();
    assert_hears(&mut client, "2 200002\n3 5\n");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"3 lines, and 4\n");
    assert_eq!(server.closed(&client).reason(), "peer-closed");
}

#[test]
fn a_service_that_cannot_use_a_full_buffer_loses_the_connection() {
    let server = Embedded::start(Listen {
        buffer: 8192,
        ..listen(Count)
    });
    let mut client = server.connect();
    let _ = client.write_all(&[b'x'; 100_000]);
    let closed = server.closed(&client);
    assert_eq!(closed.reason(), "service", "{}", closed.line);
    assert!(closed.get("read").parse::<u64>().unwrap() <= 8192);
}

#[test]
fn connections_have_each_their_own_state_and_number() {
    /// Tells each connection its number and its peer.
    struct Who;
    impl Service for Who {
        type State = (u64, String);

        fn open(&self, conn: &mut Context<'_>) -> (u64, String) {
            (conn.id(), conn.peer().to_string())
        }

        fn input(&self, who: &mut Self::State, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
            assert_eq!((conn.id(), conn.peer().to_string()), *who);
            conn.write(format!("{} {}\n", who.0, who.1).as_bytes());
            bytes.len()
        }
    }
    let server = Embedded::start(listen(Who));
    let mut clients: Vec<TcpStream> = (0..8).map(|_| server.connect()).collect();
    let mut numbers = Vec::new();
    for _ in 0..3 {
        for client in &mut clients {
            client.write_all(b"?").unwrap();
            let mut line = String::new();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(&*client), &mut line).unwrap();
            let (number, peer) = line.trim_end().split_once(' ').unwrap();
            assert_eq!(peer, client.local_addr().unwrap().to_string());
            numbers.push(number.to_owned());
        }
    }
    let unique: std::collections::HashSet<&String> = numbers.iter().collect();
    assert_eq!(unique.len(), 8, "{numbers:?}");
    assert_eq!(numbers[..8], numbers[16..]);
}

#[test]
fn a_service_may_end_the_connection_once_all_is_delivered() {
    /// A long answer to whatever is asked, then the end.
    struct Answers;
    impl Service for Answers {
        type State = ();

        fn open(&self, _: &mut Context<'_>) {}

        fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
            conn.write(&Stream::default().peek(8 << 20));
            conn.finish();
            bytes.len()
        }
    }
    let server = Embedded::start(listen(Answers));
    let mut client = server.connect();
    client.write_all(b"?").unwrap();
    assert_eq!(Stream::default().read_to_fin(&mut client), 8 << 20);
    let local = client.local_addr().unwrap();
    drop(client);
    let closed = server.closed_from(local);
    assert_eq!(
        (closed.reason(), closed.get("written")),
        ("service", "8388608")
    );
}

#[test]
fn listeners_of_one_server_differ_in_all_that_is_theirs() {
    let server = Embedded::start_all(vec![
        Listen {
            read_timeout: Some(Duration::from_secs(1)),
            ..listen(Echo)
        },
        Listen {
            read_timeout: None,
            max_conns: NonZeroUsize::new(1),
            ..listen(Discard)
        },
        Listen {
            addresses: vec![
                "127.0.0.1:0".parse().unwrap(),
                "127.0.0.2:0".parse().unwrap(),
            ],
            buffer: 4096,
            keepalive: Some(Keepalive::new(7, 7, 7)),
            ..listen(Count)
        },
    ]);
    let [echo, discard, count, count_too] = server.addresses[..] else {
        unreachable!("four addresses");
    };
    assert_eq!(count_too.ip().to_string(), "127.0.0.2");
    let mut quick = connect(echo);
    let mut discarded = connect(discard);
    let mut counted = [connect(count), connect(count_too)];
    assert_echoes(&mut quick, b"hello");
    discarded.write_all(b"hello").unwrap();
    for client in &mut counted {
        assert_hears(client, "hello\n");
        client.write_all(b"hello\n").unwrap();
        assert_hears(client, "1 5\n");
    }
    // Over the limit of its listener, not of the others.
    let mut second = connect(discard);
    assert!(read_to_fin(&mut second).is_empty());
    assert_eq!(server.closed(&second).reason(), "limit");
    assert_echoes(&mut connect(echo), b"hello");
    // Only the echo has a read deadline that short.
    assert!(read_to_fin(&mut quick).is_empty());
    assert_eq!(server.closed(&quick).reason(), "read-timeout");
    pass(Duration::from_millis(500));
    discarded.write_all(b"still here").unwrap();
    discarded.shutdown(Shutdown::Write).unwrap();
    assert!(read_to_fin(&mut discarded).is_empty());
    let closed = server.closed(&discarded);
    assert_eq!((closed.reason(), closed.get("read")), ("peer-closed", "15"));
    for client in &mut counted {
        client.write_all(b"too\n").unwrap();
        assert_hears(client, "2 3\n");
    }
    drop(counted);
    let summary = server.drain();
    assert_eq!(summary.accepted, 6);
    assert_eq!(summary.closed(CloseReason::Limit), 1);
    assert_eq!(summary.closed_in_all(), 6);
}

/// Panics where its client says.
struct Panics;

impl Service for Panics {
    type State = Fragile;

    fn open(&self, conn: &mut Context<'_>) -> Fragile {
        let _ = conn;
        Fragile(false)
    }

    fn input(&self, fragile: &mut Fragile, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        assert_ne!(bytes, b"input", "asked for, in a test");
        fragile.0 = bytes == b"drop";
        conn.write(bytes);
        if bytes == b"end" { 0 } else { bytes.len() }
    }

    fn end(&self, _: &mut Fragile, conn: &mut Context<'_>, rest: &[u8]) {
        assert!(rest.is_empty(), "asked for, in a test");
        conn.finish();
    }
}

/// A state that may panic as it goes.
struct Fragile(bool);

impl Drop for Fragile {
    fn drop(&mut self) {
        assert!(!self.0, "asked for, in a test");
    }
}

#[test]
fn a_panicking_service_ends_only_its_own_connection() {
    let server = Embedded::start(listen(Panics));
    let mut beside: Vec<TcpStream> = (0..4).map(|_| server.connect()).collect();
    for client in &mut beside {
        assert_echoes(client, b"hello");
    }

    let mut client = server.connect();
    client.write_all(b"input").unwrap();
    let error = client.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(server.closed(&client).reason(), "service");

    let mut client = server.connect();
    assert_echoes(&mut client, b"end");
    client.shutdown(Shutdown::Write).unwrap();
    let closed = server.closed(&client);
    assert_eq!(closed.reason(), "service", "{}", closed.line);

    // As it goes there is nothing left to end but the connection itself.
    let mut client = server.connect();
    assert_echoes(&mut client, b"drop");
    client.shutdown(Shutdown::Write).unwrap();
    assert!(read_to_fin(&mut client).is_empty());
    assert_eq!(server.closed(&client).reason(), "peer-closed");

    for client in &mut beside {
        assert_echoes(client, b"still here");
    }
    drop(beside);
    let summary = server.drain();
    assert_eq!(
        (summary.accepted, summary.closed_in_all()),
        (7, 7),
        "{summary}"
    );
    assert_eq!(summary.closed(CloseReason::Service), 2, "{summary}");
}

#[test]
fn a_service_that_panics_at_the_greeting_ends_only_that_connection() {
    /// Greets the first client only.
    struct Once(AtomicUsize);
    impl Service for Once {
        type State = ();

        fn open(&self, _: &mut Context<'_>) {
            assert!(
                self.0.fetch_add(1, Ordering::Relaxed) == 0,
                "asked for, in a test"
            );
        }

        fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
            conn.write(bytes);
            bytes.len()
        }
    }
    let server = Embedded::start(listen(Once(AtomicUsize::new(0))));
    let mut first = server.connect();
    assert_echoes(&mut first, b"hello");
    for _ in 0..4 {
        let client = server.connect();
        assert_eq!(server.closed(&client).reason(), "service");
    }
    assert_echoes(&mut first, b"still here");
}

/// Takes what it gets in pieces of ten bytes, with a wait before each.
#[derive(Default)]
struct Hesitant {
    server: OnceLock<Handle>,
    asked: Arc<AtomicU64>,
}

impl Service for Hesitant {
    type State = bool;

    fn start(&self, server: &Handle) {
        self.server.set(server.clone()).unwrap();
    }

    fn open(&self, _: &mut Context<'_>) -> bool {
        false
    }

    fn input(&self, ready: &mut bool, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        if !std::mem::replace(ready, true) {
            self.asked.fetch_add(1, Ordering::Relaxed);
            conn.pause();
            return 0;
        }
        *ready = false;
        let used = bytes.len().min(10);
        conn.write(&bytes[..used]);
        if used < bytes.len() {
            self.asked.fetch_add(1, Ordering::Relaxed);
            *ready = true;
            conn.pause();
        }
        used
    }

    fn end(&self, _: &mut bool, conn: &mut Context<'_>, rest: &[u8]) {
        conn.write(rest);
        conn.finish();
    }
}

#[test]
fn a_waiting_service_goes_on_when_it_is_resumed_and_not_before() {
    let service = Hesitant::default();
    let asked = Arc::clone(&service.asked);
    let server = Embedded::start(listen(service));
    let mut clients: Vec<TcpStream> = (0..6).map(|_| server.connect()).collect();
    let sent = Stream::default().peek(30);
    for client in &mut clients {
        client.write_all(&sent).unwrap();
    }
    for round in 1..=3 {
        until("every service waits", || {
            asked.load(Ordering::Relaxed) == 6 * round
        });
        for client in &mut clients {
            // Nothing came since the last resume.
            client.set_nonblocking(true).unwrap();
            let error = client.peek(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            client.set_nonblocking(false).unwrap();
        }
        server.handle.resume();
        let from = usize::try_from(round - 1).unwrap() * 10;
        for client in &mut clients {
            let mut piece = [0; 10];
            client.read_exact(&mut piece).unwrap();
            assert_eq!(piece, sent[from..from + 10]);
        }
    }
    for client in &mut clients {
        client.shutdown(Shutdown::Write).unwrap();
        assert!(read_to_fin(client).is_empty());
    }
}

/// What came before the FIN is not lost on a service that takes its time, and the FIN is not either.
#[test]
fn a_client_that_leaves_while_its_service_waits_is_served_to_the_end() {
    let service = Hesitant::default();
    let asked = Arc::clone(&service.asked);
    let server = Embedded::start(listen(service));
    let mut client = server.connect();
    let sent = Stream::default().peek(55);
    client.write_all(&sent).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    until("the service waits", || asked.load(Ordering::Relaxed) == 1);
    let mut resumed = 0;
    let mut echo = Vec::new();
    client
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let mut piece = [0; 100];
    let began = now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(20), "{echo:?}");
        match client.read(&mut piece) {
            Ok(0) => break,
            Ok(got) => echo.extend_from_slice(&piece[..got]),
            Err(_) => {
                server.handle.resume();
                resumed += 1;
            }
        }
    }
    assert_eq!(echo, sent);
    assert!(resumed >= 1);
    assert_eq!(server.closed(&client).reason(), "peer-closed");
}

/// A service that takes its input only when there is room for the answer gets all of it, though the FIN behind it has
/// been read.
#[test]
fn what_a_service_left_for_want_of_room_is_offered_before_the_end() {
    /// Answers each byte with a hundred, while no output waits.
    #[derive(Clone, Default)]
    struct Careful {
        used: Arc<AtomicU64>,
    }
    impl Service for Careful {
        type State = ();

        fn open(&self, conn: &mut Context<'_>) {
            // More than the system takes.
            conn.write(&vec![b'.'; 16 << 20]);
        }

        fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
            let mut used = 0;
            while used < bytes.len() && conn.room() == conn.buffer() {
                conn.write(&[bytes[used]; 100]);
                used += 1;
            }
            self.used.fetch_add(used as u64, Ordering::Relaxed);
            used
        }
    }
    let service = Careful::default();
    let used = Arc::clone(&service.used);
    let server = Embedded::start(Listen {
        buffer: 32 << 20,
        ..listen(service)
    });
    let mut client = connect_with_window(server.address(), 4096);
    client.write_all(b"abcde").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    until("the server has read them", || {
        let mut shown = server.handle.connections().flatten();
        shown.any(|connection| connection.read == 5)
    });
    // Its worker has turned since.
    assert_eq!(server.handle.connections().flatten().count(), 1);
    assert_eq!(used.load(Ordering::Relaxed), 0);
    let answer = read_to_fin(&mut client);
    let answer = String::from_utf8(answer).unwrap();
    let expected: String = "abcde"
        .chars()
        .map(|of| of.to_string().repeat(100))
        .collect();
    assert_eq!(answer.trim_start_matches('.'), expected);
}

/// The engine asks a service for nothing while there is no room, so what waits is bounded by the input's share.
#[test]
fn a_service_that_looks_at_the_room_never_overfills_it() {
    /// Answers each byte with a hundred, as far as there is room.
    #[derive(Clone, Default)]
    struct Multiplies {
        fullest: Arc<AtomicUsize>,
    }
    impl Service for Multiplies {
        type State = ();

        fn open(&self, _: &mut Context<'_>) {}

        fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
            let mut used = 0;
            while used < bytes.len() && conn.room() >= 100 {
                conn.write(&[bytes[used]; 100]);
                used += 1;
            }
            let waiting = conn.buffer() - conn.room();
            self.fullest.fetch_max(waiting, Ordering::Relaxed);
            used
        }
    }
    let service = Multiplies::default();
    let fullest = Arc::clone(&service.fullest);
    let server = Embedded::start(Listen {
        buffer: 10_000,
        ..listen(service)
    });
    let mut client = connect_with_window(server.address(), 4096);
    let count = 60_000;
    let sender = send_all(&client, count);
    until("the answer waits", || {
        fullest.load(Ordering::Relaxed) > 9000
    });
    let answer = read_to_fin(&mut client);
    sender.join().unwrap();
    assert_eq!(answer.len() as u64, count * 100);
    let sent = Stream::default().peek(60_000);
    assert!(
        answer
            .chunks(100)
            .zip(sent)
            .all(|(hundred, byte)| hundred.iter().all(|&got| got == byte))
    );
}

#[test]
fn stopping_cuts_and_says_so() {
    let server = Embedded::start(listen(Echo));
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    assert!(!server.handle.is_stopping());
    server.handle.stop();
    assert!(server.handle.is_stopping());
    assert!(read_to_fin(&mut client).is_empty());
    assert_eq!(server.closed(&client).reason(), "drain");
    let summary = server.drain();
    assert_eq!((summary.cut, summary.closed(CloseReason::Drain)), (1, 1));
}

#[test]
fn a_server_lets_go_of_its_port_when_it_has_ended_and_never_ran() {
    let bind = |address: &str| {
        Server::bind(Config {
            listen: vec![Listen::new(address.parse().unwrap(), Echo)],
            ..Config::default()
        })
    };
    // An address of its own: no other test's connections take the port.
    let server = bind("127.0.71.4:0").unwrap();
    let address = server.addresses()[0].to_string();
    assert!(bind(&address).is_err());
    drop(server);
    // A child of another test's may have a copy of the listener until its exec.
    let mut again = bind(&address);
    until("the port is free", || {
        if again.is_err() {
            again = bind(&address);
        }
        again.is_ok()
    });
    assert_eq!(again.unwrap().addresses()[0].to_string(), address);
}

#[test]
fn settings_that_contradict_are_refused_at_once() {
    for (listen, about) in [
        (
            Listen {
                dead_after: Some(Duration::from_secs(4)),
                ..listen(Echo)
            },
            "dead-after",
        ),
        (
            Listen {
                dead_after: Some(Duration::from_secs(60)),
                keepalive: None,
                ..listen(Echo)
            },
            "keepalive",
        ),
        (
            Listen {
                buffer: 0,
                ..listen(Echo)
            },
            "buffer",
        ),
        (
            Listen {
                addresses: Vec::new(),
                ..listen(Echo)
            },
            "address",
        ),
    ] {
        let refused = Server::bind(Config {
            listen: vec![listen],
            ..Config::default()
        });
        let mut error: &dyn std::error::Error = &refused.unwrap_err();
        let mut told = error.to_string();
        while let Some(source) = error.source() {
            told = format!("{told}: {source}");
            error = source;
        }
        assert!(told.contains(about), "{told}");
    }
}

// Takeovers between servers of this process.

/// Answers each line with its number; a client that says `stay` cannot leave.
struct Numbering;

impl Service for Numbering {
    type State = Option<u64>;

    fn open(&self, _: &mut Context<'_>) -> Option<u64> {
        Some(0)
    }

    fn input(&self, lines: &mut Option<u64>, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        let whole = bytes.iter().rposition(|&byte| byte == b'\n');
        let used = whole.map_or(0, |last| last + 1);
        for line in bytes[..used].split_inclusive(|&byte| byte == b'\n') {
            if line == b"stay\n" {
                *lines = None;
            }
            *lines = lines.map(|lines| lines + 1);
            conn.write(format!("{}\n", lines.unwrap_or(0)).as_bytes());
        }
        used
    }

    fn export(&self, lines: &Option<u64>) -> Option<Exported> {
        let bytes = lines.as_ref()?.to_be_bytes().to_vec();
        Some(Exported { schema: 7, bytes })
    }

    fn import(&self, exported: &Exported) -> Result<Option<u64>, String> {
        match (exported.schema, exported.bytes.as_slice().try_into()) {
            (7, Ok(bytes)) => Ok(Some(u64::from_be_bytes(bytes))),
            _ => Err("a count of another schema".to_owned()),
        }
    }
}

#[test]
fn a_services_state_goes_along_and_what_cannot_leave_stays() {
    let control = std::env::temp_dir().join(format!("standfast-embedded-{}", std::process::id()));
    let numbering = |port: u16, replace: Replace| Config {
        listen: vec![Listen::new(
            format!("127.0.0.1:{port}").parse().unwrap(),
            Numbering,
        )],
        workers: NonZeroUsize::new(2),
        control: Some(ControlSocket {
            path: Some(control.clone()),
            replace,
            ..ControlSocket::default()
        }),
        ..Config::default()
    };
    let old = Server::bind(numbering(0, Replace::IfRunning)).unwrap();
    let address = old.addresses()[0].tcp().unwrap();
    let old = thread::spawn(|| old.run());
    let mut leaves = connect(address);
    let mut stays = connect(address);
    for (number, line) in [("1\n", "one\n"), ("2\n", "two\n")] {
        assert_answers(&mut leaves, line, number);
    }
    // Half a line is kept for the service, and so goes along.
    leaves.write_all(b"thr").unwrap();
    assert_answers(&mut stays, "stay\n", "0\n");

    let new = Server::bind(numbering(address.port(), Replace::Always)).unwrap();
    let handle = new.handle();
    let new = thread::spawn(|| new.run());
    let ended = old.join().unwrap().unwrap();
    let takeover = ended.takeover.clone().expect("it was taken over");
    assert_eq!((takeover.connections, takeover.staying), (1, 1));
    assert_eq!(ended.closed(CloseReason::HandedOff), 1);
    // What stayed was drained by the old one; what left goes on counting.
    assert_eq!(read_to_fin(&mut stays), b"");
    assert_eq!(ended.closed(CloseReason::Drain), 1);
    assert_answers(&mut leaves, "ee\n", "3\n");
    assert_answers(&mut connect(address), "one\n", "1\n");
    assert_eq!(handle.status().takeover.unwrap().connections, 1);
    handle.drain();
    new.join().unwrap().unwrap();
    assert!(!control.exists());
}

fn assert_answers(client: &mut TcpStream, line: &str, answer: &str) {
    client.write_all(line.as_bytes()).unwrap();
    let mut came = vec![0; answer.len()];
    client.read_exact(&mut came).unwrap();
    assert_eq!(came, answer.as_bytes());
}
