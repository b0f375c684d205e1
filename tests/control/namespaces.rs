//! Askers and servers in namespaces of processes of their own: neither can name the other's process, and its user counts.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::home::{Home, text};
use crate::support::{Server, assert_echoes, cannot_run, output};

/// `standfast ARGS...` in a namespace of processes of its own, which ends with the command.
fn apart(home: &Home, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args([
        "--pid",
        "--fork",
        "--kill-child",
        env!("CARGO_BIN_EXE_standfast"),
    ]);
    command.args(args).env("XDG_RUNTIME_DIR", &home.path);
    command
}

fn possible(test: &str) -> bool {
    let mut command = Command::new("unshare");
    let tried = command
        .args(["--pid", "--fork", "true"])
        .stderr(Stdio::null());
    let possible = tried.status().is_ok_and(|status| status.success());
    if !possible {
        cannot_run(test, "root, for namespaces");
    }
    possible
}

/// All that can be asked of a server that has one client, numbered 1.
#[track_caller]
fn assert_answers(server: &Server, ask: &dyn Fn(&[&str]) -> Command) {
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    for question in [&["status"][..], &["list"], &["kill", "1"], &["drain"]] {
        let (code, stdout, stderr) = output(ask(&[question, &["--json"]].concat()));
        assert_eq!((code, stderr.as_str()), (0, ""), "{question:?}: {stdout}");
        let _: Value = serde_json::from_str(&stdout).unwrap();
    }
}

#[test]
fn a_server_answers_who_asks_from_another_namespace_of_processes() {
    if !possible("a_server_answers_who_asks_from_another_namespace_of_processes") {
        return;
    }
    let home = Home::new();
    let mut server = home.serve(&[]);
    assert_answers(&server, &|args| apart(&home, args));
    assert!(server.wait().success());
}

#[test]
fn a_server_in_a_namespace_of_processes_answers_who_asks_from_outside() {
    if !possible("a_server_in_a_namespace_of_processes_answers_who_asks_from_outside") {
        return;
    }
    let home = Home::new();
    let control = home.join("c.sock");
    let args = ["serve", "-l", "0", "--control", text(&control)];
    let server = Server::spawn(apart(&home, &args), 1);
    let ask = |args: &[&str]| home.standfast(&[args, &["--control", text(&control)]].concat());
    assert_answers(&server, &ask);
}
