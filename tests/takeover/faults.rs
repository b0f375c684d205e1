//! The new process fails, is stopped, or should never have asked: the server serves on, and the next takeover works.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::net::{SendFlags, SocketFlags, accept_with};
use rustix::process::Signal;

use super::relay::{ABORT, KIND, PREPARED, Relay, Side, THAW, UPDATES};
use crate::control::strangers::{User, seqpacket};
use crate::support::clients::{Bystander, Stream, assert_over, connect_with_window};
use crate::support::home::{Home, entry, number, refusal, text};
use crate::support::{GUARD, Server, assert_echoes, cannot_run, connect, read_to_fin, until};

/// What waits for the slow reader of a [`Company`].
const WAITING: usize = 5 << 20;

/// What is said of a new process that hangs.
const STILL: &str = "the new process took nothing in for 5 s";
const DEAF: &str = "the new process heard nothing for 2 s";

/// A server with clients of every kind.
pub(super) struct Company {
    pub(super) home: Home,
    pub(super) server: Server,
    pub(super) clients: Vec<TcpStream>,
    slow: TcpStream,
    bystander: Option<Bystander>,
}

pub(super) const ARGS: [&str; 4] = ["--buffer", "8m", "--workers", "2"];

impl Company {
    pub(super) fn start() -> Self {
        let mut company = Self::quiet();
        company.bystander = Some(Bystander::start(company.server.address()));
        company
    }

    /// Without anybody who says something all the time.
    fn quiet() -> Self {
        let home = Home::new();
        let server = home.serve(&ARGS);
        let mut clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
        for client in &mut clients {
            assert_echoes(client, b"hello");
        }
        let mut slow = connect_with_window(server.address(), 65536);
        slow.write_all(&Stream::default().next(WAITING)).unwrap();
        until("output waits", || {
            let list = home.json(&["list"]);
            let entry = entry(&list, &slow);
            number(&entry["read"]) == WAITING as u64 && number(&entry["waiting"]) > 0
        });
        Self {
            home,
            server,
            clients,
            slow,
            bystander: None,
        }
    }

    /// A new process that has `fault`; it has been started.
    fn launch(&self, fault: &str) -> Server {
        self.home.faulty(&self.server, &ARGS, fault)
    }

    /// The same; it hangs in the pre-copy, and holds copies of connections.
    fn launch_hanging(&mut self) -> Server {
        let hung = self.launch("hang-pre-copy");
        self.server.log_line("the question", |line| {
            line.contains(" info takeover asked for ")
        });
        until("it holds connections", || hung.descriptors() > 50);
        hung
    }

    /// Why the takeover failed, as the server says it.
    pub(super) fn why(&mut self) -> String {
        self.server
            .log_line("the reason", |line| line.contains(" warn takeover "))
    }

    #[track_caller]
    fn assert_serves(&mut self) {
        assert_eq!(self.home.json(&["status"])["pid"], self.server.pid());
        for client in &mut self.clients {
            assert_echoes(client, b"it serves on");
        }
        assert_echoes(&mut connect(self.server.address()), b"and new ones");
    }

    /// Nothing was dropped or lost; neither is in a takeover that works.
    #[track_caller]
    pub(super) fn assert_unhurt(mut self) {
        self.assert_serves();
        let mut next = self.home.succeed(&mut self.server, &ARGS);
        for client in &mut self.clients {
            assert_echoes(client, b"and on");
        }
        let closed = self
            .server
            .lines
            .iter()
            .filter(|line| line.contains(" info closed "));
        let dropped: Vec<_> = closed
            .filter(|line| !line.contains("reason=peer-closed"))
            .collect();
        assert!(dropped.is_empty(), "{dropped:?}");
        Stream::default().read(&mut self.slow, WAITING as u64);
        assert_echoes(&mut self.slow, b"and on");
        if let Some(bystander) = self.bystander.take() {
            bystander.assert_unhurt();
        }
        let names = fs::read_dir(self.home.join("standfast")).unwrap().flatten();
        let names: Vec<_> = names.map(|entry| entry.file_name()).collect();
        assert_eq!(
            names.len(),
            2,
            "the socket and its lock, no litter: {names:?}"
        );
        drop((self.clients, self.slow));
        assert!(next.drain().success());
    }
}

