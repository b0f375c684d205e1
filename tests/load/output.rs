//! Progress, the table and the JSON object, expectations, signals.

use std::fs::OpenOptions;
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::loading::{
    Figures, Loading, Peer, counts, load_command, nobody, of_the_load, output, row, terminal,
};
use crate::support::{Server, now, until, until_another_signal_counts};

/// Exactly this happens, whatever the machine is busy with: 20 messages on 2 connections.
const EXACT: [&str; 9] = [
    "-c",
    "2",
    "-r",
    "100",
    "--pipeline",
    "20",
    "-T",
    "200ms",
    "-q",
];

fn exact(server: &Server, more: &[&str]) -> (i32, String, String) {
    output(load_command(server.address(), &[&EXACT[..], more].concat()))
}

#[test]
fn table_and_json_say_the_same() {
    let server = Server::start(&["-q"]);
    let (code, table, stderr) = exact(&server, &[]);
    assert_eq!((code, &*stderr), (0, ""));
    let (code, json, stderr) = exact(&server, &["--json"]);
    assert_eq!((code, &*stderr), (0, ""));
    let figures = Figures::read(&json);
    figures.assert_flawless(2, 64);

    let shown = counts(&table, "messages");
    for name in ["sent", "echoed"] {
        assert_eq!((shown[name], figures.count(name)), (20, 20), "{table}");
    }
    assert_eq!(row(&table, "target"), server.address().to_string());
    let load = row(&table, "load");
    for part in [
        "2 connections",
        "64 bytes",
        "20 outstanding",
        "100 a second",
        "for 200ms",
    ] {
        assert!(load.contains(part), "{part} in {load}");
    }
    let up = "2 of 2 up at the end, 2 connects, 0 reconnects";
    assert_eq!(row(&table, "connections"), up);
    for (name, kinds) in [
        (
            "failed",
            &["refused", "reset", "timed out", "unreachable", "other"][..],
        ),
        ("bytes", &["lost", "duplicated", "reordered", "corrupted"]),
    ] {
        let nothing: Vec<String> = kinds.iter().map(|kind| format!("0 {kind}")).collect();
        assert_eq!(row(&table, name), nothing.join(", "));
    }
    let ended = counts(&table, "ended");
    for (reason, count) in ended {
        assert_eq!(count, 0, "{reason}");
        let name = format!("ended_{}", reason.replace('-', "_"));
        assert_eq!(figures.count(&name), 0);
    }
    for (row_name, names) in [
        ("throughput", ["messages/s", "MB/s"]),
        ("latency", ["p99.9", "max"]),
        ("longest gap", ["", " ms"]),
    ] {
        let row = row(&table, row_name);
        assert!(names.iter().all(|name| row.contains(name)), "{table}");
    }
    // All flat, all numbers.
    for (name, figure) in &figures.0 {
        assert!(figure.is_number(), "{name}: {figure}");
    }
}

#[test]
fn a_progress_line_a_second_is_plain_where_nobody_sits() {
    let server = Server::start(&["-q"]);
    let mut loading = Loading::start(server.address(), &["-c", "3", "-r", "100", "-T", "1m"]);
    let lines: Vec<String> = (0..2).map(|_| loading.goes_on_with(3)).collect();
    for line in &lines {
        assert!(line.starts_with("standfast: "), "{line}");
        for part in [" 3 of 3 up, ", " messages/s, ", "0 reconnects, 0 errors"] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(!line.contains(['\r', '\x1b']), "{line:?}");
    }
    loading.signal(Signal::INT);
    let (code, table) = loading.ends();
    assert_eq!(code, 0);
    assert!(!table.contains(" of 3 up, "), "talk is on stderr: {table}");
}

