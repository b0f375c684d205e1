//! The other end: `connect --tls`, to this server and to one that is another program.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::Signal;

use super::{file, with_tls, words};
use crate::support::clients::Stream;
use crate::support::connecting::{Connecting, Peer, Port};
use crate::support::home::{Home, usage};
use crate::support::{Server, connect, lacks, standfast};

/// `connect --tls ARGS...`, with `localhost` as the name, and the authority that has signed for it.
fn dialling(to: SocketAddr, args: &[&str]) -> Connecting {
    let authority = file("ca.pem");
    let tls = ["--tls", "--tls-ca", &authority, "--tls-name", "localhost"];
    Connecting::start(to, &[&tls, args].concat())
}

/// What the one line says of an attempt that is not made again.
#[track_caller]
fn refused(mut connecting: Connecting, to: SocketAddr) -> String {
    let line = connecting.says(&format!("cannot connect to {to}: "));
    assert_eq!(connecting.ends(), 1, "{:?}", connecting.lines);
    let again = connecting.said("reconnecting") + connecting.said("cannot connect");
    assert_eq!(again, 1, "{:?}", connecting.lines);
    line
}

/// `openssl s_server`, which answers each line turned round; killed when dropped.
pub(super) struct OpenSsl {
    child: Child,
    pub(super) address: SocketAddr,
}

