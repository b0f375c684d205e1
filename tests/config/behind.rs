//! Connections that a reload left behind, with a process that drains them: they are the server's yet.

use std::io::Read;
use std::net::{TcpListener, TcpStream};

use rustix::process::Signal;
use serde_json::Value;

use super::reload::{ECHO, assert_passes, relay, reload};
use super::{file, serve};
use crate::support::home::{Home, entry, number};
use crate::support::{Orphan, Server, assert_echoes, connect, until};

/// A drain that waits longer than any test.
const PATIENT: &str = "drain-timeout = \"1h\"\n";

/// A server that has been left behind with a relay's connection, and the one that serves now.
struct Left {
    home: Home,
    server: Server,
    former: u32,
    next: Orphan,
    client: TcpStream,
    far: TcpStream,
}

impl Left {
    fn behind() -> Self {
        let home = Home::new();
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let content = format!("{PATIENT}{ECHO}{}", relay(&upstream));
        let server = serve(&home, &content, 2);
        let client = connect(server.addresses[1]);
        let (mut far, _) = upstream.accept().unwrap();
        let mut relayed = client.try_clone().unwrap();
        assert_passes(&mut relayed, &mut far, "there");
        file(&home, &format!("{PATIENT}{ECHO}"));
        let former = home.pid(&[]);
        let (next, answer) = reload(&home);
        assert!(answer.contains(" 1 stay "), "{answer}");
        Self {
            home,
            server,
            former,
            next,
            client,
            far,
        }
    }

    fn list(&self) -> Value {
        self.home.json(&["list"])
    }

    /// It is the one that is left behind, and works.
    #[track_caller]
    fn assert_goes_on(&mut self) {
        let list = self.list();
        let shown = entry(&list, &self.client);
        assert_eq!(number(&shown["behind"]), u64::from(self.former), "{list}");
        assert_passes(&mut self.far, &mut self.client, "and back");
    }

    /// The client is cut off, and nobody is left behind any more.
    #[track_caller]
    fn assert_over(&mut self) {
        let error = self.client.read(&mut [0; 9]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(self.server.wait().code(), Some(0));
    }
}

#[test]
fn who_was_left_behind_is_listed_and_can_be_killed() {
    let mut left = Left::behind();
    let mut echoing = left.server.connect();
    assert_echoes(&mut echoing, b"hello");
    left.assert_goes_on();
    let list = left.list();
    assert_eq!(list.as_array().map(Vec::len), Some(2), "{list}");
    assert!(entry(&list, &echoing)["behind"].is_null(), "{list}");
    let table = left.home.answer(&["list"]);
    let heads: Vec<_> = table
        .lines()
        .map(|row| row.split_whitespace().last())
        .collect();
    let former = left.former.to_string();
    assert_eq!(
        heads,
        [Some("BEHIND"), Some(&*former), Some("-")],
        "{table}"
    );
    let (code, said) = left.home.refusal(&["kill", "999"]);
    assert_eq!((code, &*said), (1, "standfast: no connection 999"));
    let id = entry(&list, &left.client)["id"].to_string();
    assert_eq!(left.home.answer(&["kill", &id]), format!("killed {id}\n"));
    left.server
        .log_line("its end", |line| line.contains("reason=killed"));
    until("nobody is behind", || {
        !left.home.answer(&["status"]).contains("behind ")
    });
    assert_echoes(&mut echoing, b"and on");
    assert!(!left.home.answer(&["list"]).contains("BEHIND"));
    left.next.signal(Signal::TERM);
    left.assert_over();
}

#[test]
fn who_was_left_behind_is_listed_over_further_reloads() {
    let mut left = Left::behind();
    let (second, _) = reload(&left.home);
    let (third, _) = reload(&left.home);
    left.assert_goes_on();
    let id = entry(&left.list(), &left.client)["id"].to_string();
    assert_eq!(left.home.answer(&["kill", &id]), format!("killed {id}\n"));
    until("those in between have ended, too", || {
        left.next.has_ended() && second.has_ended()
    });
    third.signal(Signal::TERM);
    left.assert_over();
}

#[test]
fn a_drain_waits_for_who_was_left_behind_and_a_stop_does_not() {
    let mut left = Left::behind();
    assert_eq!(left.home.answer(&["drain"]), "draining\n");
    left.server.log_line("that it waits", |line| {
        line.contains(&format!(
            "waiting for the former process pid={}",
            left.former
        ))
    });
    left.assert_goes_on();
    assert!(!left.next.has_ended());
    assert_eq!(left.home.answer(&["stop"]), "stopping\n");
    let error = left.client.read(&mut [0; 9]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    until("it has ended", || left.next.has_ended());
    assert_eq!(left.server.wait().code(), Some(1), "it cut somebody off");
}

#[test]
fn a_drain_ends_with_who_was_left_behind() {
    let mut left = Left::behind();
    left.next.signal(Signal::TERM);
    left.server.log_line("that it waits", |line| {
        line.contains("waiting for the former process")
    });
    left.assert_goes_on();
    drop((left.client, left.far));
    assert_eq!(left.server.wait().code(), Some(0));
    until("it has ended", || left.next.has_ended());
}
