//! A process that stood still: nobody is judged by time in which it did not look.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroUsize;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use standfast::{Config, Context, Listen, Service};

use crate::support::clients::{Stream, connect_with_window, until_acknowledged};
use crate::support::connecting::{Connecting, Peer, assert_gets, connect_command};
use crate::support::loading::Loading;
use crate::support::{
    GUARD, Guarded, Server, assert_echoes, connect, facts, now, pass, read_to_fin, standfast, until,
};

/// The deadlines here, far above the standstills of a busy machine, and a time in which all of them pass.
const DEADLINE: &str = "5s";
const STANDSTILL: Duration = Duration::from_millis(6500);

/// A relay with such deadlines, and so many clients with their upstream's ends.
fn pairs(count: usize, deadline: &str) -> (Server, Vec<(TcpStream, TcpStream)>) {
    let upstream = Peer::start();
    let to = upstream.address().to_string();
    let relay = Server::start(&[
        "forward",
        &to,
        "--workers",
        "1",
        "--read-timeout",
        deadline,
        "--half-close-timeout",
        deadline,
        "--write-timeout",
        deadline,
    ]);
    let pairs = (0..count).map(|_| {
        let mut client = relay.connect();
        client.write_all(b"hello").unwrap();
        let mut served = upstream.accept();
        assert_gets(&mut served, b"hello");
        (client, served)
    });
    let pairs = pairs.collect();
    (relay, pairs)
}

/// Stops `server` until its deadlines have passed, says something meanwhile, and lets it go on.
fn while_it_stands_still(server: &Server, say: impl FnOnce()) {
    server.suspend();
    say();
    pass(STANDSTILL);
    server.resume();
}

#[test]
fn clients_that_spoke_while_the_server_stood_still_are_served() {
    let mut server = Server::start(&["echo", "--read-timeout", DEADLINE]);
    let mut clients: Vec<_> = (0..50).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    while_it_stands_still(&server, || {
        for client in &mut clients {
            client.write_all(b"hello").unwrap();
        }
    });
    for client in &mut clients {
        assert_gets(client, b"hello");
    }
    assert!(server.closed_so_far().is_empty(), "{:?}", server.lines);
}

#[test]
fn an_upstream_that_spoke_while_the_relay_stood_still_has_kept_its_client() {
    let (mut relay, mut pairs) = pairs(20, DEADLINE);
    while_it_stands_still(&relay, || {
        for (_, served) in &mut pairs {
            served.write_all(b"news").unwrap();
        }
    });
    for (client, _) in &mut pairs {
        assert_gets(client, b"news");
    }
    assert!(relay.closed_so_far().is_empty(), "{:?}", relay.lines);
}

#[test]
fn a_client_that_uploads_after_the_upstreams_fin_is_kept_while_the_relay_stands_still() {
    let (mut relay, mut pairs) = loop {
        let (relay, mut pairs) = pairs(20, DEADLINE);
        let began = now();
        for (client, served) in &mut pairs {
            served.shutdown(Shutdown::Write).unwrap();
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        }
        // It has looked once, and knows how far they had come then.
        pass(Duration::from_millis(500));
        // Else the machine was busy, and their time may have been over before the relay was stopped.
        if began.elapsed() < Duration::from_secs(4) {
            break (relay, pairs);
        }
    };
    while_it_stands_still(&relay, || {
        for (client, _) in &mut pairs {
            client.write_all(b"more").unwrap();
        }
    });
    for (_, served) in &mut pairs {
        assert_gets(served, b"more");
    }
    assert!(relay.closed_so_far().is_empty(), "{:?}", relay.lines);
}

/// More is ready than the kernel tells at once (1,024): those of the second batch have not been heard yet.
#[test]
fn more_sockets_than_a_turn_hears_are_all_heard_before_any_is_judged() {
    let (mut relay, mut pairs) = pairs(1100, "20s");
    // All of them speak, so that none is due before the standstill.
    for (client, served) in &mut pairs {
        client.write_all(b"once more").unwrap();
        assert_gets(served, b"once more");
    }
    while_it_stands_still(&relay, || {
        for (_, served) in &mut pairs {
            served.write_all(b"back").unwrap();
        }
        pass(Duration::from_secs(18));
    });
    for (client, _) in &mut pairs {
        assert_gets(client, b"back");
    }
    assert!(relay.closed_so_far().is_empty(), "{:?}", relay.lines);
}

