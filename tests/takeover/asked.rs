//! Those who ask the server something while it changes hands: they get the whole truth, late, or hear why not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;

use crate::control::strangers::{Caller, seqpacket};
use crate::support::clients::Raised;
use crate::support::home::{Home, entry, number, seconds, text};
use crate::support::{assert_echoes, facts, output, restarted, until};

#[test]
fn a_table_is_whole_whenever_it_is_asked_for() {
    const CLIENTS: usize = 200;
    let home = Home::new();
    let server = home.serve(&["--workers", "2"]);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let raised = Raised(&over);
        let asking = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let list = home.json(&["list"]);
                assert_eq!(list.as_array().unwrap().len(), CLIENTS);
                let status = home.json(&["status"]);
                assert_eq!(status["open"], CLIENTS);
                assert_eq!(status["closed"], Value::Array(Vec::new()));
            }
        });
        let generations: Vec<_> = (0..8).map(|_| home.restart(&[])).collect();
        drop(raised);
        asking.join().unwrap();
        home.answer(&["drain"]);
        drop(generations);
    });
}

/// For an asker whose question is not read: hung up on once it is there.
const UNREAD: &str = "unread";

/// A server that is none: it answers each asker with the next of `answers`, and hangs up.
fn pretend(home: &Home, answers: &'static [&'static [&'static str]]) -> impl FnOnce() {
    let socket = seqpacket::listen(&home.join("c.sock"));
    let pretending = thread::spawn(move || {
        for answers in answers {
            let mut accepted = None;
            until("an asker", || {
                let flags = rustix::net::SocketFlags::CLOEXEC;
                accepted = rustix::net::accept_with(&socket, flags).ok();
                accepted.is_some()
            });
            let accepted = accepted.unwrap();
            if answers.contains(&UNREAD) {
                until("a question", || {
                    rustix::io::ioctl_fionread(&accepted).is_ok_and(|unread| unread > 0)
                });
                continue;
            }
            let mut caller = Caller::from(accepted);
            caller.hear().unwrap();
            for answer in *answers {
                caller.say(answer.as_bytes());
            }
        }
    });
    move || pretending.join().unwrap()
}

const ONE: &str = r#"{"connections":[{"id":7,"peer":"127.0.0.1:9","listener":"127.0.0.1:7","service":"echo","age":1.0,"idle":1.0,"read":1,"written":1,"waiting":0,"unacknowledged":null,"round_trip":null,"next_deadline":null}]}"#;

#[test]
fn an_asker_that_is_sent_on_forgets_what_it_has_heard_and_asks_again() {
    let home = Home::new();
    let over = pretend(
        &home,
        &[
            &[ONE, r#""wait""#, r#""moved""#],
            // The former process ends with the question in its hands.
            &[ONE],
            &[],
            &[r#""wait""#, ONE, r#""done""#],
        ],
    );
    let list = home.json(&["list", "--control", text(&home.join("c.sock"))]);
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    over();
}

#[test]
fn an_order_whose_fate_is_unknown_is_not_given_again() {
    let home = Home::new();
    let over = pretend(&home, &[&[r#""moved""#], &[]]);
    let (code, line) = home.refusal(&["drain", "--control", text(&home.join("c.sock"))]);
    assert_eq!(code, 1, "{line}");
    over();
}

#[test]
fn restart_says_who_serves_where_that_is_none_that_took_over() {
    let home = Home::new();
    let server = home.serve(&[]);
    let afresh = home.json(&["status"]);
    let pid = server.pid();
    drop(server);
    let status = format!(r#"{{"status":{afresh}}}"#);
    let heir = pid + 1;
    let took = format!(
        r#"{{"restarted":{{"role":"gave","pid":{heir},"connections":1,"staying":0,"frozen":0.001}}}}"#
    );
    let answers = [
        vec![leaked(status.clone())],
        vec![leaked(took)],
        vec![leaked(status)],
    ];
    let answers: Vec<&[&str]> = answers.into_iter().map(|one| &*one.leak()).collect();
    let over = pretend(&home, answers.leak());
    let (code, line) = home.refusal(&["restart", "--control", text(&home.join("c.sock"))]);
    assert_eq!(code, 1, "{line}");
    let truth = format!(
        "pid {heir} took over and has ended, all connections with it; pid {pid}, started afresh, serves now"
    );
    assert!(line.contains(&truth), "{line}");
    over();
}

fn leaked(text: String) -> &'static str {
    text.leak()
}

/// As by a server that ends with askers in its queue.
#[test]
fn an_order_that_was_not_read_is_given_again() {
    let home = Home::new();
    let over = pretend(&home, &[&[UNREAD], &[UNREAD], &[r#""done""#]]);
    home.answer(&["drain", "--control", text(&home.join("c.sock"))]);
    over();
}

#[test]
fn restarts_that_are_asked_for_together_come_one_after_the_other() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let socket = home.socket_of(&server);
    server.suspend();
    let answers = thread::scope(|scope| {
        let restart = || restarted(|| home.standfast(&["restart", "--json"]));
        let asking: Vec<_> = (0..6).map(|_| scope.spawn(restart)).collect();
        // Each waits in the queue of a server that is about to go on.
        until("all have asked", || waiting(&socket) >= 6);
        server.resume();
        let answers = asking.into_iter().map(|asking| asking.join().unwrap());
        answers.collect::<Vec<_>>()
    });
    let mut processes = Vec::new();
    for (code, stdout, stderr) in answers {
        assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
        let answer: Value = serde_json::from_str(&stdout).unwrap();
        processes.push(u32::try_from(number(&answer["pid"])).unwrap());
    }
    assert_echoes(&mut client, b"and on");
    assert!(processes.contains(&home.pid(&[])));
    drop(client);
    home.answer(&["drain"]);
    // All of them have the same stderr.
    server.wait();
    let pids = |what: &str| {
        let lines = server.lines.iter().filter(|line| line.contains(what));
        lines
            .map(|line| facts(line)["pid"].parse().unwrap())
            .collect::<Vec<u32>>()
    };
    let heirs = pids(" info handed over ");
    assert_eq!(heirs.len(), 6, "{heirs:?}");
    let heads = [&[server.pid()], &heirs[..5]].concat();
    assert_eq!(
        pids(" info took over "),
        heads,
        "each names the one before it"
    );
    processes.sort_unstable();
    let mut heirs = heirs;
    heirs.sort_unstable();
    assert_eq!(processes, heirs, "each asker hears of a process of its own");
}

/// How many wait in the queue of the socket at `path`: connected, and not accepted.
fn waiting(path: &std::path::Path) -> usize {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let path = std::fs::canonicalize(path).unwrap();
    // The listener is one of them; it has a flag of its own (__SO_ACCEPTCON).
    let ends = table.lines().filter(|line| line.ends_with(text(&path)));
    ends.filter(|line| !line.contains(" 00010000 ")).count()
}

#[test]
fn counters_go_on_over_takeovers() {
    let home = Home::new();
    let server = home.serve(&["-l", "0", "-l", "[::1]:0"]);
    let mut gone = server.connect();
    assert_echoes(&mut gone, b"hello");
    drop(gone);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let address = server.address().to_string();
    let status = || home.json(&["status", &address]);
    until("one has ended", || status()["open"] == 1);
    let before = status();
    assert_eq!(
        (&before["accepted"], &before["read"]),
        (&2.into(), &10.into())
    );
    let generations: Vec<_> = (0..2).map(|_| home.restart(&[&address])).collect();
    let after = status();
    for key in ["accepted", "read", "written", "closed", "open", "listeners"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    assert_ne!(after["pid"], before["pid"]);
    assert!(seconds(&after["counted_for"]) >= seconds(&before["counted_for"]));
    assert!(
        seconds(&after["uptime"]) < seconds(&after["counted_for"]),
        "its own start beside them"
    );
    assert_echoes(&mut client, b"and on");
    drop(client);
    until("the other has ended", || status()["open"] == 0);
    let end = status();
    assert_eq!((&end["accepted"], &end["read"]), (&2.into(), &16.into()));
    assert_eq!(end["closed"], serde_json::json!([["peer-closed", 2]]));
    let table = home.answer(&["status", &address]);
    assert!(table.contains("\ncounted      for "), "{table}");
    drop(generations);
}

#[test]
fn what_is_asked_for_while_nobody_knows_who_serves_comes_when_that_is_known() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let hung = loop {
        let hung = home.faulty(&server, &[], "hang-commit");
        let told = server.log_line("that nobody serves, or why", |line| {
            line.contains("nobody serves until it does") || line.contains(" warn takeover ")
        });
        if told.contains(" error ") {
            break hung;
        }
    };
    thread::scope(|scope| {
        let ask = |what: &'static str| {
            let command = home.standfast(&[what, "--json"]);
            scope.spawn(move || output(command))
        };
        let asking = ["list", "status"].map(ask);
        crate::support::settle();
        for asking in &asking {
            assert!(!asking.is_finished(), "it is not known yet");
        }
        drop(hung);
        let [list, status] = asking.map(|asking| {
            let (code, stdout, stderr) = asking.join().unwrap();
            assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
            serde_json::from_str::<Value>(&stdout).unwrap()
        });
        assert_eq!(entry(&list, &client)["read"], 5);
        assert_eq!(number(&status["pid"]), u64::from(server.pid()));
    });
}
