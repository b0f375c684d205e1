//! A server crashes behind its keeper: who waits is served by the next one, and what is told stays true.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::{Kept, children};
use crate::support::home::{Home, number, text};
use crate::support::{
    GUARD, Server, assert_echoes, cannot_run, connect, lacks, read_to_fin, until,
};
use crate::takeover::restart::put_script;

#[test]
fn more_addresses_than_the_soft_limit_on_descriptors_outlive_a_crash() {
    let home = Home::new();
    let mut command = home.shell(r#"ulimit -Sn 32; exec "$@""#, &["serve", "--keep"]);
    let paths: Vec<_> = (0..18).map(|at| home.join(&format!("s{at}"))).collect();
    for path in &paths {
        command.args(["-l", &format!("unix:{}", text(path))]);
    }
    let kept = Kept::spawn(home, command, paths.len());
    kept.until_another_serves(kept.crash(Signal::KILL));
    for path in &paths {
        let mut client = UnixStream::connect(path).unwrap();
        client.set_read_timeout(Some(GUARD)).unwrap();
        client.write_all(b"hello").unwrap();
        let mut echoed = [0; 5];
        client.read_exact(&mut echoed).unwrap();
    }
}

#[test]
fn clients_queue_while_no_server_runs_and_are_served_by_the_next_one() {
    if lacks(&["nc.openbsd"]) {
        return;
    }
    let home = Home::new();
    let (gate, program) = (home.join("gate"), home.join("standfast-here"));
    let real = env!("CARGO_BIN_EXE_standfast");
    symlink(real, &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["serve", "--keep", "-l", "0"]);
    command
        .env("XDG_RUNTIME_DIR", &home.path)
        .env_remove("RUST_LOG")
        .env_remove("NOTIFY_SOCKET");
    let kept = Kept::spawn(home, command, 1);
    drop(kept.connect());
    // The next server waits until the gate is open.
    let wait = format!("until [ -e {} ]; do sleep 0.01; done", text(&gate));
    let script = format!("#!/bin/bash\n{wait}\nexec -a \"$0\" {real} \"$@\"\n");
    put_script(&program, &script);
    let former = kept.crash(Signal::KILL);
    until(
        "the next server is started",
        || matches!(children(kept.keeper.pid())[..], [next] if next != former),
    );
    let port = kept.keeper.address().port().to_string();
    let mut netcats: Vec<_> = (0..20)
        .map(|at| {
            let mut netcat = Command::new("nc.openbsd");
            netcat
                .args(["-N", "127.0.0.1", &port])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let mut netcat = netcat.spawn().unwrap();
            let mut stdin = netcat.stdin.take().unwrap();
            writeln!(stdin, "number {at}").unwrap();
            netcat
        })
        .collect();
    // A log rotated meanwhile is nothing to a server that does not hear of it yet.
    let waits = children(kept.keeper.pid());
    kept.keeper.signal(Signal::USR1);
    for netcat in &mut netcats {
        if let Some(status) = netcat.try_wait().unwrap() {
            let mut said = String::new();
            let stderr = netcat.stderr.as_mut().unwrap();
            stderr.read_to_string(&mut said).unwrap();
            panic!("{status}: {said}");
        }
    }
    assert_eq!(children(kept.keeper.pid()), waits);
    fs::write(&gate, "").unwrap();
    for (at, netcat) in netcats.into_iter().enumerate() {
        let output = netcat.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            format!("number {at}\n")
        );
    }
    assert_ne!(kept.server(), former);
}

