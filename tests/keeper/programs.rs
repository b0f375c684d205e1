//! Programs of `exec` and their connections outlive a crash of the server, and are watched again.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Stdio;

use rustix::process::Signal;

use super::Kept;
use super::vault::mortal;
use crate::exec::{line, lives};
use crate::support::home::{Home, number};
use crate::support::{assert_echoes, read_to_fin, restarted, until};

/// Says its number, answers lines, notes them on stderr, and says when that was all.
const TALK: &str = "echo $$; while read x; do echo got $x; echo noted $x >&2; done; echo bye";

fn kept(flags: &[&str], script: &str) -> Kept {
    let words = [
        &["exec", "--workers", "2"],
        flags,
        &["--", "sh", "-c", script],
    ]
    .concat();
    Kept::start(&words)
}

fn open(kept: &Kept) -> u64 {
    number(&kept.status()["open"])
}

/// Asked of it, its program answers.
#[track_caller]
fn assert_answers(client: &mut TcpStream, what: &str) {
    writeln!(client, "{what}").unwrap();
    assert_eq!(line(client), format!("got {what}"));
}

#[test]
fn programs_go_on_with_their_clients_over_crashes_and_restarts() {
    let mut kept = kept(&[], TALK);
    let mut clients: Vec<_> = (0..6).map(|_| kept.keeper.connect()).collect();
    let pids: Vec<String> = clients.iter_mut().map(line).collect();
    for round in 0..4 {
        until("all are there", || open(&kept) == 6);
        for client in &mut clients {
            assert_answers(client, &format!("{round}-before"));
        }
        if round == 2 {
            let former = kept.server();
            let (code, _, line) = restarted(|| kept.home.standfast(&["restart"]));
            assert_eq!(code, 0, "{line}");
            kept.until_another_serves(former);
        } else {
            kept.until_another_serves(kept.crash(Signal::KILL));
        }
        for client in &mut clients {
            assert_answers(client, &format!("{round}-after"));
        }
        for _ in 0..6 {
            let noted = format!("line=\"noted {round}-after");
            kept.keeper
                .log_line("stderr is read on", |line| line.contains(&noted));
        }
        assert!(pids.iter().all(|pid| lives(pid)));
    }
    for client in &mut clients {
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_fin(client), b"bye\n");
    }
    for _ in 0..6 {
        let closed = kept.keeper.closed();
        assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
    }
    until("nobody is left", || open(&kept) == 0);
    kept.assert_drains();
}

#[test]
fn a_program_that_ends_while_no_server_runs_is_seen_by_the_next_one() {
    let mut kept = kept(&[], "echo $$; read x; echo last words");
    let mut client = kept.keeper.connect();
    let pid = line(&mut client);
    until("it is watched", || open(&kept) == 1);
    let server = kept.server();
    rustix::process::kill_process(server, Signal::STOP).unwrap();
    writeln!(client, "end").unwrap();
    until("it has ended", || !lives(&pid));
    rustix::process::kill_process(server, Signal::KILL).unwrap();
    assert_eq!(read_to_fin(&mut client), b"last words\n");
    let closed = kept.keeper.closed();
    assert_eq!(closed.reason(), "service", "{}", closed.line);
    kept.assert_drains();
}

#[test]
fn the_limits_of_a_program_go_on_over_a_crash() {
    let mut kept = kept(
        &["--max-children", "1", "--exec-timeout", "4s"],
        "echo $$; exec sleep 1000",
    );
    let mut client = kept.keeper.connect();
    let pid = line(&mut client);
    until("it is watched", || open(&kept) == 1);
    kept.until_another_serves(kept.crash(Signal::KILL));
    let mut second = kept.keeper.connect();
    assert_eq!(read_to_fin(&mut second), b"", "there is one");
    assert_eq!(kept.keeper.closed().get("limit"), "max-children");
    assert_eq!(read_to_fin(&mut client), b"", "its time is over");
    until("it was ended", || !lives(&pid));
    assert_eq!(kept.keeper.closed().reason(), "service");
    kept.assert_drains();
}

