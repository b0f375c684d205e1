//! Supervisors that know one process, containers that end with one, and terminals that hang up on one: behind a keeper all of
//! them have what they know, and a restart is no affair of theirs.

use std::fs;
use std::net::TcpStream;
use std::process::{Command, Stdio};

use rustix::process::{Signal, kill_process, test_kill_process};

use super::{Kept, pid};
use crate::support::home::{Home, number, text};
use crate::support::{
    Orphan, Server, assert_echoes, cannot_run, connect, lacks, output, read_to_fin, restarted,
    until,
};
use crate::takeover::supervisors::Supervised;

const UNSHARE: [&str; 4] = ["--pid", "--fork", "--kill-child", "--mount-proc"];

/// `INIT... standfast serve --keep ARGS...` as the first processes of a container.
fn contain(home: &Home, init: &[&str], args: &[&str]) -> Server {
    let mut command = Command::new("unshare");
    command
        .args(UNSHARE)
        .args(init)
        .arg(env!("CARGO_BIN_EXE_standfast"))
        .args(["serve", "--keep"])
        .args(args)
        .env("XDG_RUNTIME_DIR", &home.path)
        .env_remove("RUST_LOG");
    Server::spawn(command, 1)
}

fn cannot_contain(test: &str) -> bool {
    if lacks(&["unshare", "tini", "dumb-init"]) {
        cannot_run(test, "unshare, tini, dumb-init");
        return true;
    }
    let mut tried = Command::new("unshare");
    let tried = tried
        .args(UNSHARE)
        .arg("true")
        .stderr(Stdio::null())
        .status();
    let can = tried.is_ok_and(|status| status.success());
    if !can {
        cannot_run(test, "root, for namespaces");
    }
    !can
}

/// The server's process as it is numbered out here: the last child of the keeper, which is the last of a line of first
/// children.
fn innermost(of: u32) -> (u32, Vec<u32>) {
    let children = |of: u32| {
        let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children"));
        let children = children.unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|one| one.parse().ok());
        children.collect::<Vec<u32>>()
    };
    let mut keeper = of;
    loop {
        let arguments = fs::read(format!("/proc/{keeper}/cmdline")).unwrap_or_default();
        let is_standfast = arguments.starts_with(env!("CARGO_BIN_EXE_standfast").as_bytes());
        let next = children(keeper);
        if is_standfast {
            return (keeper, next);
        }
        keeper = next[0];
    }
}

#[test]
fn as_process_one_and_under_tini_and_dumb_init_it_is_restarted_and_outlives_crashes() {
    const TEST: &str =
        "as_process_one_and_under_tini_and_dumb_init_it_is_restarted_and_outlives_crashes";
    if cannot_contain(TEST) {
        return;
    }
    for init in [&[][..], &["tini", "--"], &["dumb-init"]] {
        let home = Home::new();
        let mut container = contain(&home, init, &["-l", "0"]);
        let mut client = container.connect();
        assert_echoes(&mut client, b"hello");
        for _ in 0..2 {
            home.taken_over(&["restart"]);
            assert_echoes(&mut client, b"and on");
        }
        let (keeper, servers) = innermost(container.pid());
        let server = *servers.last().unwrap();
        kill_process(pid(server.into()), Signal::KILL).unwrap();
        assert_echoes(&mut container.connect(), b"after a crash");
        assert_eq!(innermost(container.pid()).0, keeper);
        // As `docker stop` has it: its first process is told.
        let first = fs::read_to_string(format!("/proc/{0}/task/{0}/children", container.pid()));
        let first: u64 = first.unwrap().trim().parse().unwrap();
        drop(client);
        kill_process(pid(first), Signal::TERM).unwrap();
        assert_eq!(
            container.wait().code(),
            Some(0),
            "{init:?}: {:?}",
            container.lines
        );
    }
}

#[test]
fn as_process_one_it_leaves_no_orphan_a_zombie() {
    if cannot_contain("as_process_one_it_leaves_no_orphan_a_zombie") {
        return;
    }
    let home = Home::new();
    // Each client leaves a process that ends when nobody waits for it.
    let script = "(sleep 0.05 &) >/dev/null 2>&1; echo done";
    let container = contain(&home, &[], &["exec", "-l", "0", "--", "sh", "-c", script]);
    for _ in 0..5 {
        assert_eq!(read_to_fin(&mut container.connect()), b"done\n");
    }
    let (_, children) = innermost(container.pid());
    assert_eq!(children.first().copied().map(|one| one > 0), Some(true));
    until("the server is its only child", || {
        innermost(container.pid()).1.len() == 1
    });
}

