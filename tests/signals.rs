//! Drain, second signal, nohup, exit codes, the summary.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::clients::unacknowledged;
use crate::support::home::Home;
use crate::support::{
    Server, assert_echoes, facts, now, read_to_fin, send_until_stuck, shell, standfast, until,
    until_another_signal_counts,
};

/// Sends a signal that has no name in rustix, by what every shell brings along: kill(1) is not everywhere.
pub(crate) fn send(server: &Server, number: i32) {
    let kill = format!("kill -{number} {}", server.pid());
    assert!(shell(&kill, &[]).status().unwrap().success());
}

/// Sends `bytes` and waits until the server's kernel has them.
fn deliver(client: &mut TcpStream, bytes: &[u8]) {
    client.write_all(bytes).unwrap();
    until("bytes are acknowledged", || unacknowledged(client) == 0);
}

/// A client that sends and never reads, until neither the server nor the kernel takes any more; and how many bytes
/// have arrived at the server's kernel or gone through the server.
fn stuck(server: &Server) -> (TcpStream, usize) {
    let mut client = server.connect();
    let sent = send_until_stuck(&mut client, &[b'x'; 65536]);
    let arrived = sent - usize::try_from(unacknowledged(&client)).unwrap();
    (client, arrived)
}

fn is_refused(server: &Server) -> bool {
    TcpStream::connect(server.address())
        .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn wait_for_drain(server: &mut Server, signal: &str) {
    let line = server.log_line("the drain", |line| line.contains(" info draining "));
    assert_eq!(facts(&line)["signal"], signal);
}

#[test]
fn each_signal_drains() {
    for (signal, name) in [
        (Signal::TERM, "SIGTERM"),
        (Signal::INT, "SIGINT"),
        (Signal::HUP, "SIGHUP"),
    ] {
        let mut server = Server::start(&[]);
        let mut client = server.connect();
        assert_echoes(&mut client, b"hello");
        server.signal(signal);
        assert_eq!(read_to_fin(&mut client), b"", "FIN, no reset");
        drop(client);
        wait_for_drain(&mut server, name);
        assert_eq!(server.wait().code(), Some(0), "{name}");
        let ended = server.summary();
        assert_eq!(
            (&*ended["accepted"], &*ended["drain"]),
            ("1", "1"),
            "{name}"
        );
    }
}

#[test]
fn what_was_sent_before_the_signal_is_answered_before_the_fin() {
    let mut server = Server::start(&["--workers", "2"]);
    let message: Vec<u8> = (0..50_000_u32).flat_map(u32::to_be_bytes).collect();
    let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    // Stopped, it cannot answer before the signal is there.
    server.suspend();
    for client in &mut clients {
        deliver(client, &message[..40_000]);
    }
    server.signal(Signal::TERM);
    server.resume();
    for client in &mut clients {
        assert!(
            read_to_fin(client) == message[..40_000],
            "every byte, then FIN"
        );
    }
    drop(clients);
    assert_eq!(server.wait().code(), Some(0));
    let ended = server.summary();
    let bytes = (20 * 40_005).to_string();
    assert_eq!((&ended["read"], &ended["written"]), (&bytes, &bytes));
    assert_eq!(ended["drain"], "20");
}

#[test]
fn clients_in_the_backlog_are_served_before_the_end() {
    let mut server = Server::start(&[]);
    server.suspend();
    let mut clients: Vec<_> = (0..300).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.write_all(b"hello").unwrap();
    }
    deliver(clients.last_mut().unwrap(), b"");
    server.signal(Signal::TERM);
    server.resume();
    for client in &mut clients {
        assert_eq!(read_to_fin(client), b"hello");
    }
    drop(clients);
    assert_eq!(server.wait().code(), Some(0));
    let ended = server.summary();
    assert_eq!((&*ended["accepted"], &*ended["closed"]), ("300", "300"));
    assert_eq!((&*ended["read"], &*ended["written"]), ("1500", "1500"));
}

#[test]
fn the_listener_is_closed_as_soon_as_the_drain_begins() {
    let mut server = Server::start(&["--drain-timeout", "off"]);
    let (stuck, _) = stuck(&server);
    server.signal(Signal::TERM);
    until("connects are refused", || is_refused(&server));
    assert!(server.is_running(), "it still has a client to serve");
    drop(stuck);
    server.wait();
}

#[test]
fn a_drain_waits_for_a_client_that_reads_at_last() {
    let mut server = Server::start(&["--drain-timeout", "off"]);
    let (mut client, arrived) = stuck(&server);
    server.signal(Signal::TERM);
    wait_for_drain(&mut server, "SIGTERM");
    let answer = read_to_fin(&mut client);
    assert!(answer.iter().all(|&byte| byte == b'x'));
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
    let ended = server.summary();
    assert_eq!(ended["written"], answer.len().to_string());
    assert!(
        answer.len() >= arrived,
        "{} of {arrived} bytes that had arrived",
        answer.len()
    );
    assert_eq!(ended["drain"], "1");
}

