//! `serve hub`: a line from one client goes to all others, whole, in one order, and past whoever is slow.

/// Over NATS, with hubs on other machines.
#[cfg(feature = "nats")]
mod nats;
/// `nc`, `ncat` and `socat` on either side.
mod netcat;
/// Who does not read, or not enough.
mod slow;
/// Another process goes on with it.
mod takeover;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use crate::support::clients::reset;
use crate::support::home::{Home, number};
use crate::support::{GUARD, Server, connect, facts, now, pass, read_to_fin, until};

/// What was heard are whole lines, each as `line` has it and later than the one before: the number behind that of the last
/// one, and how many they are.
#[track_caller]
fn in_order(heard: &str, line: impl Fn(usize) -> String) -> (usize, usize) {
    let (mut next, mut count) = (0, 0);
    for said in heard.split_inclusive('\n') {
        let number: usize = said[..8].parse().unwrap_or_else(|_| panic!("{said}"));
        assert_eq!(said, line(number), "whole");
        assert!(number >= next, "{number} after {next}");
        next = number + 1;
        count += 1;
    }
    (next, count)
}

/// A hub with a control socket, and clients that are known to be in.
struct Hub {
    home: Home,
    server: Server,
}

impl Hub {
    fn start(args: &[&str]) -> Self {
        let home = Home::new();
        let server = home.serve(&[&["hub"], args].concat());
        Self { home, server }
    }

    /// How many lines a slow client has lost, and the line that says so.
    #[track_caller]
    fn lost(&mut self) -> (usize, String) {
        let told = self.server.log_line("how many it lost", |line| {
            line.contains(" info a slow client has lost lines ")
        });
        (facts(&told)["lost"].parse().unwrap(), told)
    }

    /// A client that gets what is said from now on.
    fn join(&self) -> Client {
        let client = Client::of(self.server.connect());
        self.until_in(&client);
        client
    }

    /// Waits until the hub has let `client` in.
    fn until_in(&self, client: &Client) {
        let peer = client.stream().local_addr().unwrap().to_string();
        until("the client is in", || {
            let list = self.home.json(&["list"]);
            let list = list.as_array().unwrap();
            list.iter().any(|entry| entry["peer"] == peer.as_str())
        });
    }

    /// Waits until the hub has read `count` bytes of `client`.
    fn until_read(&self, client: &Client, count: u64) {
        let peer = client.stream().local_addr().unwrap().to_string();
        until("the hub has read it", || {
            let list = self.home.json(&["list"]);
            let mut list = list.as_array().unwrap().iter();
            list.any(|entry| entry["peer"] == peer.as_str() && number(&entry["read"]) == count)
        });
    }
}

/// A client that speaks and hears lines.
struct Client {
    lines: BufReader<TcpStream>,
}

impl Client {
    fn of(stream: TcpStream) -> Self {
        Self {
            lines: BufReader::new(stream),
        }
    }

    fn stream(&self) -> &TcpStream {
        self.lines.get_ref()
    }

    fn say(&self, text: &str) {
        self.stream().write_all(text.as_bytes()).unwrap();
    }

    /// The next line, its end included.
    #[track_caller]
    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    /// All that comes up to the server's FIN, once it is told that no more is said.
    #[track_caller]
    fn leave(mut self) -> String {
        self.stream().shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        rest
    }
}

/// Each says a line that all others hear, and nobody else; then they leave.
#[track_caller]
fn assert_all_hear_the_others(mut clients: Vec<Client>) {
    for speaker in 0..clients.len() {
        let line = format!("{speaker} speaks\n");
        clients[speaker].say(&line);
        for (at, client) in clients.iter_mut().enumerate() {
            if at != speaker {
                assert_eq!(client.hear(), line, "{at} hears {speaker}");
            }
        }
    }
    for client in clients {
        assert_eq!(
            client.leave(),
            "",
            "nobody heard itself, nor anything twice"
        );
    }
}

#[test]
fn a_line_goes_to_all_others_on_every_worker() {
    let hub = Hub::start(&["--workers", "2"]);
    assert_all_hear_the_others((0..6).map(|_| hub.join()).collect());
}