#[test]
fn a_program_whose_client_has_gone_meanwhile_is_ended() {
    let kept = kept(&[], "echo $$; exec sleep 1000");
    let mut client = kept.keeper.connect();
    let pid = line(&mut client);
    until("it is watched", || open(&kept) == 1);
    let server = kept.server();
    rustix::process::kill_process(server, Signal::STOP).unwrap();
    crate::support::clients::reset(client);
    rustix::process::kill_process(server, Signal::KILL).unwrap();
    until("it was ended", || !lives(&pid));
}

#[test]
fn the_last_words_of_a_program_come_where_the_server_dies_as_it_takes_the_socket_back() {
    let (mut kept, file) = mortal("taken-back", &["exec", "--", "cat"]);
    for _ in 0..2 {
        let mut client = kept.keeper.connect();
        assert_echoes(&mut client, b"hello");
        until("it is watched", || open(&kept) == 1);
        std::fs::write(&file, "").unwrap();
        client.write_all(b"last words").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_fin(&mut client), b"last words");
        assert!(!file.exists(), "no server died");
        let closed = kept.keeper.closed();
        assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
    }
    kept.assert_drains();
}

#[test]
fn a_program_may_have_its_socket_not_block() {
    let home = Home::new();
    let file = home.join("go");
    let script = format!(
        "dd iflag=nonblock count=0 status=none; echo $$; while ! [ -e {} ]; do sleep 0.05; done; echo late",
        file.display()
    );
    let kept = kept(&[], &script);
    let mut client = kept.keeper.connect();
    let pid = line(&mut client);
    until("it is watched", || open(&kept) == 1);
    kept.until_another_serves(kept.crash(Signal::KILL));
    assert!(lives(&pid));
    std::fs::write(&file, "").unwrap();
    assert_eq!(read_to_fin(&mut client), b"late\n");
}

#[test]
fn a_connection_that_a_program_leaves_to_another_ends_with_that_though_the_keeper_had_it() {
    let home = Home::new();
    let file = home.join("go");
    // The child has the socket alone, and waits for the file.
    let script = format!(
        "(while ! [ -e {} ]; do sleep 0.05; done; echo late) & echo left",
        file.display()
    );
    let mut kept = kept(&[], &script);
    let mut client = kept.keeper.connect();
    assert_eq!(line(&mut client), "left");
    let closed = kept.keeper.closed();
    assert_eq!(closed.reason(), "service", "{}", closed.line);
    std::fs::write(&file, "").unwrap();
    assert_eq!(read_to_fin(&mut client), b"late\n");
    kept.assert_drains();
}

#[test]
fn a_client_over_a_unix_socket_keeps_its_program() {
    let home = Home::new();
    let path = home.join("s");
    let listen = format!("unix:{}", path.display());
    let words = [
        "serve", "--keep", "-l", &listen, "exec", "--", "sh", "-c", TALK,
    ];
    let mut command = home.standfast(&words);
    command.stdin(Stdio::null());
    let kept = Kept::spawn(home, command, 1);
    let mut client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    client
        .set_read_timeout(Some(crate::support::GUARD))
        .unwrap();
    let said = |client: &mut std::os::unix::net::UnixStream, ask: &str, want: &str| {
        client.write_all(ask.as_bytes()).unwrap();
        let mut came = vec![0; want.len()];
        client.read_exact(&mut came).unwrap();
        assert_eq!(came, want.as_bytes());
    };
    let mut byte = [0];
    while byte != *b"\n" {
        client.read_exact(&mut byte).unwrap();
    }
    said(&mut client, "one\n", "got one\n");
    let servers = super::children(kept.keeper.pid());
    rustix::process::kill_process(servers[0], Signal::KILL).unwrap();
    said(&mut client, "two\n", "got two\n");
    client.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"bye\n");
}
