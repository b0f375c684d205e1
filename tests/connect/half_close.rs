//! The server's FIN ends what it says, and nothing else: what stdin gives still goes to it, unless it turns out to be gone.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::clients::{Stream, reset};
use crate::support::connecting::{Connecting, Netcat, Peer, assert_gets, connect_command};
use crate::support::home::Home;
use crate::support::{GUARD, cannot_run, pass, read_to_fin};

const COUNT: usize = 10 << 20;

/// The next connection, on which the server says nothing: it half-closes at once.
#[track_caller]
fn accept_half_closing(peer: &Peer) -> TcpStream {
    let accepted = peer.accept();
    accepted.shutdown(Shutdown::Write).unwrap();
    accepted
}

/// `connect ARGS... TO`, whose stdin is a file of [`COUNT`] bytes.
fn with_a_file(home: &Home, to: &str, args: &[&str]) -> Connecting {
    let path = home.join("sent");
    std::fs::write(&path, Stream::default().next(COUNT)).unwrap();
    let mut command = connect_command(to, args);
    command.stdin(File::open(&path).unwrap());
    command.stdout(Stdio::piped());
    Connecting::launch(command)
}

#[test]
fn all_of_a_file_goes_to_a_server_that_half_closes_first() {
    let home = Home::new();
    for args in [&[][..], &["--reconnect", "never"], &["--no-half-close"]] {
        let peer = Peer::start();
        let mut connecting = with_a_file(&home, &peer.address().to_string(), args);
        let mut server = accept_half_closing(&peer);
        assert_eq!(Stream::default().read_to_fin(&mut server), COUNT as u64);
        drop(server);
        assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
        assert_eq!(connecting.said("connected to "), 1);
        let closed = format!("closed by {}", peer.address());
        assert!(connecting.lines.last().unwrap().ends_with(&closed));
    }
}

#[test]
fn all_of_a_pipe_goes_to_a_server_that_half_closes_in_the_midst_of_it() {
    let (mut connecting, mut server) = Connecting::connected(&[]);
    connecting.types(Stream::default().next(COUNT));
    let mut stream = Stream::default();
    let mut begin = vec![0; 100_000];
    server.read_exact(&mut begin).unwrap();
    stream.verify(&begin);
    server.write_all(b"enough said\n").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    connecting.ends_stdin();
    assert_eq!(stream.read_to_fin(&mut server), COUNT as u64);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(connecting.said("connected to "), 1);
    assert_eq!(connecting.stdout_rest(), b"enough said\n");
}

#[test]
fn all_of_a_file_goes_to_a_unix_server_that_half_closes_first() {
    let home = Home::new();
    let path = home.join("server");
    let listener = UnixListener::bind(&path).unwrap();
    let mut connecting = with_a_file(&home, &format!("unix:{}", path.display()), &[]);
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(GUARD)).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert!(got == Stream::default().next(COUNT), "{} bytes", got.len());
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
}

#[test]
fn a_server_that_was_seen_to_read_on_is_not_left_however_long_stdin_pauses() {
    let (mut connecting, mut server) = Connecting::connected(&[]);
    // Some of it is under way when the FIN comes, and arrives after it.
    connecting.types(Stream::default().next(COUNT));
    connecting.until_stuck();
    server.shutdown(Shutdown::Write).unwrap();
    let mut all = vec![0; COUNT];
    server.read_exact(&mut all).unwrap();
    connecting.says("half-closed by ");
    pass(Duration::from_millis(2500));
    connecting.types("two\n");
    assert_gets(&mut server, b"two\n");
    connecting.ends_stdin();
    assert_eq!(read_to_fin(&mut server), b"");
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(connecting.said("connected to "), 1);
}

#[test]
fn the_only_connection_there_will_be_is_kept_for_what_stdin_gives_later() {
    let (mut connecting, mut server) = Connecting::connected(&["--reconnect", "never"]);
    server.shutdown(Shutdown::Write).unwrap();
    pass(Duration::from_millis(2500));
    assert!(connecting.is_running(), "{:?}", connecting.lines);
    connecting.types("late\n");
    assert_gets(&mut server, b"late\n");
    connecting.ends_stdin();
    assert_eq!(read_to_fin(&mut server), b"");
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
}

#[test]
fn a_server_that_half_closes_at_once_is_left_to_a_stdin_that_takes_its_time() {
    let peer = Peer::start();
    let mut connecting = Connecting::start(peer.address(), &[]);
    let mut server = accept_half_closing(&peer);
    connecting.says(&format!(
        "half-closed by {}: waiting for stdin",
        peer.address()
    ));
    pass(Duration::from_millis(500));
    connecting.types("at last\n");
    assert_gets(&mut server, b"at last\n");
    connecting.ends_stdin();
    assert_eq!(read_to_fin(&mut server), b"");
    drop(server);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(connecting.said("connected to "), 1);
}

