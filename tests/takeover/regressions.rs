//! Takeovers that once went wrong: each of these lost somebody, or said something that was not so.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::net::{SendFlags, SocketFlags, accept_with};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::Socket;

use super::restart::put_script;
use crate::control::strangers::{User, seqpacket};
use crate::support::clients::Raised;
use crate::support::home::{Home, number, refusal, text};
use crate::support::{
    GUARD, Orphan, Server, assert_echoes, cannot_run, connect, now, output, pass, settle, until,
};

// Time.

/// The successor needs most of the time it has to start, and the manager does not say that it has heard of it before
/// that time is over: by then the clients are the successor's.
#[test]
fn a_successor_that_has_the_clients_is_not_ended_for_being_late() {
    let home = Home::new();
    let [program, real] = ["standfast-here", "real"].map(|name| home.join(name));
    let mut copy = Command::new("cp");
    copy.arg(env!("CARGO_BIN_EXE_standfast")).arg(&real);
    assert!(copy.status().unwrap().success());
    symlink(&real, &program).unwrap();
    let notify = home.join("notify");
    // Nobody reads what is said there; the barrier in it ends with the socket.
    let manager = UnixDatagram::bind(&notify).unwrap();
    let mut command = Command::new(&program);
    command.args(["serve", "-l", "0"]);
    command
        .env("XDG_RUNTIME_DIR", &home.path)
        .env("NOTIFY_SOCKET", &notify)
        .env_remove("RUST_LOG");
    let mut server = Server::spawn(command, 1);
    let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"before");
    }
    let real = text(&real);
    fs::remove_file(&program).unwrap();
    put_script(
        &program,
        &format!(
            "#!/bin/bash\n[ -n \"$STANDFAST_BETWEEN\" ] && exec -a \"$0\" {real} \"$@\"\nsleep 17\nexec {real} \"$@\"\n"
        ),
    );
    let asking = thread::spawn({
        let restart = home.standfast(&["restart"]);
        move || output(restart)
    });
    let gave = server.log_line("the takeover", |line| line.contains(" info handed over "));
    let pid = crate::support::facts(&gave)["pid"].parse().unwrap();
    let _next = Orphan::new(pid);
    // Past the 20 s a successor has, counted from its start.
    pass(Duration::from_millis(3400));
    drop(manager);
    let (code, stdout, stderr) = asking.join().unwrap();
    for client in &mut clients {
        assert_echoes(client, b"and on");
    }
    assert_eq!((code, &*stderr), (0, ""), "{stdout}");
    assert!(
        stdout.starts_with(&format!("restarted: pid {pid}, version "))
            && stdout.contains(", 5 connections handed over, "),
        "{stdout}"
    );
}

/// More changes all the time than goes over meanwhile.
#[test]
fn a_server_whose_clients_never_pause_is_taken_over_or_says_soon_why_not() {
    const CLIENTS: usize = 60;
    let home = Home::new();
    let mut server = home.serve(&["--workers", "1"]);
    let clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = Raised(&over);
        for clients in clients.chunks(CLIENTS / 2) {
            scope.spawn(|| keep_busy(clients, &over));
        }
        until("all are served", || {
            number(&home.json(&["status"])["read"]) > 10_000_000
        });
        let since = now();
        let mut command = home.successor(&server.addresses, &["--workers", "1"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut next = Server::launch(command);
        if !next.has_said_something() {
            // On a machine as busy as this one the freeze may be too long; but that is known soon.
            let why = server.log_line("why not", |line| line.contains(" warn takeover "));
            assert!(why.contains("within 50 ms"), "{why}");
        }
        let took = since.elapsed();
        assert!(took < Duration::from_secs(20), "{took:?}");
    });
}

/// Says something new on each whenever there is room, and takes in whatever comes.
fn keep_busy(clients: &[TcpStream], over: &AtomicBool) {
    let mut buffer = vec![0; 65536];
    for client in clients {
        client.set_nonblocking(true).unwrap();
    }
    while !over.load(Ordering::Relaxed) {
        for mut client in clients {
            let _ = client.read(&mut buffer);
            let _ = client.write(&buffer[..16384]);
        }
    }
}

