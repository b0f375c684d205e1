//! The server starts its own successor.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use super::Netcat;
use crate::support::home::{Home, number, text};
use crate::support::{Orphan, Server, assert_echoes, connect, output, shell, until};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A copy of the binary. Made by another process: a child that some other test starts meanwhile must not inherit a
/// file that is open for writing, it could not be run then.
pub(crate) fn copy(to: &Path) {
    let mut cp = Command::new("cp");
    cp.arg(env!("CARGO_BIN_EXE_standfast")).arg(to);
    assert!(cp.status().unwrap().success());
}

/// Puts a script where a program was, in one step.
pub(crate) fn put_script(at: &Path, script: &str) {
    let made = at.with_extension("made");
    let mut write = shell(r#"printf '%s' "$3" > "$2" && chmod 755 "$2""#, &[]);
    write.args([text(&made), script]);
    assert!(write.status().unwrap().success());
    fs::rename(made, at).unwrap();
}

/// `program serve` in `home`.
fn serve(home: &Home, program: &Path) -> Server {
    let mut command = home.command(program);
    command.args(["serve", "-l", "0"]);
    Server::spawn(command, 1)
}

#[test]
fn it_answers_with_what_came_of_it() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut clients: Vec<_> = (0..7).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    let (next, answer) = home.restart(&[]);
    let pid = home.pid(&[]);
    assert_ne!(pid, server.pid());
    let told = format!(
        "restarted: pid {pid}, version {VERSION} (was {VERSION}), 7 connections handed over, frozen for "
    );
    assert!(
        answer.starts_with(&told) && answer.ends_with(" ms\n"),
        "{answer}"
    );
    assert_eq!(answer.lines().count(), 1, "{answer}");
    for client in &mut clients {
        assert_echoes(client, b"and on");
    }
    // It has the same stderr: with it the log ends.
    drop(next);
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(server.summary()["handed-off"], "7");
}

#[test]
fn a_chain_of_five_with_netcat_at_the_keyboard() {
    if crate::support::lacks(&["nc.openbsd"]) {
        return;
    }
    let home = Home::new();
    // Port 0, and an address said by a flag with `=`.
    let mut server = home.serve(&["-l", "0", "--workers=2"]);
    let address = server.address();
    let mut typing = Netcat::start(&["-N", "127.0.0.1", &address.port().to_string()]);
    typing.assert_echoes("generation 0");
    let mut generations = Vec::new();
    let mut former = server.pid();
    for generation in 1..=5 {
        let stdout = home.taken_over(&["restart", "--json"]);
        let answer: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(
            (&answer["role"], &answer["connections"]),
            (&"gave".into(), &1.into())
        );
        let pid = u32::try_from(number(&answer["pid"])).unwrap();
        generations.push(Orphan::new(pid));
        let status = home.json(&["status"]);
        assert_eq!(status["pid"], pid);
        assert_eq!(status["takeover"]["pid"], former);
        former = pid;
        typing.assert_echoes(&format!("generation {generation}"));
        assert_echoes(&mut connect(address), b"a new one");
    }
    assert_eq!(
        server.stdout_line(),
        format!("listening on {address}"),
        "each says it"
    );
    assert_eq!(typing.end(), Some(0));
    home.answer(&["drain"]);
}

#[test]
fn a_binary_that_was_replaced_on_disk_is_the_one_that_runs() {
    let home = Home::new();
    let program = home.join("standfast-here");
    copy(&program);
    let server = serve(&home, &program);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let newer = home.join("newer");
    copy(&newer);
    fs::rename(&newer, &program).unwrap();
    let (_next, _) = home.restart(&[]);
    assert_eq!(running(&home), program);
    assert_echoes(&mut client, b"and on");
}

/// The file the server runs from.
fn running(home: &Home) -> PathBuf {
    fs::read_link(format!("/proc/{}/exe", home.pid(&[]))).unwrap()
}

#[test]
fn a_link_to_the_newest_release_is_followed_anew() {
    let home = Home::new();
    let [one, two, link] = ["one", "two", "current"].map(|name| home.join(name));
    copy(&one);
    copy(&two);
    symlink(&one, &link).unwrap();
    let server = serve(&home, &link);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    assert_eq!(running(&home), one);
    let made = home.join("made");
    let mut generations = Vec::new();
    for target in [&two, &one] {
        symlink(target, &made).unwrap();
        fs::rename(&made, &link).unwrap();
        let (next, _) = home.restart(&[]);
        assert_eq!(&running(&home), target);
        assert_echoes(&mut client, b"and on");
        generations.push(next);
    }
}

