//! Restarts and reloads behind a keeper: nobody notices, and what is listened on outlives the next crash.

use std::fs;
use std::net::TcpStream;
use std::process::Stdio;

use rustix::process::{Pid, Signal};

use super::vault::faulty;
use super::{Kept, children};
use crate::support::home::{Home, number, text};
use crate::support::{Server, assert_echoes, connect, output, until};
use crate::takeover::restart::{copy, put_script};

#[test]
fn a_restart_behind_the_keeper_loses_nobody_and_so_does_a_crash_after_it_lose_no_address() {
    let mut kept = Kept::start(&[]);
    let keeper = kept.keeper.pid();
    let mut client = kept.connect();
    for round in 0..3 {
        let before = kept.server();
        kept.home.taken_over(&["restart"]);
        assert_echoes(&mut client, b"over a restart");
        let status = kept.status();
        assert_eq!(status["keeper"], keeper);
        assert_eq!(status["takeover"]["pid"], before.as_raw_nonzero().get());
        let took_over = |from: Pid| format!(" info took over pid={} ", from.as_raw_nonzero());
        let by_command = took_over(before);
        kept.keeper
            .log_line("the takeover", |line| line.contains(&by_command));
        let by_signal = took_over(kept.server());
        // On a busy machine a freeze may come too late.
        loop {
            kept.keeper.signal(Signal::USR2);
            let became = kept.keeper.log_line("what became of it", |line| {
                line.contains(&by_signal) || line.contains(" warn takeover ")
            });
            if became.contains(&by_signal) {
                break;
            }
        }
        assert_echoes(&mut client, b"by a signal");
        until("one server is left", || children(keeper) == [kept.server()]);
        if round == 1 {
            let former = kept.crash(Signal::KILL);
            kept.until_another_serves(former);
            client = kept.connect();
        }
    }
    drop(client);
    kept.assert_drains();
}

#[test]
fn a_successor_that_fails_leaves_all_as_it_was() {
    let (mut kept, program) = Kept::by_a_copy(&[]);
    let mut client = kept.connect();
    let server = kept.server();
    for (script, why) in [
        ("#!/bin/sh\nexit 1\n", "has ended"),
        ("#!/bin/sh\nkill -9 $$\n", "has ended"),
        ("#!/bin/sh\nexit 0\n", "has ended"),
    ] {
        put_script(&program, script);
        let (code, line) = kept.home.refusal(&["restart"]);
        assert!(code == 1 && line.contains(why), "{line}");
        assert_echoes(&mut client, b"it serves on");
        assert_eq!(kept.server(), server);
    }
    // Its program is gone: the keeper runs itself.
    fs::remove_file(&program).unwrap();
    let former = kept.crash(Signal::KILL);
    kept.until_another_serves(former);
    drop(kept.connect());
    kept.assert_drains();
}

#[test]
fn a_restart_right_after_a_crash_is_put_off_until_the_keeper_knows_the_new_server() {
    let (mut kept, file) = faulty("wait-unready", &[]);
    let mut client = kept.connect();
    let keeper = kept.keeper.pid();
    // What a server asks with, besides the pipes that it has from here.
    let pipes = || {
        let open = fs::read_dir(format!("/proc/{keeper}/fd")).unwrap();
        let open = open.flatten().map(|one| fs::read_link(one.path()));
        let is_pipe = |path: &std::path::PathBuf| text(path).starts_with("pipe:");
        open.flatten().filter(is_pipe).count()
    };
    let before = pipes();
    let server = loop {
        fs::write(&file, "").unwrap();
        let server = kept.until_another_serves(kept.crash(Signal::KILL));
        assert_echoes(
            &mut client,
            b"it serves, and the keeper has not heard of it",
        );
        let mut asks = kept.home.standfast(&["restart"]);
        asks.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut asks = asks.stdout(Stdio::null()).spawn().unwrap();
        until("the keeper has heard of it", || {
            pipes() > before || asks.try_wait().unwrap().is_some()
        });
        assert!(pipes() > before, "{:?}", asks.wait_with_output());
        fs::remove_file(&file).unwrap();
        let answer = asks.wait_with_output().unwrap();
        if answer.status.success() {
            break server;
        }
        // On a busy machine a freeze comes too late, or the keeper's answer.
        let why = String::from_utf8(answer.stderr).unwrap();
        assert!(why.contains(" within "), "{why}");
        until("one server is left", || children(keeper).len() == 1);
    };
    kept.until_another_serves(server);
    assert_echoes(&mut client, b"over both");
    kept.assert_drains();
}

