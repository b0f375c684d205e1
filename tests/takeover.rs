//! A running server succeeded by another process: what its clients notice of it, which is nothing.

/// Those who ask the server something while it changes hands.
mod asked;
/// Every byte arrives once, in order, whatever waited where.
mod bytes;
/// The new process fails, is stopped, or should never have asked.
mod faults;
/// Freezes that come too late.
mod late;
/// The new process ends as soon as everything is its own.
mod lost;
/// Whose process it is: sessions, supervisors, containers.
mod parents;
/// What `print` writes, over generations.
mod print;
/// Takeovers that once went wrong.
mod regressions;
/// Somebody between the two processes, who changes what they say.
pub(crate) mod relay;
/// The server starts its own successor.
pub(crate) mod restart;
/// Real supervisors.
pub(crate) mod supervisors;
/// Much that waits, and more that comes.
mod waiting;
/// The program's file changes, and the server is restarted for it.
mod watch;

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::clients::{Bystander, Raised};
use crate::support::home::{Home, entry, number, seconds, text};
use crate::support::{
    Began, Server, assert_echoes, connect, deafen, facts, now, pass, read_to_fin, settle, undeafen,
    until,
};

/// What a new process with `args` says that may not take over from `server`, which serves on.
#[track_caller]
fn refused(home: &Home, server: &Server, args: &[&str]) -> String {
    let (code, line) = home.refusal(&[&["serve", "--replace"], args].concat());
    assert_eq!(code, 1, "{line}");
    assert_eq!(
        home.json(&["status", &server.address().to_string()])["pid"],
        server.pid()
    );
    assert_echoes(&mut server.connect(), b"it serves on");
    line
}

/// nc(1) with a pipe as its stdin, as a person at a terminal who says a line now and then.
struct Netcat {
    process: std::process::Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Netcat {
    fn start(args: &[&str]) -> Self {
        let mut process = Command::new("nc.openbsd")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Self { process, answers }
    }

    #[track_caller]
    fn assert_echoes(&mut self, line: &str) {
        let mut stdin = self.process.stdin.as_ref().unwrap();
        writeln!(stdin, "{line}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer.trim_end(), line);
    }

    /// Ends its input, and answers how it ended.
    fn end(mut self) -> Option<i32> {
        drop(self.process.stdin.take());
        // -N: the server answers a FIN with its own, and nc ends.
        self.process.wait().unwrap().code()
    }
}

impl Drop for Netcat {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn replace_is_hinted_at_where_it_would_help_and_only_there() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let other = home.standfast(&["serve", "-l", "127.0.0.2:0", "-l", "127.0.0.3:0"]);
    let other = Server::spawn(other, 2);
    let (address, beside) = (server.address().to_string(), other.address().to_string());
    let is_hinted = |args: &[&str]| {
        let (code, line) = home.refusal(&[&["serve", "-q"], args].concat());
        assert_eq!(code, 1, "{line}");
        assert!(
            line.contains("stop that one, or choose another address"),
            "{line}"
        );
        line.contains(", or take over from it with --replace")
    };
    assert!(is_hinted(&["-l", &address]));
    // It has more than is asked for.
    assert!(!is_hinted(&["-l", &beside]));
    let elsewhere = home.join("elsewhere.sock");
    assert!(!is_hinted(&["-l", &address, "--control", text(&elsewhere)]));
    assert!(!is_hinted(&["-l", &address, "--control", "off"]));
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(!is_hinted(&[
        "-l",
        &holder.local_addr().unwrap().to_string()
    ]));
    // Its path is cleaned away.
    let path = home.socket_of(&server);
    std::fs::remove_file(path).unwrap();
    assert!(!is_hinted(&["-l", &address]));
    assert!(!is_hinted(&["-l", &address, "--replace"]));
    assert!(server.drain().success());
}

#[test]
fn clients_in_mid_conversation_never_notice() {
    if crate::support::lacks(&["nc.openbsd"]) {
        return;
    }
    let home = Home::new();
    let mut server = home.serve(&["--workers", "2"]);
    let port = server.address().port().to_string();
    let mut typing = Netcat::start(&["-N", "127.0.0.1", &port]);
    typing.assert_echoes("before");
    let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    let bystander = Bystander::start(server.address());
    let since = now();
    let before = home.json(&["list"]);
    let mut next = home.succeed(&mut server, &["--workers", "2"]);
    let after = home.json(&["list"]);
    for client in &clients {
        let [before, after] = [&before, &after].map(|list| entry(list, client));
        for key in [
            "id", "peer", "listener", "service", "read", "written", "waiting",
        ] {
            assert_eq!(before[key], after[key], "{key}");
        }
        let passed = seconds(&after["age"]) - seconds(&before["age"]);
        let most = since.elapsed().as_secs_f64();
        assert!(
            passed > 0.0 && passed < most + 0.5,
            "older by {passed} of {most}"
        );
        let due = |entry: &Value| seconds(&entry["next_deadline"]["due_in"]);
        let passed = due(before) - due(after);
        assert!(
            passed > 0.0 && passed < most + 0.5,
            "nearer by {passed} of {most}"
        );
    }
    typing.assert_echoes("after");
    for client in &mut clients {
        assert_echoes(client, b"and on");
    }
    let list = home.json(&["list"]);
    assert_eq!(entry(&list, &clients[0])["read"], 11, "counted on");
    bystander.assert_unhurt();
    assert_eq!(typing.end(), Some(0));
    let ids = list
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| number(&entry["id"]));
    let last = ids.max().unwrap();
    let mut late = connect(next.address());
    assert_echoes(&mut late, b"new");
    let list = home.json(&["list"]);
    assert!(number(&entry(&list, &late)["id"]) > last, "no number twice");
    drop((clients, late));
    assert!(next.drain().success());
}

#[test]
fn a_short_read_deadline_counts_on() {
    let home = Home::new();
    let args = ["--read-timeout", "12s"];
    let mut server = home.serve(&args);
    let mut silent = server.connect();
    assert_echoes(&mut silent, b"the last word");
    let (spoken, began) = (now(), Began::now());
    pass(Duration::from_secs(3));
    let mut next = home.succeed(&mut server, &args);
    assert_eq!(read_to_fin(&mut silent), b"");
    let waited = spoken.elapsed();
    assert!(
        waited > Duration::from_millis(11_900),
        "cut after {waited:?}"
    );
    let waited = began.unhindered();
    assert!(
        waited < Duration::from_millis(14_800),
        "cut after {waited:?}"
    );
    drop(silent);
    let closed = next.closed();
    assert_eq!((closed.reason(), closed.get("id")), ("read-timeout", "1"));
    assert!(
        closed.age() >= Duration::from_millis(1900),
        "{}",
        closed.line
    );
}

#[test]
fn a_client_that_has_ended_and_hears_nothing_yet_gets_its_answer() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut deaf = server.connect();
    assert_echoes(&mut deaf, b"hello");
    settle();
    deafen(&deaf);
    deaf.write_all(b"the last").unwrap();
    deaf.shutdown(Shutdown::Write).unwrap();
    until("answered", || {
        entry(&home.json(&["list"]), &deaf)["written"] == 13
    });
    let addresses = server.addresses.clone();
    let _next = server.replaced_by(1, || home.successor(&addresses, &[]));
    undeafen(&deaf);
    assert_eq!(read_to_fin(&mut deaf), b"the last");
    drop(deaf);
    assert_eq!(server.wait().code(), Some(0), "{:?}", server.lines);
}