#[test]
fn who_speaks_hears_itself_if_that_is_asked_for() {
    let hub = Hub::start(&["--echo-self"]);
    let mut clients = [hub.join(), hub.join()];
    clients[0].say("hello\n");
    for client in &mut clients {
        assert_eq!(client.hear(), "hello\n");
    }
}

#[test]
fn lines_of_many_are_whole_and_everybody_hears_the_same() {
    const SPEAKERS: usize = 8;
    const LINES: usize = 2000;
    let hub = Hub::start(&["--workers", "2", "--buffer", "4m"]);
    let listeners: Vec<_> = (0..4).map(|_| hub.join()).collect();
    let speakers: Vec<_> = (0..SPEAKERS).map(|_| hub.join()).collect();
    let heard: Vec<Vec<String>> = thread::scope(|scope| {
        let hearing: Vec<_> = listeners
            .into_iter()
            .map(|mut client| {
                scope.spawn(move || {
                    let lines = (0..SPEAKERS * LINES).map(|_| client.hear());
                    lines.collect()
                })
            })
            .collect();
        for (at, client) in speakers.iter().enumerate() {
            scope.spawn(move || {
                let text: String = (0..LINES)
                    .map(|line| format!("{at} {line} {}\n", "x".repeat(line % 80)))
                    .collect();
                // In pieces that know nothing of lines.
                for piece in text.as_bytes().chunks(997) {
                    client.stream().write_all(piece).unwrap();
                }
            });
        }
        hearing
            .into_iter()
            .map(|hearing| hearing.join().unwrap())
            .collect()
    });
    let mut next: HashMap<String, usize> = HashMap::new();
    for line in &heard[0] {
        let mut words = line.trim_end_matches('\n').splitn(3, ' ');
        let speaker = words.next().unwrap().to_owned();
        let at = next.entry(speaker).or_default();
        assert_eq!(words.next().unwrap(), at.to_string(), "{line}");
        assert_eq!(words.next().unwrap(), "x".repeat(*at % 80), "{line}");
        *at += 1;
    }
    assert!(heard.iter().all(|one| *one == heard[0]), "one order");
    for (at, client) in speakers.into_iter().enumerate() {
        let rest = client.leave();
        let lines = rest.lines().count();
        assert_eq!(lines, (SPEAKERS - 1) * LINES, "speaker {at}");
        assert!(!rest.lines().any(|line| line.starts_with(&format!("{at} "))));
    }
}

#[test]
fn newcomers_get_the_last_lines() {
    let hub = Hub::start(&["--history", "3"]);
    let speaker = hub.join();
    let mut early = hub.join();
    speaker.say("1\n2\n3\n4\n5\n");
    assert_eq!(early.hear(), "1\n");
    let mut late = Client::of(hub.server.connect());
    for line in ["3\n", "4\n", "5\n"] {
        assert_eq!(late.hear(), line);
    }
    speaker.say("6\n");
    assert_eq!(late.hear(), "6\n");
}

#[test]
fn newcomers_hear_only_what_is_said_from_then_on() {
    let hub = Hub::start(&["--flush", "10s"]);
    let speaker = hub.join();
    speaker.say("before\n");
    hub.until_read(&speaker, 7);
    let mut late = hub.join();
    speaker.say("after\n");
    hub.until_read(&speaker, 13);
    // A drain does not wait for more to gather.
    hub.server.signal(rustix::process::Signal::TERM);
    assert_eq!(late.hear(), "after\n");
}

#[test]
fn only_sources_are_passed_on() {
    let hub = Hub::start(&["--source", "127.0.0.2", "--source", "10.0.0.0/8"]);
    let stranger = hub.join();
    let mut listener = hub.join();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let near: std::net::SocketAddr = "127.0.0.2:0".parse().unwrap();
    socket.bind(&near.into()).unwrap();
    socket.connect(&hub.server.address().into()).unwrap();
    let source = Client::of(socket.into());
    stranger.say("not passed on\n");
    hub.until_read(&stranger, 14);
    source.say("passed on\n");
    assert_eq!(listener.hear(), "passed on\n");
    // A stranger may say as much as it wants, lines or not.
    stranger.say(&"=".repeat(200_000));
    hub.until_read(&stranger, 200_014);
    assert_eq!(stranger.leave(), "passed on\n");
}