#[test]
fn a_successor_that_does_not_start_or_ends_is_told_and_the_server_serves_on() {
    let home = Home::new();
    let program = home.join("standfast-here");
    copy(&program);
    let mut server = serve(&home, &program);
    let mut client = server.connect();
    let mut refused = |why: &str| {
        let (code, line) = home.refusal(&["restart"]);
        assert_eq!(code, 1, "{line}");
        assert!(
            line.starts_with("standfast: not restarted, the server goes on: "),
            "{line}"
        );
        assert!(line.contains(why), "{why}: {line}");
        assert_echoes(&mut client, b"it serves on");
        assert_eq!(home.pid(&[]), server.pid());
    };
    fs::remove_file(&program).unwrap();
    refused("No such file");
    for (script, why) in [
        ("#!/bin/sh\nexit 1\n", "exit status: 1"),
        ("#!/bin/sh\nkill -9 $$\n", "signal: 9"),
        ("#!/bin/sh\nexit 0\n", "exit status: 0"),
        ("no program\n", ""),
    ] {
        put_script(&program, script);
        refused(why);
    }
    fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).unwrap();
    refused("ermission denied");
    let newer = home.join("newer");
    copy(&newer);
    fs::rename(&newer, &program).unwrap();
    let (next, _) = home.restart(&[]);
    assert_echoes(&mut client, b"and on");
    drop(next);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_successor_that_finds_no_server_ends() {
    let home = Home::new();
    let control = home.join("c.sock");
    let mut command =
        home.standfast(&["serve", "--replace", "-l", "0", "--control", text(&control)]);
    command.env("STANDFAST_SUCCESSOR", "1");
    let (code, stdout, stderr) = output(command);
    assert_eq!((code, &*stdout), (1, ""), "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(
        last.starts_with("standfast: cannot take over: "),
        "{stderr}"
    );
}

#[test]
fn sigusr2_restarts() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let former = server.pid();
    until("it was restarted", || {
        // A machine that is too busy for a takeover is asked again.
        if server.is_running() && home.pid(&[]) == former {
            server.signal(Signal::USR2);
        }
        home.pid(&[]) != former
    });
    let next = Orphan::new(home.pid(&[]));
    assert_echoes(&mut client, b"and on");
    drop(next);
    assert_eq!(server.wait().code(), Some(0));
    let said = |line: &String| line.contains(" restarting signal=SIGUSR2");
    assert!(server.lines.iter().any(said), "{:?}", server.lines);
}

#[test]
fn sigusr2_without_a_control_socket_is_answered_in_the_log() {
    let mut server = Server::start(&["--control", "off"]);
    server.signal(Signal::USR2);
    server.log_line("the refusal", |line| {
        line.contains(" warn not restarted: there is no control socket signal=SIGUSR2")
    });
    assert_echoes(&mut server.connect(), b"it serves on");
}

#[test]
fn sigusr2_restarts_no_other_server_that_has_the_control_path_by_now() {
    let home = Home::new();
    let path = home.join("c.sock");
    let control = ["--control", text(&path)];
    let mut server = home.serve(&control);
    fs::remove_file(&path).unwrap();
    fs::remove_file(home.join("c.sock.lock")).unwrap();
    let mut other = home.serve(&control);
    server.signal(Signal::USR2);
    server.log_line("the refusal", |line| {
        line.contains(" warn not restarted") && line.contains("another server's by now")
    });
    assert_echoes(&mut server.connect(), b"it serves on");
    assert!(other.drain().success());
    let started = |line: &&String| line.contains("successor started");
    assert_eq!(other.lines.iter().find(started), None);
    assert!(server.drain().success());
}

#[test]
fn a_sigchld_ignored_at_the_start_keeps_nothing_from_being_known() {
    let home = Home::new();
    let standfast = home.standfast(&[]);
    let mut command = Command::new("env");
    command
        .arg("--ignore-signal=CHLD")
        .arg(standfast.get_program())
        .args([
            "serve",
            "exec",
            "-v",
            "-l",
            "0",
            "--",
            "sh",
            "-c",
            "read line; exit 3",
        ])
        .env("XDG_RUNTIME_DIR", &home.path);
    let mut server = Server::spawn(command, 1);
    writeln!(server.connect(), "go").unwrap();
    let line = server.log_line("the program's end", |line| line.contains(" status=3"));
    let (next, answer) = home.restart(&[]);
    assert!(answer.starts_with("restarted: "), "{line}: {answer}");
    drop(next);
    assert_eq!(server.wait().code(), Some(0));
}