/// What a client had no room for before it has room for now: the end of the drain finds that out before it cuts.
#[test]
fn a_drain_that_ends_in_a_standstill_delivers_what_can_be_delivered() {
    let count = 5 << 20;
    let mut server = Server::start(&["echo", "--drain-timeout", DEADLINE, "--buffer", "8m"]);
    let mut client = connect_with_window(server.address(), 4096);
    client.write_all(&Stream::default().peek(count)).unwrap();
    until_acknowledged(&client);
    server.signal(Signal::TERM);
    until("the drain has begun", || {
        TcpStream::connect(server.address()).is_err()
    });
    let mut echo = Stream::default();
    server.suspend();
    let began = now();
    // All that the kernel has of it, however long it pauses.
    let mut piece = vec![0; 65536];
    client
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    while began.elapsed() < STANDSTILL {
        match client.read(&mut piece) {
            Ok(got) => echo.verify(&piece[..got]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}"),
        }
    }
    assert!(echo.at < count as u64, "nothing waits for the server");
    client.set_read_timeout(Some(GUARD)).unwrap();
    server.resume();
    assert_eq!(echo.read_to_fin(&mut client), count as u64);
    server.wait();
}

#[test]
fn a_standstill_is_said_once_with_its_length() {
    let mut server = Server::start(&["echo", "--workers", "2"]);
    let mut clients = [server.connect(), server.connect(), server.connect()];
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    server.suspend();
    let began = now();
    pass(STANDSTILL);
    let stood = began.elapsed();
    server.resume();
    // Nothing was due: it knows when it was last seen to run. Whom the signal met in a turn, just after the echo, knows
    // exactly.
    let length = |line: &str| {
        let facts = facts(line);
        let said = facts.get("at_most").or_else(|| facts.get("seconds"));
        let said: f64 = said.expect(line).parse().unwrap();
        // It is told in whole milliseconds.
        Duration::from_secs_f64(said) + Duration::from_millis(1)
    };
    // A busy machine may add shorter ones, before and after.
    let stands = |line: &str| line.contains("stood still") && length(line) > stood;
    let line = server.log_line("the standstill", stands);
    assert!(line.contains(" warn "), "{line}");
    for client in &mut clients {
        assert_echoes(client, b"still here");
    }
    server.drain();
    let told: Vec<_> = server.lines.iter().filter(|line| stands(line)).collect();
    assert_eq!(told.len(), 1, "{told:?}");
}

#[test]
fn a_client_that_stood_still_hears_what_its_server_said_meanwhile() {
    let (mut connecting, mut served) = Connecting::connected(&["--read-timeout", DEADLINE]);
    connecting.suspend();
    served.write_all(b"news").unwrap();
    pass(STANDSTILL);
    connecting.resume();
    connecting.says("stood still for ");
    connecting.prints(b"news");
    served.write_all(b" and more").unwrap();
    connecting.prints(b" and more");
    assert_eq!(connecting.said("lost"), 0, "{:?}", connecting.lines);
}

#[test]
fn a_load_that_stood_still_gives_up_nobody_whose_echo_has_come() {
    let server = Server::start(&["echo"]);
    let args = [
        "-c",
        "50",
        "-r",
        "200",
        "-T",
        "60s",
        "--read-timeout",
        DEADLINE,
        "--json",
    ];
    let mut load = Loading::start(server.address(), &args);
    load.goes_on_with(50);
    load.suspend();
    pass(STANDSTILL);
    load.resume();
    load.says("stood still for ");
    load.signal(Signal::TERM);
    let (code, json) = load.ends();
    assert_eq!(code, 0, "{json}");
    let figures: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(figures["lost"], 0, "{json}");
    assert_eq!(figures["reconnects"], 0, "{json}");
}

/// Told to end by SIGTERM it has 2 s for what waits; it has heard that, and stands still for longer. `begin` starts one
/// for which something waits.
fn told_to_end_and_stopped<T>(begin: impl Fn() -> (Connecting, T)) -> (Connecting, T) {
    loop {
        let (connecting, other) = begin();
        let began = now();
        connecting.signal(Signal::TERM);
        connecting.until_idle();
        connecting.suspend();
        // Else the machine was busy, and its time may have been over before it was stopped.
        if began.elapsed() < Duration::from_secs(1) {
            pass(STANDSTILL);
            return (connecting, other);
        }
        connecting.resume();
    }
}

#[test]
fn a_client_that_was_told_to_end_and_stood_still_sends_what_it_has() {
    let (mut connecting, mut served) = told_to_end_and_stopped(|| {
        let (connecting, served) = Connecting::connected(&[]);
        connecting.types(vec![b'x'; 20 << 20]);
        connecting.until_stuck();
        (connecting, served)
    });
    let reading = thread::spawn(move || read_to_fin(&mut served).len());
    connecting.resume();
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    let got = reading.join().unwrap();
    // The rest is in the pipe, or was read as the signal came.
    let taken = connecting.taken();
    assert!(got + 2 * 65536 + 4096 >= taken, "{got} of {taken}");
    assert_eq!(connecting.said(" bytes "), 0, "{:?}", connecting.lines);
}

