//! Over takeovers: the address goes along, no scrape is refused, and the counters go on.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::{Answer, get, metrics, serve, value};
use crate::support::clients::Raised;
use crate::support::home::{Home, number};
use crate::support::{Server, assert_echoes, connect, until};

#[test]
fn scrapes_are_answered_all_along_and_counters_never_fall() {
    let home = Home::new();
    let (server, at) = serve(&home, &[]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let mut gone = server.connect();
    assert_echoes(&mut gone, b"bye");
    drop(gone);
    let is_over = AtomicBool::new(false);
    let mut orphans = Vec::new();
    thread::scope(|scope| {
        let raised = Raised(&is_over);
        let scraping = [(); 2].map(|()| {
            scope.spawn(|| {
                let mut last = [0.0; 2];
                let mut count = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let told = metrics(at);
                    let read = value(&told, "standfast_bytes_total{direction=\"read\"}");
                    let completed = value(&told, "standfast_handoffs_total{result=\"completed\"}");
                    assert!(read >= last[0] && completed >= last[1], "{told}");
                    last = [read, completed];
                    count += 1;
                    assert_eq!(get(at, "/readyz").status, 200);
                }
                (last, count)
            })
        });
        for _ in 0..4 {
            orphans.push(home.restart(&[]));
            assert_echoes(&mut client, b"again");
        }
        drop(raised);
        for scraping in scraping {
            let (_, count) = scraping.join().unwrap();
            assert!(count > 4);
        }
    });
    let told = metrics(at);
    let of = |name: &str| value(&told, name);
    let listener = server.address();
    assert_eq!(of("standfast_handoffs_total{result=\"completed\"}"), 4.0);
    assert_eq!(of("standfast_handoff_freeze_seconds_count"), 4.0);
    assert_eq!(of("standfast_bytes_total{direction=\"read\"}"), 28.0);
    assert_eq!(
        of(&format!("standfast_connections{{listener=\"{listener}\"}}")),
        1.0
    );
    assert_eq!(
        of(&format!(
            "standfast_accepted_total{{listener=\"{listener}\"}}"
        )),
        2.0
    );
    let closed =
        format!("standfast_closed_total{{listener=\"{listener}\",reason=\"peer-closed\"}}");
    assert_eq!(of(&closed), 1.0);
    let status = home.json(&["status"]);
    assert_eq!(status["takeovers"]["recent"].as_array().unwrap().len(), 4);
}

/// What `/status.json` has.
fn status(at: SocketAddr) -> Value {
    serde_json::from_str(&get(at, "/status.json").body).unwrap()
}

#[test]
fn what_the_page_shows_of_the_last_minutes_goes_on_over_takeovers_and_is_bounded() {
    let home = Home::new();
    let (mut server, at) = serve(&home, &[]);
    let mut pid = number(&status(at)["pid"]);
    let mut first = server.connect();
    assert_echoes(&mut first, b"hello");
    drop(first);
    let id: u64 = server.closed().get("id").parse().unwrap();
    assert!(!status(at)["samples"].as_array().unwrap().is_empty());
    let mut orphans = Vec::new();
    for generation in 1..=3 {
        orphans.push(home.restart(&[]));
        let told = status(at);
        assert_ne!(number(&told["pid"]), pid);
        pid = number(&told["pid"]);
        let ended = told["ended"].as_array().unwrap();
        let mut same = ended.iter().filter(|one| number(&one["id"]) == id);
        let one = same.next().expect("it is told of");
        assert!(same.next().is_none(), "told of twice: {told}");
        assert_eq!(one["reason"], "peer-closed");
        assert_eq!(number(&one["read"]), 5);
        let uptime = told["uptime"].as_f64().unwrap();
        assert!(one["ago"].as_f64().unwrap() > uptime, "{told}");
        let samples = told["samples"].as_array().unwrap();
        assert!(samples[0]["ago"].as_f64().unwrap() > uptime, "{told}");
        // None is of the time when this process did not know yet what had been counted.
        let accepted: Vec<u64> = samples.iter().map(|one| number(&one["accepted"])).collect();
        assert!(accepted.is_sorted(), "{told}");
        for _ in 0..60 {
            let mut client = connect(server.address());
            assert_echoes(&mut client, b"x");
        }
        until("they have ended", || {
            number(&status(at)["open"]) == 0
                && number(&status(at)["accepted"]) == 1 + 60 * generation
        });
        if generation == 1 {
            continue;
        }
        // The first one is too long ago by now: at most a hundred are remembered.
        assert_eq!(status(at)["ended"].as_array().unwrap().len(), 100);
        break;
    }
}

