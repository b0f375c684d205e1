//! Lines outlive a crash: those of a hub reach each client once and whole, those that are printed are printed, wherever the server
//! dies.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, PipeReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::thread;

use rustix::process::Signal;

use super::vault::{mortal, restart};
use super::{Kept, children};
use crate::support::home::{Home, entry, number};
use crate::support::{Server, connect, listening, read_to_fin, send_until_stuck, until};

/// A client of a hub: says lines that are numbered, or hears those of others.
struct Client {
    stream: TcpStream,
    name: char,
    said: u64,
    /// What of that has not been sent yet.
    unsent: Vec<u8>,
    pieces: usize,
    heard: Vec<u8>,
    /// For each speaker the number of the next line.
    next: [u64; NAMES.len()],
}

/// The longest piece that is sent at once.
const PIECE: usize = 1499;

const NAMES: [char; 3] = ['a', 'b', 'c'];

/// The line of that number: now and then a long one.
fn line(name: char, number: u64) -> String {
    let tail = match number % 50 {
        49 => 20_000,
        other => usize::try_from(other).unwrap(),
    };
    format!("{name} {number} {}\n", "x".repeat(tail))
}

impl Client {
    fn of(kept: &Kept, name: char) -> Self {
        let stream = kept.keeper.connect();
        stream.set_nonblocking(true).unwrap();
        Self {
            stream,
            name,
            said: 0,
            unsent: Vec::new(),
            pieces: 0,
            heard: Vec::new(),
            next: [0; NAMES.len()],
        }
    }

    fn stream(&self) -> TcpStream {
        self.stream.try_clone().unwrap()
    }

    /// Says more in so many pieces, as long as somebody takes them.
    fn say(&mut self, pieces: usize) {
        for _ in 0..pieces {
            while self.unsent.len() < PIECE {
                self.unsent
                    .extend_from_slice(line(self.name, self.said).as_bytes());
                self.said += 1;
            }
            if !self.send() {
                return;
            }
        }
    }

    /// Sends a piece, which is no line as a rule. Answers whether anybody takes it.
    fn send(&mut self) -> bool {
        let piece = self.unsent.len().min(1 + self.pieces % PIECE);
        self.pieces += 611;
        match self.stream.write(&self.unsent[..piece]) {
            Ok(count) => drop(self.unsent.drain(..count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!("{} after line {}: {error}", self.name, self.said),
        }
        true
    }

    /// Sends what it has begun to say, as far as somebody takes it. Answers whether that is all.
    fn ends(&mut self) -> bool {
        while !self.unsent.is_empty() && self.send() {}
        self.unsent.is_empty()
    }

    /// Hears what there is: whole lines of each speaker, the next one each.
    #[track_caller]
    fn hear(&mut self) {
        let mut bytes = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => panic!("{} is hung up on", self.name),
                Ok(count) => self.heard.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{}: {error}", self.name),
            }
        }
        let whole = self.heard.iter().rposition(|&byte| byte == b'\n');
        let rest = self.heard.split_off(whole.map_or(0, |end| end + 1));
        for said in std::mem::replace(&mut self.heard, rest).split_inclusive(|&byte| byte == b'\n')
        {
            let said = str::from_utf8(said).unwrap();
            let at = NAMES.iter().position(|name| said.starts_with(*name));
            let at = at.unwrap_or_else(|| panic!("{} hears {said:?}", self.name));
            assert_eq!(said, line(NAMES[at], self.next[at]), "{} hears", self.name);
            self.next[at] += 1;
        }
    }

    /// Whether it has heard all that these have said.
    fn has_heard(&self, speakers: &[&Self]) -> bool {
        let mut all = speakers.iter().filter(|speaker| speaker.name != self.name);
        all.all(|speaker| {
            let at = NAMES.iter().position(|name| *name == speaker.name);
            self.next[at.unwrap()] == speaker.said
        })
    }
}