// Who asks.

/// What `serve --replace` says to ask for `server`, word for word.
fn hello(home: &Home, server: &Server) -> Vec<u8> {
    let (path, real) = (home.join("listening.sock"), home.socket_of(server));
    let listener = seqpacket::listen(&path);
    let mut command = home.successor(&server.addresses, &["--control", text(&path)]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let _asking = Server::launch(command);
    let mut message = vec![0; 128 * 1024];
    loop {
        let mut accepted = None;
        until("asked", || {
            accepted = accept_with(&listener, SocketFlags::CLOEXEC).ok();
            accepted.is_some()
        });
        let mut asker = UnixStream::from(accepted.unwrap());
        asker.set_read_timeout(Some(GUARD)).unwrap();
        let Ok(length @ 1..) = asker.read(&mut message) else {
            continue;
        };
        if message[..length]
            .windows(9)
            .any(|part| part == b"take-over")
        {
            message.truncate(length);
            return message;
        }
        // Whatever else it wants to know first, the server tells.
        let mut told = UnixStream::from(seqpacket::connect(&real).unwrap());
        told.set_nonblocking(false).unwrap();
        told.set_read_timeout(Some(GUARD)).unwrap();
        told.write_all(&message[..length]).unwrap();
        let length = told.read(&mut message).unwrap();
        asker.write_all(&message[..length]).unwrap();
    }
}

#[test]
fn who_asks_for_the_server_and_hangs_up_is_in_nobodys_way() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"before");
    let hello = hello(&home, &server);
    let path = home.socket_of(&server);
    for _ in 0..30 {
        until("asked", || {
            seqpacket::connect(&path)
                .is_some_and(|asker| rustix::net::send(&asker, &hello, SendFlags::NOSIGNAL).is_ok())
        });
    }
    // The last of them may be under way yet.
    for _ in 0..20 {
        let mut command = home.successor(&server.addresses, &[]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut next = Server::launch(command);
        until("the new one ends, or the old one", || {
            !next.is_running() || !server.is_running()
        });
        if next.is_running() {
            assert_eq!(server.wait().code(), Some(0), "{:?}", server.lines);
            return assert_echoes(&mut client, b"after");
        }
        assert_echoes(&mut client, b"it serves on");
        pass(Duration::from_millis(20));
    }
    server.signal(rustix::process::Signal::TERM);
    drop(client);
    server.wait();
    panic!("no takeover works any more: {:#?}", server.lines);
}

// Threads.

/// The new process may have just so many threads; wherever that ends it, no client is lost.
#[test]
fn without_enough_threads_the_new_one_ends_before_it_has_a_client() {
    const TEST: &str = "without_enough_threads_the_new_one_ends_before_it_has_a_client";
    let home = Home::new();
    // The limit is on all processes of a user: one that no other test is.
    let Some(user) = User::with(40_000 + std::process::id() % 20_000, &home) else {
        return cannot_run(TEST, "root, to be another user");
    };
    let folder = home.join("theirs");
    fs::create_dir(&folder).unwrap();
    chown(&folder, Some(user.uid), Some(user.uid)).unwrap();
    let control = folder.join("c.sock");
    let args = ["serve", "--workers", "4", "--control", text(&control)];
    let mut server = Server::spawn(user.standfast(&[&args[..], &["-l", "0"]].concat()), 1);
    let address = server.address().to_string();
    let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"before");
    }
    let threads = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let threads = threads.count();
    for more in 1..40 {
        let standfast = user.standfast(&[&args[..], &["--replace", "-l", &address]].concat());
        // One shell says -u, the other -p.
        let script = r#"n=$1; shift; { ulimit -p $n || ulimit -u $n; } 2>/dev/null; exec "$@""#;
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", &(threads + more).to_string()]);
        command
            .arg(standfast.get_program())
            .args(standfast.get_args());
        command.uid(user.uid).gid(user.uid).current_dir("/");
        command.env_remove("RUST_LOG").env_remove("XDG_RUNTIME_DIR");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut next = Server::launch(command);
        until("the new one ends, or the old one", || {
            !next.is_running() || !server.is_running()
        });
        let took = next.is_running();
        for client in &mut clients {
            let told = format!("{more} threads");
            assert_echoes(client, told.as_bytes());
        }
        if took {
            assert_eq!(server.wait().code(), Some(0), "{:?}", server.lines);
            assert!(more > 1, "the limit is one");
            return;
        }
        let status = next.wait();
        assert_eq!(status.code(), Some(1), "{more} threads: {:?}", next.lines);
        let told: Vec<_> = next
            .lines
            .iter()
            .filter(|line| line.starts_with("standfast: "))
            .collect();
        assert_eq!(told.len(), 1, "{more} threads: {:?}", next.lines);
    }
    panic!("it never had enough");
}