#[test]
fn after_a_crash_it_is_one_process_yet_at_the_same_port_and_says_so() {
    let mut kept = Kept::start(&[]);
    let keeper = kept.keeper.pid();
    let address = kept.keeper.address();
    for signal in [Signal::KILL, Signal::ABORT, Signal::ILL] {
        drop(kept.connect());
        let status = kept.status();
        assert_eq!(status["keeper"], keeper);
        assert_ne!(status["pid"], keeper);
        let table = kept.home.answer(&["status"]);
        assert!(
            table.contains(&format!("\nkeeper       {keeper}\n")),
            "{table}"
        );
        let former = kept.crash(signal);
        let line = kept
            .keeper
            .log_line("the crash", |line| line.contains("crashed"));
        let what = format!(
            "pid {} ended: signal: {}",
            former.as_raw_nonzero(),
            signal.as_raw()
        );
        assert!(line.contains(&what), "{line}");
        kept.until_another_serves(former);
        assert_echoes(&mut connect(address), b"at the same port");
    }
    kept.assert_drains();
}

#[test]
fn a_unix_socket_and_the_metrics_outlive_a_crash_and_go_with_the_end() {
    let home = Home::new();
    let path = home.join("s");
    let listen = format!("unix:{},mode=600", text(&path));
    let mut command = home.standfast(&["serve", "--keep", "-l", "127.0.0.1:0", "-l", &listen]);
    command.args(["--metrics", "0"]);
    let mut kept = Kept::spawn(home, command, 2);
    let metrics = |kept: &Kept| kept.status()["metrics"][0].as_str().unwrap().to_owned();
    let before = metrics(&kept);
    let inode = fs::metadata(&path).unwrap();
    let former = kept.crash(Signal::KILL);
    let mut queued = UnixStream::connect(&path).unwrap();
    queued.write_all(b"hello").unwrap();
    kept.until_another_serves(former);
    let mut echoed = [0; 5];
    queued.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"hello");
    assert_eq!(metrics(&kept), before);
    let mut asks = connect(before.parse().unwrap());
    asks.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    assert!(read_to_fin(&mut asks).starts_with(b"HTTP/1.1 200"));
    let found = fs::metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.ino(), inode.ino(), "the very socket");
    kept.assert_drains();
    assert!(!path.exists(), "it is taken away at the end");
    assert!(!kept.home.join("s.lock").exists());
}

