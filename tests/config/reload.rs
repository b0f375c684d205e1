//! A configuration that is read anew by a process that takes over.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use rustix::process::Signal;

use super::{NO_FILES, file, serve};
use crate::support::home::{Home, number, text};
use crate::support::{Orphan, Server, assert_echoes, connect, restarted, shell, until};

/// The process that answers.
fn pid(home: &Home) -> u32 {
    u32::try_from(number(&home.json(&["status"])["pid"])).unwrap()
}

/// Has the file read anew: the new process, and what was answered.
#[track_caller]
fn reload(home: &Home) -> (Orphan, String) {
    let (code, stdout, stderr) = restarted(|| home.standfast(&["reload"]));
    assert_eq!((code, &*stderr), (0, ""), "{stdout}");
    (Orphan::new(pid(home)), stdout)
}

/// What is said of a reload that is refused.
#[track_caller]
fn refused(home: &Home) -> String {
    let (code, said) = home.refusal(&["reload"]);
    assert_eq!(code, 1, "{said}");
    let begins = "standfast: not reloaded, the server goes on: ";
    assert!(said.starts_with(begins), "{said}");
    said
}

#[test]
fn what_was_changed_takes_effect_and_the_clients_stay() {
    let home = Home::new();
    let first = "address = 0\nread-timeout = \"5m\"\n";
    let mut server = serve(&home, first, 1);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let more = "[[listen]]\naddress = 0\nread-timeout = \"7m\"\n\n\
                [[listen]]\naddress = \"127.0.0.2:0\"\nservice = \"discard\"\n";
    file(&home, more);
    let (next, answer) = reload(&home);
    assert!(answer.starts_with("reloaded: pid "), "{answer}");
    assert!(answer.contains(", 1 connection handed over, "), "{answer}");
    assert_echoes(&mut client, b"and on");
    assert_echoes(&mut server.connect(), b"at the same address");
    let changed = format!("listening listener={} service=echo ", server.address());
    let line = server.log_line("the new setting", |line| {
        line.contains(&changed) && line.contains(" read_timeout=7m ")
    });
    assert!(line.contains("keepalive=60:10:3"), "{line}");
    let added = server.log_line("the new listener", |line| line.contains("service=discard"));
    let added = added.split("listener=").nth(1).unwrap();
    let added = added.split(' ').next().unwrap().parse().unwrap();
    drop(connect(added));
    // And once more, from there.
    file(&home, &more.replace("7m", "8m"));
    let (last, answer) = reload(&home);
    assert!(answer.starts_with("reloaded: pid "), "{answer}");
    assert_echoes(&mut client, b"still");
    until("the second one has ended", || next.has_ended());
    // It has the same stderr: with it the log ends.
    drop(last);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn what_cannot_be_read_or_may_not_be_changes_nothing_and_is_answered() {
    let home = Home::new();
    let good = "address = 0\n";
    let mut server = serve(&home, good, 1);
    let path = home.join("standfast.toml");
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let wrong = (
        "printf 'address = 0\\nread-timeot = 5\\n' > \"$2\"",
        "standfast.toml:2: there is no key read-timeot; the nearest one is read-timeout",
    );
    let value = (
        "printf 'address = 0\\nbacklog = 0\\n' > \"$2\"",
        "standfast.toml:2: invalid value '0'",
    );
    let taken = (
        "printf 'address = [0, \"nosuch.invalid:1\"]\\n' > \"$2\"",
        "standfast.toml:1: cannot resolve nosuch.invalid:1",
    );
    for (make, why) in NO_FILES.into_iter().chain([wrong, value, taken]) {
        assert!(shell(make, &[text(&path)]).status().unwrap().success());
        let said = refused(&home);
        assert!(said.contains(why), "{make}: {said}");
        assert_eq!(pid(&home), server.pid());
        assert_echoes(&mut client, b"as before");
    }
    fs::write(&path, good).unwrap();
    let (next, _) = reload(&home);
    assert_echoes(&mut client, b"and on");
    drop(next);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_hangup_reloads_where_there_is_a_file() {
    let home = Home::new();
    let mut server = serve(&home, "address = 0\n", 1);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let path = file(&home, "addresz = 0\n");
    server.signal(Signal::HUP);
    let line = server.log_line("what is wrong", |line| line.contains("not restarted"));
    assert!(line.contains("the nearest one is address"), "{line}");
    assert_eq!(pid(&home), server.pid());
    fs::write(&path, "address = 0\nmax-age = \"1h\"\n").unwrap();
    loop {
        server.signal(Signal::HUP);
        let line = server.log_line("what comes of it", |line| {
            line.contains(" took over ") || line.contains("not restarted")
        });
        if line.contains(" took over ") {
            break;
        }
        assert!(line.contains("freeze"), "only too slow: {line}");
    }
    let next = Orphan::new(pid(&home));
    assert_echoes(&mut client, b"and on");
    drop(next);
}

#[test]
fn a_hangup_is_ignored_under_nohup_with_a_file_too() {
    let home = Home::new();
    let path = file(&home, "address = 0\n");
    let standfast = home.standfast(&[]);
    let mut command = Command::new("nohup");
    command.arg(standfast.get_program());
    command.args(["serve", "--config", text(&path)]);
    command.env("XDG_RUNTIME_DIR", &home.path);
    let mut server = Server::spawn(command, 1);
    server.signal(Signal::HUP);
    server.signal(Signal::USR1);
    server.log_line("the next signal", |line| line.contains("signal=SIGUSR1"));
    assert!(!server.lines.iter().any(|line| line.contains("SIGHUP")));
    assert_eq!(pid(&home), server.pid());
}

#[test]
fn a_reload_without_a_file_is_a_restart() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut client: TcpStream = server.connect();
    assert_echoes(&mut client, b"hello");
    let (next, answer) = reload(&home);
    assert!(answer.contains("1 connection handed over"), "{answer}");
    assert_echoes(&mut client, b"and on");
    drop(next);
    assert_eq!(server.wait().code(), Some(0));
}
