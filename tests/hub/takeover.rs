//! Another process goes on with it: nobody loses a line, hears one twice, or in pieces.

use std::io::Write;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::hub::{Client, Hub, in_order};
use crate::support::clients::{Raised, narrow};
use crate::support::home::text;
use crate::support::{Server, now, pass};
use crate::takeover::relay::{KIND, Relay, Side, TAKEN, too_late};

impl Hub {
    #[track_caller]
    fn succeed(&mut self, args: &[&str]) {
        self.server = self
            .home
            .succeed(&mut self.server, &[&["hub"], args].concat());
    }
}

#[test]
fn takeovers_in_a_row_under_a_running_source_lose_nothing() {
    const CLIENTS: usize = 50;
    const RATE: usize = 500;
    let args = ["--workers", "2", "--buffer", "64k"];
    let mut hub = Hub::start(&args);
    let clients: Vec<_> = (0..CLIENTS).map(|_| hub.join()).collect();
    // Not smaller: what waits for it could be read only at the pace of the probes.
    let slow = Client::of(narrow(hub.server.address()));
    hub.until_in(&slow);
    let source = hub.join();
    let over = AtomicBool::new(false);
    let line = |number: usize| format!("{number:08} {}\n", "-".repeat(number % 200 * 20));
    let (said, heard) = thread::scope(|scope| {
        let _over = Raised(&over);
        let saying = scope.spawn(|| {
            let mut number = 0;
            while !over.load(Ordering::Relaxed) || number < 5 * RATE {
                // Two at once, and a part of the next: what is under way crosses, too.
                let text = line(number) + &line(number + 1);
                let (first, rest) = text.split_at(text.len() - 7);
                source.stream().write_all(first.as_bytes()).unwrap();
                pass(Duration::from_millis(1));
                source.stream().write_all(rest.as_bytes()).unwrap();
                pass(Duration::from_millis(1000 * 2 / RATE as u64 - 1));
                number += 2;
            }
            source.say("the end\n");
            number
        });
        let hearing: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                scope.spawn(move || {
                    for number in 0.. {
                        let heard = client.hear();
                        if heard == "the end\n" {
                            return number;
                        }
                        assert_eq!(heard, line(number));
                    }
                    0
                })
            })
            .collect();
        for generation in 0..8 {
            let workers = ["1", "2", "3"][generation % 3];
            hub.succeed(&["--workers", workers, "--buffer", "64k"]);
            pass(Duration::from_millis(200));
        }
        over.store(true, Ordering::Relaxed);
        let heard: Vec<usize> = hearing.into_iter().map(|one| one.join().unwrap()).collect();
        (saying.join().unwrap(), heard)
    });
    assert!(
        heard.iter().all(|&count| count == said),
        "{said}: {heard:?}"
    );
    // The slow one has lost whole lines, all of them counted over the generations.
    let text = slow.leave();
    let (_, count) = in_order(text.strip_suffix("the end\n").unwrap(), line);
    assert!(count < said, "{count}");
    let (lost, told) = hub.lost();
    assert_eq!(lost + count, said, "{told}");
}

#[test]
fn what_was_gathered_and_the_history_go_along() {
    let mut hub = Hub::start(&["--history", "3", "--flush", "10s"]);
    let (mut listener, speaker) = (hub.join(), hub.join());
    speaker.say("1\n2\n3\n4\nhalf a ");
    hub.until_read(&speaker, 15);
    hub.succeed(&["--history", "3"]);
    for line in ["1\n", "2\n", "3\n", "4\n"] {
        assert_eq!(listener.hear(), line);
    }
    let mut late = hub.join();
    for line in ["2\n", "3\n", "4\n"] {
        assert_eq!(late.hear(), line);
    }
    speaker.say("line\n");
    for client in [&mut listener, &mut late] {
        assert_eq!(client.hear(), "half a line\n");
    }
    assert_eq!(speaker.leave(), "", "it does not hear itself afterwards");
}