#[test]
fn a_takeover_that_fails_is_counted_and_the_old_process_answers_on() {
    let home = Home::new();
    let (mut server, at) = serve(&home, &[]);
    let faulty = |server: &Server, fault: &str| {
        let mut new = home.faulty(server, &["--metrics", &at.to_string()], fault);
        assert!(!new.wait().success(), "{:?}", new.lines);
    };
    faulty(&server, "abort-freeze");
    server.log_line("the failure", |line| line.contains("takeover failed"));
    faulty(&server, "wrong-version");
    server.log_line("the refusal", |line| line.contains("takeover refused"));
    let told = metrics(at);
    for (result, count) in [("completed", 0.0), ("failed", 1.0), ("refused", 1.0)] {
        let name = format!("standfast_handoffs_total{{result=\"{result}\"}}");
        assert_eq!(value(&told, &name), count);
    }
    assert_eq!(get(at, "/readyz").status, 200);
    assert!(server.drain().success());
    assert!(std::net::TcpStream::connect(at).is_err());
}

/// Else it would hear less of the old process than the new one had said already.
#[test]
fn who_asks_while_nobody_serves_waits_for_the_process_that_will() {
    let home = Home::new();
    let (mut server, at) = serve(&home, &[]);
    let mut hung = loop {
        let hung = home.faulty(&server, &["--metrics", &at.to_string()], "hang-owned");
        let told = server.log_line("that nobody serves, or why", |line| {
            line.contains("nobody serves until it does") || line.contains(" warn takeover ")
        });
        if told.contains("nobody serves until it does") {
            break hung;
        }
        // A busy machine may be too late for the commit.
    };
    let mut client = connect(at);
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {at}\r\n\r\n");
    client.write_all(request.as_bytes()).unwrap();
    client
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let heard = client.peek(&mut [0]).map_err(|error| error.kind());
    assert_eq!(heard, Err(ErrorKind::WouldBlock));
    client.set_read_timeout(None).unwrap();
    hung.signal(Signal::KILL);
    hung.wait();
    assert_eq!(Answer::to(&mut client).status, 200);
}

/// What a connection that ends while it is copied was counted for, it is counted for once.
#[test]
fn metrics_may_begin_move_and_end_with_a_takeover() {
    let home = Home::new();
    let mut first = home.serve(&[]);
    let mut client = first.connect();
    assert_echoes(&mut client, b"hello");
    let mut second = home.succeed(&mut first, &["--metrics", "0"]);
    let line = second.log_line("the metrics", |line| {
        line.contains(" info metrics address=")
    });
    let at = line.rsplit_once('=').unwrap().1.parse().unwrap();
    assert_eq!(
        value(&metrics(at), "standfast_bytes_total{direction=\"read\"}"),
        5.0
    );
    assert_eq!(
        value(
            &metrics(at),
            "standfast_handoffs_total{result=\"completed\"}"
        ),
        1.0
    );
    let third = home.succeed(&mut second, &[]);
    assert!(second.wait().success());
    assert!(
        std::net::TcpStream::connect(at).is_err(),
        "nobody answers there any more"
    );
    drop(third);
}
