//! With a stream of JetStream: each line once, whatever becomes of hubs and NATS; or it is said what is wrong with the stream.

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{Nats, Plain, number_line, refused, say_lines};
use crate::hub::{Client, Hub};
use crate::support::clients::Raised;
use crate::support::home::{Home, text};
use crate::support::until;

impl Nats {
    /// One that keeps streams, and has the stream FEED of the subject `feed`, with `settings` of it.
    fn with_stream(settings: &Value) -> Option<Self> {
        Self::with_streams("", settings)
    }

    /// The same, with `server` among its own settings.
    fn with_streams(server: &str, settings: &Value) -> Option<Self> {
        let home = Home::new();
        let store = home.join("store");
        let nats = Self::start_in(
            home,
            &format!("jetstream {{ store_dir: \"{}\" }}\n{server}", text(&store)),
        )?;
        Plain::connect(&nats).make_stream("FEED", settings);
        Some(nats)
    }

    /// A hub on the stream.
    fn hub_on(&self, args: &[&str]) -> Hub {
        self.hub(&[&["--stream", "FEED"], args].concat())
    }

    fn flags_of(url: &str) -> [&str; 6] {
        ["--nats", url, "--subject", "feed", "--stream", "FEED"]
    }
}

impl Plain {
    /// What the servers answer.
    fn ask(&mut self, subject: &str, question: &str) -> Value {
        self.say("SUB answers 77\r\n");
        let length = question.len();
        self.say(&format!("PUB {subject} answers {length}\r\n{question}\r\n"));
        let size = loop {
            let line = self.line();
            if let ["MSG", _, _, size] = line.split_whitespace().collect::<Vec<_>>()[..] {
                break size.parse::<usize>().unwrap();
            }
        };
        let mut answer = vec![0; size + 2];
        self.0.read_exact(&mut answer).unwrap();
        self.say("UNSUB 77\r\n");
        let answer: Value = serde_json::from_slice(&answer[..size]).unwrap();
        assert!(answer["error"].is_null(), "{answer}");
        answer
    }

    fn make_stream(&mut self, name: &str, settings: &Value) {
        let mut all =
            json!({ "name": name, "subjects": ["feed"], "storage": "file", "num_replicas": 1 });
        for (key, value) in settings.as_object().unwrap() {
            all[key] = value.clone();
        }
        self.ask(&format!("$JS.API.STREAM.CREATE.{name}"), &all.to_string());
    }

    fn stream(&mut self, does: &str) -> Value {
        self.ask(&format!("$JS.API.STREAM.{does}.FEED"), "")
    }
}

/// Both ends of the feed go over to other processes, and NATS is killed, all the while: nobody misses a line or hears one twice.
#[test]
fn each_line_comes_once_over_takeovers_and_while_nats_is_killed() {
    let Some(mut nats) = Nats::with_stream(&json!({})) else {
        return;
    };
    let url = nats.url();
    // What waited comes in one go: a listener that has to wait for the processor is not to be too slow for it. Nor is there too
    // much to wait for NATS, however long that takes.
    let room = ["--buffer", "16m", "--nats-buffer", "256m"];
    let args = [&Nats::flags_of(&url)[..], &room].concat();
    let (mut from, mut to) = (nats.hub_on(&room), nats.hub_on(&room));
    let (source, mut listener) = (from.join(), to.join());
    let (over, heard) = (AtomicBool::new(false), AtomicUsize::new(0));
    let said = thread::scope(|scope| {
        let _over = Raised(&over);
        let saying = scope.spawn(|| say_lines(&source, &over));
        scope.spawn(|| {
            loop {
                let line = listener.hear();
                let number = heard.load(Ordering::Relaxed);
                if line == "the end\n" {
                    return;
                }
                assert_eq!(line, number_line(number));
                heard.store(number + 1, Ordering::Relaxed);
            }
        });
        for generation in 0..6 {
            let before = heard.load(Ordering::Relaxed);
            let is_away = generation % 3 == 1;
            // Nobody waits for one that is not there, or the others would for all that long.
            let wait = if is_away { "100ms" } else { "5s" };
            if is_away {
                nats.kill();
            }
            let hub = if generation % 2 == 0 {
                &mut from
            } else {
                &mut to
            };
            hub.server = hub.home.succeed(
                &mut hub.server,
                &[&["hub"], &args[..], &["--nats-wait", wait]].concat(),
            );
            if is_away {
                nats.start_again();
            }
            until(&format!("more comes after {generation}"), || {
                heard.load(Ordering::Relaxed) > before + 20
            });
        }
        over.store(true, Ordering::Relaxed);
        saying.join().unwrap()
    });
    assert_eq!(heard.load(Ordering::Relaxed), said);
    assert_eq!((to.shared("missed"), from.shared("lost")), (0, 0));
    assert_eq!(to.shared("heard_lines"), said as u64 + 1);
    until("what was said is known to be taken in", || {
        from.shared("said_lines") == said as u64 + 1
    });
    let shown = to.home.answer(&["status"]);
    assert!(
        shown.contains("feed connected stream=FEED said=0"),
        "{shown}"
    );
}