#[test]
fn a_last_line_without_an_end_gets_one() {
    let mut hub = Hub::start(&[]);
    let mut listener = hub.join();
    let speaker = hub.join();
    speaker.say("whole\nunfinished");
    assert_eq!(speaker.leave(), "");
    assert_eq!(hub.server.closed().reason(), "peer-closed");
    assert_eq!(listener.hear(), "whole\n");
    assert_eq!(listener.hear(), "unfinished\n");
}

#[test]
fn a_line_that_a_reset_cut_short_is_not_passed_on() {
    let mut hub = Hub::start(&[]);
    let mut listener = hub.join();
    let speaker = hub.join();
    speaker.say("whole\ncut sho");
    assert_eq!(listener.hear(), "whole\n");
    reset(speaker.lines.into_inner());
    assert_eq!(hub.server.closed().reason(), "peer-reset");
    hub.join().say("and on\n");
    assert_eq!(listener.hear(), "and on\n");
}

#[test]
fn who_leaves_gets_what_was_said_before() {
    let hub = Hub::start(&["--flush", "5s"]);
    let (speaker, listener) = (hub.join(), hub.join());
    speaker.say("gathered yet\n");
    hub.until_read(&speaker, 13);
    assert_eq!(listener.leave(), "gathered yet\n");
}

#[test]
fn a_line_too_long_ends_its_sender_and_nobody_hears_of_it() {
    for text in ["x".repeat(5000), "x".repeat(1500) + "\nmore\n"] {
        let mut hub = Hub::start(&["--max-line", "1k"]);
        let mut listener = hub.join();
        let speaker = hub.join();
        let longest = "y".repeat(1023) + "\n";
        speaker.say(&longest);
        assert_eq!(listener.hear(), longest);
        speaker.say("before\n");
        speaker.say(&text);
        let mut speaker = speaker.lines.into_inner();
        assert_eq!(read_to_fin(&mut speaker), b"");
        drop(speaker);
        assert_eq!(hub.server.closed().reason(), "service");
        let warned = hub.server.lines.iter();
        let warned: Vec<_> = warned.filter(|line| line.contains(" warn ")).collect();
        assert!(
            matches!(warned[..], [line] if line.contains("too long") && line.contains("max_line=1024")),
            "{warned:?}"
        );
        hub.join().say("another\n");
        assert_eq!(listener.hear(), "before\n");
        assert_eq!(listener.hear(), "another\n");
    }
}

#[test]
fn raw_passes_on_what_comes_as_it_comes() {
    let hub = Hub::start(&["--raw", "--flush", "0"]);
    let (speaker, mut listener) = (hub.join(), hub.join());
    for chunk in ["no end", "\0\r", "\n"] {
        speaker.say(chunk);
        let mut heard = vec![0; chunk.len()];
        listener.lines.read_exact(&mut heard).unwrap();
        assert_eq!(heard, chunk.as_bytes());
    }
}

#[test]
fn line_ends_are_passed_on_as_they_are() {
    let hub = Hub::start(&[]);
    let (speaker, mut listener) = (hub.join(), hub.join());
    speaker.say("dos\r\n\n\r\nunix\n");
    for line in ["dos\r\n", "\n", "\r\n", "unix\n"] {
        assert_eq!(listener.hear(), line);
    }
}

#[test]
fn who_only_listens_is_not_silent() {
    let hub = Hub::start(&[]);
    let entry = |key: &str| {
        let list = hub.home.json(&["list"]);
        list.as_array().unwrap()[0][key].clone()
    };
    let _listener = hub.join();
    assert_eq!(entry("next_deadline"), serde_json::Value::Null);
    let mut strict = Hub::start(&["--read-timeout", "1s"]);
    let silent = strict.join();
    assert_eq!(strict.server.closed().reason(), "read-timeout");
    drop(silent);
}

