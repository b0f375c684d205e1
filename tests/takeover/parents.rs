//! Whose process a server is: what its end means to those who started it, and where its successor stands.

use std::fs;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::restart::{copy, put_script};
use crate::support::home::{Home, number, text};
use crate::support::{
    Server, assert_echoes, cannot_run, connect, facts, lacks, output, read_to_fin, until,
};

/// `standfast serve` by `command`, whose last arguments it becomes, and its process as `status` has it.
fn serve(home: &Home, mut command: Command, args: &[&str]) -> Server {
    command
        .arg(env!("CARGO_BIN_EXE_standfast"))
        .args(["serve", "-l", "0"])
        .args(args)
        .env("XDG_RUNTIME_DIR", &home.path)
        .env_remove("NOTIFY_SOCKET")
        .env_remove("RUST_LOG");
    Server::spawn(command, 1)
}

#[track_caller]
fn assert_refused(home: &Home, server: &Server, why: &str) {
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let (code, line) = home.refusal(&["restart"]);
    let (begin, end) = ("standfast: not restarted, the server goes on: ", why);
    assert_eq!(code, 1, "{line}");
    assert!(line.starts_with(begin) && line.contains(end), "{line}");
    assert_echoes(&mut client, b"and on");
}

/// `sh` that has `script` before it becomes the server.
fn after(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!(r#"{script}; exec "$@""#), "sh"]);
    command
}

#[test]
fn the_main_process_of_a_service_that_is_told_nothing_is_not_restarted() {
    let home = Home::new();
    let server = serve(&home, after("export SYSTEMD_EXEC_PID=$$"), &[]);
    assert_refused(&home, &server, "Type=notify");
    let mut command = home.standfast(&["serve", "--replace"]);
    command.args(["-l", &server.address().to_string()]);
    let (code, _, stderr) = output(command);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("Type=notify"), "{stderr}");
    // It was started by something that systemd had started.
    let home = Home::new();
    let mut server = serve(&home, after("export SYSTEMD_EXEC_PID=1"), &[]);
    drop(home.restart(&[]));
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn what_ends_with_the_process_one_of_a_container_is_not_restarted() {
    if lacks(&["unshare", "tini", "dumb-init"]) {
        return cannot_run(
            "what_ends_with_the_process_one_of_a_container_is_not_restarted",
            "unshare, tini, dumb-init",
        );
    }
    let unshare = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    let tried = Command::new("unshare")
        .args(unshare)
        .arg("true")
        .stderr(Stdio::null())
        .status();
    if !tried.is_ok_and(|status| status.success()) {
        return cannot_run(
            "what_ends_with_the_process_one_of_a_container_is_not_restarted",
            "root, for namespaces",
        );
    }
    for (init, why) in [
        (&[][..], "this is process 1"),
        (&["tini", "--"], "process 1 (tini) ends with this process"),
        (
            &["dumb-init"],
            "process 1 (dumb-init) ends with this process",
        ),
    ] {
        let home = Home::new();
        let mut command = Command::new("unshare");
        command.args(unshare).args(init);
        let server = serve(&home, command, &[]);
        assert_refused(&home, &server, why);
    }
}

#[test]
fn a_supervisor_that_would_start_another_for_ever_is_spared_it_unless_that_takes_over() {
    let home = Home::new();
    let supervisor = home.join("runsv");
    put_script(&supervisor, "#!/bin/sh\n\"$@\"\ntrue\n");
    let start = |home: &Home, args: &[&str]| serve(home, Command::new(&supervisor), args);
    let server = start(&home, &[]);
    assert_refused(
        &home,
        &server,
        "runsv, which started this process, would start another",
    );
    home.answer(&["stop"]);
    let other = Home::new();
    let server = start(
        &other,
        &["--replace", "--control", text(&other.join("c.sock"))],
    );
    let control = other.join("c.sock");
    other.taken_over(&["restart", "--control", text(&control)]);
    assert_echoes(&mut connect(server.address()), b"hello");
    other.answer(&["stop", "--control", text(&control)]);
}

/// `standfast WORDS -l 0` with a terminal by script(1), which leads a session; it hangs up when what is typed there ends. What
/// is shown is in the file `said`, the log in `log`.
fn in_a_terminal(home: &Home, words: &str) -> (Child, ChildStdin) {
    let program = env!("CARGO_BIN_EXE_standfast");
    let serve = format!("exec {program} {words} -l 0 2>{}", text(&home.join("log")));
    let mut script = home.command("script");
    script
        .args(["-q", "-f", "-c", &serve])
        .arg(home.join("said"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut script = script.spawn().unwrap();
    let stdin = script.stdin.take().unwrap();
    (script, stdin)
}

#[test]
fn a_successor_outlives_the_session_that_the_former_process_led() {
    let home = Home::new();
    let log = home.join("log");
    let (mut script, stdin) = in_a_terminal(&home, "serve");
    let whole = || fs::read_to_string(&log).unwrap_or_default();
    until("it listens", || whole().contains(" listening "));
    let log = whole();
    let line = log.lines().find(|line| line.contains(" listening "));
    let mut client = connect(facts(line.unwrap())["listener"].parse().unwrap());
    assert_echoes(&mut client, b"hello");
    let (next, _) = home.restart(&[]);
    // The terminal hangs up.
    drop(stdin);
    until("script ends", || script.try_wait().unwrap().is_some());
    assert_echoes(&mut client, b"and on");
    let status = home.json(&["status"]);
    let stat = fs::read_to_string(format!("/proc/{}/stat", number(&status["pid"]))).unwrap();
    let terminal = stat.rsplit_once(") ").unwrap().1.split(' ').nth(4).unwrap();
    assert_eq!(terminal, "0", "it has no terminal of its own");
    drop(next);
}

#[test]
fn print_is_not_restarted_where_its_terminal_hangs_up_with_it() {
    let home = Home::new();
    let (mut script, _stdin) = in_a_terminal(&home, "serve print");
    let said = || fs::read_to_string(home.join("said")).unwrap_or_default();
    until("it listens", || said().contains("listening on "));
    let (code, line) = home.refusal(&["restart"]);
    assert!(
        code == 1 && line.contains("which hangs up with it"),
        "{line}"
    );
    home.answer(&["stop"]);
    until("script ends", || script.try_wait().unwrap().is_some());
}

#[test]
fn a_program_is_looked_up_anew_as_it_was_typed() {
    // By a bare name in PATH, and by a path relative to a folder that is a link.
    for start in [
        r#"PATH=$1/current:$PATH; shift; exec standfast "$@""#,
        r#"cd "$1/current"; shift; exec ./standfast "$@""#,
    ] {
        let home = Home::new();
        for release in ["one", "two"] {
            fs::create_dir(home.join(release)).unwrap();
            copy(&home.join(release).join("standfast"));
        }
        let (current, made) = (home.join("current"), home.join("made"));
        std::os::unix::fs::symlink("one", &current).unwrap();
        let mut command = home.command("sh");
        command.args(["-c", start, "sh", text(&home.path), "serve", "-l", "0"]);
        let server = Server::spawn(command, 1);
        let mut client = server.connect();
        assert_echoes(&mut client, b"hello");
        let mut generations = Vec::new();
        for release in ["two", "one"] {
            std::os::unix::fs::symlink(release, &made).unwrap();
            fs::rename(&made, &current).unwrap();
            let (next, answer) = home.restart(&[]);
            let version = concat!("version ", env!("CARGO_PKG_VERSION"), " (was ");
            assert!(answer.contains(version), "{answer}");
            let pid = number(&home.json(&["status"])["pid"]);
            let running = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
            assert_eq!(running, home.join(release).join("standfast"), "{start}");
            assert_echoes(&mut client, b"and on");
            generations.push(next);
        }
    }
}

#[test]
fn programs_of_exec_do_not_hear_that_the_server_is_a_successor() {
    let home = Home::new();
    let script = "env | grep -c -e ^STANDFAST_ -e ^SYSTEMD_EXEC_PID";
    let server = home.serve(&["exec", "-l", "0", "--", "sh", "-c", script]);
    let (_next, _) = home.restart(&[]);
    let mut client = connect(server.address());
    assert_eq!(read_to_fin(&mut client), b"0\n");
}