#[test]
fn a_newcomer_gets_the_history_of_the_stream_from_a_hub_that_has_just_begun() {
    let Some(nats) = Nats::with_stream(&json!({})) else {
        return;
    };
    let (mut one, two) = (nats.hub_on(&["--flush", "0"]), nats.hub_on(&[]));
    let (speaker, mut other) = (one.join(), two.join());
    for number in 0..300 {
        speaker.say(&format!("{number}\n"));
        assert_eq!(other.hear(), format!("{number}\n"));
    }
    drop(speaker);
    one.server.signal(Signal::TERM);
    assert_eq!(one.server.wait().code(), Some(0));
    let mut late = nats.hub_on(&["--history", "100"]);
    let mut newcomer = Client::of(late.server.connect());
    for number in 200..300 {
        assert_eq!(newcomer.hear(), format!("{number}\n"));
    }
    other.say("and on\n");
    assert_eq!(newcomer.hear(), "and on\n", "once");
    assert_eq!((late.shared("missed"), late.shared("heard_lines")), (0, 1));
    // Who takes over has the history of its predecessor, and no other.
    let url = nats.url();
    let args = [&["hub"], &Nats::flags_of(&url)[..], &["--history", "100"]].concat();
    late.server = late.home.succeed(&mut late.server, &args);
    other.say("still\n");
    assert_eq!(newcomer.hear(), "still\n", "and nothing before");
    let mut newest = Client::of(late.server.connect());
    for number in 202..300 {
        assert_eq!(newest.hear(), format!("{number}\n"));
    }
    assert_eq!(
        (newest.hear(), newest.hear()),
        ("and on\n".into(), "still\n".into())
    );
    // So has one that was alone and joins.
    let mut alone = Hub::start(&["--history", "9"]);
    let mut first = alone.join();
    let second = alone.join();
    second.say("alone\n");
    assert_eq!(first.hear(), "alone\n");
    alone.server = alone.home.succeed(&mut alone.server, &args);
    other.say("together\n");
    assert_eq!(first.hear(), "together\n", "and nothing of before");
    let mut newest = Client::of(alone.server.connect());
    assert_eq!(
        (newest.hear(), newest.hear()),
        ("alone\n".into(), "together\n".into())
    );
}

#[test]
fn a_stream_that_cannot_be_the_feeds_ends_a_start() {
    let Some(nats) = Nats::with_stream(&json!({})) else {
        return;
    };
    let mut plain = Plain::connect(&nats);
    plain.make_stream("OTHER", &json!({ "subjects": ["another.*"] }));
    plain.make_stream("SILENT", &json!({ "subjects": ["silent"], "no_ack": true }));
    plain.make_stream(
        "TINY",
        &json!({ "subjects": ["tiny"], "max_msg_size": 100 }),
    );
    let none = Nats::start("").unwrap();
    let home = Home::new();
    for (nats, subject, stream, why) in [
        (&nats, "feed", "NONE", "there is no stream NONE"),
        (&nats, "feed", "OTHER", "another.*"),
        (&nats, "silent", "SILENT", "no_ack"),
        (&nats, "tiny", "TINY", "100 bytes"),
        (&nats, "feed", "a.b", "no name of a stream"),
        (&none, "feed", "FEED", "no JetStream"),
    ] {
        let url = nats.url();
        let said = refused(
            &home,
            &["--nats", &url, "--subject", subject, "--stream", stream],
        );
        assert!(said.contains(why), "{stream}: {said}");
    }
}