// Socket options.

/// What the kernel does with a socket whose peer is silent.
#[derive(Debug, PartialEq, Eq)]
struct Watch {
    keepalive: Option<(Duration, Duration, u32)>,
    user_timeout: Duration,
}

impl Watch {
    fn of(socket: &Socket) -> Self {
        let keepalive = socket.keepalive().unwrap().then(|| {
            (
                socket.tcp_keepalive_time().unwrap(),
                socket.tcp_keepalive_interval().unwrap(),
                socket.tcp_keepalive_retries().unwrap(),
            )
        });
        let user_timeout = socket.tcp_user_timeout().unwrap().unwrap_or_default();
        Self {
            keepalive,
            user_timeout,
        }
    }
}

/// The server's sockets.
fn sockets(server: &Server) -> Vec<Socket> {
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap() {
        let path = entry.unwrap().path();
        // It may have been closed meanwhile.
        let is_socket = fs::read_link(&path).is_ok_and(|what| text(&what).starts_with("socket:"));
        let number = text(&path).rsplit('/').next().unwrap().parse().unwrap();
        if is_socket && let Ok(socket) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
            sockets.push(Socket::from(socket));
        }
    }
    sockets
}

/// The server's end of `client`.
fn watch_of(server: &Server, client: &TcpStream) -> Watch {
    let peer = client.local_addr().ok();
    let peer_of = |socket: &Socket| socket.peer_addr().ok().and_then(|at| at.as_socket());
    let sockets = sockets(server);
    let socket = sockets.iter().find(|socket| peer_of(socket) == peer);
    Watch::of(socket.unwrap())
}

/// Its TCP listener.
fn watch_of_listener(server: &Server) -> Watch {
    let sockets = sockets(server);
    let mut tcp = sockets
        .iter()
        .filter(|socket| socket.local_addr().is_ok_and(|at| at.as_socket().is_some()));
    Watch::of(tcp.find(|socket| socket.is_listener().unwrap()).unwrap())
}

#[test]
fn a_takeover_that_fails_changes_no_socket() {
    for fault in ["abort-pre-copy", "abort-freeze"] {
        let home = Home::new();
        let server = home.serve(&["--keepalive", "77:7:5"]);
        let mut client = server.connect();
        assert_echoes(&mut client, b"before");
        let before = (watch_of(&server, &client), watch_of_listener(&server));
        let its = Some((Duration::from_secs(77), Duration::from_secs(7), 5));
        assert_eq!(before.0.keepalive, its);
        let args = ["--keepalive", "5:1:2", "--user-timeout", "7s"];
        home.faulty(&server, &args, fault).wait();
        let mut late = server.connect();
        assert_echoes(&mut late, b"it serves on");
        assert_eq!(watch_of(&server, &late), before.0, "{fault}: a later one");
        assert_eq!(
            watch_of(&server, &client),
            before.0,
            "{fault}: there before"
        );
        assert_eq!(
            watch_of_listener(&server),
            before.1,
            "{fault}: the listener"
        );
    }
}