#[test]
fn a_server_that_has_served_counts_as_crashed_though_the_keeper_had_not_heard_of_it() {
    let (mut kept, file) = faulty("wait-unready", &[]);
    let mut client = kept.connect();
    fs::write(&file, "").unwrap();
    kept.until_another_serves(kept.crash(Signal::KILL));
    assert_echoes(&mut client, b"the keeper has not heard of it");
    let unheard = kept.crash(Signal::KILL);
    fs::remove_file(&file).unwrap();
    kept.until_another_serves(unheard);
    assert_eq!(number(&kept.status()["crashes"]), 2);
    assert_echoes(&mut client, b"over both");
    kept.assert_drains();
}

/// A server by a file that is read anew, and the addresses it listens on.
#[test]
fn an_address_that_a_reload_adds_outlives_a_crash_and_one_that_it_leaves_out_is_closed() {
    let home = Home::new();
    let file = home.join("standfast.toml");
    let control = home.join("c.sock");
    let write = |paths: &[&str]| {
        let mut text = format!("control = \"{}\"\n", control.display());
        for path in paths {
            text.push_str(&format!(
                "[[listen]]\naddress = \"unix:{}\"\n",
                home.join(path).display()
            ));
        }
        text.push_str("[[listen]]\naddress = \"127.0.0.1:0\"\n");
        fs::write(&file, text).unwrap();
    };
    write(&["one"]);
    let command = home.standfast(&["serve", "--keep", "--config", text(&file)]);
    let mut keeper = Server::spawn(command, 2);
    write(&["one", "two"]);
    let target = ["--control", text(&control)];
    let status = || home.json(&[&["status"], &target[..]].concat());
    let order = |what: &str| home.taken_over(&[&[what], &target[..]].concat());
    let port = || {
        let status = status();
        let listeners = status["listeners"].as_array().unwrap().clone();
        let mut addresses = listeners
            .iter()
            .map(|one| one["address"].as_str().unwrap().to_owned());
        addresses.find(|one| one.starts_with("127")).unwrap()
    };
    let before = port();
    order("reload");
    let crash = || {
        let former = number(&status()["pid"]);
        rustix::process::kill_process(super::pid(former), Signal::KILL).unwrap();
        until("another server serves", || {
            let answer = home
                .standfast(&[&["status", "--json"], &target[..]].concat())
                .output()
                .unwrap();
            let status = serde_json::from_slice::<serde_json::Value>(&answer.stdout);
            status.is_ok_and(|status| number(&status["pid"]) != former)
        });
    };
    crash();
    use std::io::{Read, Write};
    let echoes = |path: &str| {
        let mut client = std::os::unix::net::UnixStream::connect(home.join(path)).unwrap();
        client.write_all(b"hello").unwrap();
        let mut echoed = [0; 5];
        client.read_exact(&mut echoed).unwrap();
    };
    echoes("one");
    echoes("two");
    assert_eq!(port(), before);
    write(&["two"]);
    order("reload");
    until("its path is gone", || !home.join("one").exists());
    crash();
    echoes("two");
    assert!(!home.join("one").exists());
    assert_echoes(&mut connect(before.parse().unwrap()), b"hello");
    assert_eq!(keeper.drain().code(), Some(0), "{:?}", keeper.lines);
    let _ = TcpStream::connect(before).unwrap_err();
}

#[test]
fn a_watched_program_is_restarted_behind_the_keeper_and_signals_reach_the_newest() {
    let (mut kept, program) = Kept::by_a_copy(&["--watch"]);
    let mut client = kept.connect();
    for _ in 0..2 {
        let before = kept.server();
        kept.keeper.restarted_for(|| {
            let newer = kept.home.join("newer");
            copy(&newer);
            fs::rename(&newer, &program).unwrap();
        });
        kept.until_another_serves(before);
        assert_echoes(&mut client, b"and on");
        until("the former one has ended", || {
            children(kept.keeper.pid()) == [kept.server()]
        });
    }
    drop(client);
    kept.assert_drains();
}

#[test]
fn a_successor_that_dies_at_any_point_of_a_takeover_leaves_somebody_who_serves() {
    for fault in [
        "init", "pre-copy", "freeze", "commit", "owned", "running", "serving",
    ] {
        let home = Home::new();
        let mut command = home.standfast(&["serve", "--keep", "-l", "0"]);
        command.env("STANDFAST_FAULT", fault);
        let kept = Kept::spawn(home, command, 1);
        let mut client = kept.connect();
        let former = kept.server();
        // The successor fails by its fault, before or after the commit.
        drop(output(kept.home.standfast(&["restart", "--timeout", "5s"])));
        until("somebody serves", || {
            let answer = kept.home.standfast(&["status", "--json"]).output().unwrap();
            answer.status.success()
        });
        if kept.server() == former {
            assert_echoes(&mut client, b"it goes on");
        }
        let mut another = kept.connect();
        assert_echoes(&mut another, b"and serves");
        let crashed = kept.crash(Signal::KILL);
        kept.until_another_serves(crashed);
        drop(kept.connect());
    }
}