#[test]
fn a_stream_that_is_full_has_lines_wait_and_the_oldest_are_lost_and_counted() {
    let full = json!({ "max_msgs": 3, "discard": "new" });
    let Some(nats) = Nats::with_stream(&full) else {
        return;
    };
    let mut one = nats.hub_on(&[
        "--flush",
        "0",
        "--nats-buffer",
        "4k",
        "--nats-foreign",
        "drop",
    ]);
    let two = nats.hub_on(&[]);
    let (speaker, mut here, mut there) = (one.join(), one.join(), two.join());
    let line = |number: usize| format!("{number:099}\n");
    let mut plain = Plain::connect(&nats);
    speaker.say(&line(0));
    assert_eq!((here.hear(), there.hear()), (line(0), line(0)));
    plain.publish("not of a hub");
    plain.publish("not of a hub");
    assert_eq!(
        (there.hear(), there.hear()),
        ("not of a hub\n".into(), "not of a hub\n".into())
    );
    for number in 1..200 {
        speaker.say(&line(number));
        assert_eq!(here.hear(), line(number), "who is here does not wait");
    }
    one.server.log_line("that the stream is full", |line| {
        line.contains(" warn ") && line.contains("maximum messages exceeded")
    });
    until("it is lost", || one.shared("lost") >= 100);
    assert!(one.shared("backlog") > 0);
    plain.stream("PURGE");
    until("the rest is taken in", || one.shared("backlog") == 0);
    let lost = one.shared("lost");
    until("all is accounted for", || {
        two.shared("heard_lines") + two.shared("missed") == 202
    });
    assert_eq!(
        (two.shared("missed"), one.shared("said_lines")),
        (lost, 200 - lost)
    );
    assert_eq!(one.shared("foreign"), 2);
    for number in usize::try_from(lost).unwrap() + 1..200 {
        assert_eq!(there.hear(), line(number));
    }
}

#[test]
fn a_stream_with_little_room_takes_in_little_at_a_time() {
    let Some(nats) = Nats::with_stream(&json!({ "max_bytes": 4096, "discard": "new" })) else {
        return;
    };
    let (one, two) = (nats.hub_on(&[]), nats.hub_on(&[]));
    let speaker = one.join();
    let text: String = (0..100).map(|number| format!("{number:099}\n")).collect();
    speaker.say(&text);
    let mut plain = Plain::connect(&nats);
    until("all is taken in", || {
        plain.stream("PURGE");
        one.shared("said_lines") == 100
    });
    until("all is accounted for", || {
        two.shared("heard_lines") + two.shared("missed") == 100
    });
    assert_eq!(one.shared("lost"), 0);
}

#[test]
fn a_stream_that_is_made_anew_is_read_from_its_beginning() {
    let Some(nats) = Nats::with_stream(&json!({})) else {
        return;
    };
    let (mut one, two) = (nats.hub_on(&[]), nats.hub_on(&[]));
    let (here, mut there) = (one.join(), two.join());
    for number in 0..20 {
        here.say(&format!("{number}\n"));
        assert_eq!(there.hear(), format!("{number}\n"));
    }
    let mut plain = Plain::connect(&nats);
    plain.stream("DELETE");
    here.say("while there is none\n");
    one.server.log_line("that nobody takes it in", |line| {
        line.contains(" warn ") && line.contains("saying it again")
    });
    plain.make_stream("FEED", &json!({}));
    assert_eq!(there.hear(), "while there is none\n", "once, and soon");
    assert_eq!((two.shared("missed"), one.shared("lost")), (0, 0));
}

