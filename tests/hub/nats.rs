//! Hubs that share a feed over NATS: a real nats-server on loopback, killed and started again where that is the point.

/// Whom the server lets in, and who they take it for.
mod credentials;
/// What no nats-server says.
mod fake;
/// A stream keeps what is said.
mod stream;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::hub::{Client, Hub, assert_all_hear_the_others};
use crate::support::clients::Raised;
use crate::support::home::{Home, number, text};
use crate::support::{GUARD, connect, lacks, output, pass, until};

/// A nats-server of the test's own, on a port that stays its own.
struct Nats {
    home: Home,
    child: Child,
    port: u16,
}

impl Nats {
    /// One with these settings; `None`, said aloud: there is no such program here.
    fn start(settings: &str) -> Option<Self> {
        Self::start_in(Home::new(), settings)
    }

    fn start_in(home: Home, settings: &str) -> Option<Self> {
        if lacks(&["nats-server"]) {
            return None;
        }
        fs::write(home.join("nats.conf"), settings).unwrap();
        let (child, port) = Self::launch(&home.join("nats.conf"), None);
        Some(Self { home, child, port })
    }

    fn launch(settings: &Path, port: Option<u16>) -> (Child, u16) {
        let mut command = Command::new("nats-server");
        let port = port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
        command.args(["-a", "127.0.0.1", "-p", &port, "-c", text(settings)]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut all = String::new();
        let port = loop {
            let mut line = String::new();
            assert!(said.read_line(&mut line).unwrap() > 0, "it ended: {all}");
            all += &line;
            if let Some((_, address)) = line.split_once("Listening for client connections on ") {
                break address.trim().rsplit_once(':').unwrap().1.parse().unwrap();
            }
        };
        // Or it would wait for somebody to read.
        thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        (child, port)
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// It is killed.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// It is there again, where it was.
    fn start_again(&mut self) {
        let settings = self.home.join("nats.conf");
        (self.child, _) = Self::launch(&settings, Some(self.port));
    }

    fn hub(&self, args: &[&str]) -> Hub {
        let url = self.url();
        Hub::start(&[&["--nats", &url, "--subject", "feed"], args].concat())
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of NATS that is no hub.
struct Plain(BufReader<TcpStream>);

impl Plain {
    fn connect(nats: &Nats) -> Self {
        let mut plain = Self(BufReader::new(connect(([127, 0, 0, 1], nats.port).into())));
        plain.say("CONNECT {\"verbose\":false,\"headers\":true}\r\n");
        plain.settle();
        plain
    }

    fn say(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the server has done what it was told.
    fn settle(&mut self) {
        self.say("PING\r\n");
        while self.line() != "PONG\r\n" {}
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).unwrap() > 0, "it hung up");
        assert!(!line.starts_with("-ERR"), "{line}");
        line
    }

    fn publish(&mut self, payload: &str) {
        self.say(&format!("PUB feed {}\r\n{payload}\r\n", payload.len()));
        self.settle();
    }

    /// As a hub would, or somebody who claims to be one.
    fn publish_as(&mut self, place: &str, payload: &str) {
        let header = format!("NATS/1.0\r\nStandfast-Hub: {place}\r\n\r\n");
        self.publish_with(header.as_bytes(), payload);
    }

    fn publish_with(&mut self, header: &[u8], payload: &str) {
        let (head, all) = (header.len(), header.len() + payload.len());
        let line = format!("HPUB feed {head} {all}\r\n");
        let all = [line.as_bytes(), header, payload.as_bytes(), b"\r\n"].concat();
        self.0.get_mut().write_all(&all).unwrap();
        self.settle();
    }

    /// The next message on the subject that has anything in it, without its headers.
    fn hear(&mut self) -> String {
        loop {
            let line = self.line();
            let words: Vec<&str> = line.split_whitespace().collect();
            let (head, all) = match words[..] {
                ["HMSG", _, _, head, all] => (head.parse().unwrap(), all.parse().unwrap()),
                ["MSG", _, _, all] => (0, all.parse().unwrap()),
                _ => continue,
            };
            let mut payload = vec![0; all + 2];
            self.0.read_exact(&mut payload).unwrap();
            if all > head {
                return String::from_utf8(payload[head..all].to_vec()).unwrap();
            }
        }
    }
}

impl Hub {
    /// How it shares its feed.
    fn shares(&self) -> Value {
        self.home.json(&["status"])["nats"][0].clone()
    }

    fn shared(&self, what: &str) -> u64 {
        number(&self.shares()[what])
    }

    /// The server is killed, and the next one is among the others.
    fn crash(&self) {
        let before = self.home.pid(&[]);
        let pid = rustix::process::Pid::from_raw(before.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        until("the next server is among the others", || {
            let (code, told, _) = output(self.home.standfast(&["status", "--json"]));
            let status: Value = serde_json::from_str(&told).unwrap_or_default();
            let is_next = code == 0 && number(&status["pid"]) != u64::from(before);
            is_next && status["nats"][0]["connected"] == true
        });
    }

    /// Waits until it knows so many other hubs: what they say from here on it hears, or misses and counts.
    fn until_knows(&self, hubs: u64) {
        until("the hubs know one another", || self.shared("hubs") >= hubs);
    }
}

#[test]
fn a_line_goes_to_all_clients_of_all_hubs_once() {
    let Some(nats) = Nats::start("") else { return };
    let hubs: Vec<_> = (0..3).map(|_| nats.hub(&["--workers", "2"])).collect();
    let clients = hubs.iter().flat_map(|hub| [hub.join(), hub.join()]);
    assert_all_hear_the_others(clients.collect());
    for hub in &hubs {
        let shares = hub.shares();
        let count = |what: &str| number(&shares[what]);
        assert_eq!(
            (count("said_lines"), count("heard_lines")),
            (2, 4),
            "{shares}"
        );
        assert_eq!((count("said_bytes"), count("heard_bytes")), (18, 36));
        assert_eq!(
            (count("missed"), count("lost"), count("backlog")),
            (0, 0, 0)
        );
        assert!(shares["connected"].as_bool().unwrap());
        let said = hub.home.answer(&["status"]);
        assert!(said.contains("feed connected said=2 heard=4"), "{said}");
    }
}

#[test]
fn what_was_said_before_the_first_round_goes_to_the_others_too() {
    let Some(nats) = Nats::start("") else { return };
    let listening = nats.hub(&[]);
    let mut listener = listening.join();
    for round in 0..5 {
        let speaking = nats.hub(&["--workers", "1"]);
        let speaker = Client::of(speaking.server.connect());
        let line = format!("the first words of {round}\n");
        speaker.say(&line);
        assert_eq!(listener.hear(), line);
    }
}

#[test]
fn a_newcomer_gets_the_history_of_all_hubs() {
    let Some(nats) = Nats::start("") else { return };
    let (one, two) = (nats.hub(&["--history", "9"]), nats.hub(&["--history", "9"]));
    let (speaker, mut other) = (one.join(), two.join());
    speaker.say("theirs\n");
    assert_eq!(other.hear(), "theirs\n");
    other.say("ours\n");
    let mut late = Client::of(two.server.connect());
    assert_eq!(
        (late.hear(), late.hear()),
        ("theirs\n".into(), "ours\n".into())
    );
}

fn number_line(number: usize) -> String {
    format!("{number:08} {}\n", "-".repeat(number % 200 * 20))
}

/// Says numbered lines, two of them in pieces that part within the second, until it is over. Answers how many.
fn say_lines(source: &Client, over: &AtomicBool) -> usize {
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        let text = number_line(number) + &number_line(number + 1);
        let (first, rest) = text.split_at(text.len() - 7);
        source.stream().write_all(first.as_bytes()).unwrap();
        pass(Duration::from_millis(1));
        source.stream().write_all(rest.as_bytes()).unwrap();
        pass(Duration::from_millis(3));
        number += 2;
    }
    source.say("the end\n");
    number
}

/// Both ends of the feed go over to other processes all the while.
#[test]
fn takeovers_of_hubs_on_either_side_lose_nothing_and_double_nothing() {
    let Some(nats) = Nats::start("") else { return };
    let url = nats.url();
    // A listener that has to wait for the processor is not to be too slow.
    let room = ["--buffer", "16m"];
    let args = [&["--nats", &url, "--subject", "feed"], &room[..]].concat();
    let (mut from, mut to) = (nats.hub(&room), nats.hub(&room));
    let (source, mut listener) = (from.join(), to.join());
    let over = AtomicBool::new(false);
    let (said, heard) = thread::scope(|scope| {
        let _over = Raised(&over);
        let saying = scope.spawn(|| say_lines(&source, &over));
        let hearing = scope.spawn(|| {
            let mut number = 0;
            loop {
                let heard = listener.hear();
                if heard == "the end\n" {
                    return number;
                }
                assert_eq!(heard, number_line(number));
                number += 1;
            }
        });
        for generation in 0..6 {
            let hub = if generation % 2 == 0 {
                &mut from
            } else {
                &mut to
            };
            hub.server = hub
                .home
                .succeed(&mut hub.server, &[&["hub"], &args[..]].concat());
            pass(Duration::from_millis(200));
        }
        over.store(true, Ordering::Relaxed);
        (saying.join().unwrap(), hearing.join().unwrap())
    });
    assert_eq!(heard, said);
    assert_eq!((to.shared("missed"), from.shared("lost")), (0, 0));
    assert_eq!(
        to.shared("heard_lines"),
        said as u64 + 1,
        "it goes on counting"
    );
    assert_eq!(from.shared("said_lines"), said as u64 + 1);
}

#[test]
fn a_takeover_that_comes_to_nothing_leaves_the_hub_among_the_others() {
    let Some(nats) = Nats::start("") else { return };
    let url = nats.url();
    let (mut one, two) = (nats.hub(&[]), nats.hub(&[]));
    let (mut here, mut there) = (one.join(), two.join());
    for fault in ["abort-freeze", "hang-freeze", "abort-pre-copy"] {
        let args = ["hub", "--nats", &url, "--subject", "feed"];
        let failed = one.home.faulty(&one.server, &args, fault);
        one.server.log_line("that it failed", |line| {
            line.contains(" warn takeover failed")
        });
        drop(failed);
        here.say("to them\n");
        assert_eq!(there.hear(), "to them\n");
        there.say("to us\n");
        assert_eq!(here.hear(), "to us\n");
    }
    assert_eq!((one.shared("missed"), two.shared("missed")), (0, 0));
}

/// What of the last lines had gone out nobody knows: they are missed rather than doubled.
#[test]
fn behind_a_keeper_a_crash_doubles_nothing_and_the_feed_goes_on_both_ways() {
    let Some(nats) = Nats::start("") else { return };
    let (one, two) = (nats.hub(&["--keep"]), nats.hub(&[]));
    let (mut here, mut there) = (one.join(), two.join());
    for round in 0..3 {
        for line in 0..20 {
            let line = format!("{round} {line}\n");
            here.say(&line);
            assert_eq!(there.hear(), line);
        }
        one.crash();
        there.say("back\n");
        assert_eq!(here.hear(), "back\n", "and nothing before");
        here.say("and on\n");
        assert_eq!(there.hear(), "and on\n", "and nothing before");
    }
    assert_eq!(two.shared("missed"), 0);
}

#[test]
fn a_hub_that_was_alone_joins_and_leaves_by_takeovers() {
    let Some(nats) = Nats::start("") else { return };
    let url = nats.url();
    let shared = ["hub", "--nats", &url, "--subject", "feed"];
    let (mut one, two) = (Hub::start(&[]), nats.hub(&[]));
    let (mut here, mut there) = (one.join(), two.join());
    here.say("alone\n");
    one.until_read(&here, 6);
    one.server = one.home.succeed(&mut one.server, &shared);
    here.say("together\n");
    assert_eq!(
        there.hear(),
        "together\n",
        "what was said before is of no concern"
    );
    there.say("yes\n");
    assert_eq!(here.hear(), "yes\n");
    one.server = one.home.succeed(&mut one.server, &["hub"]);
    let mut other = one.join();
    here.say("alone again\n");
    assert_eq!(other.hear(), "alone again\n");
    assert!(one.shares().is_null());
}

#[test]
fn without_nats_a_hub_serves_its_own_and_joins_the_others_later() {
    let Some(mut nats) = Nats::start("") else {
        return;
    };
    nats.kill();
    let mut one = nats.hub(&["--nats-wait", "200ms"]);
    one.server.log_line("that it is alone", |line| {
        line.contains(" warn ") && line.contains("this hub is alone")
    });
    let (speaker, mut listener) = (one.join(), one.join());
    speaker.say("to ours\n");
    assert_eq!(listener.hear(), "to ours\n");
    assert!(!one.shares()["connected"].as_bool().unwrap());
    assert_eq!(one.shared("backlog"), 8);
    nats.start_again();
    until("it is found", || {
        one.shares()["connected"].as_bool().unwrap()
    });
    let two = nats.hub(&[]);
    two.until_knows(1);
    let mut far = two.join();
    speaker.say("to all\n");
    assert_eq!(far.hear(), "to all\n");
    assert_eq!(one.shared("backlog"), 0);
}

#[test]
fn while_nats_is_away_clients_are_served_and_what_is_missed_is_counted() {
    let Some(mut nats) = Nats::start("") else {
        return;
    };
    let (one, two) = (nats.hub(&[]), nats.hub(&[]));
    let (speaker, mut here, mut there) = (one.join(), one.join(), two.join());
    let (mut said, mut heard) = (0, 0);
    let mut say = |here: &mut Client| {
        let line = format!("{said}\n");
        speaker.say(&line);
        assert_eq!(here.hear(), line);
        said += 1;
    };
    for round in 0..3 {
        for _ in 0..20 {
            say(&mut here);
        }
        nats.kill();
        until("they notice", || {
            let is_away = |hub: &Hub| !hub.shares()["connected"].as_bool().unwrap();
            is_away(&one) && is_away(&two)
        });
        for _ in 0..20 {
            say(&mut here);
        }
        nats.start_again();
        until(&format!("they are back, {round}"), || {
            let is_there = |hub: &Hub| hub.shares()["connected"].as_bool().unwrap();
            is_there(&one) && is_there(&two) && one.shared("backlog") == 0
        });
    }
    until("all is accounted for", || {
        two.shared("heard_lines") + two.shared("missed") == said
    });
    let lines = two.shared("heard_lines");
    let mut last = None;
    while heard < lines {
        let line = there.hear();
        let number: u64 = line.trim_end().parse().unwrap();
        assert!(Some(number) > last, "{number} after {last:?}");
        last = Some(number);
        heard += 1;
    }
    assert_eq!(there.leave(), "");
}

#[test]
fn more_than_may_wait_for_nats_is_lost_and_both_sides_count_it() {
    let Some(mut nats) = Nats::start("") else {
        return;
    };
    let (mut one, two) = (
        nats.hub(&["--nats-buffer", "4k", "--flush", "0"]),
        nats.hub(&[]),
    );
    two.until_knows(1);
    nats.kill();
    let (speaker, mut listener) = (one.join(), one.join());
    for number in 0..300 {
        let line = format!("{number:099}\n");
        speaker.say(&line);
        assert_eq!(listener.hear(), line);
    }
    one.server.log_line("that lines are lost", |line| {
        line.contains(" warn ") && line.contains("--nats-buffer")
    });
    let lost = one.shared("lost");
    assert!((200..300).contains(&lost), "{lost}");
    nats.start_again();
    until("the rest is said", || {
        one.shared("said_lines") + lost == 300
    });
    speaker.say("and on\n");
    until("all is accounted for", || {
        two.shared("heard_lines") + two.shared("missed") == 301
    });
    assert!(two.shared("missed") >= lost);
    let of = &two.shares()["missed_of"][0];
    assert_eq!(of[0], one.shares()["origin"]);
}

#[test]
fn a_stranger_is_passed_on_or_dropped_as_asked_and_hears_all() {
    let Some(nats) = Nats::start("") else { return };
    let passes = nats.hub(&[]);
    let drops = nats.hub(&["--nats-foreign", "drop"]);
    let (mut one, mut two) = (passes.join(), drops.join());
    let mut plain = Plain::connect(&nats);
    plain.say("SUB feed 1\r\n");
    plain.settle();
    plain.publish("wind 12 kn\nwind 13 kn");
    plain.publish("");
    one.say("from a client\n");
    assert_eq!(two.hear(), "from a client\n", "and nothing before");
    assert_eq!(
        (one.hear(), one.hear()),
        ("wind 12 kn\n".into(), "wind 13 kn\n".into())
    );
    until("it has heard all of it", || {
        plain.hear() == "from a client\n"
    });
    assert_eq!((passes.shared("foreign"), drops.shared("foreign")), (2, 2));
}

#[test]
fn whoever_says_that_it_is_a_hub_is_believed_within_bounds() {
    let Some(nats) = Nats::start("") else { return };
    let mut hub = nats.hub(&[]);
    let mut listener = hub.join();
    let mut plain = Plain::connect(&nats);
    let known = "00000000000000ab";
    plain.publish_as(&format!("{known} 0 0 0"), "one\nha");
    plain.publish_as(&format!("{known} 0 0 0"), "one\n");
    plain.publish_as(&format!("{known} 6 1 2"), "lf\n");
    plain.publish_as(&format!("{known} 100 10 0"), "ten\n");
    plain.publish_as(&format!("{known} 99999999999999999999 10 0"), "no place");
    for line in ["one\n", "half\n", "ten\n", "no place\n"] {
        assert_eq!(listener.hear(), line);
    }
    let shares = hub.shares();
    let count = |what: &str| number(&shares[what]);
    assert_eq!(
        (count("again"), count("missed"), count("foreign")),
        (1, 8, 1),
        "{shares}"
    );
    hub.server.log_line("what is missing", |line| {
        line.contains(" warn ") && line.contains(known) && line.contains("missed=8")
    });
    // Half a line of each of very many.
    for origin in 0..3000 {
        let header = format!("NATS/1.0\r\nStandfast-Hub: {origin:016x} 0 0 0\r\n\r\n");
        let (head, all) = (header.len(), header.len() + 5000);
        plain.say(&format!(
            "HPUB feed {head} {all}\r\n{header}{}\r\n",
            "x".repeat(5000)
        ));
    }
    plain.publish("still there");
    assert_eq!(listener.hear(), "still there\n");
    assert!(hub.shared("hubs") <= 1024);
}

#[test]
fn a_hub_that_meets_its_double_goes_by_another_name() {
    let Some(nats) = Nats::start("") else { return };
    let (mut one, two) = (nats.hub(&[]), nats.hub(&[]));
    let (mut here, mut there) = (one.join(), two.join());
    here.say("first\n");
    assert_eq!(there.hear(), "first\n");
    let name = one.shares()["origin"].as_str().unwrap().to_owned();
    let mut plain = Plain::connect(&nats);
    plain.publish_as(&format!("{name} 0 0 0"), "first\n");
    plain.publish_as(&format!("{name} 6 1 0"), "not of this one\n");
    one.server.log_line("that there is a double", |line| {
        line.contains(" warn ") && line.contains(&name)
    });
    assert_ne!(one.shares()["origin"], name.as_str());
    assert_eq!(there.hear(), "not of this one\n");
    here.say("second\n");
    assert_eq!(there.hear(), "second\n");
    there.say("third\n");
    assert_eq!(here.hear(), "third\n", "and nothing before");
}

#[test]
fn a_line_longer_than_a_message_may_be_arrives_whole() {
    let Some(nats) = Nats::start("max_payload: 2048\n") else {
        return;
    };
    let (one, two) = (nats.hub(&[]), nats.hub(&[]));
    let (speaker, mut listener) = (one.join(), two.join());
    let long = "0123456789".repeat(5000) + "\n";
    speaker.say(&format!("short\n{long}short\n"));
    for line in ["short\n", &long, "short\n"] {
        assert_eq!(listener.hear(), line);
    }
    assert_eq!(two.shared("missed"), 0);
}

#[test]
fn a_drain_says_to_the_others_what_was_said() {
    let Some(nats) = Nats::start("") else { return };
    let (mut one, two) = (nats.hub(&["--flush", "10s"]), nats.hub(&[]));
    let (speaker, mut listener) = (one.join(), two.join());
    let text: String = (0..5000).map(|line| format!("line {line}\n")).collect();
    speaker.say(&text);
    one.until_read(&speaker, text.len() as u64);
    one.server.signal(rustix::process::Signal::TERM);
    for line in text.split_inclusive('\n') {
        assert_eq!(listener.hear(), line);
    }
    drop(speaker);
    assert_eq!(one.server.wait().code(), Some(0));
}

#[test]
fn what_was_not_said_at_the_end_is_counted_and_the_exit_code_says_so() {
    let Some(mut nats) = Nats::start("") else {
        return;
    };
    let mut one = nats.hub(&[]);
    let (speaker, mut listener) = (one.join(), one.join());
    nats.kill();
    until("it notices", || {
        !one.shares()["connected"].as_bool().unwrap()
    });
    speaker.say("one\ntwo\n");
    assert_eq!(
        (listener.hear(), listener.hear()),
        ("one\n".into(), "two\n".into())
    );
    drop((speaker, listener));
    one.server.signal(rustix::process::Signal::TERM);
    one.server.log_line("how much", |line| {
        line.contains(" warn not said to other hubs") && line.contains("lines=2")
    });
    assert_eq!(one.server.wait().code(), Some(1));
}

/// The system takes what is said to a server that has been stopped; whether that will ever read it nobody knows.
#[test]
fn an_end_waits_until_nats_has_what_was_said_and_says_if_it_does_not_answer() {
    let Some(nats) = Nats::start("") else { return };
    let mut one = nats.hub(&["--nats-wait", "1s"]);
    let speaker = one.join();
    let pid = rustix::process::Pid::from_child(&nats.child);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    speaker.say("one\n");
    until("it is on its way", || one.shared("said_lines") == 1);
    drop(speaker);
    one.server.signal(rustix::process::Signal::TERM);
    one.server.log_line("that it does not answer", |line| {
        line.contains(" warn NATS does not answer")
    });
    assert_eq!(one.server.wait().code(), Some(1));
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
}

#[test]
fn the_metrics_have_what_goes_to_other_machines() {
    let Some(nats) = Nats::start("") else { return };
    let one = nats.hub(&["--metrics", "127.0.0.1:0"]);
    let two = nats.hub(&[]);
    let (speaker, mut listener) = (two.join(), one.join());
    speaker.say("one\n");
    assert_eq!(listener.hear(), "one\n");
    let address = one.home.json(&["status"])["metrics"][0].clone();
    let mut asks = connect(address.as_str().unwrap().parse().unwrap());
    asks.set_read_timeout(Some(GUARD)).unwrap();
    let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    asks.write_all(ask.as_bytes()).unwrap();
    let mut told = String::new();
    asks.read_to_string(&mut told).unwrap();
    for line in [
        "standfast_nats_connected{subject=\"feed\"} 1",
        "standfast_nats_lines_total{subject=\"feed\",direction=\"heard\"} 1",
        "standfast_nats_bytes_total{subject=\"feed\",direction=\"heard\"} 4",
        "standfast_nats_missed_total{subject=\"feed\"} 0",
        "standfast_nats_backlog_bytes{subject=\"feed\"} 0",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
}

/// What `serve` and `check` say of these flags, and that both refuse them as a matter of what was asked.
#[track_caller]
fn refused(home: &Home, args: &[&str]) -> String {
    let mut all = String::new();
    for command in ["serve", "check"] {
        let own: &[&str] = if command == "serve" {
            &["-l", "0"]
        } else {
            &[]
        };
        let line = [&[command, "hub"], own, args].concat();
        let (code, _, said) = output(home.standfast(&line));
        assert_eq!(code, 2, "{line:?}: {said}");
        all += &said;
        all.push('\n');
    }
    all
}
