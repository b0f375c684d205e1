//! Ends: of a server and its keeper, of servers that never serve, of one that hangs, and of the keeper alone.

use std::net::TcpListener;

use rustix::process::{Signal, kill_process, test_kill_process};

use super::{Kept, children};
use crate::support::home::Home;
use crate::support::{assert_echoes, output, pass, until};
use crate::takeover::restart::put_script;

#[test]
fn a_clean_end_of_the_server_is_the_end_of_the_keeper_with_the_same_exit_code() {
    type End = fn(&Kept);
    let ends: [(End, i32); 5] = [
        (|kept| kept.keeper.signal(Signal::TERM), 0),
        (|kept| kept.keeper.signal(Signal::INT), 0),
        (|kept| drop(kept.home.answer(&["drain"])), 0),
        (|kept| kill_process(kept.server(), Signal::TERM).unwrap(), 0),
        // A connection has to be cut.
        (|kept| drop(kept.home.answer(&["stop"])), 1),
    ];
    for (end, code) in ends {
        let mut kept = Kept::start(&["--drain-timeout", "off"]);
        let client = kept.connect();
        let server = kept.server();
        if code == 0 {
            drop(client);
            end(&kept);
        } else {
            end(&kept);
        }
        assert_eq!(
            kept.keeper.wait().code(),
            Some(code),
            "{:?}",
            kept.keeper.lines
        );
        assert!(test_kill_process(server).is_err());
        assert!(
            !kept
                .keeper
                .lines
                .iter()
                .any(|line| line.contains("crashed"))
        );
    }
}

#[test]
fn a_server_that_crashes_while_it_drains_is_not_started_again() {
    let mut kept = Kept::start(&["--drain-timeout", "off"]);
    let _client = kept.connect();
    let server = kept.server();
    kept.keeper.signal(Signal::TERM);
    kept.keeper
        .log_line("the drain", |line| line.contains("draining"));
    kill_process(server, Signal::KILL).unwrap();
    assert_eq!(kept.keeper.wait().code(), Some(128 + 9));
}

#[test]
fn five_servers_in_a_row_that_do_not_come_to_serve_are_enough() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, stdout, stderr) = output(home.standfast(&["serve", "--keep", "-l", &address]));
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    let lines: Vec<_> = stderr.lines().collect();
    assert_eq!(lines.len(), 6, "{stderr}");
    let why = format!("cannot listen on {address}");
    assert!(lines.iter().all(|line| line.contains(&why)), "{stderr}");
    let last = "standfast: the keeper gives up: 5 servers in a row have ended before they served, the last one with pid ";
    assert!(lines[5].starts_with(last), "{stderr}");
    assert!(
        lines[5].contains("exit status: 1: cannot listen"),
        "{stderr}"
    );
}

#[test]
fn what_was_asked_wrongly_ends_it_at_once() {
    let home = Home::new();
    for args in [
        &["--no-such-flag"][..],
        &["-l", "nonsense:nonsense:7"],
        // What only the server finds out.
        &["-l", "0", "--group", "no-such-group-there-is"],
    ] {
        let args = [&["serve", "--keep"], args].concat();
        let (code, line) = home.refusal(&args);
        assert_eq!(code, 2, "{line}");
    }
}

#[test]
fn a_server_that_is_stopped_is_ended_and_only_then_followed_by_another() {
    let home = Home::new();
    let mut command = home.standfast(&["serve", "--keep", "-l", "0"]);
    // As by a service manager that wants to hear every other second.
    command
        .env("WATCHDOG_USEC", "2000000")
        .env("NOTIFY_SOCKET", "@nobody-listens-there");
    let mut kept = Kept::spawn(home, command, 1);
    let former = kept.crash(Signal::STOP);
    let line = kept
        .keeper
        .log_line("the crash", |line| line.contains("crashed"));
    let what = format!(
        "pid {} stood still, was ended: signal: 9",
        former.as_raw_nonzero()
    );
    assert!(line.contains(&what), "{line}");
    kept.until_another_serves(former);
    drop(kept.connect());
    assert_eq!(children(kept.keeper.pid()).len(), 1);
    // One that is busy for a while, and the keeper stopped with it, as by Ctrl-Z: nobody is to blame.
    let server = kept.server();
    kept.keeper.signal(Signal::STOP);
    kill_process(server, Signal::STOP).unwrap();
    pass(std::time::Duration::from_secs(3));
    kill_process(server, Signal::CONT).unwrap();
    kept.keeper.signal(Signal::CONT);
    drop(kept.connect());
    assert_eq!(kept.server(), server);
}

