//! Listeners that are Unix sockets.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::home::{Home, text};
use crate::support::{GUARD, Server, until};

/// A server on `unix:ADDRESS`, whose one line on stdout says so.
#[track_caller]
fn serve(home: &Home, address: &str) -> Server {
    let mut server = Server::launch(command(home, address, &[]));
    assert_eq!(server.stdout_line(), format!("listening on {address}"));
    server
}

fn command(home: &Home, address: &str, args: &[&str]) -> Command {
    let mut command = home.standfast(&["serve", "-l", address]);
    command.args(["--control", text(&home.join("c.sock"))]);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

fn at(path: &Path) -> String {
    format!("unix:{}", path.display())
}

fn connect(path: &Path) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(GUARD)).unwrap();
    client
}

#[track_caller]
fn assert_echoes(client: &mut UnixStream, bytes: &[u8]) {
    client.write_all(bytes).unwrap();
    let mut echoed = vec![0; bytes.len()];
    client.read_exact(&mut echoed).unwrap();
    assert_eq!(echoed, bytes);
}

/// What another program, as `args` say, gets for `hello`.
#[track_caller]
fn assert_answers(args: &[&str]) {
    let mut child = Command::new(args[0])
        .args(&args[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello").unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.stdout, b"hello", "{args:?}");
}

#[test]
fn netcat_and_socat_are_served() {
    if crate::support::lacks(&["nc.openbsd", "socat"]) {
        return;
    }
    let home = Home::new();
    let path = home.join("s");
    let mut server = serve(&home, &at(&path));
    assert_answers(&["nc.openbsd", "-N", "-U", text(&path)]);
    assert_answers(&[
        "socat",
        "-t",
        "5",
        "-",
        &format!("UNIX-CONNECT:{}", text(&path)),
    ]);
    for _ in 0..2 {
        let closed = server.closed();
        assert_eq!(
            (closed.reason(), closed.get("listener")),
            ("peer-closed", &*at(&path))
        );
        assert!(closed.get("peer").starts_with("unix:"), "{}", closed.line);
    }
    assert!(server.drain().success());
}

#[test]
fn list_says_which_process_came() {
    let home = Home::new();
    let path = home.join("s");
    let _server = serve(&home, &at(&path));
    let mut client = connect(&path);
    assert_echoes(&mut client, b"hello");
    let control = text(&home.join("c.sock")).to_owned();
    let list = home.json(&["list", &control]);
    assert_eq!(list[0]["peer"], format!("unix:{}", std::process::id()));
    assert_eq!(
        (&list[0]["listener"], &list[0]["read"]),
        (&at(&path).into(), &5.into())
    );
    let status = home.json(&["status", &control]);
    assert_eq!(status["listeners"][0]["address"], at(&path));
}

#[test]
fn what_a_killed_server_left_is_replaced() {
    let home = Home::new();
    let path = home.join("s");
    let mut killed = serve(&home, &at(&path));
    killed.signal(Signal::KILL);
    killed.wait();
    assert!(path.exists(), "nobody could take it away");
    let mut server = serve(&home, &at(&path));
    assert_echoes(&mut connect(&path), b"hello");
    assert!(server.drain().success());
    assert!(!path.exists());
}

#[test]
fn what_is_no_socket_and_what_another_has_is_refused_and_stays() {
    let home = Home::new();
    let refused = |path: &Path| {
        let (code, line) = home.refusal(&["serve", "-l", &at(path), "--control", "off"]);
        assert_eq!(code, 1, "{line}");
        assert!(line.contains(text(path)), "{line}");
    };
    let file = home.join("file");
    fs::write(&file, "precious").unwrap();
    refused(&file);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    let folder = home.join("folder");
    fs::create_dir(&folder).unwrap();
    refused(&folder);
    refused(&home.join("missing/s"));

    let path = home.join("s");
    let mut server = serve(&home, &at(&path));
    let mut client = connect(&path);
    assert_echoes(&mut client, b"before");
    refused(&path);
    assert_echoes(&mut client, b"after");
    assert_echoes(&mut connect(&path), b"new");
    drop(client);
    assert!(server.drain().success());

    let theirs = home.join("theirs");
    let listener = UnixListener::bind(&theirs).unwrap();
    refused(&theirs);
    assert!(
        fs::symlink_metadata(&theirs)
            .unwrap()
            .file_type()
            .is_socket()
    );
    let mut client = connect(&theirs);
    // What was tried to find out who is there may be in the queue before.
    let (mut accepted, _) = listener.accept().unwrap();
    client.write_all(b"x").unwrap();
    let mut byte = [0];
    if accepted.read(&mut byte).unwrap() == 0 {
        (accepted, _) = listener.accept().unwrap();
        accepted.read_exact(&mut byte).unwrap();
    }
    assert_eq!(&byte, b"x", "it listens on");
}

#[test]
fn after_a_normal_end_nothing_is_left() {
    let home = Home::new();
    let path = home.join("s");
    for _ in 0..20 {
        let mut server = serve(&home, &at(&path));
        let mut client = connect(&path);
        assert_echoes(&mut client, b"hello");
        drop(client);
        assert!(server.drain().success());
        let left: Vec<_> = fs::read_dir(&home.path).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn an_abstract_name_is_served_and_taken_over() {
    if crate::support::lacks(&["socat"]) {
        return;
    }
    let home = Home::new();
    let name = format!("standfast-test-{}", std::process::id());
    let address = format!("unix:@{name}");
    let mut server = serve(&home, &address);
    let mut next = taken_over(&home, &mut server, &address);
    assert_answers(&["socat", "-t", "5", "-", &format!("ABSTRACT-CONNECT:{name}")]);
    let (code, line) = home.refusal(&["serve", "-l", &address, "--control", "off"]);
    assert!(code == 1 && line.contains(&address), "{line}");
    assert!(next.drain().success());
}

#[track_caller]
fn taken_over(home: &Home, server: &mut Server, address: &str) -> Server {
    let next = server.replaced_by(1, || command(home, address, &["--replace"]));
    assert_eq!(server.wait().code(), Some(0), "{:?}", server.lines);
    next
}

#[test]
fn a_takeover_keeps_the_clients_and_the_path() {
    let home = Home::new();
    let path = home.join("s");
    let mut server = serve(&home, &at(&path));
    let mut clients: Vec<_> = (0..10).map(|_| connect(&path)).collect();
    for _ in 0..3 {
        for client in &mut clients {
            assert_echoes(client, b"before");
        }
        server = taken_over(&home, &mut server, &at(&path));
        assert!(path.exists());
        for client in &mut clients {
            assert_echoes(client, b"after");
        }
        assert_echoes(&mut connect(&path), b"new");
    }
    let (code, line) = home.refusal(&["serve", "-l", &at(&path), "--control", "off"]);
    assert_eq!(code, 1, "the lock went along: {line}");
    drop(clients);
    assert!(server.drain().success());
    until("nothing is left", || {
        fs::read_dir(&home.path).unwrap().count() == 0
    });
}

/// Mode, owner and group of what stands at `path`.
fn whose(path: &Path) -> (u32, u32, u32) {
    let found = fs::metadata(path).unwrap();
    (found.mode() & 0o7777, found.uid(), found.gid())
}

#[test]
fn mode_owner_and_group_are_as_said_and_a_takeover_keeps_or_changes_them() {
    let home = Home::new();
    // Commas of the path's own, too.
    let path = home.join("a,b,mode");
    let is_root = rustix::process::geteuid().is_root();
    let gid = rustix::process::getegid().as_raw();
    let (owner, group) = if is_root {
        (1, 33)
    } else {
        (rustix::process::geteuid().as_raw(), gid)
    };
    let said = |mode: &str| format!("{},mode={mode},owner={owner},group={group}", at(&path));
    let mut server = Server::launch(command(&home, &said("660"), &[]));
    assert_eq!(server.stdout_line(), format!("listening on {}", at(&path)));
    assert_eq!(whose(&path), (0o660, owner, group));
    let mut client = connect(&path);
    assert_echoes(&mut client, b"hello");
    // Who says nothing leaves them as they are.
    let mut server = taken_over(&home, &mut server, &at(&path));
    assert_eq!(whose(&path), (0o660, owner, group));
    let mut next = taken_over(&home, &mut server, &said("606"));
    until("the change", || whose(&path) == (0o606, owner, group));
    assert_echoes(&mut client, b"still there");
    next.drain();
    assert!(!path.exists());
}

#[test]
fn nobody_connects_before_the_mode_is_set() {
    let home = Home::new();
    let path = home.join("s");
    // Out of reach for everybody, whatever the umask is: whoever sees it sees this mode, or nobody listens yet.
    let mut server = Server::launch(command(&home, &format!("{},mode=000", at(&path)), &[]));
    until("somebody listens", || {
        let listens = UnixStream::connect(&path).is_ok() || server.has_said_something();
        // Looked at afterwards: it can be no other by then.
        let seen = fs::metadata(&path).map(|found| found.mode() & 0o777);
        assert!(!listens || seen.is_ok_and(|mode| mode == 0));
        listens
    });
}

#[test]
fn an_owner_that_cannot_be_had_is_refused_in_one_line_and_nothing_stays() {
    let home = Home::new();
    let path = at(&home.join("s"));
    for (said, code, why) in [
        ("mode=999", 2, "not a mode"),
        ("mod=660", 2, "has no \"mod\""),
        (
            "group=no-such-group",
            2,
            "this host has no group \"no-such-group\"",
        ),
        (
            "owner=no-such-user",
            2,
            "this host has no user \"no-such-user\"",
        ),
    ] {
        let address = format!("{path},{said}");
        for command in ["serve", "check"] {
            let (came, line) = home.refusal(&[command, "-l", &address, "--control", "off"]);
            assert_eq!(came, code, "{line}");
            assert!(line.contains(why), "{line}");
        }
        assert!(!home.join("s").exists());
    }
    let (code, line) = home.refusal(&["connect", &format!("{path},mode=660")]);
    assert_eq!(code, 2, "{line}");
    assert!(line.contains("for listening"), "{line}");
}