/// A hub's two speakers, who hear one another, and one who only hears.
struct Talk {
    one: Client,
    other: Client,
    silent: Client,
}

impl Talk {
    fn over(kept: &Kept) -> Self {
        let talk = Self {
            one: Client::of(kept, 'a'),
            other: Client::of(kept, 'b'),
            silent: Client::of(kept, 'c'),
        };
        until("all are in", || number(&kept.status()["open"]) == 3);
        talk
    }

    fn go_on(&mut self) {
        self.one.say(20);
        self.other.say(20);
        self.hear();
    }

    fn hear(&mut self) {
        for client in [&mut self.one, &mut self.other, &mut self.silent] {
            client.hear();
        }
    }

    /// Goes on until so many lines more have been heard.
    fn go_on_for(&mut self, lines: u64) {
        let goal = self.silent.next[0] + lines;
        until("the talk goes on", || {
            self.go_on();
            self.silent.next[0] >= goal
        });
    }

    /// All that was said is heard.
    #[track_caller]
    fn finish(mut self) {
        until("all is said", || {
            self.hear();
            let ends = [&mut self.one, &mut self.other].map(Client::ends);
            ends == [true; 2]
        });
        until("all is heard", || {
            self.hear();
            let speakers = [&self.one, &self.other];
            let all = [&self.one, &self.other, &self.silent];
            all.iter().all(|client| client.has_heard(&speakers))
        });
    }
}

/// Until the server that runs now has got over something that each of these says: who is in the step of two crashes, and of none in
/// between, is reset.
fn until_got_over(kept: &Kept, clients: &[TcpStream], mut meanwhile: impl FnMut()) {
    let mut first = None;
    until("the server goes on", || {
        meanwhile();
        let list = kept.home.standfast(&["list", "--json"]).output().unwrap();
        let Ok(list) = serde_json::from_slice::<serde_json::Value>(&list.stdout) else {
            return false;
        };
        let read = clients
            .iter()
            .map(|client| number(&entry(&list, client)["read"]));
        let read: Vec<u64> = read.collect();
        let before = first.get_or_insert_with(|| read.clone());
        before.iter().zip(&read).all(|(before, now)| before < now)
    });
}

/// What is printed last.
const END: &str = "the end\n";

/// So that nobody loses a line for being slow.
const DEEP: [&str; 4] = ["hub", "--buffer", "64M", "--flush=1ms"];

fn hub_dies_at(place: &str) {
    let (kept, file) = mortal(place, &[&DEEP[..], &["--workers", "2"]].concat());
    let mut talk = Talk::over(&kept);
    for _ in 0..3 {
        let speakers = [&talk.one, &talk.other].map(Client::stream);
        until_got_over(&kept, &speakers, || talk.go_on());
        dies(&file, || talk.go_on());
    }
    talk.go_on_for(100);
    talk.finish();
    assert_eq!(number(&kept.status()["crashes"]), 3);
}

#[track_caller]
fn dies(file: &Path, mut meanwhile: impl FnMut()) {
    fs::write(file, "").unwrap();
    until("a server dies", || {
        meanwhile();
        !file.exists()
    });
}

#[test]
fn every_line_of_a_hub_comes_once_where_a_server_dies_with_what_it_has_read() {
    hub_dies_at("read");
}

#[test]
fn every_line_of_a_hub_comes_once_where_a_server_dies_with_it_in_the_journal() {
    hub_dies_at("hub-noted");
}

#[test]
fn every_line_of_a_hub_comes_once_where_a_server_dies_with_it_said() {
    hub_dies_at("served");
}

#[test]
fn every_line_of_a_hub_comes_once_where_a_server_dies_as_it_is_passed_on() {
    hub_dies_at("hub-sent");
}

#[test]
fn every_line_of_a_hub_comes_once_where_a_server_dies_with_it_noted_that_it_was() {
    hub_dies_at("hub-stands");
}

