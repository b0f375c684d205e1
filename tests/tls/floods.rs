//! Clients that send much, and little of use.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::thread;

use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ClientConfig, ConnectionTrafficSecrets};

use super::{Client, VERSIONS, assert_ended, config, roots, with_tls, words};
use crate::support::home::Home;
use crate::support::{Server, read_to_fin, until};

/// What a client of TLS 1.3 can seal that does as it likes.
struct Sealing {
    key: LessSafeKey,
    iv: [u8; 12],
    number: u64,
}

impl Sealing {
    fn of(client: Client) -> (Self, std::net::TcpStream) {
        let (connection, socket) = client.0.into_parts();
        let secrets = connection.dangerous_extract_secrets().unwrap();
        let (number, ConnectionTrafficSecrets::Aes128Gcm { key, iv }) = secrets.tx else {
            panic!("another cipher");
        };
        let key = UnboundKey::new(&AES_128_GCM, key.as_ref()).unwrap();
        let sealing = Self {
            key: LessSafeKey::new(key),
            iv: iv.as_ref().try_into().unwrap(),
            number,
        };
        (sealing, socket)
    }

    /// A record with that within, type included.
    fn seal(&mut self, inner: &[u8], out: &mut Vec<u8>) {
        let mut nonce = self.iv;
        for (place, byte) in nonce[4..].iter_mut().zip(self.number.to_be_bytes()) {
            *place ^= byte;
        }
        self.number += 1;
        let [high, low] = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let header = [23, 3, 3, high, low];
        let mut sealed = inner.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), &mut sealed)
            .unwrap();
        out.extend_from_slice(&header);
        out.extend_from_slice(&sealed);
        out.extend_from_slice(tag.as_ref());
    }
}