#[test]
fn on_a_terminal_the_progress_line_is_rewritten() {
    let server = Server::start(&["-q"]);
    let (mut screen, far) = terminal();
    let mut command = load_command(server.address(), &["-c", "3", "-r", "100", "-T", "2500ms"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(far);
    let mut child = command.spawn().unwrap();
    // It holds the terminal's other end.
    drop(command);
    let mut shown = Vec::new();
    // That it is gone is an error to the terminal.
    let read = screen.read_to_end(&mut shown);
    assert!(read.is_ok() || read.unwrap_err().raw_os_error() == Some(libc::EIO));
    assert!(child.wait().unwrap().success());
    let shown = String::from_utf8(shown).unwrap();
    // Beside it may stand that this host dropped packets, which is the host's doing.
    let lines = shown.lines().filter(|line| line.contains(" of 3 up"));
    assert_eq!(lines.count(), 1, "one line: {shown:?}");
    assert!(shown.ends_with('\n'), "{shown:?}");
    let writings = shown.split('\r').filter(|text| text.contains(" of 3 up"));
    assert!(writings.count() >= 1, "{shown:?}");
    let mut table = String::new();
    child.stdout.unwrap().read_to_string(&mut table).unwrap();
    // Fewer where the host was too busy for the rate.
    let sent = counts(&table, "messages")["sent"];
    assert!((1..=250).contains(&sent), "{sent}");
}

#[test]
fn quiet_says_nothing_while_it_runs() {
    let server = Server::start(&["-q"]);
    let args = ["-q", "-T", "1500ms", "--json"];
    let (code, stdout, stderr) = output(load_command(server.address(), &args));
    assert_eq!((code, &*stderr), (0, ""));
    Figures::read(&stdout).assert_flawless(1, 64);
}

#[test]
fn what_is_expected_decides_the_exit_code() {
    let server = Server::start(&["-q"]);
    let all = [
        "sent == 20",
        "sent==20.0",
        "echoed >= 20",
        "lost<1",
        "unsent != 1",
        "p99_ms > 0",
        "ended_peer_reset <= 0",
    ];
    let mut args = vec!["--json"];
    for expectation in all {
        args.extend(["--expect", expectation]);
    }
    let (code, stdout, stderr) = exact(&server, &args);
    assert_eq!((code, &*stderr), (0, ""));
    Figures::read(&stdout).assert_flawless(2, 64);

    args.extend(["--expect", "sent<20", "--expect", "asked_per_second==7"]);
    let (code, stdout, stderr) = exact(&server, &args);
    assert_eq!(code, 1);
    Figures::read(&stdout).assert_flawless(2, 64);
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(
        lines,
        [
            "standfast: expected sent < 20, but it is 20",
            "standfast: expected asked_per_second == 7, but it is 100.0",
        ]
    );
}

#[test]
fn every_name_in_the_object_can_be_expected_whatever_was_done() {
    let server = Server::start(&["-q"]);
    let args = ["--json", "-q", "-T", "1ms"];
    let (_, full, _) = exact(&server, &["--json"]);
    let names = |stdout: &str| Figures::read(stdout).0.keys().cloned().collect::<Vec<_>>();
    for mode in [&["--idle"][..], &["--churn"], &["--no-verify", "-r", "1"]] {
        let args = [&args[..], mode].concat();
        let (code, stdout, stderr) = output(load_command(server.address(), &args));
        assert_eq!((code, &*stderr), (0, ""), "{mode:?}");
        assert_eq!(names(&stdout), names(&full), "{mode:?}");
    }
    let expected: Vec<String> = names(&full)
        .iter()
        .map(|name| format!("{name}>=0"))
        .collect();
    let mut args = vec!["--json"];
    for expectation in &expected {
        args.extend(["--expect", expectation]);
    }
    let (code, _, stderr) = exact(&server, &args);
    assert_eq!((code, &*stderr), (0, ""));
}

#[test]
fn a_figure_that_is_not_known_is_as_nobody_expects() {
    let server = Server::start(&["-q"]);
    let args = ["--idle", "-T", "1ms", "-q", "--expect", "p99_ms < 1000"];
    let (code, _, stderr) = output(load_command(server.address(), &args));
    assert_eq!(code, 1);
    assert!(stderr.contains("expected p99_ms < 1000"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn the_first_signal_ends_it_early_with_everything_echoed() {
    let server = Server::start(&["-q"]);
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let args = ["-c", "4", "--pipeline", "16", "-T", "1h"];
        let mut loading = Loading::start(server.address(), &args);
        loading.goes_on_with(4);
        loading.signal(signal);
        let (code, table) = loading.ends();
        assert_eq!(code, 0, "{table}");
        let messages = counts(&table, "messages");
        assert!(messages["sent"] > 0, "{table}");
        assert_eq!(messages["sent"], messages["echoed"], "{table}");
        assert!(row(&table, "bytes").starts_with("0 lost, "), "{table}");
    }
}

#[test]
fn a_second_signal_waits_for_nothing() {
    let (peer, args) = (
        Peer::start(|_, mut stream| {
            let mut buffer = [0; 4096];
            while let Ok(1..) = stream.read(&mut buffer) {}
        }),
        ["-T", "1h", "--read-timeout", "1h", "--json"],
    );
    let mut loading = Loading::start(peer.address, &args);
    loading.goes_on_with(1);
    loading.signal(Signal::INT);
    until_another_signal_counts();
    assert!(loading.is_running(), "the last echo is waited for");
    until("it ends", || {
        loading.signal(Signal::INT);
        until_another_signal_counts();
        !loading.is_running()
    });
    let (code, stdout) = loading.ends();
    assert_eq!(code, 1, "{:?}", loading.lines);
    let figures = Figures::read(&stdout);
    assert_eq!((figures.count("sent"), figures.count("echoed")), (1, 0));
    assert_eq!(figures.faults(), [64, 0, 0, 0], "{figures:?}");
    assert_eq!(figures.count("up"), 1);
    assert!(figures.number("longest_gap_ms") >= 300.0, "{figures:?}");
    assert!(figures.number("seconds") < 60.0, "{figures:?}");
}

#[test]
fn a_signal_before_anything_is_connected_ends_it() {
    let args = ["-T", "1h", "--connect-timeout", "1h", "--json"];
    let mut loading = Loading::start(nobody(), &args);
    loading.says("cannot connect");
    loading.signal(Signal::TERM);
    let (code, stdout) = loading.ends();
    assert_eq!((code, &*stdout), (1, ""), "{:?}", loading.lines);
    let why = loading.lines.last().unwrap();
    assert!(why.contains("cannot connect to 127.0.71.1:"), "{why}");
}

fn with_stdout(server: &Server, stdout: impl Into<Stdio>) -> (Option<i32>, String) {
    let mut command: Command = load_command(server.address(), &EXACT);
    command
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut stderr = String::new();
    let mut pipe = child.stderr.take().unwrap();
    let reading = thread::spawn(move || pipe.read_to_string(&mut stderr).map(|_| stderr));
    let code = child.wait().unwrap().code();
    (code, of_the_load(&reading.join().unwrap().unwrap()))
}

#[test]
fn a_closed_stdout_ends_it_quietly_and_a_full_one_does_not() {
    let server = Server::start(&["-q"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(with_stdout(&server, writer), (Some(0), String::new()));
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (code, stderr) = with_stdout(&server, full);
    assert_eq!(code, Some(1));
    assert!(
        stderr.starts_with("standfast: cannot write to stdout: ") && stderr.lines().count() == 1,
        "{stderr}"
    );
}

#[test]
fn a_closed_stderr_does_not_stop_it() {
    let server = Server::start(&["-q"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let begun = now();
    let mut command = load_command(
        server.address(),
        &["-r", "100", "--pipeline", "200", "-T", "1500ms"],
    );
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(writer);
    let child = command.spawn().unwrap().wait_with_output().unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(1500));
    assert_eq!(child.status.code(), Some(0));
    let table = String::from_utf8(child.stdout).unwrap();
    assert_eq!(counts(&table, "messages")["echoed"], 150, "{table}");
}