#[test]
fn every_line_of_a_hub_comes_once_where_a_server_dies_before_it_notes_how_far_it_has_come() {
    hub_dies_at("vault-settled");
}

#[test]
fn every_line_of_a_hub_comes_once_where_a_server_dies_with_a_record_that_does_not_count_yet() {
    hub_dies_at("vault-record");
}

#[test]
fn every_line_of_a_hub_comes_once_where_a_server_dies_with_a_record_that_counts() {
    hub_dies_at("vault-chain");
}

/// Both servers die as they pass a line on to the one who hears, who has got over hundreds of them in between.
#[test]
fn who_only_hears_what_others_say_is_not_poison() {
    let (kept, file) = mortal("hub-sent", &["hub", "--flush=1ms"]);
    let (mut hears, mut speaks) = (kept.keeper.connect(), kept.keeper.connect());
    let mut said = 0;
    for _ in 0..3 {
        dies(&file, || {
            say(&mut speaks, said);
            said += 1;
        });
        for _ in 0..300 {
            say(&mut speaks, said);
            said += 1;
        }
        let mut heard = BufReader::new(&hears).lines();
        while heard.next().unwrap().unwrap() != (said - 1).to_string() {}
        // It answers between two steps.
        kept.home.json(&["list"]);
    }
    assert_eq!(number(&kept.status()["crashes"]), 3);
    speaks.shutdown(Shutdown::Write).unwrap();
    hears.shutdown(Shutdown::Write).unwrap();
    assert!(read_to_fin(&mut hears).is_empty());
}

fn say(client: &mut TcpStream, number: u64) {
    writeln!(client, "{number}").unwrap();
}

#[test]
fn every_line_of_a_hub_comes_once_where_servers_are_killed_at_any_time_and_restarted_in_between() {
    let kept = Kept::start(&[&DEEP[..], &["--workers", "2"]].concat());
    let mut talk = Talk::over(&kept);
    for round in 0..9 {
        let speakers = [&talk.one, &talk.other].map(Client::stream);
        until_got_over(&kept, &speakers, || talk.go_on());
        talk.go_on_for(50 * (1 + round % 3));
        let former = kept.server();
        if round % 3 == 1 {
            restart(&kept);
        } else {
            kept.crash(Signal::KILL);
        }
        until("another server serves", || {
            talk.go_on();
            let answer = kept.home.standfast(&["status", "--json"]).output().unwrap();
            let status = serde_json::from_slice::<serde_json::Value>(&answer.stdout);
            status.is_ok_and(|status| super::pid(number(&status["pid"])) != former)
        });
    }
    talk.go_on_for(100);
    talk.finish();
}

fn crash(kept: &Kept) {
    kept.until_another_serves(kept.crash(Signal::KILL));
}

#[test]
fn who_reads_slowly_gets_the_rest_of_its_line_and_all_that_follows() {
    let kept = Kept::start(&DEEP);
    let (mut slow, mut speaker) = (Client::of(&kept, 'c'), Client::of(&kept, 'a'));
    until("both are in", || number(&kept.status()["open"]) == 2);
    // More than the kernel holds.
    until("much is said", || {
        speaker.say(1000);
        speaker.said > 20_000
    });
    for _ in 0..2 {
        until_got_over(&kept, &[speaker.stream()], || speaker.say(10));
        crash(&kept);
    }
    until("all is said", || speaker.ends());
    until("all is heard", || {
        slow.hear();
        slow.has_heard(&[&speaker])
    });
}