#[test]
fn the_line_that_meets_the_end_of_a_server_that_lingered_goes_to_the_next() {
    let peer = Peer::start();
    let mut connecting = Connecting::start(peer.address(), &[]);
    let mut server = accept_half_closing(&peer);
    // Nobody can know that it forgets them.
    for line in ["one\n", "two\n"] {
        connecting.types(line);
        assert_gets(&mut server, line.as_bytes());
        connecting.until_idle();
    }
    connecting.says("half-closed by ");
    drop(server);
    // No pause of a stdin that goes on.
    pass(Duration::from_millis(20));
    connecting.types("three\n");
    let mut server = peer.accept();
    assert_gets(&mut server, b"three\n");
    assert_eq!(connecting.said("reads on"), 1, "{:?}", connecting.lines);
}

#[test]
fn the_line_that_meets_a_server_which_has_gone_goes_to_the_next() {
    let peer = Peer::start();
    let connecting = Connecting::start(peer.address(), &[]);
    for round in 0..5 {
        let mut server = peer.accept();
        let line = format!("one of round {round}\n");
        connecting.types(line.clone());
        assert_gets(&mut server, line.as_bytes());
        // Typed when its FIN was seen, and likely before it is known what that meant.
        drop(server);
        connecting.until_idle();
        let line = format!("two of round {round}\n");
        connecting.types(line.clone());
        let mut server = peer.accept();
        assert_gets(&mut server, line.as_bytes());
        reset(server);
    }
    assert_eq!(connecting.said("reads on"), 0, "{:?}", connecting.lines);
}

#[test]
fn a_stdin_that_is_silent_does_not_keep_it_from_coming_back() {
    let peer = Peer::start();
    let mut connecting = Connecting::start(peer.address(), &[]);
    let mut server = peer.accept();
    connecting.types("half a line");
    assert_gets(&mut server, b"half a line");
    drop(server);
    connecting.connects(peer.address());
    connecting.says(&format!("lost {}: peer-closed (silent ", peer.address()));
    connecting.connects(peer.address());
}

#[test]
fn bytes_that_a_server_which_had_half_closed_does_not_take_are_a_failure_and_counted() {
    let home = Home::new();
    let peer = Peer::start();
    let args = ["--reconnect", "never"];
    let mut connecting = with_a_file(&home, &peer.address().to_string(), &args);
    let mut server = accept_half_closing(&peer);
    let mut begin = vec![0; 1 << 20];
    server.read_exact(&mut begin).unwrap();
    reset(server);
    // What its kernel had acknowledged does not count, read or not.
    let undelivered = undelivered(&mut connecting);
    assert!(
        (1..=COUNT - begin.len()).contains(&undelivered),
        "{undelivered}"
    );
}

/// Waits for its end, which is a failure, and answers how many bytes were not delivered, as its last line says.
#[track_caller]
fn undelivered(connecting: &mut Connecting) -> usize {
    assert_eq!(connecting.ends(), 1, "{:?}", connecting.lines);
    let said = connecting.lines.last().unwrap();
    let words = said.strip_prefix("standfast: ");
    let count = words.and_then(|said| said.strip_suffix(" bytes were not delivered"));
    let count = count.unwrap_or_else(|| panic!("no count: {said}"));
    count.parse().unwrap()
}

#[test]
fn a_server_that_closes_on_what_stdin_still_holds_is_a_failure_too() {
    let home = Home::new();
    let peer = Peer::start();
    let args = ["--reconnect", "never"];
    let mut connecting = with_a_file(&home, &peer.address().to_string(), &args);
    drop(accept_half_closing(&peer));
    let undelivered = undelivered(&mut connecting);
    assert!((1..=COUNT).contains(&undelivered), "{undelivered}");
}

/// `tar`, with its pauses and its block ends, into netcats that half-close since their own stdin has ended.
#[test]
fn an_archive_goes_to_a_netcat_whose_stdin_has_ended() {
    let test = "an_archive_goes_to_a_netcat_whose_stdin_has_ended";
    let home = Home::new();
    std::fs::write(home.join("content"), Stream::default().next(COUNT)).unwrap();
    let archive = Command::new("tar")
        .args(["c", "content"])
        .current_dir(&home.path)
        .output();
    let archive = archive.unwrap().stdout;
    let args = ["-n", "-l", "-v", "-N", "127.0.0.1", "0"];
    let Some(mut netcat) = Netcat::start("nc.openbsd", &args) else {
        return cannot_run(test, "nc.openbsd");
    };
    netcat.process.ends_stdin();
    let to = netcat.address.to_string();
    let mut command = Command::new("sh");
    let line = r#"tar c -C "$0" content | "$@""#;
    command.args(["-c", line]).arg(&home.path);
    command.arg(crate::support::standfast().get_program());
    command.args(["connect", "--reconnect", "never", &to]);
    let mut connecting = Connecting::spawn(command);
    assert!(netcat.process.stdout_bytes(archive.len()) == archive);
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(connecting.said("connected to "), 1);
}