#[test]
fn what_is_off_in_the_new_one_is_off() {
    let seconds = |name: &str| {
        let value = fs::read_to_string(format!("/proc/sys/net/ipv4/tcp_keepalive_{name}"));
        value.unwrap().trim().parse::<u32>().unwrap()
    };
    let duration = |name: &str| Duration::from_secs(seconds(name).into());
    let the_kernels = Some((duration("time"), duration("intvl"), seconds("probes")));
    for (keepalive, wanted) in [("off", None), ("::", the_kernels)] {
        let home = Home::new();
        let mut server = home.serve(&["--keepalive", "5:1:2", "--user-timeout", "7s"]);
        let mut client = server.connect();
        assert_echoes(&mut client, b"before");
        let was = watch_of(&server, &client);
        assert_eq!(was.user_timeout, Duration::from_secs(7));
        let args = ["--keepalive", keepalive, "--user-timeout", "off"];
        let next = home.succeed(&mut server, &args);
        let mut late = next.connect();
        assert_echoes(&mut late, b"new");
        assert_echoes(&mut client, b"after");
        let wanted = Watch {
            keepalive: wanted,
            user_timeout: Duration::ZERO,
        };
        assert_eq!(watch_of(&next, &late), wanted, "{keepalive}: a new one");
        until("the listener is the new one's", || {
            watch_of_listener(&next) == wanted
        });
        // Few at a time, after they are served.
        until("the one taken over has the new one's", || {
            watch_of(&next, &client) == wanted
        });
    }
}

// Paths.

fn assert_answers(path: &Path) {
    let client = UnixStream::connect(path);
    let mut client = client.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    client.set_read_timeout(Some(GUARD)).unwrap();
    client.write_all(b"hello").unwrap();
    let mut echoed = [0; 5];
    client.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"hello");
}

#[test]
fn the_same_name_in_another_folder_is_another_server() {
    let home = Home::new();
    let [here, there] = ["here", "there"].map(|name| home.join(name));
    let start = |folder: &Path, args: &[&str]| {
        fs::create_dir(folder).unwrap();
        let mut command = home.standfast(&["serve", "-l", "unix:x.sock"]);
        command.args(args).current_dir(folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut server = Server::launch(command);
        server.stdout_line();
        server
    };
    let mut first = start(&here, &[]);
    assert_answers(&here.join("x.sock"));
    let mut second = start(&there, &["--replace"]);
    assert_answers(&there.join("x.sock"));
    assert!(first.is_running());
    assert_answers(&here.join("x.sock"));
    assert!(second.drain().success());
    assert!(!there.join("x.sock").exists());
    assert_answers(&here.join("x.sock"));
    assert!(first.drain().success());
    assert!(!here.join("x.sock").exists());
}

#[test]
fn a_path_too_long_for_a_socket_is_told_as_that() {
    let home = Home::new();
    let long = home.join(&"l".repeat(110));
    let address = format!("unix:{}", text(&long));
    for args in [
        &["-l", &*address, "--control", "off"][..],
        &["-l", "0", "--control", text(&long)],
        &["-l", "0", "--replace", "--control", text(&long)],
    ] {
        let (code, line) = home.refusal(&[&["serve"], args].concat());
        assert!(code == 1 || code == 2, "{code}: {line}");
        assert!(
            line.contains("too long") && line.contains(text(&long)),
            "{line}"
        );
    }
}

// Limits.

#[test]
fn who_waits_for_a_place_gets_any_that_becomes_free() {
    let home = Home::new();
    let args = ["--workers", "2", "--max-conns", "4", "--when-full", "wait"];
    for first in 0..4 {
        let mut server = home.serve(&args);
        let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
        for client in &mut clients {
            assert_echoes(client, b"before");
        }
        let next = home.succeed(&mut server, &args);
        let mut waiting = next.connect();
        waiting.write_all(b"hello").unwrap();
        // It has come, and there is no place.
        settle();
        drop(clients.remove(first));
        waiting
            .set_read_timeout(Some(Duration::from_secs(3)))
            .unwrap();
        let mut echoed = [0; 5];
        let served = waiting.read_exact(&mut echoed);
        assert!(
            served.is_ok(),
            "after the end of client {first}: {served:?}"
        );
        assert_eq!(&echoed, b"hello");
    }
}

#[test]
fn a_lower_limit_on_connections_lets_those_that_are_there_stay() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"before");
    }
    let next = home.succeed(&mut server, &["--max-conns", "2"]);
    for client in &mut clients {
        assert_echoes(client, b"after");
    }
    let turned_away = |client: &mut TcpStream| {
        let mut all = Vec::new();
        match client.read_to_end(&mut all) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    };
    assert!(turned_away(&mut next.connect()), "over the limit");
    clients.truncate(1);
    until("three have ended", || {
        number(&home.json(&["status"])["open"]) == 1
    });
    assert_echoes(&mut next.connect(), b"a place is free");
    assert_echoes(&mut clients[0], b"and on");
}