/// The new process dies in a phase; the server says `why`.
#[track_caller]
fn assert_survives_death(fault: &str, why: &str) {
    let mut company = Company::start();
    // A busy machine may give up before the new process is that far.
    for _ in 0..20 {
        let mut dead = company.launch(fault);
        let status = dead.wait();
        let told = company.why();
        if told.contains(" within 50 ms") {
            continue;
        }
        assert_eq!(status.signal(), Some(6), "{:?}", dead.lines);
        let words = [
            " warn takeover failed, serving on ",
            &format!("pid={}", dead.pid()),
            why,
        ];
        assert!(words.iter().all(|word| told.contains(word)), "{told}");
        return company.assert_unhurt();
    }
    panic!("too slow");
}

#[test]
fn death_at_the_start() {
    let mut company = Company::start();
    let status = company.launch("abort-init").wait();
    assert_eq!(status.signal(), Some(6));
    assert!(
        !company
            .server
            .lines
            .iter()
            .any(|line| line.contains("takeover"))
    );
    company.assert_serves();
    company.assert_unhurt();
}

#[test]
fn death_in_the_pre_copy() {
    assert_survives_death("abort-pre-copy", "the new process ended");
}

#[test]
fn death_in_the_freeze() {
    assert_survives_death("abort-freeze", "the new process ended");
}

#[test]
fn death_with_the_commit_sent_and_not_read() {
    assert_survives_death("abort-commit", "the new process ended");
}

#[test]
fn death_with_the_commit_read_and_nobody_served_yet() {
    assert_survives_death("abort-owned", "the new process ended");
}

#[test]
fn a_halt_behind_the_commit_is_waited_for_until_it_is_over() {
    for fault in ["hang-commit", "hang-owned"] {
        let mut company = Company::quiet();
        let mut hung = loop {
            let hung = company.launch(fault);
            let told = company
                .server
                .log_line("that nobody serves, or why", |line| {
                    line.contains("nobody serves until it does") || line.contains(" warn takeover ")
                });
            if told.contains(" error the new process has everything ") {
                break hung;
            }
            // A busy machine may be too late for the commit, which is what the new one waits for before it hangs.
            assert!(
                told.contains(" within 50 ms") || told.contains(DEAF),
                "{told}"
            );
        };
        let mut client = company.clients.remove(0);
        client.write_all(b"while nobody serves").unwrap();
        hung.signal(Signal::KILL);
        hung.wait();
        let told = company.why();
        assert!(told.contains("the new process ended"), "{told}");
        let mut heard = [0; 19];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"while nobody serves");
        company.assert_unhurt();
    }
}

#[test]
fn a_halt_at_the_start_and_an_end_by_a_signal() {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut company = Company::start();
        let mut hung = company.launch("hang-init");
        company.assert_serves();
        hung.signal(signal);
        assert_eq!(hung.wait().signal(), Some(signal.as_raw()));
        company.assert_unhurt();
    }
}

#[test]
fn a_halt_in_the_freeze() {
    let mut company = Company::start();
    let hung = company.launch("hang-freeze");
    let told = company.why();
    assert!(
        told.contains("takeover failed, serving on") && told.contains(DEAF),
        "{told}"
    );
    company.assert_serves();
    drop(hung);
    company.assert_unhurt();
}

#[test]
fn a_halt_in_the_pre_copy_is_given_up_after_five_seconds() {
    let mut company = Company::start();
    let hung = company.launch_hanging();
    company.assert_serves();
    let told = company.why();
    assert!(told.contains(STILL), "{told}");
    company.assert_serves();
    // The next takeover works while the hung one lives; what that left goes with the one after its end.
    company.server = company.home.succeed(&mut company.server, &ARGS);
    drop(hung);
    company.assert_unhurt();
}

#[test]
fn a_successor_that_is_killed_in_the_pre_copy() {
    let mut company = Company::start();
    let mut hung = company.launch_hanging();
    hung.signal(Signal::KILL);
    hung.wait();
    let told = company.why();
    assert!(told.contains("the new process ended"), "{told}");
    company.assert_unhurt();
}