/// A restart and a crash are no affair of the supervisor's, and an end is.
fn assert_holds(server: &Supervised) {
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let keeper = || {
        let status = server.standfast("status").arg("--json").output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        pid(number(&status["keeper"]))
    };
    let first = keeper();
    assert!(server.has_started(first));
    for _ in 0..3 {
        let before = server.pid();
        let (code, stdout, line) = restarted(|| server.standfast("restart"));
        assert_eq!((code, line.as_str()), (0, ""), "{stdout}");
        assert_ne!(server.pid(), before);
        assert_echoes(&mut client, b"and on");
    }
    let served = server.pid().unwrap();
    kill_process(served, Signal::KILL).unwrap();
    until("another serves", || {
        server.pid().is_some_and(|pid| pid != served)
    });
    assert_echoes(&mut server.connect(), b"after a crash");
    assert_eq!(keeper(), first);
    assert!(server.standfast("drain").output().unwrap().status.success());
    until("the supervisor has started another keeper", || {
        test_kill_process(first).is_err() && server.pid().is_some()
    });
    assert!(server.has_started(keeper()));
    let control = server.home.join("c.sock");
    kill_process(
        rustix::process::Pid::from_child(&server.supervisor),
        server.end,
    )
    .unwrap();
    until("the server has ended with its supervisor", || {
        !control.exists()
    });
}

#[test]
fn under_runit_it_is_restarted_and_outlives_crashes() {
    if !lacks(&["runsvdir", "runsv"]) {
        assert_holds(&Supervised::by_runit("echo --keep"));
    }
}

#[test]
fn under_supervisord_it_is_restarted_and_outlives_crashes() {
    if !lacks(&["supervisord"]) {
        assert_holds(&Supervised::by_supervisord("echo --keep"));
    }
}

#[test]
fn print_is_restarted_where_supervisord_reads_its_stdout() {
    if lacks(&["supervisord"]) {
        return;
    }
    use std::io::Write;
    let server = Supervised::by_supervisord("print --keep");
    let mut client = server.connect();
    writeln!(client, "before").unwrap();
    let said = || fs::read_to_string(server.home.join("stdout")).unwrap_or_default();
    until("it is printed", || said().contains("before\n"));
    let (code, stdout, line) = restarted(|| server.standfast("restart"));
    assert_eq!((code, line.as_str()), (0, ""), "{stdout}");
    writeln!(client, "after").unwrap();
    until("that as well", || said().ends_with("after\n"));
    assert_eq!(said().matches("before\n").count(), 1);
}

#[test]
fn as_the_main_process_of_a_service_that_is_told_nothing_it_is_restarted() {
    let home = Home::new();
    let script = r#"export SYSTEMD_EXEC_PID=$$; exec "$@""#;
    let mut command = home.shell(script, &["serve", "--keep", "-l", "0"]);
    command.env_remove("NOTIFY_SOCKET");
    let kept = Kept::spawn(home, command, 1);
    let mut client = kept.connect();
    kept.home.taken_over(&["restart"]);
    assert_echoes(&mut client, b"and on");
    // With the keeper's end, which somebody else's takeover would be, the service ends.
    let address = kept.keeper.address().to_string();
    let (code, _, stderr) = output(kept.home.standfast(&["serve", "--replace", "-l", &address]));
    assert!(code == 1 && stderr.contains("Type=notify"), "{stderr}");
    assert_echoes(&mut client, b"and on");
}

#[test]
fn as_the_first_process_of_a_terminal_it_is_restarted_and_ends_with_the_terminal() {
    const TEST: &str =
        "as_the_first_process_of_a_terminal_it_is_restarted_and_ends_with_the_terminal";
    if lacks(&["tmux"]) {
        return cannot_run(TEST, "tmux");
    }
    let home = Home::new();
    let tmux = |args: &[&str]| {
        let mut command = Command::new("tmux");
        command
            .arg("-S")
            .arg(home.join("tmux"))
            .args(["-f", "/dev/null"])
            .args(args);
        command
            .env("XDG_RUNTIME_DIR", &home.path)
            .env("TERM", "screen")
            .env_remove("RUST_LOG")
            .env_remove("TMUX")
            .stdin(Stdio::null());
        command.output().unwrap()
    };
    let serve = format!(
        "exec {} serve print --keep -l 127.0.0.1:0 2>{}",
        env!("CARGO_BIN_EXE_standfast"),
        text(&home.join("log"))
    );
    let started = tmux(&["new-session", "-d", &serve]);
    assert!(started.status.success(), "{started:?}");
    let status = || {
        let status = home.standfast(&["status", "--json"]).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&status.stdout).ok()
    };
    until("it serves", || status().is_some());
    let found = status().unwrap();
    let pane = tmux(&["display-message", "-p", "#{pane_pid}"]);
    let pane: u64 = String::from_utf8(pane.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(number(&found["keeper"]), pane);
    let address = found["listeners"][0]["address"].as_str().unwrap();
    let mut client: TcpStream = connect(address.parse().unwrap());
    use std::io::Write;
    writeln!(client, "before").unwrap();
    home.taken_over(&["restart"]);
    writeln!(client, "after").unwrap();
    until("both are on the screen", || {
        let screen = tmux(&["capture-pane", "-p"]);
        let screen = String::from_utf8_lossy(&screen.stdout).into_owned();
        screen.contains("before") && screen.contains("after")
    });
    let server = Orphan::new(u32::try_from(number(&status().unwrap()["pid"])).unwrap());
    drop(client);
    tmux(&["kill-server"]);
    until("it has ended", || {
        test_kill_process(pid(pane)).is_err() && status().is_none()
    });
    drop(server);
}
