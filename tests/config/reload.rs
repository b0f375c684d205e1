//! A configuration that is read anew by a process that takes over.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use rustix::process::Signal;

use super::{NO_FILES, assert_next, file, serve};
use crate::support::home::{Home, text};
use crate::support::{GUARD, Orphan, Server, assert_echoes, connect, read_to_fin, shell, until};

/// Has the file read anew: the new process, and what was answered.
#[track_caller]
pub(super) fn reload(home: &Home) -> (Orphan, String) {
    let said = home.taken_over(&["reload"]);
    (Orphan::new(home.pid(&[])), said)
}

/// What is said of a reload that is refused.
#[track_caller]
fn refused(home: &Home) -> String {
    let (code, said) = home.refusal(&["reload"]);
    assert_eq!(code, 1, "{said}");
    let begins = "standfast: not reloaded, the server goes on: ";
    assert!(said.starts_with(begins), "{said}");
    said
}

#[test]
fn what_was_changed_takes_effect_and_the_clients_stay() {
    let home = Home::new();
    let first = "address = 0\nread-timeout = \"5m\"\n";
    let mut server = serve(&home, first, 1);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let more = "[[listen]]\naddress = 0\nread-timeout = \"7m\"\n\n\
                [[listen]]\naddress = \"127.0.0.2:0\"\nservice = \"discard\"\n";
    file(&home, more);
    let (next, answer) = reload(&home);
    assert!(answer.starts_with("reloaded: pid "), "{answer}");
    assert!(answer.contains(", 1 connection handed over, "), "{answer}");
    assert_echoes(&mut client, b"and on");
    assert_echoes(&mut server.connect(), b"at the same address");
    let changed = format!("listening listener={} service=echo ", server.address());
    let line = server.log_line("the new setting", |line| {
        line.contains(&changed) && line.contains(" read_timeout=7m ")
    });
    assert!(line.contains("keepalive=60:10:3"), "{line}");
    let added = server.log_line("the new listener", |line| line.contains("service=discard"));
    let added = added.split("listener=").nth(1).unwrap();
    let added = added.split(' ').next().unwrap().parse().unwrap();
    drop(connect(added));
    // And once more, from there.
    file(&home, &more.replace("7m", "8m"));
    let (last, answer) = reload(&home);
    assert!(answer.starts_with("reloaded: pid "), "{answer}");
    assert_echoes(&mut client, b"still");
    until("the second one has ended", || next.has_ended());
    // It has the same stderr: with it the log ends.
    drop(last);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn what_cannot_be_read_or_may_not_be_changes_nothing_and_is_answered() {
    let home = Home::new();
    let good = "address = 0\n";
    let mut server = serve(&home, good, 1);
    let path = home.join("standfast.toml");
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let wrong = (
        "printf 'address = 0\\nread-timeot = 5\\n' > \"$2\"",
        "standfast.toml:2: there is no key read-timeot; the nearest one is read-timeout",
    );
    let value = (
        "printf 'address = 0\\nbacklog = 0\\n' > \"$2\"",
        "standfast.toml:2: invalid value '0'",
    );
    let taken = (
        "printf 'address = [0, \"nosuch.invalid:1\"]\\n' > \"$2\"",
        "standfast.toml:1: cannot resolve nosuch.invalid:1",
    );
    for (make, why) in NO_FILES.into_iter().chain([wrong, value, taken]) {
        assert!(shell(make, &[text(&path)]).status().unwrap().success());
        let said = refused(&home);
        assert!(said.contains(why), "{make}: {said}");
        assert_eq!(home.pid(&[]), server.pid());
        assert_echoes(&mut client, b"as before");
    }
    fs::write(&path, good).unwrap();
    let (next, _) = reload(&home);
    assert_echoes(&mut client, b"and on");
    drop(next);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_hangup_reloads_where_there_is_a_file() {
    let home = Home::new();
    let mut server = serve(&home, "address = 0\n", 1);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let path = file(&home, "addresz = 0\n");
    server.signal(Signal::HUP);
    let line = server.log_line("what is wrong", |line| line.contains("not restarted"));
    assert!(line.contains("the nearest one is address"), "{line}");
    assert_eq!(home.pid(&[]), server.pid());
    fs::write(&path, "address = 0\nmax-age = \"1h\"\n").unwrap();
    loop {
        server.signal(Signal::HUP);
        let line = server.log_line("what comes of it", |line| {
            line.contains(" took over ") || line.contains("not restarted")
        });
        if line.contains(" took over ") {
            break;
        }
        assert!(line.contains("freeze"), "only too slow: {line}");
    }
    let next = Orphan::new(home.pid(&[]));
    assert_echoes(&mut client, b"and on");
    drop(next);
}

#[test]
fn a_hangup_is_ignored_under_nohup_with_a_file_too() {
    let home = Home::new();
    let path = file(&home, "address = 0\n");
    let mut command = home.command("nohup");
    command.arg(env!("CARGO_BIN_EXE_standfast"));
    command.args(["serve", "--config", text(&path)]);
    let mut server = Server::spawn(command, 1);
    server.signal(Signal::HUP);
    server.signal(Signal::USR1);
    server.log_line("the next signal", |line| line.contains("signal=SIGUSR1"));
    assert!(!server.lines.iter().any(|line| line.contains("SIGHUP")));
    assert_eq!(home.pid(&[]), server.pid());
}

#[test]
fn a_reload_without_a_file_is_a_restart() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut client: TcpStream = server.connect();
    assert_echoes(&mut client, b"hello");
    let (next, answer) = reload(&home);
    assert!(answer.contains("1 connection handed over"), "{answer}");
    assert_echoes(&mut client, b"and on");
    drop(next);
    assert_eq!(server.wait().code(), Some(0));
}

/// A server on two addresses and more, of which the last is a relay to `upstream`, and the rest of its file.
fn with_relay(home: &Home, rest: &str, upstream: &TcpListener, listeners: usize) -> Server {
    let relay = relay(upstream);
    serve(
        home,
        &format!("drain-timeout = \"1m\"\n{rest}{relay}"),
        listeners,
    )
}

pub(super) fn relay(upstream: &TcpListener) -> String {
    let upstream = upstream.local_addr().unwrap();
    format!(
        "[[listen]]\naddress = \"127.0.0.3:0\"\nservice = \"forward\"\nupstream = \"{upstream}\"\n"
    )
}

/// Writes on one end and reads on the other, which have to be connected.
#[track_caller]
pub(super) fn assert_passes(from: &mut TcpStream, to: &mut TcpStream, text: &str) {
    from.write_all(text.as_bytes()).unwrap();
    assert_next(to, text);
}

pub(super) const ECHO: &str = "[[listen]]\naddress = 0\n";

#[test]
fn a_listener_that_is_left_out_is_closed_and_its_connections_end_where_they_were() {
    let home = Home::new();
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = with_relay(&home, ECHO, &upstream, 2);
    let relaying = server.addresses[1];
    let mut echoing = server.connect();
    let mut relayed = connect(relaying);
    let (mut far, _) = upstream.accept().unwrap();
    assert_echoes(&mut echoing, b"hello");
    assert_passes(&mut relayed, &mut far, "there");
    file(&home, ECHO);
    let former = home.pid(&[]);
    let (next, answer) = reload(&home);
    assert!(
        answer.contains(
            ", 1 connection handed over, 1 stay with the former process and are drained, "
        ),
        "{answer}"
    );
    until("nobody listens there", || {
        TcpStream::connect(relaying).is_err()
    });
    let behind = format!("behind       pid {former} drains the connections that stayed");
    let status = || home.answer(&["status"]);
    assert!(status().contains(&behind), "{}", status());
    assert_echoes(&mut echoing, b"and on");
    assert_echoes(&mut server.connect(), b"who comes now");
    assert_passes(&mut relayed, &mut far, "there, still");
    assert_passes(&mut far, &mut relayed, "and back");
    drop((relayed, far));
    let line = server.log_line("the end of the relay", |line| {
        line.contains("closed") && line.contains(&format!("listener={relaying} "))
    });
    assert!(line.contains("reason=peer-closed"), "{line}");
    server.log_line("the end of the old process", |line| {
        line.contains("info ended ")
    });
    until("it is alone", || !status().contains("behind "));
    // It may come back.
    file(&home, &format!("{ECHO}{}", relay(&upstream)));
    let (last, answer) = reload(&home);
    assert!(!answer.contains("stay"), "{answer}");
    assert_echoes(&mut echoing, b"and on");
    drop((next, last));
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_reload_that_fails_half_way_leaves_all_listeners_where_they_were() {
    for fault in ["abort-pre-copy", "abort-freeze", "abort-commit"] {
        let home = Home::new();
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let path = file(&home, &format!("{ECHO}{}", relay(&upstream)));
        let mut command = home.standfast(&["serve", "--config", text(&path)]);
        command.env("STANDFAST_FAULT", fault);
        let server = Server::spawn(command, 2);
        let mut echoing = server.connect();
        let mut relayed = connect(server.addresses[1]);
        let (mut far, _) = upstream.accept().unwrap();
        assert_echoes(&mut echoing, b"hello");
        file(&home, ECHO);
        refused(&home);
        assert_eq!(home.pid(&[]), server.pid());
        assert_echoes(&mut echoing, b"and on");
        assert_passes(&mut relayed, &mut far, "there");
        let mut another = connect(server.addresses[1]);
        let (mut its, _) = upstream.accept().unwrap();
        assert_passes(&mut another, &mut its, "who comes now");
    }
}

#[test]
fn another_service_at_an_address_serves_who_comes_and_the_former_ones_clients_are_drained() {
    let home = Home::new();
    let mut server = serve(&home, ECHO, 1);
    let mut echoing = server.connect();
    assert_echoes(&mut echoing, b"hello");
    file(
        &home,
        "[[listen]]\naddress = 0\nservice = \"exec\"\ncommand = [\"/bin/echo\", \"changed\"]\n",
    );
    let (next, answer) = reload(&home);
    assert!(
        answer.contains(", 0 connections handed over, 1 stay "),
        "{answer}"
    );
    assert_eq!(read_to_fin(&mut echoing), b"", "drained, in order");
    assert_eq!(read_to_fin(&mut server.connect()), b"changed\n");
    server.log_line("the end of the former", |line| {
        line.contains("reason=drain")
    });
    drop(next);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn the_path_of_a_unix_socket_that_is_left_out_goes_and_the_others_stay() {
    let home = Home::new();
    let at = |name: &str| {
        format!(
            "[[listen]]\naddress = \"unix:{}\"\n",
            text(&home.join(name))
        )
    };
    let path = file(&home, &format!("{}{}{}", at("a"), at("b"), at("c")));
    let control = home.join("control");
    let control = text(&control);
    let command = home.standfast(&["serve", "--config", text(&path), "--control", control]);
    let _server = Server::spawn(command, 3);
    let echoes = |name: &str| {
        let Ok(mut client) = UnixStream::connect(home.join(name)) else {
            return false;
        };
        client.set_read_timeout(Some(GUARD)).unwrap();
        client.write_all(b"hello").unwrap();
        let mut echoed = [0; 5];
        client.read_exact(&mut echoed).is_ok() && &echoed == b"hello"
    };
    let stands = |name: &str| home.join(name).exists();
    assert!(["a", "b", "c"].into_iter().all(echoes));
    file(&home, &format!("{}{}", at("c"), at("a")));
    for _ in 0..2 {
        home.taken_over(&["reload", "--control", control]);
        until("its path goes", || !stands("b"));
        assert!(echoes("a") && echoes("c") && !echoes("b"));
    }
    home.answer(&["drain", "--control", control]);
    until("the paths go with the last", || {
        !["a", "c", "control"].into_iter().any(stands)
    });
}

#[test]
fn hubs_are_parted_and_joined_and_no_client_gets_another_ones_lines() {
    let home = Home::new();
    let hub = |addresses: &str| {
        format!("[[listen]]\naddress = [{addresses}]\nservice = \"hub\"\nhistory = 9\n")
    };
    let (one, other) = ("\"127.0.0.1:0\"", "\"127.0.0.2:0\"");
    let mut server = serve(&home, &hub(&format!("{one}, {other}")), 2);
    let [first, second] = server.addresses[..] else {
        panic!("{:?}", server.addresses);
    };
    let mut near = [connect(first), connect(first)];
    let mut far = [connect(second), connect(second)];
    let [speaker, hearer] = &mut near;
    speaker.write_all(b"to all\n").unwrap();
    for client in [hearer].into_iter().chain(&mut far) {
        assert_next(client, "to all\n");
    }
    // Parted, with what was said before in both.
    file(&home, &(hub(one) + &hub(other)));
    let (parted, answer) = reload(&home);
    assert!(answer.contains(", 4 connections handed over, "), "{answer}");
    let says = |[speaker, hearer]: &mut [TcpStream; 2], text: &str| {
        speaker.write_all(text.as_bytes()).unwrap();
        assert_next(hearer, text);
    };
    says(&mut near, "near\n");
    says(&mut far, "far\n");
    says(&mut near, "near again\n");
    assert_next(&mut connect(first), "to all\nnear\nnear again\n");
    assert_next(&mut connect(second), "to all\nfar\n");
    // Joined: there is one feed, and the clients of the other are drained.
    until("the last two have left", || {
        home.json(&["status"])["open"] == 4
    });
    file(&home, &hub(&format!("{one}, {other}")));
    let (joined, answer) = reload(&home);
    assert!(
        answer.contains(", 2 connections handed over, 2 stay "),
        "{answer}"
    );
    for client in &mut far {
        assert_eq!(
            read_to_fin(client),
            b"",
            "nothing of the others, and in order"
        );
    }
    let mut newcomer = connect(second);
    assert_next(&mut newcomer, "to all\nnear\nnear again\n");
    near[0].write_all(b"to both\n").unwrap();
    assert_next(&mut near[1], "to both\n");
    assert_next(&mut newcomer, "to both\n");
    drop((parted, joined));
    assert_eq!(server.wait().code(), Some(0));
}