impl OpenSsl {
    pub(super) fn start(name: &str, key: &str, args: &[&str]) -> Option<Self> {
        if lacks(&["openssl"]) {
            return None;
        }
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-rev", "-cert"])
            .args([&file(name), "-key", &file(key)])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut said = String::new();
        while !said.ends_with('\n') || !said.contains("ACCEPT ") {
            let mut byte = [0];
            assert_eq!(stdout.read(&mut byte).unwrap(), 1, "{said}");
            said.push(char::from(byte[0]));
        }
        // Whatever else it says, so that it never waits for a reader.
        thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        let port = said.trim_end().rsplit_once(':').unwrap().1;
        let address = SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
        Some(Self { child, address })
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_says_and_hears_what_is_within_and_ends_with_a_goodbye() {
    let mut server = Server::start(&words(&with_tls(&["echo"])));
    let to = server.address();
    let mut connecting = dialling(to, &["-v"]);
    let line = connecting.connects(to);
    assert!(line.contains(", TLS 1.3 with localhost, TLS13_"), "{line}");
    let mut sent = Stream::default();
    let (bytes, mut got) = (sent.next(3_000_000), Stream::default());
    connecting.types(bytes);
    while got.at < sent.at {
        got.verify(&connecting.stdout_bytes(10_000));
    }
    connecting.ends_stdin();
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_eq!(connecting.stdout_rest(), b"");
    let closed = server.closed();
    assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
    assert_eq!(closed.get("read"), "3000000", "{}", closed.line);
    assert_eq!(server.drain().code(), Some(0));
}

#[test]
fn another_program_understands_it() {
    for args in [
        &["-tls1_3"][..],
        &["-tls1_2"],
        &["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"],
        &["-tls1_3", "-num_tickets", "9"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"],
    ] {
        let Some(server) = OpenSsl::start("server.pem", "server.key", args) else {
            return;
        };
        let mut connecting = dialling(server.address, &["--reconnect", "never"]);
        connecting.connects(server.address);
        for _ in 0..3 {
            connecting.types("abc\n");
            connecting.prints(b"cba\n");
        }
        connecting.ends_stdin();
        assert_eq!(connecting.ends(), 0, "{args:?} {:?}", connecting.lines);
    }
}

#[test]
fn a_certificate_that_is_refused_is_final() {
    let server = Server::start(&words(&with_tls(&["echo"])));
    let to = server.address();
    let other = file("ed25519.pem");
    let unknown = Connecting::start(to, &["--tls", "--tls-ca", &other]);
    let line = refused(unknown, to);
    for part in [
        "no TLS with 127.0.0.1",
        "CN=standfast test authority",
        "--tls-ca",
    ] {
        assert!(line.contains(part), "{line}");
    }
    let authority = file("ca.pem");
    let wrong = ["--tls", "--tls-ca", &authority, "--tls-name", "b.test"];
    let line = refused(Connecting::start(to, &wrong), to);
    for part in [
        "with b.test",
        "is for localhost, 127.0.0.1, a.test",
        "--tls-name",
    ] {
        assert!(line.contains(part), "{line}");
    }
    // Nor by anybody that the system knows.
    let line = refused(Connecting::start(to, &["--ssl"]), to);
    assert!(line.contains("nobody who is trusted"), "{line}");
}

#[test]
fn one_that_has_expired_is_final_too() {
    let Some(server) = OpenSsl::start("expired.pem", "server.key", &[]) else {
        return;
    };
    let authority = file("expired.pem");
    let args = ["--tls", "--tls-ca", &authority, "--tls-name", "localhost"];
    let line = refused(Connecting::start(server.address, &args), server.address);
    assert!(line.contains("its certificate expired "), "{line}");
}

#[test]
fn one_that_is_its_own_authority_is_believed_where_it_is_named() {
    let home = Home::new();
    let own = home.join("own.pem").to_str().unwrap().to_owned();
    if lacks(&["openssl"]) {
        return;
    }
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-days", "10", "-subj", "/CN=x", "-key"]);
    openssl.args([&file("server.key"), "-out", &own, "-addext"]);
    openssl.arg("subjectAltName=DNS:own.test");
    assert!(openssl.output().unwrap().status.success());
    let key = file("server.key");
    let server = home.serve(&["echo", "--tls-cert", &own, "--tls-key", &key]);
    let to = server.address();
    let args = ["--tls", "--tls-ca", &own, "--tls-name"];
    let mut connecting = Connecting::start(to, &[&args[..], &["own.test"]].concat());
    connecting.connects(to);
    let line = refused(
        Connecting::start(to, &[&args[..], &["other.test"]].concat()),
        to,
    );
    assert!(line.contains("is for own.test, not for"), "{line}");
}

#[test]
fn whoever_answers_is_believed_where_that_is_said_aloud() {
    let server = Server::start(&words(&with_tls(&["echo"])));
    let to = server.address();
    let args = ["--tls", "--tls-insecure", "--tls-name", "b.test"];
    let mut connecting = Connecting::start(to, &args);
    connecting.connects(to);
    connecting.says("--tls-insecure: whoever answers is believed");
    connecting.types("hello\n");
    connecting.prints(b"hello\n");
    // Only to look whether it is there.
    let mut looks = dialling(to, &["-z"]);
    looks.connects(to);
    assert_eq!(looks.ends(), 0);
}

#[test]
fn a_server_that_wants_a_certificate_gets_one_or_it_is_final() {
    let (authority, certificate, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
    let args = with_tls(&["echo", "--tls-client-ca", &authority]);
    let mut server = Server::start(&words(&args));
    let to = server.address();
    let shown = ["--tls-cert", &certificate, "--tls-key", &key];
    let mut connecting = dialling(to, &shown);
    connecting.connects(to);
    connecting.types("hello\n");
    connecting.prints(b"hello\n");
    connecting.ends_stdin();
    assert_eq!(connecting.ends(), 0);
    assert!(server.closed().line.contains(" client=\"CN="));
    // Of TLS 1.3 the refusal comes behind the handshake.
    let mut without = dialling(to, &[]);
    let line = without.says("tls-alert");
    assert!(line.contains("CertificateRequired"), "{line}");
    assert!(line.contains("--tls-cert and --tls-key"), "{line}");
    assert_eq!(without.ends(), 1, "{:?}", without.lines);
    assert_eq!(without.said("reconnecting"), 0, "{:?}", without.lines);
    // Of TLS 1.2 in it.
    let args = ["-tls1_2", "-Verify", "1", "-CAfile", &authority];
    let Some(server) = OpenSsl::start("server.pem", "server.key", &args) else {
        return;
    };
    let line = refused(dialling(server.address, &[]), server.address);
    assert!(line.contains("wants a certificate"), "{line}");
    let mut connecting = dialling(server.address, &shown);
    connecting.connects(server.address);
    connecting.types("abc\n");
    connecting.prints(b"cba\n");
}

#[test]
fn what_is_no_handshake_is_said_and_tried_again() {
    let peer = Peer::start();
    let to = peer.address();
    for (says, what) in [
        (&b"220 mail ready\r\n"[..], "it speaks no TLS there"),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "it speaks plain HTTP there",
        ),
        (&[21, 3, 3, 0, 2, 2, 40], "HandshakeFailure"),
        (b"", "it closed the connection in the handshake"),
        (&[22, 3], "it closed the connection in the handshake"),
    ] {
        let mut connecting = dialling(to, &[]);
        let mut accepted = peer.accept();
        accepted.write_all(says).unwrap();
        accepted.shutdown(Shutdown::Write).unwrap();
        let line = connecting.says(&format!("cannot connect to {to}: "));
        assert!(line.contains(what), "{line}");
        connecting.says("reconnecting in ");
        drop(peer.accept());
    }
}

#[test]
fn the_connect_timeout_covers_the_handshake() {
    let peer = Peer::start();
    let to = peer.address();
    let args = ["--connect-timeout", "300ms", "--reconnect", "never"];
    let mut connecting = dialling(to, &args);
    let accepted = peer.accept();
    let line = connecting.says(&format!("cannot connect to {to}: "));
    assert!(line.contains("did not end in time"), "{line}");
    assert_eq!(connecting.ends(), 1);
    drop(accepted);
}

/// Relays, and from when `is_on` says so damages the last byte of what comes of the server, or cuts it off.
fn relay(mut client: TcpStream, server: SocketAddr, is_on: &Arc<AtomicBool>, damages: bool) {
    let mut server = connect(server);
    let (mut from_client, mut to_server) =
        (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
    let mut buffer = [0; 65536];
    while let Ok(count @ 1..) = server.read(&mut buffer) {
        let bytes = &mut buffer[..count];
        if is_on.load(Ordering::SeqCst) {
            if !damages {
                let _ = client.write_all(&bytes[..count / 2]);
                let _ = client.shutdown(Shutdown::Both);
                return;
            }
            bytes[count - 1] ^= 1;
        }
        if client.write_all(bytes).is_err() {
            return;
        }
    }
}

#[test]
fn what_is_damaged_or_cut_off_on_the_way_is_told_apart_and_tried_again() {
    for (damages, reason) in [(true, "tls-alert"), (false, "tls-truncated")] {
        let mut server = Server::start(&words(&with_tls(&["echo"])));
        let peer = Peer::start();
        let to = peer.address();
        let mut connecting = dialling(to, &[]);
        let (is_on, accepted) = (Arc::new(AtomicBool::new(false)), peer.accept());
        let (at, on) = (server.address(), Arc::clone(&is_on));
        let relaying = thread::spawn(move || relay(accepted, at, &on, damages));
        connecting.connects(to);
        connecting.types("hello\n");
        connecting.prints(b"hello\n");
        is_on.store(true, Ordering::SeqCst);
        connecting.types("again\n");
        let line = connecting.says(&format!("lost {to}: {reason}"));
        if damages {
            assert!(line.contains("a record that was damaged"), "{line}");
            let closed = server.closed();
            assert_eq!(closed.reason(), "tls-alert", "{}", closed.line);
            assert!(closed.line.contains("BadRecordMac"), "{}", closed.line);
        }
        connecting.says("reconnecting in ");
        drop(connecting);
        drop(server);
        let _ = relaying.join();
    }
}

#[test]
fn a_takeover_under_a_conversation_is_not_noticed() {
    let home = Home::new();
    let args = with_tls(&["echo"]);
    let args = words(&args);
    let mut server = home.serve(&args);
    let to = server.address();
    let mut connecting = dialling(to, &[]);
    connecting.connects(to);
    let (mut sent, mut got) = (Stream::default(), Stream::default());
    for _ in 0..3 {
        connecting.types(sent.next(500_000));
        server = home.succeed(&mut server, &args[1..]);
        while got.at < sent.at {
            got.verify(&connecting.stdout_bytes(10_000));
        }
    }
    connecting.ends_stdin();
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    let said = ["connected to", "lost", "reconnecting"].map(|what| connecting.said(what));
    assert_eq!(said, [1, 0, 0], "{:?}", connecting.lines);
}

#[test]
fn a_server_that_is_killed_and_started_again_is_come_back_to() {
    let (home, port) = (Home::new(), Port::new());
    let to = port.address();
    let listen = to.to_string();
    let args = with_tls(&["serve", "-l", &listen]);
    let mut server = Server::spawn(home.standfast(&words(&args)), 1);
    let mut connecting = dialling(to, &[]);
    connecting.connects(to);
    connecting.types("before\n");
    connecting.prints(b"before\n");
    server.signal(Signal::KILL);
    server.wait();
    // A killed process says no goodbye.
    connecting.says(&format!("lost {to}: tls-truncated"));
    connecting.types("meanwhile\n");
    connecting.says("Connection refused");
    let _server = Server::spawn(home.standfast(&words(&args)), 1);
    connecting.connects(to);
    connecting.prints(b"meanwhile\n");
    connecting.ends_stdin();
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
}

#[test]
fn what_does_not_go_together_is_refused_in_a_line() {
    for (args, what) in [
        (&["--tls-ca", "/x", "1"][..], "--tls-ca needs --tls"),
        (&["--tls", "--tls-insecure", "unix:/x"], "is a Unix socket"),
        (&["--tls", "--tls-ca", "/nowhere", "1"], "/nowhere"),
        (&["--tls", "--tls-cert", "/x", "1"], "needs its --tls-key"),
    ] {
        let mut command = standfast();
        command.arg("connect").args(args);
        let line = usage(command);
        assert!(line.contains(what), "{line}");
    }
}
