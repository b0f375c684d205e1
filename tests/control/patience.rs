//! How long who asks waits, and what becomes of orders that were given up.

use std::path::Path;

use super::strangers::seqpacket;
use crate::support::home::{Home, text};
use crate::support::{Server, assert_echoes, facts, until};

#[test]
fn an_order_that_was_given_up_is_not_carried_out_later() {
    for order in [&["drain"][..], &["stop"], &["kill", "1"], &["restart"]] {
        let home = Home::new();
        let mut server = home.serve(&["-v"]);
        let mut client = server.connect();
        assert_echoes(&mut client, b"hello");
        server.suspend();
        let (code, line) = home.refusal(&[order, &["--timeout", "100ms"]].concat());
        assert_eq!(code, 1, "{line}");
        assert!(line.contains(text(&home.socket_of(&server))), "{line}");
        server.resume();
        server.log_line("that the order is void", |line| {
            line.contains("a control client has gone before it was heard")
        });
        let status = home.json(&["status"]);
        assert_eq!(
            (&status["draining"], &status["pid"]),
            (&false.into(), &server.pid().into())
        );
        assert_echoes(&mut client, b"nothing has happened");
        drop(client);
        assert!(server.drain().success());
        let started = server.lines.iter().any(|line| line.contains("successor"));
        assert!(!started, "{:?}", server.lines);
    }
}

#[test]
fn a_stopped_server_with_a_full_queue_is_not_waited_for_for_ever() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let path = home.socket_of(&server);
    server.suspend();
    let callers: Vec<_> = std::iter::from_fn(|| seqpacket::connect(&path)).collect();
    let address = server.address().to_string();
    for command in [
        &["status"][..],
        &["list"],
        &["kill", "1"],
        &["drain"],
        &["stop"],
        &["restart"],
    ] {
        let (code, line) = home.refusal(&[command, &["--timeout", "100ms"]].concat());
        assert_eq!(code, 1, "{line}");
        assert!(
            line.contains(text(&path)) && line.contains("takes nobody in"),
            "{line}"
        );
    }
    drop(callers);
    server.resume();
    until("it answers again", || {
        home.json(&["status", &address])["draining"] == false
    });
    assert!(server.drain().success());
}

#[test]
fn a_restart_that_was_given_up_is_called_off() {
    let home = Home::new();
    let mut command = home.standfast(&["serve", "-l", "0"]);
    command.env("STANDFAST_FAULT", "hang-init");
    let mut server = Server::spawn(command, 1);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let (code, line) = home.refusal(&["restart", "--timeout", "100ms"]);
    assert_eq!(code, 1, "{line}");
    let told = server.log_line("that it was called off", |line| {
        line.contains("not restarted")
    });
    assert!(told.contains("who asked for it has given up"), "{told}");
    let successor = format!("/proc/{}", facts(&told)["pid"]);
    until("the successor has ended", || {
        !Path::new(&successor).exists()
    });
    assert_eq!(home.json(&["status"])["pid"], server.pid());
    assert_echoes(&mut client, b"nothing has happened");
    drop(client);
    assert!(server.drain().success());
}
