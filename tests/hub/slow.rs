//! Who does not read, or not enough.

use std::io::Read;
use std::net::Shutdown;
use std::time::Duration;

use crate::hub::{Client, Hub, in_order};
use crate::support::clients::{narrow, until_acknowledged};
use crate::support::home::number;
use crate::support::{Began, pass, read_to_fin};

/// Line `number`, 100 bytes.
fn line(number: usize) -> String {
    format!("{number:08} {}\n", "=".repeat(90))
}

/// A client of `hub` that reads nothing, and has little room.
fn stuck(hub: &Hub) -> Client {
    let client = Client::of(narrow(hub.server.address()));
    hub.until_in(&client);
    client
}

#[test]
fn a_slow_client_loses_whole_lines_and_nobody_else_any() {
    const LINES: usize = 60_000;
    let mut hub = Hub::start(&["--workers", "2", "--buffer", "128k", "--flush", "1ms"]);
    let (mut fast, mut slow) = (hub.join(), stuck(&hub));
    let before = hub.server.resident();
    let speaker = hub.join();
    for first in (0..LINES).step_by(200) {
        // At most so far behind that a client who reads is within reach.
        speaker.say(&(first..first + 200).map(line).collect::<String>());
        for number in first..first + 200 {
            assert_eq!(fast.hear(), line(number));
        }
    }
    let grown = hub.server.resident().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more for 6 MB");
    hub.server.log_line("a word about it", |line| {
        line.contains(" warn slow clients lose lines lost=")
    });
    // It reads again: whole lines, each later than the one before, and the last one at the end.
    slow.stream().shutdown(Shutdown::Write).unwrap();
    let mut heard = String::new();
    slow.lines.read_to_string(&mut heard).unwrap();
    let (next, count) = in_order(&heard, line);
    assert_eq!(next, LINES);
    let (lost, told) = hub.lost();
    assert!(lost > 0 && count + lost == LINES, "{count} heard, {told}");
    drop((slow, fast, speaker));
    assert_eq!(hub.server.drain().code(), Some(0));
    let all = hub.server.lines.iter();
    let all = all.filter(|line| line.contains(" info slow clients have lost lines in all "));
    let all: Vec<_> = all
        .map(|line| crate::support::facts(line)["lost"].clone())
        .collect();
    assert_eq!(all, [lost.to_string()]);
}

#[test]
fn a_slow_client_is_disconnected_if_that_is_asked_for() {
    let mut hub = Hub::start(&["--buffer", "32k", "--slow", "disconnect", "--flush", "1ms"]);
    let (mut fast, slow) = (hub.join(), stuck(&hub));
    let speaker = hub.join();
    let mut number = 0;
    let told = loop {
        speaker.say(&(number..number + 50).map(line).collect::<String>());
        for _ in 0..50 {
            assert_eq!(fast.hear(), line(number));
            number += 1;
        }
        if let Some(closed) = hub.server.closed_so_far().pop() {
            break closed;
        }
        assert!(number < 100_000, "nobody is disconnected");
    };
    let near = slow.stream().local_addr().unwrap().to_string();
    assert_eq!((told.reason(), told.get("peer")), ("service", &*near));
    let why = hub.server.lines.iter();
    let why: Vec<_> = why
        .filter(|line| line.contains("further behind than the buffer"))
        .collect();
    assert!(
        matches!(why[..], [line] if line.contains(&near) && line.contains(" info ")),
        "{why:?}"
    );
    speaker.say("and on\n");
    assert_eq!(fast.hear(), "and on\n");
}

/// Senders on all workers at once are held up together, however small the buffer; lines may have half of it.
#[test]
fn nobody_who_reads_loses_what_many_say_at_once() {
    for (workers, longest, each) in [("4", 18, 5994), ("1", 2048, 4168)] {
        let args = ["--workers", workers, "--buffer", "4k", "--max-line", "2k"];
        let mut hub = Hub::start(&args);
        for round in 0..15 {
            let (mut reader, speakers): (_, Vec<_>) =
                (hub.join(), (0..8).map(|_| hub.join()).collect());
            for (number, speaker) in speakers.iter().enumerate() {
                // All of it fits into the sockets: nobody is slow.
                let lines = (0..6000).scan(0, |said, line: usize| {
                    let length = if line.is_multiple_of(3) { longest } else { 18 };
                    *said += length;
                    let start = format!("{number} {line:04} ");
                    (*said <= 6000).then(|| format!("{start:x<0$}\n", length - 1))
                });
                speaker.say(&lines.collect::<String>());
            }
            for speaker in speakers {
                // It hears the others until all that it said is passed on.
                speaker.stream().shutdown(Shutdown::Write).unwrap();
                read_to_fin(&mut speaker.lines.into_inner());
            }
            reader.stream().shutdown(Shutdown::Write).unwrap();
            let mut text = String::new();
            reader.lines.read_to_string(&mut text).unwrap();
            assert_eq!(text.len(), 8 * each, "round {round}, {workers} workers");
        }
        assert_eq!(hub.server.drain().code(), Some(0));
        let lost = hub.server.lines.iter().any(|line| line.contains("lost"));
        assert!(!lost, "{:?}", hub.server.lines);
    }
}

