//! What is asked wrongly, and nobody there: one line each, and the exit code.

use std::time::Duration;

use crate::support::home::usage;
use crate::support::loading::{load_command, nobody, output};
use crate::support::{now, standfast};

/// What it says instead of loading: asked wrongly, in exactly one line.
#[track_caller]
fn refusal(args: &[&str]) -> String {
    let mut command = standfast();
    command.arg("load").args(args);
    usage(command)
}

#[test]
fn options_that_contradict_each_other_are_refused_in_one_line() {
    for (args, named) in [
        (&["--idle", "--churn"][..], ["--idle", "--churn"]),
        (&["--idle", "-r", "5"], ["--idle", "--rate"]),
        (&["--idle", "--size", "5"], ["--idle", "--size"]),
        (&["--idle", "--pipeline", "5"], ["--idle", "--pipeline"]),
        (&["--idle", "--no-verify"], ["--idle", "--no-verify"]),
        (
            &["--idle", "--read-timeout", "5"],
            ["--idle", "--read-timeout"],
        ),
        (&["--churn", "--pipeline", "5"], ["--churn", "--pipeline"]),
        (
            &["--churn", "--connect-rate", "5"],
            ["--churn", "--connect-rate"],
        ),
        (&["-4", "-6"], ["--ipv4", "--ipv6"]),
        (&["-6"], ["-6", "127.0.0.1"]),
        (&["-s", "::1"], ["-s ::1", "127.0.0.1"]),
        (
            &["--keepalive", "off", "--dead-after", "30s"],
            ["keepalive", "dead-after"],
        ),
        (
            &["--keepalive", "60:10:3", "--dead-after", "30s"],
            ["60:10:3", "dead-after"],
        ),
    ] {
        let said = refusal(&[&["127.0.0.1:1"], args].concat());
        for name in named {
            let spaced = name.replace('-', " ");
            assert!(
                said.contains(name) || said.contains(&spaced),
                "{args:?}: {name} in {said}"
            );
        }
    }
}

#[test]
fn values_that_mean_nothing_are_refused() {
    for (option, values) in [
        ("-c", &["0", "-1", "many", "1.5", ""][..]),
        (
            "-r",
            &[
                "0",
                "-1",
                "fast",
                "nan",
                "inf",
                "1e3",
                "",
                "0.0",
                "99999999m",
            ],
        ),
        ("--connect-rate", &["0", "-5", "x"]),
        (
            "--size",
            &["0", "-1", "x", "65m", "1g", "99999999999999999999"],
        ),
        ("-T", &["0", "-1", "off", "forever", "1.5x"]),
        ("--pipeline", &["0", "-1", "65537", "x"]),
        ("--workers", &["0", "-1", "x"]),
        ("--read-timeout", &["0", "off", "x"]),
        ("--connect-timeout", &["0", "x"]),
        ("--backoff", &["1s", "0:1s", "2s:1s"]),
        ("--dead-after", &["4", "0"]),
    ] {
        for value in values {
            let said = refusal(&["127.0.0.1:1", option, value]);
            let named = said.contains(value) || said.contains("too large: at most 64m");
            assert!(named, "{option} {value}: {said}");
        }
    }
}

#[test]
fn whom_to_connect_to_has_to_be_somebody() {
    for to in [
        "localhost",
        "localhost:http",
        "localhost:0",
        ":7000",
        "::1:7000",
        "fd:3",
        "",
    ] {
        let said = refusal(&[to]);
        assert!(said.contains(to), "{to}: {said}");
    }
    refusal(&["localhost:1", "2"]);
    refusal(&["1", "2", "3"]);
}

#[test]
fn an_expectation_about_nothing_is_refused_with_the_names_there_are() {
    for (text, hints) in [
        (
            "lots == 0",
            &[
                "\"lots\"",
                "lost, ",
                "p99_9_ms",
                "ended_peer_closed",
                "unsent",
            ][..],
        ),
        ("== 0", &["lost, "]),
        ("Lost == 0", &["lost, "]),
        ("lost = 0", &["NAME OP NUMBER", "=="]),
        ("lost", &["NAME OP NUMBER"]),
        ("", &["NAME OP NUMBER"]),
        ("lost == ", &["not a number"]),
        ("lost == none", &["not a number"]),
        ("lost === 0", &["not a number"]),
        ("lost == 0, sent > 0", &["not a number"]),
    ] {
        let said = refusal(&["127.0.0.1:1", "--expect", text]);
        for hint in hints {
            assert!(said.contains(hint), "{text:?}: {hint} in {said}");
        }
    }
}

/// It fails, and the last it says is why.
#[track_caller]
fn assert_fails(to: &str, args: &[&str], why: &str) {
    for json in [&["--quiet"][..], &["--quiet", "--json"]] {
        let (code, stdout, stderr) = output(load_command(to, &[args, json].concat()));
        assert_eq!((code, &*stdout), (1, ""), "{stderr}");
        let last = stderr.lines().last().unwrap();
        assert!(
            last.starts_with("standfast: ") && last.contains(why),
            "{why} in {stderr}"
        );
        // Once when it happens first, once at the end. A busy machine's standstills are another matter.
        let said = stderr
            .lines()
            .filter(|line| !line.contains(" stood still "));
        assert!(said.count() <= 2, "{stderr}");
    }
}

#[test]
fn nobody_there_is_a_failure_in_one_line() {
    let nobody = nobody().to_string();
    let begun = now();
    let why = format!("cannot connect to {nobody}: Connection refused");
    for mode in [&[][..], &["-c", "20", "--workers", "2"], &["--idle"]] {
        let args = ["-T", "100ms", "--connect-timeout", "300ms"];
        assert_fails(&nobody, &[&args[..], mode].concat(), &why);
    }
    assert!(begun.elapsed() >= Duration::from_millis(6 * 300));
    assert_fails(&nobody, &["-T", "100ms", "--churn"], &why);
    assert_fails(
        "unix:/nowhere/x.sock",
        &["--connect-timeout", "300ms"],
        "/nowhere/x.sock",
    );
    // An expectation does not hide it.
    let args = ["--connect-timeout", "100ms", "--expect", "lost==0"];
    assert_fails(&nobody, &args, &why);
}

#[test]
fn an_unresolvable_name_is_a_failure_in_one_line() {
    let args = ["--connect-timeout", "500ms"];
    assert_fails(
        "no-such-host.invalid:7000",
        &args,
        "cannot resolve no-such-host.invalid",
    );
}

#[test]
fn a_source_address_of_somebody_else_is_a_failure_in_one_line() {
    let args = ["--connect-timeout", "300ms", "-s", "192.0.2.1"];
    let why = "cannot come from 192.0.2.1: Cannot assign requested address (os error 99); it is none of this host's addresses";
    assert_fails("127.0.0.1:1", &args, why);
}