#[test]
fn a_client_that_keeps_its_end_open_does_not_hold_up_a_drain() {
    let mut server = Server::start(&["--drain-timeout", "off"]);
    let mut clients = [server.connect(), server.connect()];
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    assert_eq!(server.drain().code(), Some(0), "nothing was cut off");
    assert_eq!(server.summary()["drain"], "2");
    for client in &mut clients {
        assert_eq!(read_to_fin(client), b"");
    }
}

#[test]
fn a_client_that_does_not_read_is_cut_at_the_drain_timeout() {
    let mut server = Server::start(&["--drain-timeout", "1s"]);
    let (stuck, _) = stuck(&server);
    let mut reader = server.connect();
    assert_echoes(&mut reader, b"hello");
    let start = now();
    server.signal(Signal::TERM);
    assert_eq!(read_to_fin(&mut reader), b"");
    drop(reader);
    assert_eq!(server.closed().reason(), "drain");
    assert_eq!(server.wait().code(), Some(1), "something had to be cut");
    assert!(
        start.elapsed() >= Duration::from_secs(1),
        "not before its time"
    );
    let ended = server.summary();
    let ended = ["accepted", "closed", "drain"].map(|key| &*ended[key]);
    assert_eq!(ended, ["2", "2", "2"]);
    drop(stuck);
}

#[test]
fn a_second_signal_ends_at_once() {
    for (first, name, second) in [
        (Signal::TERM, "SIGTERM", Signal::TERM),
        (Signal::INT, "SIGINT", Signal::TERM),
        (Signal::HUP, "SIGHUP", Signal::INT),
    ] {
        let mut server = Server::start(&["--drain-timeout", "off"]);
        let (stuck, _) = stuck(&server);
        server.signal(first);
        wait_for_drain(&mut server, name);
        until_another_signal_counts();
        server.signal(second);
        assert_eq!(
            server.wait().code(),
            Some(1),
            "{name}: something had to be cut"
        );
        assert_eq!(server.summary()["drain"], "1");
        drop(stuck);
    }
}

#[test]
fn the_summary_adds_up() {
    let mut server = Server::start(&["--read-timeout", "3s", "--max-conns", "4"]);
    let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for (client, count) in clients.iter_mut().zip([10, 200, 3_000, 40_000]) {
        assert_echoes(client, &vec![b'x'; count]);
    }
    let mut over = server.connect();
    assert_eq!(read_to_fin(&mut over), b"");
    assert_eq!(server.closed().reason(), "limit");
    let mut silent = clients.pop().unwrap();
    let leaving = clients.pop().unwrap();
    leaving.shutdown(Shutdown::Write).unwrap();
    // The others say something now and then; who does not is closed.
    let mut reasons = Vec::new();
    while reasons.len() < 2 {
        for client in &mut clients {
            assert_echoes(client, b".");
        }
        reasons.extend(
            server
                .closed_so_far()
                .iter()
                .map(|closed| closed.reason().to_owned()),
        );
    }
    reasons.sort();
    assert_eq!(reasons, ["peer-closed", "read-timeout"]);
    assert_eq!(read_to_fin(&mut silent), b"");
    assert_eq!(server.drain().code(), Some(0));
    let ended = server.summary();
    let told = [
        "accepted",
        "closed",
        "limit",
        "peer-closed",
        "read-timeout",
        "drain",
    ];
    assert_eq!(told.map(|key| &*ended[key]), ["5", "5", "1", "1", "1", "2"]);
    assert_eq!(ended["read"], ended["written"]);
    let counted = |key: &str| -> u64 {
        let closed = server
            .lines
            .iter()
            .filter(|line| line.contains(" info closed "));
        closed
            .map(|line| facts(line)[key].parse::<u64>().unwrap())
            .sum()
    };
    assert_eq!(counted("read").to_string(), ended["read"]);
    assert_eq!(counted("written").to_string(), ended["written"]);
}

#[test]
fn a_server_nobody_came_to_ends_at_once_and_says_so() {
    let mut server = Server::start(&[]);
    assert_eq!(server.drain().code(), Some(0));
    let line = server.lines.last().unwrap();
    assert!(
        line.ends_with(" info ended accepted=0 closed=0 read=0 written=0"),
        "{line}"
    );
}

