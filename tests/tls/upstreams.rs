//! `forward --upstream-tls`: a relay that speaks TLS with its upstreams, with clients that do or do not.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};

use super::dialling::OpenSsl;
use super::{Client, VERSIONS, config, file, with_tls, words};
use crate::support::clients::{Raised, Stream, reset};
use crate::support::connecting::{Peer, assert_gets};
use crate::support::home::{Home, entry, number, usage};
use crate::support::{
    Closed, Server, assert_echoes, connect, output, read_to_fin, standfast, until,
};

/// `forward UPSTREAM --upstream-tls ARGS...`, which believes those whom the authority has signed for.
fn to(upstream: SocketAddr, args: &[&str]) -> Vec<String> {
    let (upstream, authority) = (upstream.to_string(), file("ca.pem"));
    let tls = ["--upstream-tls", "--upstream-tls-ca", &authority];
    let all = [&["forward", &upstream], &tls[..], args].concat();
    all.into_iter().map(str::to_owned).collect()
}

/// An upstream of this test's, which does as it is told.
type Served = StreamOwned<ServerConnection, TcpStream>;

fn served(
    mut accepted: TcpStream,
    versions: &[&'static SupportedProtocolVersion],
) -> std::io::Result<Served> {
    let certificate = CertificateDer::from_pem_file(file("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider);
    let config = config.with_protocol_versions(versions).unwrap();
    let config = config.with_no_client_auth();
    let config = config.with_single_cert(vec![certificate], key).unwrap();
    let mut server = ServerConnection::new(Arc::new(config)).unwrap();
    while server.is_handshaking() {
        server.complete_io(&mut accepted)?;
    }
    Ok(StreamOwned::new(server, accepted))
}

fn goodbye(served: &mut Served) {
    served.conn.send_close_notify();
    served.flush().unwrap();
}

#[track_caller]
fn assert_fails(closed: &Closed, reason: &str, upstream: &str) {
    assert_eq!(closed.reason(), reason, "{}", closed.line);
    let said = match upstream.contains(' ') {
        true => format!(" upstream_tls=\"{upstream}\" "),
        false => format!(" upstream_tls={upstream} "),
    };
    assert!(closed.line.contains(&said), "{said}: {}", closed.line);
}

/// All that comes until a reset.
#[track_caller]
fn read_to_reset(client: &mut TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    let error = client.read_to_end(&mut got).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    got
}

#[test]
fn either_side_may_end_first_and_the_other_goes_on() {
    let peer = Peer::start();
    let mut relay = Server::start(&words(&to(peer.address(), &[])));
    for version in VERSIONS {
        for client_first in [true, false] {
            let mut client = relay.connect();
            let mut upstream = served(peer.accept(), &[version]).unwrap();
            client.write_all(b"a question").unwrap();
            assert_gets(&mut upstream, b"a question");
            let (said, more) = (vec![7; 700_000], vec![9; 300_000]);
            if client_first {
                client.shutdown(Shutdown::Write).unwrap();
                assert_eq!(upstream.read(&mut [0]).unwrap(), 0, "a goodbye");
                thread::scope(|scope| {
                    scope.spawn(|| {
                        upstream.write_all(&said).unwrap();
                        goodbye(&mut upstream);
                    });
                    assert!(read_to_fin(&mut client) == said);
                });
            } else {
                thread::scope(|scope| {
                    scope.spawn(|| {
                        upstream.write_all(&said).unwrap();
                        goodbye(&mut upstream);
                    });
                    assert!(read_to_fin(&mut client) == said);
                });
                let (mut writer, more) = (client.try_clone().unwrap(), &more);
                thread::scope(|scope| {
                    scope.spawn(move || writer.write_all(more).unwrap());
                    assert_gets(&mut upstream, more);
                });
                client.shutdown(Shutdown::Write).unwrap();
                assert_eq!(upstream.read(&mut [0]).unwrap(), 0, "a goodbye");
            }
            drop(upstream);
            let closed = relay.closed();
            assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
            assert!(!closed.line.contains("upstream_tls"), "{}", closed.line);
            let written = closed.get("written");
            assert_eq!(written, "700000", "{}", closed.line);
        }
    }
    assert_eq!(relay.drain().code(), Some(0));
}

#[test]
fn another_program_and_this_one_are_understood() {
    for args in [
        &["-tls1_3"][..],
        &["-tls1_2"],
        &["-tls1_3", "-num_tickets", "9"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"],
    ] {
        let Some(upstream) = OpenSsl::start("server.pem", "server.key", args) else {
            return;
        };
        let relay = Server::start(&words(&to(upstream.address, &[])));
        let mut client = relay.connect();
        for _ in 0..3 {
            client.write_all(b"abc\n").unwrap();
            assert_gets(&mut client, b"cba\n");
        }
    }
    let upstream = Server::start(&words(&with_tls(&["echo"])));
    let relay = with_tls(&words(&to(upstream.address(), &[])));
    let relay = Server::start(&words(&relay));
    for version in VERSIONS {
        let mut client = Client::of(relay.address(), &config(&[version])).unwrap();
        client.assert_echoes(b"within and within");
        client.assert_echoes(&vec![3; 500_000]);
        client.end();
    }
}

/// Whoever is on the way can make that: to the client it is not the end in order.
#[test]
fn an_upstream_that_ends_without_a_goodbye_is_a_reset_to_the_client() {
    let peer = Peer::start();
    let mut relay = Server::start(&words(&to(peer.address(), &[])));
    for version in VERSIONS {
        for client_is_done in [false, true] {
            let mut client = relay.connect();
            let mut upstream = served(peer.accept(), &[version]).unwrap();
            if client_is_done {
                client.shutdown(Shutdown::Write).unwrap();
                assert_eq!(upstream.read(&mut [0]).unwrap(), 0, "a goodbye");
            }
            upstream.write_all(&[5; 300_000]).unwrap();
            upstream.flush().unwrap();
            upstream.sock.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_reset(&mut client), vec![5; 300_000]);
            assert_fails(&relay.closed(), "tls-truncated", "truncated");
        }
    }
}

/// The same in one look of the relay's, with a reset behind.
#[test]
fn a_reset_behind_an_end_without_a_goodbye_does_not_make_it_one_in_order() {
    let peer = Peer::start();
    let mut relay = Server::start(&words(&to(peer.address(), &[])));
    let mut client = relay.connect();
    let mut upstream = served(peer.accept(), &VERSIONS).unwrap();
    client.write_all(b"hello").unwrap();
    assert_gets(&mut upstream, b"hello");
    relay.suspend();
    upstream.write_all(b"half of it").unwrap();
    upstream.flush().unwrap();
    upstream.sock.shutdown(Shutdown::Write).unwrap();
    reset(upstream.into_parts().1);
    relay.resume();
    assert_eq!(read_to_reset(&mut client), b"half of it");
    assert_fails(&relay.closed(), "tls-truncated", "truncated");
}

#[test]
fn a_client_with_tls_hears_no_goodbye_of_an_upstream_that_said_none() {
    let peer = Peer::start();
    let relay = with_tls(&words(&to(peer.address(), &[])));
    let mut relay = Server::start(&words(&relay));
    let mut client = Client::of(relay.address(), &config(&VERSIONS)).unwrap();
    let mut upstream = served(peer.accept(), &VERSIONS).unwrap();
    upstream.write_all(b"half of it").unwrap();
    upstream.flush().unwrap();
    upstream.sock.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    assert!(client.0.read_to_end(&mut got).is_err(), "no goodbye");
    assert_eq!(got, b"half of it");
    assert_fails(&relay.closed(), "tls-truncated", "truncated");
}

#[test]
fn a_session_that_is_given_up_is_told_by_what_was_wrong() {
    let peer = Peer::start();
    let mut relay = Server::start(&words(&to(peer.address(), &[])));
    for (bytes, what) in [
        (&b"GET / HTTP/1.1"[..], "no TLS"),
        (
            &[
                23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
            ],
            "a record that was damaged",
        ),
    ] {
        let mut client = relay.connect();
        let mut upstream = served(peer.accept(), &VERSIONS).unwrap();
        upstream.write_all(b"so far").unwrap();
        upstream.flush().unwrap();
        upstream.sock.write_all(bytes).unwrap();
        assert_eq!(read_to_reset(&mut client), b"so far");
        assert_fails(&relay.closed(), "tls-alert", what);
        assert!(upstream.read(&mut [0]).is_err(), "an alert or a reset");
    }
}

#[test]
fn a_certificate_that_is_refused_ends_the_client_at_once_and_is_said() {
    let upstream = Server::start(&words(&with_tls(&["echo", "-q"])));
    let (address, other) = (upstream.address(), file("ed25519.pem"));
    let shown = address.to_string();
    let stranger = ["forward", &shown, "--upstream-tls", "--upstream-tls-ca"];
    let stranger = [&stranger[..], &[&*other, "--upstream-wait", "10m"]].concat();
    let wrong = [
        "--upstream-tls-name",
        "b.test",
        "--upstream-wait",
        "10m",
        "--connect-timeout",
        "10s",
    ];
    let wrong = to(address, &wrong);
    for (args, fault, cause) in [
        (
            stranger,
            "unknown-issuer",
            "no TLS with 127.0.0.1: its certificate was signed by nobody who is trusted",
        ),
        (
            words(&wrong),
            "wrong-name",
            "no TLS with b.test: its certificate is for localhost, 127.0.0.1",
        ),
    ] {
        let mut relay = Server::start(&args);
        let mut client = relay.connect();
        client.write_all(b"hello").unwrap();
        assert_eq!(read_to_reset(&mut client), b"");
        let line = relay.log_line("why", |line| line.contains("upstream failed"));
        assert!(line.contains(cause), "{line}");
        assert_fails(&relay.closed(), "upstream-failed", fault);
    }
}

#[test]
fn the_next_upstream_is_tried_after_one_that_is_not_believed() {
    let (certificate, key) = (file("rsa.pem"), file("rsa.key"));
    let other = ["echo", "-q", "--tls-cert", &certificate, "--tls-key", &key];
    let wrong = Server::start(&other);
    let right = Server::start(&words(&with_tls(&["echo", "-q"])));
    let second = right.address().to_string();
    let args = [&second, "--upstream-tls-name", "localhost"];
    let mut relay = Server::start(&words(&to(wrong.address(), &args)));
    for _ in 0..2 {
        let mut client = relay.connect();
        assert_echoes(&mut client, b"by the second");
        drop(client);
        let closed = relay.closed();
        assert_eq!(closed.get("upstream"), second, "{}", closed.line);
    }
    let line = relay.lines.iter().find(|it| it.contains("is down"));
    assert!(
        line.is_some_and(|it| it.contains("not for localhost")),
        "{line:?}"
    );
}

#[test]
fn an_upstream_that_wants_a_certificate_gets_one_or_the_client_ends() {
    let (authority, certificate, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
    let args = with_tls(&["echo", "--tls-client-ca", &authority]);
    let mut upstream = Server::start(&words(&args));
    let shown = [
        "--upstream-tls-cert",
        &certificate,
        "--upstream-tls-key",
        &key,
    ];
    let relay = Server::start(&words(&to(upstream.address(), &shown)));
    let mut client = relay.connect();
    assert_echoes(&mut client, b"who I am");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"");
    assert!(upstream.closed().line.contains(" client=\"CN="));
    // Of TLS 1.3 the refusal comes behind the handshake.
    let mut relay = Server::start(&words(&to(upstream.address(), &[])));
    let mut client = relay.connect();
    assert_eq!(read_to_reset(&mut client), b"");
    assert_fails(&relay.closed(), "tls-alert", "CertificateRequired");
}

#[test]
fn an_upstream_that_does_not_answer_has_the_connect_timeout() {
    let peer = Peer::start();
    for (timeout, says, fault) in [
        ("300ms", None, "late"),
        ("10m", Some(&b"220 mail ready\r\n"[..]), "no-tls"),
        ("10m", Some(b""), "handshake"),
    ] {
        let args = ["--connect-timeout", timeout, "--upstream-wait", "off"];
        let mut relay = Server::start(&words(&to(peer.address(), &args)));
        let mut client = relay.connect();
        let mut accepted = peer.accept();
        if let Some(says) = says {
            accepted.write_all(says).unwrap();
            accepted.shutdown(Shutdown::Write).unwrap();
        }
        assert_eq!(read_to_reset(&mut client), b"");
        assert_fails(&relay.closed(), "upstream-failed", fault);
    }
}

/// As haproxy's `send-proxy` has it: whoever is in front of the TLS reads it.
/// Before anybody has shown who it is.
#[test]
fn what_an_upstream_says_in_its_handshake_counts_as_what_waits() {
    let peer = Peer::start();
    let home = Home::new();
    let args = to(peer.address(), &["--connect-timeout", "60s"]);
    let server = home.serve(&words(&args));
    let waiting = || number(&home.json(&["status"])["memory"]["waiting"][1][1]);
    let mut pairs: Vec<_> = (0..10)
        .map(|_| {
            let client = server.connect();
            let mut upstream = peer.accept();
            // A message of 60,000 bytes of which as many have come, but for one.
            let message = [&[2, 0, 0xea, 0x60][..], &[0; 59_999]].concat();
            for piece in message.chunks(16_000) {
                let length = u16::try_from(piece.len()).unwrap().to_be_bytes();
                let record = [&[22, 3, 3][..], &length, piece].concat();
                upstream.write_all(&record).unwrap();
            }
            (client, upstream)
        })
        .collect();
    until("they are counted", || waiting() >= 10 * 60_000);
    pairs.clear();
    until("they are let go", || waiting() == 0);
}

#[test]
fn the_header_of_the_proxy_protocol_is_in_front_of_the_handshake() {
    let peer = Peer::start();
    let relay = Server::start(&words(&to(peer.address(), &["--send-proxy", "v1"])));
    let mut client = relay.connect();
    let (from, at) = (client.local_addr().unwrap(), relay.address());
    let mut accepted = peer.accept();
    let header = format!(
        "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n",
        from.port(),
        at.port()
    );
    assert_gets(&mut accepted, header.as_bytes());
    let mut upstream = served(accepted, &VERSIONS).unwrap();
    client.write_all(b"hello").unwrap();
    assert_gets(&mut upstream, b"hello");
    // This server reads one there, too.
    let args = with_tls(&["echo", "--accept-proxy-from", "127.0.0.1"]);
    let mut upstream = Server::start(&words(&args));
    let relay = Server::start(&words(&to(upstream.address(), &["--send-proxy", "v2"])));
    let mut client = relay.connect();
    assert_echoes(&mut client, b"hello");
    let from = client.local_addr().unwrap().to_string();
    drop(client);
    assert_eq!(upstream.closed().get("peer"), from);
}

#[test]
fn takeovers_carry_both_sides_byte_for_byte() {
    for inside in [false, true] {
        let home = Home::new();
        let upstream = Server::start(&words(&with_tls(&["echo", "-q"])));
        let args = to(upstream.address(), &["-q", "--workers", "2"]);
        let args = if inside {
            with_tls(&words(&args))
        } else {
            args
        };
        let args = words(&args);
        let mut relay = home.serve(&args);
        let address = relay.address();
        let (over, fresh) = (AtomicBool::new(false), AtomicU64::new(0));
        let (over, fresh) = (&over, &fresh);
        thread::scope(|scope| {
            let raised = Raised(over);
            for number in 0..4_u8 {
                let config = config(&[VERSIONS[usize::from(number % 2)]]);
                let comes = move || -> Box<dyn Speaks> {
                    match inside {
                        true => Box::new(Client::of(address, &config).unwrap().0),
                        false => Box::new(connect(address)),
                    }
                };
                scope.spawn(move || {
                    let bytes: Vec<u8> = (0..60_000_u32)
                        .map(|at| (at % 249) as u8 ^ number)
                        .collect();
                    let mut long = comes();
                    for length in (1..bytes.len()).step_by(3119).cycle() {
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        exchange(&mut *long, &bytes[..length]);
                        exchange(&mut *comes(), b"fresh");
                        fresh.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..5 {
                let before = fresh.load(Ordering::Relaxed);
                until("clients come", || {
                    fresh.load(Ordering::Relaxed) > before + 5
                });
                relay = home.succeed(&mut relay, &args);
            }
            drop(raised);
        });
    }
}

trait Speaks: Read + Write {}

impl<T: Read + Write> Speaks for T {}

#[track_caller]
fn exchange(client: &mut dyn Speaks, bytes: &[u8]) {
    client.write_all(bytes).unwrap();
    let mut echoed = vec![0; bytes.len()];
    client.read_exact(&mut echoed).unwrap();
    assert!(echoed == bytes, "{} bytes", bytes.len());
}

/// Bytes that wait for either side, which is not read: sealed for the upstream, and what was opened of it.
#[test]
fn what_waits_for_either_side_goes_along() {
    let home = Home::new();
    let peer = Peer::start();
    let args = to(peer.address(), &["--buffer", "1m"]);
    let args = words(&args);
    let mut relay = home.serve(&args);
    let mut client = relay.connect();
    let mut upstream = served(peer.accept(), &VERSIONS).unwrap();
    let (mut there, mut back) = (Stream::default(), Stream::default());
    let (to_upstream, to_client) = (there.next(9_000_000), back.next(9_000_000));
    let mut writer = client.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&to_upstream).unwrap());
        // A record, and half of the next one.
        upstream.conn.set_buffer_limit(None);
        upstream.conn.writer().write_all(&to_client).unwrap();
        let mut sealed = Vec::new();
        while upstream.conn.wants_write() {
            upstream.conn.write_tls(&mut sealed).unwrap();
        }
        let mut socket = upstream.sock.try_clone().unwrap();
        scope.spawn(move || socket.write_all(&sealed).unwrap());
        let mut got = [Stream::default(), Stream::default()];
        for _ in 0..3 {
            relay = home.succeed(&mut relay, &args);
            let mut bytes = vec![0; 1_000_003];
            client.read_exact(&mut bytes).unwrap();
            got[0].verify(&bytes);
            upstream.read_exact(&mut bytes).unwrap();
            got[1].verify(&bytes);
        }
        let mut rest = vec![0; 9_000_000 - 3 * 1_000_003];
        client.read_exact(&mut rest).unwrap();
        got[0].verify(&rest);
        upstream.read_exact(&mut rest).unwrap();
        got[1].verify(&rest);
    });
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(upstream.read(&mut [0]).unwrap(), 0, "a goodbye");
    relay = home.succeed(&mut relay, &args);
    goodbye(&mut upstream);
    assert_eq!(read_to_fin(&mut client), b"");
    assert_eq!(relay.closed().reason(), "peer-closed");
}

#[test]
fn a_handshake_under_way_is_begun_anew_by_the_next_process() {
    let home = Home::new();
    let peer = Peer::start();
    let args = to(
        peer.address(),
        &["--connect-timeout", "10m", "--upstream-wait", "10m"],
    );
    let args = words(&args);
    let mut relay = home.serve(&args);
    let mut client = relay.connect();
    client.write_all(b"said before there was anybody").unwrap();
    let mut first = peer.accept();
    let mut hello = [0; 5];
    first.read_exact(&mut hello).unwrap();
    assert_eq!(hello[..2], [22, 3], "a handshake");
    let _next = home.succeed(&mut relay, &args);
    let mut upstream = served(peer.accept(), &VERSIONS).unwrap();
    assert_gets(&mut upstream, b"said before there was anybody");
    upstream.write_all(b"and heard").unwrap();
    upstream.flush().unwrap();
    assert_gets(&mut client, b"and heard");
    let mut rest = Vec::new();
    let _ = first.read_to_end(&mut rest);
    assert!(!rest.windows(4).any(|bytes| bytes == b"said"));
}

#[test]
fn authorities_are_read_anew_by_a_restart_and_nobody_is_touched() {
    let home = Home::new();
    let upstream = Server::start(&words(&with_tls(&["echo", "-q"])));
    let authority = home.join("authority.pem");
    fs::copy(file("ca.pem"), &authority).unwrap();
    let to = upstream.address().to_string();
    let believed = authority.to_str().unwrap();
    let relay = home.serve(&[
        "forward",
        &to,
        "--upstream-tls",
        "--upstream-tls-ca",
        believed,
    ]);
    let mut client = relay.connect();
    assert_echoes(&mut client, b"before");
    fs::copy(file("ed25519.pem"), &authority).unwrap();
    let (_next, _) = home.restart(&[]);
    assert_echoes(&mut client, b"after");
    assert_eq!(read_to_reset(&mut connect(relay.address())), b"");
    // One that is no use: they go on with what they have.
    fs::write(&authority, "nothing").unwrap();
    let (code, stdout, said) = output(home.standfast(&["restart"]));
    assert_ne!(code, 0, "{stdout}");
    assert!(
        said.contains("authority.pem") || stdout.contains("authority.pem"),
        "{said}{stdout}"
    );
    assert_echoes(&mut client, b"and on");
    fs::copy(file("ca.pem"), &authority).unwrap();
    let (_next, _) = home.restart(&[]);
    assert_echoes(&mut client, b"and on");
    assert_echoes(&mut connect(relay.address()), b"believed again");
}

#[test]
fn behind_a_keeper_a_crash_ends_sessions_and_not_who_waits_for_one() {
    let home = Home::new();
    let peer = Peer::start();
    let args = [
        "--keep",
        "--connect-timeout",
        "10m",
        "--upstream-wait",
        "10m",
    ];
    let args = to(peer.address(), &args);
    let mut relay = home.serve(&words(&args));
    let mut client = relay.connect();
    let mut upstream = served(peer.accept(), &VERSIONS).unwrap();
    client.write_all(b"hello").unwrap();
    assert_gets(&mut upstream, b"hello");
    let mut waits = relay.connect();
    waits.write_all(b"not heard yet").unwrap();
    let mut first = peer.accept();
    first.read_exact(&mut [0; 5]).unwrap();
    let crash = || {
        let pid = Pid::from_raw(i32::try_from(home.pid(&[])).unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
    };
    home.taken_over(&["restart"]);
    // A handshake under way is begun anew there.
    drop(first);
    let mut first = peer.accept();
    first.read_exact(&mut [0; 5]).unwrap();
    client.write_all(b"and on").unwrap();
    assert_gets(&mut upstream, b"and on");
    crash();
    // The kernel ends what it had: with FIN, where nothing was unread.
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    assert!(upstream.read(&mut [0]).is_err(), "no goodbye");
    let mut upstream = served(peer.accept(), &VERSIONS).unwrap();
    assert_gets(&mut upstream, b"not heard yet");
    upstream.write_all(b"heard").unwrap();
    upstream.flush().unwrap();
    assert_gets(&mut waits, b"heard");
    relay.log_line("what the crash has cost", |line| {
        line.contains(" closed: ") && line.contains("reason=crash")
    });
}

#[test]
fn it_is_shown_and_said() {
    let home = Home::new();
    let upstream = Server::start(&words(&with_tls(&["echo", "-q"])));
    let to = upstream.address().to_string();
    let args = [
        "forward",
        &to,
        "--upstream-tls",
        "--upstream-tls-insecure",
        "--upstream-tls-name",
        "b.test",
    ];
    let mut relay = home.serve(&args);
    relay.log_line("a warning", |line| {
        line.contains("--upstream-tls-insecure: whoever answers is believed")
    });
    let mut client = relay.connect();
    assert_echoes(&mut client, b"hello");
    let list = home.json(&["list"]);
    let tls = &entry(&list, &client)["upstream_tls"];
    assert_eq!(tls["version"], "1.3", "{list}");
    assert_eq!(tls["name"], "b.test", "{list}");
    let mut check = standfast();
    check.arg("check").args(words(&self::to(
        upstream.address(),
        &[
            "--upstream-tls-cert",
            &file("client.pem"),
            "--upstream-tls-key",
            &file("client.key"),
        ],
    )));
    let (code, told, said) = output(check);
    assert_eq!((code, &*said), (0, ""), "{told}");
    for part in [
        "upstream-tls ",
        "ca.pem",
        "127.0.0.1 ",
        "client.pem",
        "valid until",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn what_does_not_go_together_is_refused_in_a_line() {
    for (args, what) in [
        (
            &["forward", "1", "--upstream-tls-ca", "/x"][..],
            "--upstream-tls-ca needs --upstream-tls",
        ),
        (
            &[
                "forward",
                "unix:/x",
                "--upstream-tls",
                "--upstream-tls-insecure",
            ],
            "unix:/x is a Unix socket",
        ),
        (
            &[
                "forward",
                "1",
                "--upstream-tls",
                "--upstream-tls-ca",
                "/nowhere",
            ],
            "/nowhere",
        ),
        (
            &[
                "forward",
                "1",
                "--upstream-tls",
                "--upstream-tls-cert",
                "/x",
            ],
            "needs its --upstream-tls-key",
        ),
        (
            &["echo", "--upstream-tls"],
            "--upstream-tls is for the service forward",
        ),
    ] {
        let mut command = standfast();
        command.args(["serve", "-l", "0"]).args(args);
        let line = usage(command);
        assert!(line.contains(what), "{line}");
    }
}

/// By a name that is given, for it has none.
#[test]
fn a_unix_socket_may_be_spoken_to_with_tls() {
    let home = Home::new();
    let path = format!("unix:{}", home.join("upstream").to_str().unwrap());
    let args = with_tls(&["serve", "-l", &path, "echo"]);
    let _upstream = Server::spawn(home.standfast(&words(&args)), 1);
    let authority = file("ca.pem");
    let relay = Server::start(&[
        "forward",
        &path,
        "--upstream-tls",
        "--upstream-tls-ca",
        &authority,
        "--upstream-tls-name",
        "localhost",
    ]);
    let mut client = relay.connect();
    assert_echoes(&mut client, b"hello");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"");
}