#[test]
fn a_drain_delivers_what_was_said() {
    let mut hub = Hub::start(&["--flush", "10s", "--workers", "2"]);
    let listeners: Vec<_> = (0..4).map(|_| hub.join()).collect();
    let speaker = hub.join();
    let text: String = (0..2000).map(|line| format!("line {line}\n")).collect();
    speaker.say(&text);
    hub.until_read(&speaker, text.len() as u64);
    hub.server.signal(rustix::process::Signal::TERM);
    for mut listener in listeners {
        let mut heard = String::new();
        listener.lines.read_to_string(&mut heard).unwrap();
        assert!(heard == text, "{} of {} bytes", heard.len(), text.len());
    }
    assert_eq!(read_to_fin(&mut speaker.lines.into_inner()), b"");
    assert_eq!(hub.server.wait().code(), Some(0));
}

#[test]
fn lines_are_gathered_and_do_not_wait_for_more_than_that() {
    let hub = Hub::start(&["--flush", "500ms"]);
    let (speaker, mut listener) = (hub.join(), hub.join());
    let said = now();
    speaker.say("one\n");
    pass(Duration::from_millis(100));
    speaker.say("two\n");
    assert_eq!(listener.hear(), "one\n");
    let waited = said.elapsed();
    assert!(waited >= Duration::from_millis(500), "after {waited:?}");
    assert_eq!(listener.lines.buffer(), b"two\n", "in the same write");
}

/// A sender is slowed to what the workers can pass on, so a burst larger than the buffer overtakes nobody whose socket
/// has room.
#[test]
fn a_burst_is_lost_by_nobody_who_has_room_for_it() {
    const LISTENERS: usize = 300;
    const LINES: usize = 1000;
    let mut hub = Hub::start(&["--buffer", "16k", "--workers", "2", "--keepalive", "off"]);
    let clients: Vec<_> = (0..LISTENERS).map(|_| hub.server.connect()).collect();
    let last = Client::of(hub.server.connect());
    hub.until_in(&last);
    // Sockets take some 100 KB unread.
    let text: String = (0..LINES).map(|line| format!("{line:059}\n")).collect();
    last.say(&text);
    hub.until_read(&last, text.len() as u64);
    assert_eq!(last.leave(), "");
    hub.server.signal(rustix::process::Signal::TERM);
    for mut client in clients {
        client.set_read_timeout(Some(GUARD)).unwrap();
        let heard = read_to_fin(&mut client);
        assert!(heard == text.as_bytes(), "{} bytes", heard.len());
    }
    assert_eq!(hub.server.wait().code(), Some(0));
}

#[test]
fn what_makes_no_hub_is_refused() {
    let home = Home::new();
    for (args, word) in [
        (&["hub", "--source", "10.0.0.1/8"][..], "beyond the first 8"),
        (&["hub", "--source", "everybody"], "such as 10.0.0.0/8"),
        (&["hub", "--max-line", "200k"], "--buffer"),
        (&["hub", "--slow", "wait"], "drop-oldest"),
        (&["hub", "--raw", "--max-line", "1k"], "cannot be used with"),
        (&["hub", "7001"], "7001"),
        (
            &["echo", "--history", "3"],
            "--history is for the service hub",
        ),
    ] {
        let (code, _, said) = crate::support::output(home.standfast(&[&["serve"], args].concat()));
        assert_eq!(code, 2, "{args:?}: {said}");
        assert!(said.contains(word), "{args:?}: {said}");
    }
}

#[test]
fn clients_of_a_unix_socket_hear_and_speak() {
    let home = Home::new();
    let path = home.join("hub");
    let address = format!("unix:{}", path.display());
    let mut command = home.standfast(&["serve", "hub", "-l", &address, "-l", "0"]);
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped());
    let mut server = Server::launch(command);
    assert_eq!(server.stdout_line(), format!("listening on {address}"));
    let port = server.stdout_line();
    let mut listener = Client::of(connect(crate::support::listening(&port)));
    until("both are in", || {
        number(&home.json(&["status"])["open"]) == 1
            && home.json(&["list"]).as_array().unwrap().len() == 1
    });
    let mut speaker = std::os::unix::net::UnixStream::connect(&path).unwrap();
    speaker.write_all(b"hello\n").unwrap();
    assert_eq!(listener.hear(), "hello\n");
    listener.say("and back\n");
    let mut heard = [0; 9];
    speaker.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"and back\n");
}