#[test]
fn more_listeners_than_go_over_are_told_as_that() {
    let home = Home::new();
    let control = home.join("c.sock");
    let listeners: Vec<_> = (0..253)
        .map(|at| format!("unix:{}", text(&home.join(&at.to_string()))))
        .collect();
    let serve = || {
        let mut command = home.standfast(&["serve", "--control", text(&control)]);
        for listener in &listeners {
            command.args(["-l", listener]);
        }
        command
    };
    let mut command = serve();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = Server::launch(command);
    for _ in &listeners {
        server.stdout_line();
    }
    let mut command = serve();
    command.arg("--replace");
    let (code, line) = refusal(command);
    assert_eq!(code, 1, "{line}");
    assert!(line.contains("listeners"), "{line}");
    let status = home.json(&["status", text(&control)]);
    assert_eq!(status["pid"], server.pid());
    for at in [0, 252] {
        assert_answers(&home.join(&at.to_string()));
    }
    assert!(server.drain().success());
}

// Output.

#[test]
fn print_with_prefixes_begins_a_line_of_its_own_in_the_new_process() {
    let home = Home::new();
    let file = home.join("printed");
    let printed = || fs::read_to_string(&file).unwrap();
    let stdout = File::create(&file).unwrap();
    let stdout = || stdout.try_clone().unwrap();
    let args = ["print", "--prefix", "--buffer", "8"];
    let mut command = home.standfast(&["serve", "-l", "0"]);
    command.args(args).stdin(Stdio::null()).stdout(stdout());
    let mut server = Server::launch(command);
    until("it listens", || printed().ends_with('\n'));
    let address: SocketAddr = crate::support::listening(printed().trim_end());
    let [mut one, mut two] = [(); 2].map(|()| connect(address));
    one.write_all(b"0123456789abcdef").unwrap();
    until("what fills the buffer is printed", || {
        printed().ends_with("0123456789abcdef")
    });
    let mut next = None;
    // A busy machine may be too slow for the freeze.
    for _ in 0..20 {
        let mut command = home.successor(&[address], &args);
        command.stdin(Stdio::null()).stdout(stdout());
        let mut tried = Server::launch(command);
        until("one of them ends", || {
            !tried.is_running() || !server.is_running()
        });
        if tried.is_running() {
            next = Some(tried);
            break;
        }
    }
    let mut next = next.unwrap();
    assert_eq!(server.wait().code(), Some(0), "{:?}", server.lines);
    two.write_all(b"two\n").unwrap();
    until("a line of the other", || printed().contains(": two\n"));
    one.write_all(b"end\n").unwrap();
    until("the rest", || printed().ends_with("end\n"));
    let prefixes = [&one, &two].map(|client| format!("{}: ", client.local_addr().unwrap()));
    drop((one, two));
    assert!(next.drain().success());
    let printed = printed();
    let lines: Vec<_> = printed.lines().collect();
    let [one, two] = &prefixes;
    let wanted = [
        format!("listening on {address}"),
        format!("{one}0123456789abcdef"),
        format!("{two}two"),
        format!("{one}end"),
    ];
    let distinct: BTreeSet<_> = lines.iter().copied().collect();
    assert_eq!(
        distinct,
        wanted.iter().map(String::as_str).collect(),
        "{lines:?}"
    );
    assert_eq!(lines.len(), 5, "{lines:?}");
}