fn extracting() -> Arc<ClientConfig> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider
        .cipher_suites
        .retain(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
    let config = ClientConfig::builder_with_provider(Arc::new(provider));
    let config = config.with_protocol_versions(&[&TLS13]).unwrap();
    let mut config = config.with_root_certificates(roots()).with_no_client_auth();
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// What has a server open much for little: each record and its type, in turns; and how many bytes of such.
const FLOODS: [(&str, &[u8], usize, usize); 4] = [
    ("empty", b"", 0, 12_000_000),
    ("empty, with a byte among them", b"", 500, 12_000_000),
    ("a byte each", b"x", 1, 10_000_000),
    ("a byte padded as far as it may be", b"x", 1, 60_000_000),
];

fn flood(
    sealing: &mut Sealing,
    (what, data, every, length): (&str, &[u8], usize, usize),
) -> Vec<u8> {
    let padding = if what.contains("padded") { 16_383 } else { 0 };
    let mut flood = Vec::with_capacity(length + 20_000);
    let mut count = 0;
    while flood.len() < length {
        count += 1;
        let data = if every > 0 && count % every == 0 {
            b"x"
        } else {
            data
        };
        sealing.seal(&[data, &[23], &vec![0; padding]].concat(), &mut flood);
    }
    flood
}

/// What a turn may read is not counted by what services see of it: the others have their turns all the same.
#[test]
fn who_sends_records_with_next_to_nothing_without_end_holds_nobody_up() {
    for kind in FLOODS {
        let server = Server::start(&words(&with_tls(&["discard", "--workers", "1"])));
        let client = Client::of(server.address(), &extracting()).unwrap();
        let (mut sealing, mut socket) = Sealing::of(client);
        let flood = flood(&mut sealing, kind);
        let (first, rest) = flood.split_at(1_000_000);
        socket.write_all(first).unwrap();
        thread::scope(|scope| {
            let flood = scope.spawn(|| socket.write_all(rest).unwrap());
            let other = Client::of(server.address(), &config(&VERSIONS)).unwrap();
            other.end();
            assert!(
                !flood.is_finished(),
                "{}: they waited until it was over",
                kind.0
            );
        });
        let mut last = Vec::new();
        sealing.seal(&[1, 0, 21], &mut last);
        socket.write_all(&last).unwrap();
        // The goodbye.
        assert!(read_to_fin(&mut socket).len() >= 24, "{}", kind.0);
    }
}

#[test]
fn nobodys_flood_keeps_a_takeover_waiting() {
    let home = Home::new();
    let args = with_tls(&["discard", "--workers", "1"]);
    let mut server = home.serve(&words(&args));
    let client = Client::of(server.address(), &extracting()).unwrap();
    let (mut sealing, mut socket) = Sealing::of(client);
    let flood = flood(&mut sealing, FLOODS[1]);
    let (first, rest) = flood.split_at(1_000_000);
    socket.write_all(first).unwrap();
    thread::scope(|scope| {
        let flood = scope.spawn(|| socket.write_all(rest).unwrap());
        server = home.succeed(&mut server, &words(&args));
        assert!(!flood.is_finished(), "it waited until that was over");
    });
    let mut last = Vec::new();
    sealing.seal(&[1, 0, 21], &mut last);
    socket.write_all(&last).unwrap();
    assert!(read_to_fin(&mut socket).len() >= 24, "the goodbye");
}

#[test]
fn records_of_a_byte_each_are_as_good_as_others() {
    let mut server = Server::start(&words(&with_tls(&["discard"])));
    let client = Client::of(server.address(), &extracting()).unwrap();
    let (mut sealing, mut socket) = Sealing::of(client);
    let mut bytes = Vec::new();
    for _ in 0..200_000 {
        sealing.seal(b"x\x17", &mut bytes);
    }
    // And padded as far as it may be, and a byte further.
    let padded = [&b"x\x17"[..], &[0; 16383]].concat();
    sealing.seal(&padded, &mut bytes);
    socket.write_all(&bytes).unwrap();
    let mut longer = Vec::new();
    sealing.seal(&[&padded[..], &[0]].concat(), &mut longer);
    socket.write_all(&longer).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    read_to_fin(&mut socket);
    let closed = server.closed();
    assert_ended(&closed, "tls-alert", Some("a record that is too long"));
    assert_eq!(closed.facts["read"], "200001", "{}", closed.line);
}

/// They come in one read, as a rule; the first is the service's all the same.
#[test]
fn what_comes_in_order_is_served_before_what_ends_the_session() {
    for (bad, what) in [
        (&b"GET / HTTP/1.1"[..], "no TLS"),
        (&[0], "a record that was damaged"),
        (&[], "HandshakeFailure"),
    ] {
        let mut server = Server::start(&words(&with_tls(&["print"])));
        let client = Client::of(server.address(), &extracting()).unwrap();
        let (mut sealing, mut socket) = Sealing::of(client);
        let mut bytes = Vec::new();
        sealing.seal(b"the last line\n\x17", &mut bytes);
        match bad {
            [] => sealing.seal(&[2, 40, 21], &mut bytes),
            [0] => bytes.extend_from_within(..),
            _ => bytes.extend_from_slice(bad),
        }
        socket.write_all(&bytes).unwrap();
        assert_eq!(server.stdout_line(), "the last line", "{what}");
        read_to_fin(&mut socket);
        let closed = server.closed();
        assert_ended(&closed, "tls-alert", Some(what));
        assert_eq!(closed.facts["read"], "14", "{}", closed.line);
    }
}

#[test]
fn records_that_are_not_whole_count_as_what_waits() {
    let home = Home::new();
    let server = home.serve(&words(&with_tls(&["echo", "--memory", "4m"])));
    let mut clients: Vec<_> = (0..20)
        .map(|_| {
            let client = Client::of(server.address(), &extracting()).unwrap();
            let (mut sealing, mut socket) = Sealing::of(client);
            let mut record = Vec::new();
            sealing.seal(&[&[b'x'; 16_000][..], &[23]].concat(), &mut record);
            let last = record.pop().unwrap();
            socket.write_all(&record).unwrap();
            (socket, last)
        })
        .collect();
    let waiting = || {
        home.json(&["status"])["memory"]["waiting"][1][1]
            .as_u64()
            .unwrap()
    };
    until("they are counted", || waiting() >= 20 * 16_000);
    for (socket, last) in &mut clients {
        socket.write_all(&[*last]).unwrap();
    }
    until("they are opened", || waiting() == 0);
}

/// A message of a handshake that comes in records of a byte each is kept as it came.
#[test]
fn a_handshake_that_is_too_long_ends() {
    let mut server = Server::start(&words(&with_tls(&["echo"])));
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut hello = rustls::ClientConnection::new(config(&[&TLS12]), name).unwrap();
    let mut client = server.connect();
    hello.write_tls(&mut client).unwrap();
    // The server's flight has come.
    client.read_exact(&mut [0; 100]).unwrap();
    let mut message = vec![16, 0, 0xff, 0xf0];
    message.resize(25_000, 0);
    let records: Vec<u8> = message
        .iter()
        .flat_map(|&byte| [22, 3, 3, 0, 1, byte])
        .collect();
    let _ = client.write_all(&records);
    let closed = server.closed();
    assert_ended(
        &closed,
        "tls-handshake",
        Some("a handshake that is too long"),
    );
}

#[test]
fn an_alert_arrives_though_more_was_sent_than_anybody_reads() {
    let mut server = Server::start(&words(&with_tls(&["echo"])));
    let mut client = server.connect();
    let request = [&b"POST / HTTP/1.1\r\n\r\n"[..], &[b'x'; 100_000]].concat();
    client.write_all(&request).unwrap();
    let alert = read_to_fin(&mut client);
    assert_eq!((alert[0], alert[5], alert.len()), (21, 2, 7));
    assert_ended(&server.closed(), "tls-handshake", Some("plain HTTP"));
}

/// What it takes to have a place is a hello.
#[test]
fn who_has_said_a_byte_is_no_handshake_under_way() {
    let args = with_tls(&["echo", "--tls-handshakes", "1"]);
    let mut server = Server::start(&words(&args));
    let mut idle: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut idle {
        client.write_all(&[22, 3, 1, 2]).unwrap();
    }
    let mut client = Client::of(server.address(), &config(&VERSIONS)).unwrap();
    client.assert_echoes(b"hello");
    client.end();
    assert_ended(&server.closed(), "peer-closed", None);
    idle[0].shutdown(Shutdown::Write).unwrap();
    read_to_fin(&mut idle[0]);
    assert_ended(&server.closed(), "tls-handshake", Some("cut short"));
}

#[test]
fn of_handshakes_only_so_many_are_under_way() {
    let args = with_tls(&["echo", "--tls-handshakes", "2"]);
    let mut server = Server::start(&words(&args));
    let hello = |address| {
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let mut client = rustls::ClientConnection::new(config(&VERSIONS), name).unwrap();
        let mut socket = crate::support::connect(address);
        client.write_tls(&mut socket).unwrap();
        // The server's flight has come.
        let mut first = [0];
        socket.peek(&mut first).unwrap();
        (client, socket)
    };
    let address = server.address();
    let (one, two) = (hello(address), hello(address));
    assert!(Client::of(address, &config(&VERSIONS)).is_err());
    let closed = server.closed();
    assert_ended(
        &closed,
        "tls-handshake",
        Some("too many handshakes at once"),
    );
    drop(one);
    server.closed();
    let mut client = Client::of(address, &config(&VERSIONS)).unwrap();
    client.assert_echoes(b"there is room again");
    let mut two = Client(rustls::StreamOwned::new(two.0, two.1));
    two.assert_echoes(b"at last");
    two.end();
    client.end();
}
