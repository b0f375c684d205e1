//! The log: its formats, its levels, and what happens when nobody reads it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, PipeReader};
use std::net::SocketAddr;
use std::process::Stdio;

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::support::{
    Guarded, Server, assert_echoes, connect, facts, listening, row, shell, standfast, until,
};

/// Starts a server, has one client send `hello`, and drains. The log.
fn log_of(args: &[&str], environment: &[(&str, &str)]) -> Vec<String> {
    let mut command = standfast();
    command.args(["serve", "-l", "0"]).args(args);
    command.envs(environment.iter().copied());
    let mut server = Server::spawn(command, 1);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let near = client.local_addr().unwrap();
    drop(client);
    until("the connection is over", || {
        row(server.address(), near).is_none()
    });
    assert!(server.drain().success());
    server.lines.clone()
}

/// The messages of log lines in the text format.
fn messages(lines: &[String]) -> Vec<String> {
    let words = |line: &String| {
        let words = line.split(' ').skip(1);
        let words: Vec<_> = words.take_while(|word| !word.contains('=')).collect();
        words.join(" ")
    };
    lines.iter().map(words).collect()
}

/// `2026-11-21T04:31:00.123Z`
fn assert_is_time(text: &str) {
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z");
}

#[test]
fn the_log_tells_the_life_of_the_server_as_text() {
    let lines = log_of(&[], &[]);
    assert_eq!(
        messages(&lines),
        [
            "info listening",
            "info closed",
            "info draining",
            "info ended"
        ]
    );
    for line in &lines {
        assert_is_time(line.split(' ').next().unwrap());
    }
    let closed = facts(&lines[1]);
    let keys: BTreeSet<_> = closed.keys().map(String::as_str).collect();
    let expected = ["id", "peer", "listener", "reason", "age", "read", "written"];
    assert_eq!(
        keys,
        expected.into(),
        "no verdict of the kernel, no keys for one"
    );
    assert_eq!(closed["id"], "1");
    assert_eq!((&*closed["read"], &*closed["written"]), ("5", "5"));
    assert_eq!(closed["reason"], "peer-closed");
    assert!(closed["age"].parse::<f64>().unwrap() < 30.0);
    let ended = facts(&lines[3]);
    let ended = ["accepted", "closed", "read", "written", "peer-closed"].map(|key| &*ended[key]);
    assert_eq!(ended, ["1", "1", "5", "5", "1"]);
}

#[test]
fn the_log_is_one_json_object_a_line() {
    // A capped backlog adds a line with a message of several words.
    let lines = log_of(&["--log-format", "json", "--backlog", "4294967295"], &[]);
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    for line in &lines {
        assert_is_time(line["time"].as_str().unwrap());
    }
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            (
                line["level"].as_str().unwrap(),
                line["message"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("warn", "backlog capped by net.core.somaxconn"),
            ("info", "listening"),
            ("info", "closed"),
            ("info", "draining"),
            ("info", "ended"),
        ]
    );
    let closed = lines[2].as_object().unwrap();
    let keys: BTreeSet<_> = closed.keys().map(String::as_str).collect();
    let expected = [
        "time", "level", "message", "id", "peer", "listener", "reason", "age", "read", "written",
    ];
    assert_eq!(keys, expected.into());
    assert_eq!(closed["id"], 1);
    assert_eq!(closed["read"], 5);
    assert_eq!(closed["written"], 5);
    assert_eq!(closed["reason"], "peer-closed");
    assert!(closed["age"].is_number());
    for key in ["peer", "listener"] {
        let address = closed[key].as_str().unwrap();
        address.parse::<SocketAddr>().unwrap();
    }
    assert_eq!(lines[4]["peer-closed"], 1);
}