#[test]
fn connections_end_as_ever_while_a_hung_successor_holds_copies() {
    for given_up in [false, true] {
        let mut company = Company::quiet();
        let hung = company.launch_hanging();
        if given_up {
            company.why();
        }
        let mut half = company.clients.remove(0);
        half.write_all(b"the last").unwrap();
        half.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_fin(&mut half), b"the last", "and its FIN");
        let list = company.home.json(&["list"]);
        let mut victim = company.clients.remove(0);
        company
            .home
            .answer(&["kill", &entry(&list, &victim)["id"].to_string()]);
        assert_over(&mut victim);
        let killed = entry(&list, &company.slow)["id"].to_string();
        company.home.answer(&["kill", &killed]);
        assert_over(&mut company.slow);
        let Company {
            home,
            mut server,
            mut clients,
            ..
        } = company;
        server.signal(Signal::TERM);
        for client in &mut clients {
            assert_eq!(read_to_fin(client), b"");
        }
        drop(clients);
        assert_eq!(server.wait().code(), Some(0), "{:?}", server.lines);
        if !given_up {
            let told = server
                .lines
                .iter()
                .find(|line| line.contains("takeover failed"));
            assert!(
                told.unwrap().contains("the running server was told to end"),
                "{told:?}"
            );
        }
        let again = home.serve(&["-l", &server.address().to_string()]);
        assert_echoes(&mut again.connect(), b"the port was free");
        drop(hung);
    }
}

#[test]
fn two_at_once() {
    let mut company = Company::start();
    let mut hung = company.launch_hanging();
    let (code, line) = refusal(company.home.successor(&company.server.addresses, &ARGS));
    assert!(
        code == 1 && line.contains("another takeover is under way"),
        "{line}"
    );
    let told = company.why();
    assert!(
        told.contains("takeover refused") && told.contains("another takeover"),
        "{told}"
    );
    hung.signal(Signal::KILL);
    hung.wait();
    company.why();
    company.assert_unhurt();
}

// Who may not.

/// `command` is refused in one line on both sides that has `why`.
#[track_caller]
fn assert_refused(company: &mut Company, command: Command, why: &str) {
    let (code, line) = refusal(command);
    assert!(code == 1 && line.contains(why), "{why}: {line}");
    assert!(
        line.starts_with("standfast: cannot take over from the server at "),
        "{line}"
    );
    let told = company.why();
    assert!(
        told.contains(" warn takeover refused pid=") && told.contains(why),
        "{told}"
    );
    company.assert_serves();
}

#[test]
fn another_version_or_too_few_descriptors() {
    let mut company = Company::start();
    for (fault, why) in [
        ("wrong-version", "speaks takeover 2.6, the running one 1.6"),
        (
            "few-descriptors",
            "the new process may have 0: raise its limit",
        ),
    ] {
        let mut command = company.home.successor(&company.server.addresses, &ARGS);
        command.env("STANDFAST_FAULT", fault);
        assert_refused(&mut company, command, why);
    }
    let address = company.server.address().to_string();
    let command = company.home.shell(
        r#"ulimit -n 80; exec "$@""#,
        &["serve", "--replace", "-l", &address],
    );
    assert_refused(&mut company, command, "raise its limit");
    company.assert_unhurt();
}

#[test]
fn another_network_namespace() {
    const TEST: &str = "another_network_namespace";
    let possible = Command::new("unshare")
        .args(["--net", "true"])
        .stderr(Stdio::null())
        .status();
    if !possible.is_ok_and(|status| status.success()) {
        return cannot_run(TEST, "root, for namespaces");
    }
    let mut company = Company::start();
    let address = company.server.address().to_string();
    let mut command = Command::new("unshare");
    command
        .args(["--net", env!("CARGO_BIN_EXE_standfast")])
        .args(["serve", "--replace", "-l", &address])
        .env("XDG_RUNTIME_DIR", &company.home.path);
    assert_refused(
        &mut company,
        command,
        "the new process is in another network namespace",
    );
    company.assert_unhurt();
}

#[test]
fn another_user() {
    const TEST: &str = "another_user";
    let mut company = Company::start();
    let Some(nobody) = User::nobody(&company.home) else {
        return cannot_run(TEST, "root, to be another user");
    };
    let path = company.home.socket_of(&company.server);
    fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let address = company.server.address().to_string();
    let args = [
        "serve",
        "--replace",
        "-l",
        &address,
        "--control",
        text(&path),
    ];
    let (code, line) = refusal(nobody.standfast(&args));
    assert!(code == 1 && line.contains("another user's"), "{line}");
    company.assert_serves();
    fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o700)).unwrap();
    company.assert_unhurt();
}