/// What others say while there is no server is in the stream.
#[test]
fn behind_a_keeper_a_crash_misses_nothing_of_a_stream_and_doubles_nothing() {
    let Some(nats) = Nats::with_stream(&json!({})) else {
        return;
    };
    let (one, two) = (
        nats.hub_on(&["--keep", "--buffer", "16m"]),
        nats.hub_on(&[]),
    );
    let (mut listener, mut other, source) = (one.join(), two.join(), two.join());
    let (over, heard) = (AtomicBool::new(false), AtomicUsize::new(0));
    let said = thread::scope(|scope| {
        let _over = Raised(&over);
        let saying = scope.spawn(|| say_lines(&source, &over));
        let hearing = scope.spawn(|| {
            let mut rounds = 0;
            loop {
                let line = listener.hear();
                let number = heard.load(Ordering::Relaxed);
                if line == "the end\n" {
                    return rounds;
                }
                if line == format!("round {rounds}\n") {
                    rounds += 1;
                    continue;
                }
                assert_eq!(line, number_line(number));
                heard.store(number + 1, Ordering::Relaxed);
            }
        });
        // What this one has said itself it is not to hear from the stream.
        let speaker = one.join();
        for round in 0..3 {
            let line = format!("round {round}\n");
            speaker.say(&line);
            while other.hear() != line {}
            let before = heard.load(Ordering::Relaxed);
            one.crash();
            until("more comes", || {
                heard.load(Ordering::Relaxed) > before + 100
            });
        }
        over.store(true, Ordering::Relaxed);
        let said = saying.join().unwrap();
        assert_eq!(hearing.join().unwrap(), 3, "each once");
        said
    });
    assert_eq!(heard.load(Ordering::Relaxed), said);
    assert_eq!(one.shared("missed"), 0);
}

/// They end the connection of whoever gets them, or look like the server's own word; and a stream keeps them.
#[test]
fn headers_of_a_stranger_that_are_none_hold_nobody_up() {
    let Some(nats) = Nats::with_stream(&json!({})) else {
        return;
    };
    let (one, two) = (nats.hub_on(&[]), nats.hub_on(&[]));
    let (speaker, mut listener) = (one.join(), two.join());
    let mut plain = Plain::connect(&nats);
    let mut all = String::new();
    for (number, header) in [
        &b"NATS/1.0\r\nno\xffne: x\r\n\r\n"[..],
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0\r\na blank: x\r\n\r\n",
        b"NATS/1.0 what\r\n\r\n",
        b"something else\r\n\r\n",
        b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
        b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: x\r\n\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        plain.publish_with(header, &format!("stranger {number}"));
        let line = format!("line {number}\n");
        speaker.say(&line);
        assert_eq!(listener.hear(), format!("stranger {number}\n"));
        assert_eq!(listener.hear(), line);
        all += &format!("stranger {number}\n{line}");
    }
    assert_eq!((two.shared("missed"), two.shared("foreign")), (0, 9));
    // Nor are they missing in what a newcomer gets.
    let late = nats.hub_on(&["--history", "100", "--nats-wait", "60s"]);
    let mut newcomer = Client::of(late.server.connect());
    for line in all.split_inclusive('\n') {
        assert_eq!(newcomer.hear(), line);
    }
}

/// Or nobody would hear it, and nothing would be missing.
#[test]
fn nothing_is_said_to_a_stream_that_is_not_the_feeds() {
    let Some(nats) = Nats::with_stream(&json!({})) else {
        return;
    };
    let (mut one, two) = (nats.hub_on(&[]), nats.hub_on(&[]));
    let (speaker, mut listener) = (one.join(), two.join());
    let mut plain = Plain::connect(&nats);
    plain.stream("DELETE");
    plain.make_stream("OTHER", &json!({}));
    speaker.say("one\n");
    one.server.log_line("that it is another one", |line| {
        line.contains(" warn ") && line.contains("expected stream does not match")
    });
    plain.ask("$JS.API.STREAM.DELETE.OTHER", "");
    plain.make_stream("FEED", &json!({}));
    assert_eq!(listener.hear(), "one\n");
}

#[test]
fn a_stream_that_takes_less_in_one_message_than_it_did_gets_more_of_them() {
    let Some(nats) = Nats::with_stream(&json!({})) else {
        return;
    };
    let (one, two) = (nats.hub_on(&[]), nats.hub_on(&[]));
    let (speaker, mut listener) = (one.join(), two.join());
    let mut plain = Plain::connect(&nats);
    let settings = json!({ "name": "FEED", "subjects": ["feed"], "storage": "file", "num_replicas": 1, "max_msg_size": 2000 });
    plain.ask("$JS.API.STREAM.UPDATE.FEED", &settings.to_string());
    let line = "0123456789".repeat(1000) + "\n";
    speaker.say(&line);
    assert_eq!(listener.hear(), line);
}