#[test]
fn those_who_never_read_delay_nobody() {
    let hub = Hub::start(&["--workers", "2", "--buffer", "64k"]);
    let _stuck: Vec<_> = (0..20).map(|_| stuck(&hub)).collect();
    let (mut fast, speaker) = (hub.join(), hub.join());
    let mut longest = Duration::ZERO;
    for number in 0..200 {
        let said = Began::now();
        speaker.say(&line(number));
        assert_eq!(fast.hear(), line(number));
        longest = longest.max(said.unhindered());
        if number % 50 == 0 {
            pass(Duration::from_millis(50));
        }
    }
    assert!(longest < Duration::from_secs(1), "a line took {longest:?}");
}

/// What is behind a slow client's place is dropped even while nothing of it can be sent.
#[test]
fn memory_is_bounded_however_long_a_client_does_not_read() {
    let mut hub = Hub::start(&["--buffer", "64k", "--flush", "1ms"]);
    let stuck = stuck(&hub);
    let (mut fast, speaker) = (hub.join(), hub.join());
    let text: String = (0..100).map(line).collect();
    let mut after_a_while = 0;
    for round in 0..600 {
        speaker.say(&text);
        for number in 0..100 {
            assert_eq!(fast.hear(), line(number));
        }
        if round == 100 {
            after_a_while = hub.server.resident();
        }
    }
    let grown = hub.server.resident().saturating_sub(after_a_while);
    assert!(grown < 2 << 20, "{grown} bytes more for 5 MB");
    let mut stuck = stuck.lines.into_inner();
    hub.server.signal(rustix::process::Signal::TERM);
    let heard = read_to_fin(&mut stuck);
    assert!(heard.ends_with(line(99).as_bytes()) && heard.len().is_multiple_of(100));
    assert_eq!(hub.server.wait().code(), Some(0));
}

/// What they have not got stands in memory once, and none of it is copied for each.
#[test]
fn those_who_leave_at_once_share_what_they_have_not_got() {
    const LINES: usize = 60_000;
    let mut hub = Hub::start(&["--workers", "2", "--flush", "1ms"]);
    let slow: Vec<_> = (0..12).map(|_| stuck(&hub)).collect();
    let (mut fast, speaker) = (hub.join(), hub.join());
    for first in (0..LINES).step_by(200) {
        speaker.say(&(first..first + 200).map(line).collect::<String>());
        for number in first..first + 200 {
            assert_eq!(fast.hear(), line(number));
        }
    }
    for client in &slow {
        client.stream().shutdown(Shutdown::Write).unwrap();
        // From then on the hub knows, for it looks at events before it answers.
        until_acknowledged(client.stream());
    }
    let list = hub.home.json(&["list"]);
    let waiting = list.as_array().unwrap().iter();
    let waiting: u64 = waiting.map(|entry| number(&entry["waiting"])).sum();
    assert!(waiting <= 12 * 100, "{waiting} bytes copied: {list}");
    let memory = hub.home.json(&["status"])["memory"].clone();
    let of_hub = &memory["waiting"][2];
    assert_eq!(of_hub[0], "hub");
    let of_hub = number(&of_hub[1]);
    // Lines, and 4 bytes for the end of each.
    assert!(of_hub > 256 * 1024 && of_hub < 512 * 1024, "{memory}");
    for mut client in slow {
        let mut heard = String::new();
        client.lines.read_to_string(&mut heard).unwrap();
        assert!(heard.contains(&line(LINES - 1)), "what was said before");
        assert!(heard.ends_with('\n'));
    }
    drop((fast, speaker));
    assert_eq!(hub.server.drain().code(), Some(0));
}