// Garbage.

#[test]
fn who_asks_to_take_over_and_then_talks_nonsense() {
    let mut company = Company::start();
    let path = company.home.socket_of(&company.server);
    let network = fs::read_link("/proc/self/ns/net").unwrap();
    let question = serde_json::json!({"take-over": {
        "protocol": 1, "schema": 6, "version": "0", "pid": std::process::id(), "max_conns": 10_000,
        "network": text(&network), "listeners": [[company.server.address().to_string(), "echo"]],
    }});
    let nonsense: [&[u8]; 6] = [
        b"",
        b"garbage",
        b"stdf",
        b"\"status\"",
        b"stdf\x01\x04\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00\x04\x01",
        &[0xff; 60_000],
    ];
    for message in nonsense {
        let caller = UnixStream::from(seqpacket::connect(&path).unwrap());
        caller.set_nonblocking(false).unwrap();
        caller.set_read_timeout(Some(GUARD)).unwrap();
        let say = |message: &[u8]| {
            let _ = rustix::net::send(&caller, message, SendFlags::NOSIGNAL);
        };
        say(question.to_string().as_bytes());
        let mut answer = [0; 4096];
        let length = (&caller).read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.contains("giving"), "{answer}");
        if !message.is_empty() {
            say(message);
        }
        // Some say it and stay, some say nothing and go.
        let stays = (!message.is_empty()).then_some(caller);
        let told = company.why();
        assert!(told.contains("takeover failed, serving on"), "{told}");
        company.assert_serves();
        drop(stays);
    }
    company.assert_unhurt();
}

#[test]
fn a_server_that_talks_nonsense_is_not_taken_over_from() {
    let home = Home::new();
    let path = home.join("c.sock");
    let listener = seqpacket::listen(&path);
    for nonsense in [
        &b""[..],
        b"garbage",
        b"{}",
        b"\"done\"",
        b"\"giving\"",
        &[0xff; 60_000],
    ] {
        let mut command = home.standfast(&["serve", "--replace", "-l", "0"]);
        command.args(["--control", text(&path)]);
        let asking = thread::spawn(move || refusal(command));
        // It may ask again if it is hung up on.
        until("it gives up", || {
            if let Ok(caller) = accept_with(&listener, SocketFlags::CLOEXEC) {
                let mut caller = UnixStream::from(caller);
                let _ = caller.read(&mut [0; 4096]).unwrap();
                if !nonsense.is_empty() {
                    rustix::net::send(&caller, nonsense, SendFlags::NOSIGNAL).unwrap();
                }
            }
            asking.is_finished()
        });
        let (code, line) = asking.join().unwrap();
        assert_eq!(code, 1, "{line}");
        assert!(
            line.starts_with("standfast: cannot take over from the server at "),
            "{line}"
        );
    }
}

/// What may happen to a message on its way.
#[derive(Clone, Copy, Debug)]
enum Mishap {
    Cut,
    Truncated,
    Flipped(usize),
    Twice,
    Preceded,
}

impl Mishap {
    fn happen(self, mut message: Vec<u8>) -> Option<Vec<Vec<u8>>> {
        match self {
            Self::Cut => return None,
            Self::Truncated => message.truncate(message.len() - 1),
            // One bit, in the envelope or in what it holds.
            Self::Flipped(at) => {
                let at = at.min(message.len() - 1);
                message[at] ^= 0x10;
            }
            Self::Twice => return Some(vec![message.clone(), message]),
            Self::Preceded => return Some(vec![b"garbage".to_vec(), message]),
        }
        Some(vec![message])
    }
}