#[test]
fn when_the_keeper_is_killed_the_server_goes_on_as_any_other() {
    let mut kept = Kept::start(&[]);
    let mut client = kept.connect();
    let server = kept.server();
    kept.keeper.signal(Signal::KILL);
    kept.keeper.log_line("the keeper's end", |line| {
        line.contains("the keeper has ended: serving on")
    });
    assert_echoes(&mut client, b"and on");
    assert_eq!(kept.status()["keeper"], serde_json::Value::Null);
    // It starts its successor itself.
    kept.home.taken_over(&["restart"]);
    assert_echoes(&mut client, b"over a restart");
    let next = kept.server();
    assert_ne!(next, server);
    kept.home.answer(&["drain"]);
    until("it has ended", || test_kill_process(next).is_err());
}

#[test]
fn when_the_keeper_is_killed_the_server_drains_if_that_was_said() {
    let home = Home::new();
    let keeper = home.serve(&["--keep-or-end"]);
    let mut kept = Kept { home, keeper };
    let client = kept.connect();
    let server = kept.server();
    kept.keeper.signal(Signal::KILL);
    kept.keeper.log_line("the keeper's end", |line| {
        line.contains("the keeper has ended: draining")
    });
    drop(client);
    until("it has ended", || test_kill_process(server).is_err());
}

#[test]
fn two_keepers_on_one_address_are_one_and_what_the_other_says() {
    let kept = Kept::start(&[]);
    let address = kept.keeper.address().to_string();
    let (code, _, stderr) = output(kept.home.standfast(&["serve", "--keep", "-l", &address]));
    assert_eq!(code, 1, "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(
        last.contains("the keeper gives up") && last.contains("in use"),
        "{stderr}"
    );
    drop(kept.connect());
}

#[test]
fn a_keeper_takes_over_from_a_server_that_has_none_and_from_another_keeper() {
    let home = Home::new();
    let mut first = home.serve(&["--workers=1"]);
    let address = first.address();
    let mut client = first.connect();
    assert_echoes(&mut client, b"hello");
    let args = ["serve", "--keep", "--replace", "-l"];
    let next = || {
        let mut command = home.standfast(&args);
        command.arg(address.to_string());
        command
    };
    let mut second = first.replaced_by(1, next);
    assert_eq!(first.wait().code(), Some(0));
    assert_echoes(&mut client, b"behind a keeper");
    let third = second.replaced_by(1, next);
    assert_eq!(second.wait().code(), Some(0), "{:?}", second.lines);
    assert_echoes(&mut client, b"behind another");
    let kept = Kept {
        home,
        keeper: third,
    };
    assert_eq!(kept.status()["keeper"], kept.keeper.pid());
    let former = kept.crash(Signal::KILL);
    kept.until_another_serves(former);
    drop(kept.connect());
}

#[test]
fn it_is_told_by_signals_even_where_no_server_runs() {
    let (mut kept, program) = Kept::by_a_copy(&[]);
    // It crashes, and what is there now does not come to serve.
    put_script(&program, "#!/bin/sh\nexec sleep 1000\n");
    let former = kept.crash(Signal::KILL);
    until("another program is started", || {
        let children = children(kept.keeper.pid());
        children.first().is_some_and(|&one| one != former)
    });
    kept.keeper.signal(Signal::TERM);
    assert_eq!(kept.keeper.wait().code(), Some(128 + 15));
}