#[test]
fn the_number_of_workers_may_change() {
    let home = Home::new();
    let mut server = home.serve(&["--workers", "1"]);
    let mut clients: Vec<_> = (0..30).map(|_| server.connect()).collect();
    for workers in ["3", "2", "1"] {
        for client in &mut clients {
            assert_echoes(client, b"before");
        }
        server = home.succeed(&mut server, &["--workers", workers]);
        assert_eq!(home.json(&["status"])["workers"].to_string(), workers);
        for client in &mut clients {
            assert_echoes(client, b"after");
        }
    }
    drop(clients);
    assert!(server.drain().success());
}

#[test]
fn a_listener_may_be_added() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"before");
    let former = server.address().to_string();
    let args = ["serve", "--replace", "-l", &former, "-l", "127.0.0.2:0"];
    let next = server.replaced_by(2, || home.standfast(&args));
    assert_eq!(next.addresses[0], server.address());
    assert_ne!(next.addresses[1].port(), 0);
    assert_echoes(&mut client, b"after");
    for address in &next.addresses {
        assert_echoes(&mut connect(*address), b"new");
    }
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn what_is_not_the_same_server_is_refused() {
    let home = Home::new();
    let command = home.standfast(&["serve", "-l", "0", "-l", "127.0.0.2:0"]);
    let mut server = Server::spawn(command, 2);
    let [one, two] = [0, 1].map(|at| server.addresses[at].to_string());
    let line = refused(&home, &server, &["-l", &one]);
    assert!(
        line.contains(&two) && line.contains("does not listen on"),
        "{line}"
    );
    let line = refused(&home, &server, &["discard", "-l", &one, "-l", &two]);
    assert!(line.contains(&one), "{line}");
    assert!(line.contains("echo") && line.contains("discard"), "{line}");
    for why in ["does not listen on", "discard"] {
        let told = server.log_line("the refusal", |line| {
            line.contains(" warn takeover refused ")
        });
        assert!(told.contains(why) && told.contains("pid="), "{told}");
    }
    let (code, line) = home.refusal(&["serve", "--replace", "-l", &one, "--control", "off"]);
    assert!(code == 2 && line.contains("control socket"), "{line}");
    let (code, line) = home.refusal(&["serve", "--replace", "-l", "0"]);
    assert!(code == 2 && line.contains("port 0"), "{line}");
}