#[test]
fn sockets_that_were_inherited_or_passed_by_systemd_are_those_of_every_server() {
    for (before, listen) in [
        ("exec 7<&0 0</dev/null", "fd:7"),
        (
            "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web; exec 3<&0 0</dev/null",
            "systemd:web",
        ),
    ] {
        let home = Home::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let control = home.join("c");
        let args = ["serve", "--keep", "-l", listen, "--control", text(&control)];
        let mut command = home.shell(&format!(r#"{before}; exec "$@""#), &args);
        command
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::piped());
        let mut keeper = Server::launch(command);
        keeper.stdout_line();
        let kept = Kept { home, keeper };
        let status = || kept.home.json(&["status", "--control", text(&control)]);
        let mut former = number(&status()["pid"]);
        for round in 0..4 {
            if round % 2 == 0 {
                rustix::process::kill_process(super::pid(former), Signal::KILL).unwrap();
            } else {
                kept.home.answer(&["restart", "--control", text(&control)]);
            }
            assert_echoes(&mut connect(address), b"and on");
            let now = status();
            assert_ne!(number(&now["pid"]), former);
            assert_eq!(now["listeners"][0]["inherited_as"], listen);
            former = number(&now["pid"]);
        }
    }
}

#[test]
fn the_keeper_is_small_and_has_one_thread_and_no_socket_of_a_client() {
    let kept = Kept::start(&["--workers", "1"]);
    let clients: Vec<_> = (0..50).map(|_| kept.connect()).collect();
    let former = kept.crash(Signal::KILL);
    kept.until_another_serves(former);
    drop(clients);
    let _clients: Vec<_> = (0..50).map(|_| kept.connect()).collect();
    kept.home.taken_over(&["restart"]);
    let pid = kept.keeper.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    // What the loader relocates of a program that has more crates is memory of its own, too.
    let most = if cfg!(feature = "nats") { 1536 } else { 1024 };
    assert!(value("RssAnon:") < most, "{status}");
    assert_eq!(value("Threads:"), 1);
    // stdin, stdout, stderr, the signals' pair, the line to the server, the listener; and what the test itself was given. Both
    // ends of the two sockets in which the vault's descriptors wait.
    let sockets = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let sockets = sockets.filter(|one| {
        let target = fs::read_link(one.path()).unwrap_or_default();
        target
            .to_str()
            .is_some_and(|target| target.starts_with("socket:"))
    });
    assert!(sockets.count() <= 5 + 4);
}

#[test]
fn programs_of_exec_hear_nothing_of_the_keeper_and_have_no_socket_of_it() {
    let script =
        "env | grep -c -e ^STANDFAST_ -e ^WATCHDOG_; ls -l /proc/self/fd | grep -c socket:";
    let kept = Kept::start(&["exec", "-l", "0", "--", "sh", "-c", script]);
    for _ in 0..2 {
        let mut client = connect(kept.keeper.address());
        // ls and grep have the connection as their stdin, and grep as its stdout.
        assert_eq!(read_to_fin(&mut client), b"0\n1\n");
        let former = kept.crash(Signal::KILL);
        kept.until_another_serves(former);
    }
}

/// Waits until it is noted, where the next server finds it, that `open` connections are.
fn until_noted(kept: &Kept, open: usize) {
    let wanted = format!("\"open\":{open},");
    until("it is noted", || {
        let pid = kept.keeper.pid();
        let mut held = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        held.any(|one| {
            let path = fs::read_link(one.path()).unwrap_or_default();
            path.to_str()
                .is_some_and(|path| path.starts_with("/memfd:standfast "))
                && fs::read(one.path())
                    .is_ok_and(|text| String::from_utf8_lossy(&text).contains(&wanted))
        })
    });
}

#[test]
fn counters_go_on_over_crashes_however_soon_they_follow_each_other_or_a_takeover() {
    let kept = Kept::start(&[]);
    let _clients: Vec<_> = (0..4).map(|_| kept.connect()).collect();
    until_noted(&kept, 4);
    for takeover in [false, true, false, false] {
        if takeover {
            kept.home.taken_over(&["restart"]);
        }
        // Not a second old.
        kept.until_another_serves(kept.crash(Signal::KILL));
        let status = kept.status();
        assert_eq!(
            (&status["accepted"], &status["open"]),
            (&4.into(), &4.into())
        );
    }
}

#[test]
fn counters_go_on_over_a_crash_and_who_was_connected_has_ended_for_that() {
    let home = Home::new();
    // Without a vault.
    let args = ["serve", "--keep", "-l", "0", "--metrics", "0"];
    let command = home.shell(r#"ulimit -f 100; exec "$@""#, &args);
    let mut kept = Kept::spawn(home, command, 1);
    drop(kept.connect());
    kept.keeper
        .log_line("its end", |line| line.contains("peer-closed"));
    let mut clients: Vec<_> = (0..3).map(|_| kept.connect()).collect();
    until_noted(&kept, 3);
    let former = kept.crash(Signal::KILL);
    let line = kept
        .keeper
        .log_line("what was lost", |line| line.contains("reason=crash"));
    assert!(line.contains("connections=3"), "{line}");
    for client in &mut clients {
        // Behind what the others have said: the kernel closes what a crash leaves.
        while matches!(client.read(&mut [0; 64]), Ok(1..)) {}
    }
    kept.until_another_serves(former);
    let status = kept.status();
    let closed = serde_json::json!([["peer-closed", 1], ["crash", 3]]);
    assert_eq!(
        (&status["accepted"], &status["closed"]),
        (&4.into(), &closed)
    );
    assert_eq!(
        (&status["open"], &status["crashes"]),
        (&0.into(), &1.into())
    );
    // And over a takeover behind the crash.
    kept.home.taken_over(&["restart"]);
    let status = kept.status();
    assert_eq!(
        (&status["closed"], &status["crashes"]),
        (&closed, &1.into())
    );
    let mut asks = connect(status["metrics"][0].as_str().unwrap().parse().unwrap());
    asks.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let page = String::from_utf8(read_to_fin(&mut asks)).unwrap();
    assert!(page.contains("\nstandfast_crashes_total 1\n"), "{page}");
    assert!(page.contains("reason=\"crash\"} 3\n"), "{page}");
}

#[test]
fn as_another_user_with_a_log_file_it_goes_on_after_a_crash_and_a_restart() {
    const TEST: &str = "as_another_user_with_a_log_file_it_goes_on_after_a_crash_and_a_restart";
    if !rustix::process::geteuid().is_root() {
        return cannot_run(TEST, "root, to become another user");
    }
    let home = Home::new();
    let (log, control, path) = (home.join("log"), home.join("c.sock"), home.join("s"));
    std::os::unix::fs::chown(&home.path, Some(65534), Some(65534)).unwrap();
    let listen = format!("unix:{}", text(&path));
    let args = [
        "serve",
        "--keep",
        "-l",
        "127.0.0.1:0",
        "-l",
        &listen,
        "--user",
        "65534",
        "--group",
        "65534",
    ];
    let mut command = home.standfast(&args);
    command.args(["--log-file", text(&log), "--control", text(&control)]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut keeper = Server::launch(command);
    let address = crate::support::listening(&keeper.stdout_line());
    keeper.stdout_line();
    keeper.addresses = vec![address];
    let mut kept = Kept { home, keeper };
    let ask = |kept: &Kept, order: &str| {
        let mut command = kept
            .home
            .standfast(&[order, "--json", "--control", text(&control)]);
        std::os::unix::process::CommandExt::uid(&mut command, 65534);
        std::os::unix::process::CommandExt::gid(&mut command, 65534);
        let output = command.output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default()
    };
    let mut client = kept.connect();
    for round in 0..4 {
        let before = number(&ask(&kept, "status")["pid"]);
        if round % 2 == 0 {
            until("it is restarted", || {
                ask(&kept, "restart");
                number(&ask(&kept, "status")["pid"]) != before
            });
            assert_echoes(&mut client, b"and on");
        } else {
            rustix::process::kill_process(super::pid(before), Signal::KILL).unwrap();
            client = kept.connect();
        }
        let mut local = UnixStream::connect(&path).unwrap();
        local.write_all(b"hello").unwrap();
        local.read_exact(&mut [0; 5]).unwrap();
        let now = number(&ask(&kept, "status")["pid"]);
        assert_ne!(now, before);
        let owner = fs::metadata(format!("/proc/{now}")).unwrap().uid();
        assert_eq!(owner, 65534, "round {round}");
    }
    drop(client);
    kept.assert_drains();
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(log.matches("the former server crashed").count(), 2, "{log}");
    assert!(!path.exists() && !control.exists());
}

#[test]
fn programs_of_exec_and_their_connections_outlive_the_server() {
    let mut kept = Kept::start(&["exec", "-l", "0", "--", "cat"]);
    let mut client = kept.connect();
    let former = kept.crash(Signal::KILL);
    kept.until_another_serves(former);
    assert_echoes(&mut client, b"by a program that nobody watches");
    drop(kept.connect());
    drop(client);
    kept.assert_drains();
}

#[test]
fn a_server_out_of_descriptors_is_followed_by_one_that_has_them_again() {
    let home = Home::new();
    let command = home.shell(
        r#"ulimit -n 100; exec "$@""#,
        &["serve", "--keep", "-l", "0"],
    );
    let kept = Kept::spawn(home, command, 1);
    let clients: Vec<_> = (0..120).map(|_| connect(kept.keeper.address())).collect();
    let former = kept.crash(Signal::KILL);
    kept.until_another_serves(former);
    drop(clients);
    until("it serves", || {
        let mut client = connect(kept.keeper.address());
        client.write_all(b"hello").is_ok() && client.read_exact(&mut [0; 5]).is_ok()
    });
    kept.home.taken_over(&["restart"]);
}