#[test]
fn messages_that_arrive_changed_are_noticed() {
    let mut company = Company::quiet();
    let real = company.home.socket_of(&company.server);
    let path = company.home.join("relay.sock");
    // Which messages there are; none of these takeovers gets as far as the commit. How many there are before one that are
    // alike says which it is: a busy machine has more passes, and each its messages.
    // An update that holds output is another kind than one that only says how a connection stands.
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Which {
        side: Side,
        kind: Option<u8>,
        is_long: bool,
        at: usize,
    }
    let attempt = |company: &Company, harmed: Option<(Which, Mishap)>| {
        // Its own: what the relay of the attempt before still hears is none of this one's.
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let _relay = Relay::start(&path, &real, move |side, _, message| {
            let mut noted = noted.lock().unwrap();
            let (kind, is_long) = (message.get(KIND).copied(), message.len() > 4096);
            let alike = |one: &&Which| (one.side, one.kind, one.is_long) == (side, kind, is_long);
            let at = noted.iter().filter(alike).count();
            let which = Which {
                side,
                kind,
                is_long,
                at,
            };
            noted.push(which);
            match harmed {
                Some((harmed, mishap)) if harmed == which => mishap.happen(message),
                _ if (side, kind) == (Side::New, Some(PREPARED)) => None,
                _ => Some(vec![message]),
            }
        });
        let mut command = company.home.successor(&company.server.addresses, &ARGS);
        command.args(["--control", text(&path)]);
        let (code, line) = refusal(command);
        assert_eq!(code, 1, "{harmed:?}: {line}");
        std::mem::take(&mut *seen.lock().unwrap())
    };
    let messages = attempt(&company, None);
    company.why();
    let of = |whose: Side| messages.iter().filter(move |one| one.side == whose);
    assert!(
        of(Side::Old).count() > 4 && of(Side::New).count() > 4,
        "{messages:?}"
    );
    let mishaps = [
        Mishap::Cut,
        Mishap::Truncated,
        Mishap::Flipped(12),
        Mishap::Flipped(usize::MAX),
        Mishap::Twice,
        Mishap::Preceded,
    ];
    let last = *messages
        .iter()
        .rfind(|one| one.side == Side::Old && one.kind != Some(ABORT))
        .unwrap();
    let some = of(Side::Old).take(6).chain([&last]);
    for &which in some.chain(of(Side::New).take(2)) {
        for mishap in mishaps {
            // Twice, an answer is an answer, how a connection stands is that, and what comes behind the last message is
            // behind the agreement.
            let is_state = which.kind == Some(UPDATES) && !which.is_long;
            let harmless = which.side == Side::New || is_state || which == last;
            if harmless && matches!(mishap, Mishap::Twice) {
                continue;
            }
            // Where the first freeze was too late, there was a message of that, which seldom comes again.
            let happened = (0..5).any(|_| {
                let seen = attempt(&company, Some((which, mishap)));
                let told = company.why();
                assert!(told.contains("takeover failed, serving on"), "{told}");
                let happened = seen.contains(&which);
                let prepared = seen.iter().any(|one| one.kind == Some(PREPARED));
                assert!(
                    !(happened && prepared),
                    "{mishap:?} of {which:?} was not noticed: {seen:?}"
                );
                happened
            });
            assert!(
                happened || which.kind == Some(THAW),
                "{mishap:?} of {which:?} never happened"
            );
        }
        company.assert_serves();
    }
    company.assert_unhurt();
}

#[test]
fn sigterm_to_the_new_one_while_it_waits() {
    let mut company = Company::quiet();
    let real = company.home.socket_of(&company.server);
    let path = company.home.join("relay.sock");
    // The connections never arrive.
    let _relay = Relay::start(&path, &real, |side, at, message| {
        Some(if side == Side::Old && at > 0 {
            vec![]
        } else {
            vec![message]
        })
    });
    let mut command = company.home.successor(&company.server.addresses, &ARGS);
    command.args(["--control", text(&path)]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut waiting = Server::launch(command);
    company.server.log_line("the question", |line| {
        line.contains(" info takeover asked for ")
    });
    until("it has the listener, and obeys signals", || {
        let status = fs::read_to_string(format!("/proc/{}/status", waiting.pid())).unwrap();
        let caught = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:\t"))
            .unwrap();
        u64::from_str_radix(caught, 16).unwrap() & (1 << 14) != 0
    });
    waiting.signal(Signal::TERM);
    let status = waiting.wait();
    assert_eq!(status.code(), Some(1), "{:?}", waiting.lines);
    let told = company.why();
    assert!(told.contains("the new process was told to end"), "{told}");
    company.assert_unhurt();
}