/// What was said while NATS was away goes to the next process, however little its feed reaches back.
#[test]
fn all_that_waits_for_nats_changes_hands() {
    let Some(mut nats) = Nats::with_stream(&json!({})) else {
        return;
    };
    let url = nats.url();
    let args = [&["hub"], &Nats::flags_of(&url)[..], &["--buffer", "16k"]].concat();
    let (mut one, two) = (
        nats.hub_on(&["--buffer", "16k"]),
        nats.hub_on(&["--buffer", "1m"]),
    );
    let (speaker, mut here, mut there) = (one.join(), one.join(), two.join());
    let line = |number: usize| format!("{number:0999}\n");
    nats.kill();
    for number in 0..300 {
        speaker.say(&line(number));
        assert_eq!(here.hear(), line(number));
    }
    for _ in 0..2 {
        one.server = one.home.succeed(&mut one.server, &args);
        assert_eq!((one.shared("backlog"), one.shared("lost")), (300_000, 0));
    }
    speaker.say(&line(300));
    nats.start_again();
    for number in 0..=300 {
        assert_eq!(there.hear(), line(number));
    }
    assert_eq!(two.shared("missed"), 0);
}

/// The server cuts who does not read; with a stream that is as if nothing had been, and without one it is counted.
#[test]
fn a_hub_that_is_cut_for_being_slow_misses_nothing_of_a_stream() {
    let hasty = "max_pending: 2097152\nwrite_deadline: \"100ms\"\n";
    let Some(nats) = Nats::with_streams(hasty, &json!({})) else {
        return;
    };
    let one = nats.hub_on(&["--flush", "1ms"]);
    let (reads, hears) = (
        nats.hub_on(&["--buffer", "64m"]),
        nats.hub(&["--buffer", "64m"]),
    );
    let (speaker, mut listener, mut other) = (one.join(), reads.join(), hears.join());
    speaker.say("first\n");
    assert_eq!(
        (listener.hear(), other.hear()),
        ("first\n".into(), "first\n".into())
    );
    let pids = [&reads, &hears].map(|hub| Pid::from_raw(hub.home.pid(&[]).cast_signed()).unwrap());
    for pid in pids {
        kill_process(pid, Signal::STOP).unwrap();
    }
    let line = |number: usize| format!("{number:0999}\n");
    const LINES: usize = 16_000;
    for number in 0..LINES {
        speaker.say(&line(number));
    }
    until("all is in the stream", || {
        one.shared("said_lines") == LINES as u64 + 1
    });
    for pid in pids {
        kill_process(pid, Signal::CONT).unwrap();
    }
    for number in 0..LINES {
        assert_eq!(listener.hear(), line(number));
    }
    assert_eq!(reads.shared("missed"), 0);
    speaker.say("the end\n");
    until("all is accounted for", || {
        hears.shared("heard_lines") + hears.shared("missed") == LINES as u64 + 2
    });
    assert!(hears.shared("missed") > 0);
    let mut last = None;
    loop {
        let heard = other.hear();
        if heard == "the end\n" {
            break;
        }
        let number: usize = heard.trim_end().parse().unwrap();
        assert!(Some(number) > last && heard == line(number));
        last = Some(number);
    }
}

/// Two that are not there to begin with: the hub serves, and reads from where the stream ends once there is one.
#[test]
fn a_stream_of_a_server_that_comes_later_is_found() {
    let Some(mut nats) = Nats::with_stream(&json!({})) else {
        return;
    };
    let mut plain = Plain::connect(&nats);
    plain.publish("long ago");
    nats.kill();
    let one = nats.hub_on(&["--nats-wait", "100ms", "--history", "9"]);
    let (speaker, mut listener) = (one.join(), one.join());
    speaker.say("to ours\n");
    assert_eq!(listener.hear(), "to ours\n");
    nats.start_again();
    until("it is found", || one.shared("backlog") == 0);
    let two = nats.hub_on(&["--history", "9"]);
    let mut far = Client::of(two.server.connect());
    assert_eq!(
        (far.hear(), far.hear()),
        ("long ago\n".into(), "to ours\n".into())
    );
    far.say("yes\n");
    assert_eq!(listener.hear(), "yes\n", "and nothing before");
}