#[test]
fn a_takeover_that_comes_to_nothing_changes_nothing() {
    let mut hub = Hub::start(&["--workers", "2"]);
    let (mut listener, speaker) = (hub.join(), hub.join());
    for (round, fault) in ["abort-freeze", "hang-freeze", "abort-pre-copy"]
        .iter()
        .enumerate()
    {
        speaker.say(&format!("before {round}\n"));
        let failed = hub.home.faulty(&hub.server, &["hub"], fault);
        hub.server.log_line("that it failed", |line| {
            line.contains(" warn takeover failed")
        });
        drop(failed);
        speaker.say(&format!("after {round}\n"));
        assert_eq!(listener.hear(), format!("before {round}\n"));
        assert_eq!(listener.hear(), format!("after {round}\n"));
    }
    hub.succeed(&[]);
    speaker.say("and on\n");
    assert_eq!(listener.hear(), "and on\n");
}

#[test]
fn what_a_late_freeze_has_sent_does_not_come_twice() {
    let mut hub = Hub::start(&["--workers", "2", "--history", "9"]);
    let (mut listener, speaker) = (hub.join(), hub.join());
    for line in ["1\n", "2\n", "3\n"] {
        speaker.say(line);
        assert_eq!(listener.hear(), line);
    }
    let path = hub.home.join("relay.sock");
    let relay = Relay::start(&path, &hub.home.socket_of(&hub.server), too_late(2));
    hub.succeed(&["--history", "9", "--control", path.to_str().unwrap()]);
    drop(relay);
    let mut late = hub.join();
    for line in ["1\n", "2\n", "3\n"] {
        assert_eq!(late.hear(), line);
    }
    speaker.say("and on\n");
    assert_eq!(late.hear(), "and on\n");
    assert_eq!(listener.hear(), "and on\n");
}

#[test]
fn all_of_a_large_buffer_and_of_the_history_changes_hands() {
    let args = ["--buffer", "32m", "--history", "1000000"];
    let mut hub = Hub::start(&args);
    let mut speaker = hub.join();
    let text: String = (0..160_000)
        .map(|number| format!("{number:0>99}\n"))
        .collect();
    speaker.lines.get_mut().write_all(text.as_bytes()).unwrap();
    hub.until_read(&speaker, text.len() as u64);
    hub.succeed(&args);
    let mut late = hub.join();
    for number in 0..160_000 {
        assert_eq!(late.hear(), format!("{number:0>99}\n"));
    }
}

/// What is said meanwhile is held up for a moment where it cannot be copied as fast, but not for a process that hangs.
#[test]
fn a_new_process_that_takes_nothing_in_keeps_no_line_from_anybody() {
    let args = ["--workers", "1"];
    let mut hub = Hub::start(&args);
    let (mut fast, source) = (hub.join(), hub.join());
    let (path, real) = (hub.home.join("relay.sock"), hub.home.socket_of(&hub.server));
    let _relay = Relay::start(&path, &real, |side, _, message| {
        let taken = (side, message.get(KIND)) == (Side::New, Some(&TAKEN));
        Some(if taken { vec![] } else { vec![message] })
    });
    let mut command = hub.home.successor(&hub.server.addresses, &["hub"]);
    command.args(args).args(["--control", text(&path)]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut next = Server::launch(command);
    let (mut longest, mut lines) = (Duration::ZERO, 0);
    while next.is_running() {
        let said = now();
        source.say("is anybody there\n");
        assert_eq!(fast.hear(), "is anybody there\n");
        longest = longest.max(said.elapsed());
        lines += 1;
        pass(Duration::from_millis(1));
    }
    let why = hub
        .server
        .log_line("why not", |line| line.contains(" warn takeover "));
    assert!(why.contains("took nothing in for 5 s"), "{why}");
    assert!(
        longest < Duration::from_secs(3),
        "one of {lines} lines took {longest:?}"
    );
}