#[test]
fn the_log_is_key_value_pairs_in_logfmt() {
    let lines = log_of(&["--log-format", "logfmt", "--backlog", "4294967295"], &[]);
    for line in &lines {
        let facts = facts(line);
        assert_is_time(&facts["time"]);
        assert!(
            line.starts_with("time=") && line.contains(" level="),
            "{line}"
        );
        // Words without a key stand in quotes.
        let bare = line.split('"').step_by(2).flat_map(str::split_whitespace);
        let mut bare = bare.filter(|word| !word.contains('='));
        assert_eq!(bare.next(), None, "{line}");
    }
    assert!(
        lines[0].contains(r#" level=warn msg="backlog capped by net.core.somaxconn" asked="#),
        "{}",
        lines[0]
    );
    let closed = facts(&lines[2]);
    let told = ["level", "msg", "id", "reason", "read", "written"].map(|key| &*closed[key]);
    assert_eq!(told, ["info", "closed", "1", "peer-closed", "5", "5"]);
}

#[test]
fn quiet_shows_only_what_somebody_should_look_at() {
    assert_eq!(log_of(&["-q"], &[]), [""; 0]);
    let lines = log_of(&["-q", "--backlog", "4294967295"], &[]);
    assert_eq!(
        messages(&lines),
        ["warn backlog capped by net.core.somaxconn"]
    );
}

#[test]
fn verbose_shows_more_and_twice_still_more() {
    let count = |lines: &[String], what: &str| {
        let messages = messages(lines);
        messages
            .iter()
            .filter(|line| line.starts_with(what))
            .count()
    };
    let lines = log_of(&["-v"], &[]);
    let opened = lines.iter().find(|line| line.contains(" debug opened "));
    let opened = facts(opened.expect("the opening of a connection"));
    assert_eq!(opened["id"], "1");
    assert!(opened["worker"].parse::<usize>().is_ok());
    assert_eq!(count(&lines, "trace"), 0);
    let lines = log_of(&["-vv"], &[]);
    assert_eq!(count(&lines, "debug opened"), 1);
    assert!(count(&lines, "trace ready") >= 2, "{}", lines.join("\n"));
}

#[test]
fn the_environment_decides_what_is_logged() {
    assert_eq!(log_of(&[], &[("RUST_LOG", "warn")]), [""; 0]);
    assert_eq!(log_of(&[], &[("RUST_LOG", "standfast=off")]), [""; 0]);
    for filter in ["debug", "standfast=debug"] {
        let lines = log_of(&[], &[("RUST_LOG", filter)]);
        assert!(
            messages(&lines).contains(&"debug opened".to_owned()),
            "{filter}:\n{}",
            lines.join("\n")
        );
    }
}

#[test]
fn a_closed_stdout_does_not_keep_the_server_from_serving() {
    let mut server = Server::launch(shell(r#"exec "$@" >&- </dev/null"#, &["serve", "-l", "0"]));
    let line = server.log_line("the listener", |line| line.contains(" info listening "));
    let address = facts(&line)["listener"].parse().unwrap();
    assert_echoes(&mut connect(address), b"hello");
    assert!(server.drain().success());
}

/// A server whose log nobody has read yet, though there was far more than its pipe and its queue hold.
fn with_a_log_unread() -> (Guarded, PipeReader) {
    let (log, stderr) = std::io::pipe().unwrap();
    let mut command = standfast();
    command.args(["serve", "-v", "-l", "0"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = Guarded(command.stderr(stderr).spawn().unwrap());
    // The command has our copy of the pipe's other end: without it the log has an end.
    drop(command);
    let mut line = String::new();
    let mut stdout = BufReader::new(server.0.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let address = listening(line.trim_end());
    for _ in 0..CLIENTS_UNREAD {
        assert_echoes(&mut connect(address), b"hello");
    }
    (server, log)
}

/// Each leaves two lines in the log.
const CLIENTS_UNREAD: usize = 6_000;

#[test]
fn a_stderr_that_blocks_holds_up_nobody() {
    let (mut server, log) = with_a_log_unread();
    let pid = Pid::from_child(&server.0);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let mut status = None;
    until("the server ended", || {
        status = server.0.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
    drop(log);
}

#[test]
fn log_lines_dropped_are_counted() {
    let (_server, log) = with_a_log_unread();
    let mut kept = 0;
    let dropped = BufReader::new(log).lines().find_map(|line| {
        let line = line.unwrap();
        kept += usize::from(line.contains(" opened ") || line.contains(" closed "));
        let is_said = line.contains(r#" warn log lines dropped count="#)
            && line.ends_with(r#" why="stderr was too slow""#);
        is_said.then(|| facts(&line)["count"].parse::<usize>().unwrap())
    });
    let dropped = dropped.expect("a word about dropped lines");
    assert!(dropped > 0 && kept + dropped <= 2 * CLIENTS_UNREAD);
}

/// What a server says whose stderr is a pipe that `JOURNAL_STREAM` may name, before it has an end.
fn with_a_journal(stream: impl Fn(u64, u64) -> String, args: &[&str]) -> Vec<String> {
    let (log, stderr) = std::io::pipe().unwrap();
    let of = rustix::fs::fstat(&stderr).unwrap();
    let mut command = standfast();
    command
        .args(["serve", "--control", "off"])
        .args(args)
        .env("JOURNAL_STREAM", stream(of.st_dev, of.st_ino));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = Guarded(command.stderr(stderr).spawn().unwrap());
    drop(command);
    let mut stdout = BufReader::new(server.0.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    if line.starts_with("listening on ") {
        rustix::process::kill_process(Pid::from_child(&server.0), Signal::TERM).unwrap();
    }
    let lines = BufReader::new(log).lines().map(Result::unwrap);
    // Of the host, whatever else runs on it.
    lines
        .filter(|line| !line.contains("short of memory for TCP"))
        .collect()
}

#[test]
fn the_journal_is_told_how_bad_it_is_and_nobody_else() {
    let named = |device: u64, inode: u64| format!("{device}:{inode}");
    let beginnings = |lines: &[String]| -> Vec<String> {
        let first = lines.iter().map(|line| line.chars().take(3).collect());
        first.collect()
    };
    let serve = ["-l", "0", "--backlog", "4294967295"];
    let lines = with_a_journal(named, &serve);
    assert_eq!(
        beginnings(&lines),
        ["<4>", "<6>", "<6>", "<6>"],
        "{lines:?}"
    );
    assert_is_time(lines[1][3..].split(' ').next().unwrap());
    // stderr is another file than the one that somebody's parent had.
    let elsewhere = |device: u64, inode: u64| format!("{device}:{}", inode + 1);
    for stream in [elsewhere, |_, _| String::new(), |_, _| "x".to_owned()] {
        let lines = with_a_journal(stream, &serve);
        assert!(lines.iter().all(|line| line.starts_with("20")), "{lines:?}");
    }
    for format in ["json", "logfmt"] {
        let lines = with_a_journal(named, &["-l", "0", "--log-format", format]);
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| !line.starts_with('<')), "{lines:?}");
    }
    // What ends the program.
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let lines = with_a_journal(named, &["-l", &taken]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("<3>standfast: cannot "), "{lines:?}");
}
