//! What a program is given, and what it is not: descriptors, signals.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::{children, exec, line, script};
use crate::support::{Server, connect, listening, read_to_fin, shell};

/// Lists the descriptors of a child with what they are. ls(1) itself, started by the shell as it is, has them: and one
/// for the list.
const LIST: &str = "exec ls -l /proc/self/fd";

/// What a child of the server behind `client` has open: nothing but its socket, and the pipe to the log.
#[track_caller]
fn assert_clean(mut client: TcpStream) {
    let text = String::from_utf8(read_to_fin(&mut client)).unwrap();
    let all: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.split_once(" -> "))
        .map(|(left, target)| (left.rsplit(' ').next().unwrap(), target))
        .filter(|(_, target)| !target.starts_with("/proc/"))
        .collect();
    let numbers: Vec<&str> = all.iter().map(|&(number, _)| number).collect();
    assert_eq!(numbers, ["0", "1", "2"], "{text}");
    assert!(all[0].1.starts_with("socket:"), "{text}");
    assert_eq!(all[0].1, all[1].1, "{text}");
    assert!(all[2].1.starts_with("pipe:"), "{text}");
}

#[test]
fn a_child_has_its_socket_and_nothing_of_another_one() {
    let wait = format!("read x || {LIST}; echo $x; read x");
    let server = Server::start(&[
        "exec",
        "-l",
        "0",
        "-l",
        "0",
        "--workers",
        "2",
        "--",
        "sh",
        "-c",
        &wait,
    ]);
    // The others stay, with their sockets, pidfds and pipes.
    let mut others: Vec<TcpStream> = (0..8).map(|_| server.connect()).collect();
    for other in &mut others {
        other.write_all(b"here\n").unwrap();
        assert_eq!(line(other), "here");
    }
    let client = server.connect();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_clean(client);
}

/// A server that `start` makes of `"$@"`, listening at `at` on a socket that is 3 there, whose children run `run`; and its
/// address.
fn inheriting(start: &str, at: &str, run: &str) -> (Server, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut command = shell(start, &["serve", "exec", "-l", at, "--", "sh", "-c", run]);
    command
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::piped());
    let mut server = Server::launch(command);
    server.log_line("that it listens", |line| line.contains(" info listening "));
    (server, address)
}

#[test]
fn an_inherited_listener_goes_no_further() {
    let (mut server, address) = inheriting(r#"exec "$@" 3<&0 </dev/null"#, "fd:3", LIST);
    assert_eq!(listening(&server.stdout_line()), address);
    assert_clean(connect(address));
}

#[test]
fn nor_do_those_that_systemd_passed() {
    let run = format!("{LIST}; [ -z \"$LISTEN_FDS$LISTEN_PID\" ] || echo 99 environment");
    let start = r#"LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec "$@" 3<&0 </dev/null"#;
    let (mut server, address) = inheriting(start, "systemd:web", &run);
    assert_eq!(listening(&server.stdout_line()), address);
    assert_clean(connect(address));
}

#[test]
fn a_server_without_stdin_and_stdout_gives_its_children_theirs() {
    let (_server, address) = inheriting(r#"exec "$@" 3<&0 <&- >&-"#, "fd:3", LIST);
    assert_clean(connect(address));
}

/// A line of `/proc/PID/status` with a set of signals.
fn signals(status: &str, name: &str) -> u64 {
    let mut lines = status.lines();
    let set = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    u64::from_str_radix(set.unwrap(), 16).unwrap()
}

#[test]
fn a_child_has_no_signal_blocked_or_ignored() {
    let server = exec(&[], &["cat", "/proc/self/status"]);
    let status = String::from_utf8(read_to_fin(&mut server.connect())).unwrap();
    assert_eq!(signals(&status, "SigBlk"), 0, "{status}");
    // But for 32 and 33, which the C library keeps to itself, and ignores in what it spawns; and those that the server
    // was started with, as a shell starts what is in the background. This process was, too, but ignores SIGPIPE itself.
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let given = signals(&own, "SigIgn") & !bit(Signal::PIPE);
    let ignored = signals(&status, "SigIgn") & !(0b11 << 31);
    assert_eq!(ignored & !given, 0, "{status}");
}

fn bit(signal: Signal) -> u64 {
    1 << (signal.as_raw() - 1)
}

#[test]
fn each_child_is_a_group_of_its_own() {
    if crate::support::lacks(&["ps"]) {
        return;
    }
    let server = script(&[], "ps -o pgid= -p $$; echo $$");
    let text = String::from_utf8(read_to_fin(&mut server.connect())).unwrap();
    let mut words = text.split_ascii_whitespace();
    assert_eq!(words.next(), words.next(), "{text}");
}

/// fork(2) copies a large process slowly, and a server has threads: the standard library uses `posix_spawn(3)`, which does
/// neither harm.
#[test]
fn a_child_is_started_without_copying_the_server() {
    let trace = std::env::temp_dir().join(format!("standfast-strace-{}", std::process::id()));
    let strace = Command::new("strace").arg("-V").output();
    if strace.is_err() {
        return crate::support::cannot_run("posix_spawn", "strace");
    }
    let mut command = Command::new("strace");
    command
        .args([
            "-f",
            "-qq",
            "-e",
            "trace=clone,clone3,fork,vfork,execve",
            "-o",
        ])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_standfast"))
        .args(["serve", "exec", "-l", "0", "--control", "off", "--", "true"]);
    let mut server = Server::spawn(command, 1);
    read_to_fin(&mut server.connect());
    server.closed();
    let text = std::fs::read_to_string(&trace).unwrap();
    let _ = std::fs::remove_file(&trace);
    assert!(text.contains("CLONE_VFORK"), "{text}");
    // strace ends with the server; told to end itself, it would leave that running.
    for (pid, _) in children(&server) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
    }
    assert!(server.wait().success());
}