#[test]
fn who_is_silent_hears_on_after_a_restart_and_a_crash_and_gets_history_and_its_end() {
    let mut kept = Kept::start(&["hub", "--workers", "2", "--history", "2"]);
    let mut quiet: Vec<_> = (0..20).map(|_| kept.keeper.connect()).collect();
    let mut speaker = kept.keeper.connect();
    until("all are in", || number(&kept.status()["open"]) == 21);
    speaker.write_all(b"one\ntwo\nhalf a ").unwrap();
    let heard = |client: &mut TcpStream, line: &str| {
        let mut bytes = vec![0; line.len()];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(str::from_utf8(&bytes), Ok(line));
    };
    for client in &mut quiet {
        heard(client, "one\ntwo\n");
    }
    let former = kept.server();
    restart(&kept);
    kept.until_another_serves(former);
    crash(&kept);
    crash(&kept);
    speaker.write_all(b"line\nlast words").unwrap();
    for client in &mut quiet {
        heard(client, "half a line\n");
    }
    heard(&mut connect(kept.keeper.address()), "two\nhalf a line\n");
    crash(&kept);
    speaker.shutdown(Shutdown::Write).unwrap();
    for client in &mut quiet {
        heard(client, "last words\n");
    }
    assert_eq!(read_to_fin(&mut speaker), b"", "nothing of its own");
    let client = quiet.pop().unwrap();
    drop(client);
    kept.assert_drains();
    for mut client in quiet {
        assert_eq!(read_to_fin(&mut client), b"");
    }
}

/// `serve --keep print ARGS...`, whose servers die at `place`, with a stdout that is a pipe of ours.
fn printing(place: &str, args: &[&str]) -> (Kept, std::path::PathBuf, BufReader<PipeReader>) {
    let (stdout, theirs) = std::io::pipe().unwrap();
    let home = Home::new();
    let file = home.join("die");
    let mut command = home.standfast(&["serve", "--keep", "-l", "0", "print"]);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(theirs)
        .env("STANDFAST_FAULT", format!("die-{place}"))
        .env("STANDFAST_FAULT_FILE", &file);
    let mut keeper = Server::launch(command);
    // A buffer of one byte: it takes nothing out of the pipe that was not asked for.
    let mut stdout = BufReader::with_capacity(1, stdout);
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    keeper.addresses.push(listening(line.trim_end()));
    (Kept { home, keeper }, file, stdout)
}

/// Reads what is printed until `last`, without what servers say; of each speaker every line, in order: one that came before may come
/// again.
fn assert_printed(stdout: &mut impl BufRead, lasts: &[(char, u64)]) {
    let mut next = [0; NAMES.len()];
    let mut left = lasts.len();
    let mut said = String::new();
    while left > 0 {
        said.clear();
        assert_ne!(
            stdout.read_line(&mut said).unwrap(),
            0,
            "{next:?} of {lasts:?}"
        );
        let Some(at) = NAMES.iter().position(|name| said.starts_with(*name)) else {
            continue;
        };
        let number = said
            .split(' ')
            .nth(1)
            .and_then(|number| number.parse().ok());
        // The beginning of one that comes again is no line.
        let Some(number) = number.filter(|number| said == line(NAMES[at], *number)) else {
            continue;
        };
        assert!(number <= next[at], "{said} in place of {}", next[at]);
        if number == next[at] {
            next[at] += 1;
            left -= usize::from(lasts.contains(&(NAMES[at], next[at])));
        }
    }
}

/// Two speak while each of these three happens, and every line is printed.
#[track_caller]
fn prints_on(place: &str, mut happens: impl FnMut(&Kept, &Path, &mut dyn FnMut(), usize)) {
    let (kept, file, mut stdout) = printing(place, &["--workers", "2"]);
    let reader = thread::spawn(move || {
        let mut said = Vec::new();
        let mut bytes = vec![0; 1 << 16];
        while !said.ends_with(END.as_bytes()) {
            match stdout.get_mut().read(&mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(count) => said.extend_from_slice(&bytes[..count]),
            }
        }
        said
    });
    let mut speakers = [Client::of(&kept, 'a'), Client::of(&kept, 'b')];
    for round in 0..3 {
        let streams = [0, 1].map(|at: usize| speakers[at].stream());
        let mut go_on = || speakers.iter_mut().for_each(|speaker| speaker.say(20));
        until_got_over(&kept, &streams, &mut go_on);
        happens(&kept, &file, &mut go_on, round);
    }
    for speaker in &mut speakers {
        until("all is said", || speaker.ends());
        speaker.stream.shutdown(Shutdown::Write).unwrap();
        speaker.stream.set_nonblocking(false).unwrap();
        assert_eq!(read_to_fin(&mut speaker.stream), b"");
    }
    let mut last = connect(kept.keeper.address());
    last.write_all(END.as_bytes()).unwrap();
    let said = reader.join().unwrap();
    let lasts = speakers.map(|speaker| (speaker.name, speaker.said));
    assert_printed(&mut &said[..], &lasts);
}