/// SIGHUP does nothing to `server`; SIGTERM drains it.
fn assert_deaf_to_hangup(mut server: Server) {
    let mut client = server.connect();
    server.signal(Signal::HUP);
    assert_echoes(&mut client, b"hello");
    server.signal(Signal::HUP);
    assert_echoes(&mut server.connect(), b"hello");
    server.signal(Signal::TERM);
    assert_eq!(read_to_fin(&mut client), b"");
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
    let drains: Vec<_> = server
        .lines
        .iter()
        .filter(|line| line.contains(" draining "))
        .collect();
    assert_eq!(drains.len(), 1, "{drains:?}");
    assert_eq!(facts(drains[0])["signal"], "SIGTERM");
}

#[test]
fn a_hangup_ignored_at_the_start_stays_ignored() {
    let command = shell(r#"trap '' HUP; exec "$@""#, &["serve", "-l", "0"]);
    assert_deaf_to_hangup(Server::spawn(command, 1));
}

#[test]
fn nohup_keeps_it_alive() {
    let standfast = standfast();
    let mut command = Command::new("nohup");
    command
        .arg(standfast.get_program())
        .args(["serve", "-l", "0"]);
    assert_deaf_to_hangup(Server::spawn(command, 1));
}

#[test]
fn two_signals_at_once_are_one_wish() {
    let mut server = Server::start(&["--drain-timeout", "off"]);
    let (mut client, _) = stuck(&server);
    // As timeout(1) does: the child, and then its group. Stopped, it gets both at the same time.
    server.suspend();
    server.signal(Signal::TERM);
    server.signal(Signal::INT);
    server.resume();
    server.log_line("the drain", |line| line.contains(" info draining "));
    read_to_fin(&mut client);
    drop(client);
    assert_eq!(server.wait().code(), Some(0), "nothing was cut");
    let said = |line: &&String| line.contains("ending at once") || line.contains("draining");
    assert_eq!(server.lines.iter().filter(said).count(), 1);
}

#[test]
fn signals_that_mean_nothing_to_a_server_are_ignored_with_a_line() {
    let mut server = Server::start(&[]);
    let mut client = server.connect();
    for (signal, number) in [
        ("SIGUSR1", libc::SIGUSR1),
        ("SIGALRM", libc::SIGALRM),
        ("SIGVTALRM", libc::SIGVTALRM),
        ("SIGPROF", libc::SIGPROF),
        ("SIGIO", libc::SIGPOLL),
        ("SIGSTKFLT", libc::SIGSTKFLT),
        ("\"a real-time signal\"", libc::SIGRTMIN() + 1),
        ("\"a real-time signal\"", libc::SIGRTMIN() + 9),
    ] {
        send(&server, number);
        let line = server.log_line(signal, |line| line.contains(" ignored: "));
        assert!(line.ends_with(&format!(" signal={signal}")), "{line}");
        assert_echoes(&mut client, signal.as_bytes());
    }
    drop(client);
    assert_eq!(server.drain().code(), Some(0));
}

#[test]
fn what_tells_the_first_process_of_a_container_to_halt_drains() {
    for (signal, number) in [
        ("SIGPWR", libc::SIGPWR),
        ("SIGRTMIN+3", libc::SIGRTMIN() + 3),
        ("SIGRTMIN+4", libc::SIGRTMIN() + 4),
        // Nobody has the connections meanwhile.
        ("SIGRTMIN+5", libc::SIGRTMIN() + 5),
    ] {
        let mut server = Server::start(&[]);
        let mut client = server.connect();
        assert_echoes(&mut client, b"hello");
        send(&server, number);
        assert_eq!(read_to_fin(&mut client), b"", "FIN, no reset");
        drop(client);
        wait_for_drain(&mut server, signal);
        assert_eq!(server.wait().code(), Some(0), "{signal}");
    }
}

#[test]
fn a_signal_that_was_blocked_at_the_start_is_heard() {
    let standfast = standfast();
    let mut command = Command::new("env");
    command
        .arg("--block-signal=TERM")
        .arg(standfast.get_program())
        .args(["serve", "-l", "0"]);
    let mut server = Server::spawn(command, 1);
    assert_eq!(server.drain().code(), Some(0));
}

#[test]
fn a_log_at_its_greatest_size_is_no_reason_to_end() {
    let home = Home::new();
    let log = home.join("log");
    // A block is 512 bytes or 1024.
    let script = r#"ulimit -f 1; log=$1; shift; exec "$@" 2>"$log""#;
    let mut command = shell(script, &["serve", "-l", "0", "-v"]);
    let args: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
    let program = command.get_program().to_owned();
    command = Command::new(program);
    command.args(&args[..3]).arg(&log).args(&args[3..]);
    let mut server = Server::spawn(command, 1);
    until("the log is full", || {
        assert_echoes(&mut server.connect(), b"hello");
        std::fs::metadata(&log).unwrap().len() >= 512
    });
    for _ in 0..20 {
        assert_echoes(&mut server.connect(), b"hello");
    }
    assert_eq!(server.drain().code(), Some(0));
}