#[test]
fn a_client_that_was_told_to_end_and_stood_still_prints_what_it_has() {
    const COUNT: usize = 200_000;
    let (mut connecting, (mut pipe, _served)) = told_to_end_and_stopped(|| {
        let peer = Peer::start();
        let (pipe, writer) = std::io::pipe().unwrap();
        let mut command = connect_command(&peer.address().to_string(), &[]);
        command.stdin(Stdio::piped()).stdout(writer);
        let mut connecting = Connecting::launch(command);
        let mut served = peer.accept();
        connecting.connects(peer.address());
        served.write_all(&[b'x'; COUNT]).unwrap();
        until_acknowledged(&served);
        connecting.until_idle();
        (connecting, (pipe, served))
    });
    let reading = thread::spawn(move || {
        let mut printed = Vec::new();
        pipe.read_to_end(&mut printed).unwrap();
        printed.len()
    });
    connecting.resume();
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(reading.join().unwrap(), COUNT);
}

/// Eight at a time: whether the thread that writes or the one that waits for it goes on first is chance.
#[test]
fn last_words_that_wait_for_stderr_outlive_a_standstill() {
    let speaking = (0..8).map(|_| {
        let (stderr, mut full) = std::io::pipe().unwrap();
        let mut command = standfast();
        command.args(["status", "--control", "/nonexistent/socket"]);
        // All that the pipe has room for.
        full.write_all(&[b'x'; 65536]).unwrap();
        let child = Guarded(command.stderr(full).spawn().unwrap());
        (child, stderr)
    });
    let speaking: Vec<_> = speaking.collect();
    for (child, _) in &speaking {
        let pid = Pid::from_child(&child.0);
        until("its last words wait", || {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            let mut tasks = tasks
                .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
            tasks.any(|name| name.trim_end() == "last-words")
        });
        kill_process(pid, Signal::STOP).unwrap();
    }
    pass(STANDSTILL);
    for (mut child, mut stderr) in speaking {
        stderr.read_exact(&mut [0; 65536]).unwrap();
        kill_process(Pid::from_child(&child.0), Signal::CONT).unwrap();
        assert_eq!(child.0.wait().unwrap().code(), Some(1));
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        assert!(said.starts_with("standfast: "), "{said:?}");
    }
}

/// Its silence is real: it is found out after all.
#[test]
fn a_client_that_says_nothing_is_closed_after_a_standstill_too() {
    let mut server = Server::start(&["echo", "--read-timeout", DEADLINE]);
    let client = server.connect();
    while_it_stands_still(&server, || {});
    let closed = server.closed();
    assert_eq!(closed.reason(), "read-timeout", "{}", closed.line);
    drop(client);
}

/// Echoes; a client that says `hold` holds the worker up until it may go on.
struct Holding {
    held: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl Service for Holding {
    type State = ();

    fn open(&self, _: &mut Context<'_>) {}

    fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        if bytes == b"hold" {
            self.held.send(()).unwrap();
            self.go_on.lock().unwrap().recv_timeout(GUARD).unwrap();
        }
        conn.write(bytes);
        bytes.len()
    }
}

/// It is told by the turn's beginning when a client spoke, and the turn was long.
#[test]
fn a_client_that_spoke_at_the_end_of_a_long_turn_has_just_spoken() {
    let (held, is_held) = channel();
    let (go_on, gate) = channel();
    let service = Holding {
        held,
        go_on: Mutex::new(gate),
    };
    let listen = Listen {
        read_timeout: Some(Duration::from_secs(5)),
        ..Listen::new("127.0.0.1:0".parse().unwrap(), service)
    };
    let config = Config {
        listen: vec![listen],
        workers: NonZeroUsize::new(1),
        ..Config::default()
    };
    let server = standfast::Server::bind(config).unwrap();
    let (address, handle) = (server.addresses()[0].tcp().unwrap(), server.handle());
    let serving = thread::spawn(|| server.run());
    let mut clients = [(); 3].map(|()| connect(address));
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    let [first, second, third] = &mut clients;
    // Held up, it hears of the two others at once, in the order in which they spoke.
    first.write_all(b"hold").unwrap();
    is_held.recv_timeout(GUARD).unwrap();
    second.write_all(b"hold").unwrap();
    third.write_all(b"one").unwrap();
    go_on.send(()).unwrap();
    is_held.recv_timeout(GUARD).unwrap();
    // In the turn that has begun.
    pass(Duration::from_secs(6));
    third.write_all(b"two").unwrap();
    go_on.send(()).unwrap();
    assert_gets(third, b"onetwo");
    // A turn or more later: nothing has come since.
    pass(Duration::from_millis(500));
    assert_echoes(third, b"three");
    handle.stop();
    serving.join().unwrap().unwrap();
}