fn print_dies_at(place: &str) {
    prints_on(place, |_, file, go_on, _| dies(file, go_on));
}

#[test]
fn every_line_is_printed_where_a_server_is_killed_and_one_restarted_and_another_killed() {
    prints_on("nowhere", |kept, _, go_on, round| {
        let former = kept.server();
        if round == 1 {
            restart(kept);
            until("the former server has printed all that it had", || {
                go_on();
                children(kept.keeper.pid()).len() == 1
            });
        } else {
            kept.crash(Signal::KILL);
        }
        kept.until_another_serves(former);
    });
}

#[test]
fn every_line_is_printed_where_a_server_dies_with_what_it_has_read() {
    print_dies_at("read");
}

#[test]
fn every_line_is_printed_where_a_server_dies_with_it_in_the_journal() {
    print_dies_at("print-noted");
}

#[test]
fn every_line_is_printed_where_a_server_dies_just_before_it_prints() {
    print_dies_at("print-claimed");
}

#[test]
fn every_line_is_printed_where_a_server_dies_just_after_it_has_printed() {
    print_dies_at("print-written");
}

#[test]
fn every_line_is_printed_where_a_server_dies_before_it_notes_how_far_it_has_come() {
    print_dies_at("vault-settled");
}

#[test]
fn what_waits_for_a_stdout_that_blocks_is_printed_by_a_later_server() {
    let (kept, _, mut stdout) = printing("nowhere", &[]);
    let mut speaker = Client::of(&kept, 'a');
    until("stdout and the queue are full", || {
        speaker.say(1000);
        speaker.said > 3000
    });
    let mut talker = kept.keeper.connect();
    let sent = send_until_stuck(
        &mut talker,
        b"another that waits, and is not heard for a while\n",
    );
    assert!(sent > 0);
    crash(&kept);
    crash(&kept);
    // The last few lines may not have been sent.
    assert_printed(&mut stdout, &[('a', speaker.said - 60)]);
}

#[test]
fn last_words_are_printed_after_a_crash_and_behind_whose_they_are() {
    let (kept, _, mut stdout) = printing("nowhere", &["--prefix"]);
    let mut speaker = kept.keeper.connect();
    let own = speaker.local_addr().unwrap();
    let mut line = String::new();
    let mut printed = |expected: String| {
        line.clear();
        while line.is_empty() || line.starts_with("listening") {
            line.clear();
            stdout.read_line(&mut line).unwrap();
        }
        assert_eq!(line, expected);
    };
    speaker.write_all(b"one\nhalf a ").unwrap();
    printed(format!("{own}: one\n"));
    crash(&kept);
    speaker.write_all(b"line\nlast words").unwrap();
    printed(format!("{own}: half a line\n"));
    crash(&kept);
    speaker.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut speaker), b"");
    // They have no end: whatever comes next begins with one.
    crash(&kept);
    let mut other = connect(kept.keeper.address());
    other.write_all(b"and on\n").unwrap();
    let (last, next) = (
        format!("{own}: last words"),
        format!("{}: and on\n", other.local_addr().unwrap()),
    );
    let (mut said, mut line) = (String::new(), String::new());
    while line != next {
        line.clear();
        assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "{said}");
        said += &line;
    }
    assert_eq!(said.matches(&last).count(), 1, "{said}");
}