#[test]
fn where_no_server_is_it_starts_afresh() {
    let home = Home::new();
    for _ in 0..2 {
        let mut server = home.serve(&["--replace", "--control", text(&home.join("c.sock"))]);
        server.log_line("a word about it", |line| {
            line.contains(" info no server to take over from ")
        });
        assert_echoes(&mut server.connect(), b"hello");
        assert_eq!(
            home.json(&["status", text(&home.join("c.sock"))])["takeover"],
            Value::Null
        );
        // The second time it left its socket behind.
        server.signal(rustix::process::Signal::KILL);
        server.wait();
    }
}

#[test]
fn port_zero_is_the_port_it_was_given() {
    let home = Home::new();
    let control = home.join("c.sock");
    let args = [
        "serve",
        "--replace",
        "-l",
        "0",
        "-l",
        "0",
        "--control",
        text(&control),
    ];
    let mut server = Server::spawn(home.standfast(&args), 2);
    let addresses = server.addresses.clone();
    let mut clients: Vec<_> = addresses.iter().map(|address| connect(*address)).collect();
    for _ in 0..3 {
        for client in &mut clients {
            assert_echoes(client, b"hello");
        }
        let next = server.replaced_by(2, || home.standfast(&args));
        assert_eq!(next.addresses, addresses);
        assert_eq!(server.wait().code(), Some(0));
        server = next;
    }
}

#[test]
fn both_say_what_was_handed_over_and_each_connection_only_when_asked() {
    for verbose in [&["-v"][..], &[]] {
        let home = Home::new();
        let mut server = home.serve(verbose);
        let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
        for client in &mut clients {
            assert_echoes(client, b"hello");
        }
        let mut next = home.succeed(&mut server, verbose);
        let line = |server: &Server, what: &str| {
            let line = server.lines.iter().find(|line| line.contains(what));
            facts(line.unwrap_or_else(|| panic!("no {what} in:\n{}", server.lines.join("\n"))))
        };
        let asked = line(&server, " info takeover asked for ");
        assert_eq!(asked["version"], env!("CARGO_PKG_VERSION"));
        let gave = line(&server, " info handed over ");
        next.log_line("it", |line| line.contains(" info took over "));
        let took = line(&next, " info took over ");
        assert_eq!(gave["pid"], next.pid().to_string());
        assert_eq!(took["pid"], server.pid().to_string());
        for told in [&gave, &took] {
            assert_eq!((&*told["connections"], &*told["staying"]), ("5", "0"));
            assert!(told["frozen_ms"].parse::<f64>().unwrap() > 0.0);
        }
        let ended = server.summary();
        assert_eq!((&*ended["handed-off"], &*ended["accepted"]), ("5", "5"));
        assert_eq!(ended["frozen_ms"], gave["frozen_ms"]);
        assert!(server.lines.last().unwrap().contains(" info ended "));
        let each = server.lines.iter().filter(|line| line.contains(" closed "));
        let each: Vec<_> = each.collect();
        assert_eq!(
            each.len(),
            if verbose.is_empty() { 0 } else { 5 },
            "{each:?}"
        );
        for line in each {
            assert!(
                line.contains(" debug ") && line.contains(" reason=handed-off "),
                "{line}"
            );
        }
        let status = home.json(&["status"]);
        let takeover = &status["takeover"];
        assert_eq!(
            (&takeover["role"], &takeover["pid"]),
            (&"took".into(), &server.pid().into())
        );
        assert_eq!(
            (&takeover["connections"], &takeover["staying"]),
            (&5.into(), &0.into())
        );
        assert!(seconds(&takeover["frozen"]) > 0.0);
        drop(clients);
        for _ in 0..5 {
            assert_eq!(next.closed().reason(), "peer-closed");
        }
    }
}

#[test]
fn twenty_generations_refuse_nobody_and_hold_no_more_than_the_second() {
    let home = Home::new();
    let mut server = home.serve(&["--workers", "2"]);
    let address = server.address();
    let mut steady: Vec<_> = (0..30).map(|_| server.connect()).collect();
    for client in &mut steady {
        assert_echoes(client, b"hello");
    }
    let (over, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut second = 0;
    thread::scope(|scope| {
        let _over = Raised(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert_echoes(&mut connect(address), b"a new one");
                count.fetch_add(1, Ordering::Relaxed);
                pass(Duration::from_millis(2));
            }
        });
        for generation in 1..=20 {
            server = home.succeed(&mut server, &["--workers", "2"]);
            for client in &mut steady {
                assert_echoes(client, format!("generation {generation}").as_bytes());
            }
            if generation == 2 {
                second = settled_descriptors(&server);
            }
        }
    });
    assert!(count.load(Ordering::Relaxed) > 50, "there were new ones");
    until("as many as the second had", || {
        server.descriptors() <= second + 1
    });
    let names = std::fs::read_dir(home.join("standfast")).unwrap().count();
    assert_eq!(names, 2, "the socket and its lock, no litter");
}

/// Its descriptors without those of who comes and goes, nor what the former process is still waited for with.
fn settled_descriptors(server: &Server) -> usize {
    let mut least = usize::MAX;
    for _ in 0..20 {
        least = least.min(server.descriptors());
        pass(Duration::from_millis(5));
    }
    least
}
