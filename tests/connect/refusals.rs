//! Options that are wrong, or contradict each other: one line, exit code 2, and nothing is connected.

use std::process::Command;

use crate::support::home::usage;
use crate::support::{output, standfast};

fn connect(args: &[&str]) -> Command {
    let mut command = standfast();
    command.arg("connect").args(args);
    command
}

/// What it says instead of connecting, asked wrongly: exactly one line.
#[track_caller]
fn line(args: &[&str]) -> String {
    usage(connect(args))
}

#[test]
fn options_that_contradict_each_other_are_refused_in_one_line() {
    for (args, named) in [
        (&["-4", "-6", "1"][..], ["--ipv4", "--ipv6"]),
        (&["-4", "[::1]:1"], ["-4", "::1"]),
        (&["-6", "127.0.0.1:1"], ["-6", "127.0.0.1"]),
        (&["-4", "-s", "::1", "localhost:1"], ["-4", "::1"]),
        (&["-s", "::1", "127.0.0.1:1"], ["::1", "127.0.0.1"]),
        (&["-4", "unix:/x"], ["-4", "unix:/x"]),
        (&["-s", "127.0.0.1", "unix:@x"], ["-s", "unix:@x"]),
        (
            &["--on-read-timeout", "exit", "1"],
            ["on-read-timeout", "read-timeout"],
        ),
        (
            &["--on-read-timeout", "wait", "--read-timeout", "off", "1"],
            ["on-read-timeout", "read-timeout"],
        ),
        (
            &["--keepalive", "off", "--dead-after", "30s", "1"],
            ["keepalive", "dead-after"],
        ),
        (
            &["--keepalive", "60:10:3", "--dead-after", "30s", "1"],
            ["60:10:3", "dead-after"],
        ),
        (&["--dead-after", "4s", "1"], ["dead-after", "5"]),
        (
            &["--reconnect", "never", "--max-retries", "3", "1"],
            ["reconnect", "max-retries"],
        ),
    ] {
        let said = line(args);
        let said = said.to_lowercase().replace([' ', '_'], "-");
        for name in named {
            assert!(said.contains(name), "{args:?}: {name} in {said}");
        }
    }
}

#[test]
fn what_is_nobody_to_connect_to_is_refused_in_one_line() {
    for to in [
        "",
        "localhost",
        "localhost:",
        "localhost:http",
        "localhost:0",
        "localhost:65536",
        ":7000",
        "0",
        "::1:7000",
        "fd:3",
        "systemd",
        "systemd:name",
        "unix:",
    ] {
        let said = line(&[to]);
        assert!(said.contains(to), "{to}: {said}");
    }
    for args in [["localhost", "x"], ["localhost:1", "2"], ["", "2"]] {
        line(&args);
    }
}

#[test]
fn values_that_mean_nothing_are_refused() {
    for args in [
        &["--connect-timeout", "0", "1"][..],
        &["--connect-timeout", "-1s", "1"],
        &["--read-timeout", "0", "1"],
        &["--read-timeout", "5x", "1"],
        &["--on-read-timeout", "never", "--read-timeout", "5", "1"],
        &["--reconnect", "sometimes", "1"],
        &["--backoff", "1s", "1"],
        &["--backoff", "0:1s", "1"],
        &["--backoff", "2s:1s", "1"],
        &["--backoff", "off", "1"],
        &["--stable-after", "0", "1"],
        &["--max-retries", "-1", "1"],
        &["--max-retries", "many", "1"],
        &["--buffer", "0", "1"],
        &["--buffer", "1x", "1"],
        &["--buffer-policy", "forget", "1"],
        &["--heartbeat", "0", "1"],
        &["--heartbeat", "PING", "1"],
        &["--heartbeat", "off:PING", "1"],
        &["-q", "-1", "1"],
        &["-s", "localhost", "1"],
        &["--keepalive", "60:10", "1"],
        &["--no-such-option", "1"],
        &["1", "2", "3"],
        &[],
    ] {
        // Without any there is help, which is longer than a line.
        let (code, stdout, said) = output(connect(args));
        assert_eq!((code, &*stdout), (2, ""), "{args:?}: {said}");
        assert!(!said.contains("panicked"), "{args:?}: {said}");
        assert!(!said.is_empty(), "{args:?}");
    }
}

#[test]
fn help_says_what_ends_it_and_what_tcp_does_not_promise() {
    let (code, stdout, stderr) = output(connect(&["--help"]));
    assert_eq!((code, &*stderr), (0, ""));
    let help = stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for said in [
        "end of stdin",
        "FIN",
        "may not have arrived",
        "--reconnect",
        "--backoff",
        "--max-retries",
        "--buffer-policy",
        "--heartbeat",
        "Exit codes: 0 done, 1 failed, 2",
    ] {
        assert!(help.contains(said), "{said} in:\n{stdout}");
    }
}
