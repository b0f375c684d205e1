//! The dialling side with this program's own door, and with what others say.

use std::path::PathBuf;

use rustls::ContentType;

use super::*;
use crate::address::Address;
use crate::seeded::Seeded;
use crate::tls::session::{Fault, Opened};
use crate::tls::{DialTls, DialTlsSettings, Handshake, Step, Tls, TlsSettings};

fn file(name: &str) -> PathBuf {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/support/tls").join(name)
}

fn door(name: &str) -> Tls {
    let settings = TlsSettings {
        certificates: vec![(file(&format!("{name}.pem")), file(&format!("{name}.key")))],
        protocols: vec!["b".to_owned(), "a".to_owned()],
        ..TlsSettings::default()
    };
    Tls::new(&settings).unwrap()
}

fn settings(name: &str) -> DialTlsSettings {
    DialTlsSettings {
        ca: Some(file("ca.pem")),
        name: Some(name.to_owned()),
        protocols: vec!["a".to_owned(), "b".to_owned()],
        ..DialTlsSettings::default()
    }
}

fn greeting(settings: &DialTlsSettings) -> Greeting {
    let tls = DialTls::new(settings).unwrap();
    tls.greeting(&"localhost:1".parse::<Address>().unwrap())
        .unwrap()
}

/// Both sides of a session, and what of it has come and is not opened, of either.
type Pair = ([Session; 2], [Vec<u8>; 2]);

/// A handshake, of which what comes comes in pieces of so many bytes.
fn agree(door: &Tls, settings: &DialTlsSettings, piece: usize) -> Result<Pair, Refusal> {
    let mut greeting = greeting(settings);
    let mut handshake: Handshake = door.handshake().unwrap().unwrap();
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let (mut client, mut server) = (None, None);
    assert!(matches!(
        greeting.advance(&[], &mut to_server),
        Greeted::Waits
    ));
    while client.is_none() || server.is_none() {
        assert!(!(to_server.is_empty() && to_client.is_empty()), "both wait");
        let next = piece.min(to_server.len());
        if server.is_none() && next > 0 {
            let bytes: Vec<u8> = to_server.drain(..next).collect();
            match handshake.advance(&bytes, &mut to_client) {
                Step::Waits => {}
                Step::Done(session, _) => server = Some(*session),
                Step::Failed(failure) => panic!("{failure:?}"),
            }
        }
        let next = piece.min(to_client.len());
        if client.is_none() && next > 0 {
            let bytes: Vec<u8> = to_client.drain(..next).collect();
            match greeting.advance(&bytes, &mut to_server) {
                Greeted::Waits => {}
                Greeted::Done(session, protocol) => {
                    assert_eq!(protocol.as_deref(), Some("b"), "the server's order");
                    client = Some(*session);
                }
                Greeted::Failed(refusal) => return Err(refusal),
            }
        }
    }
    let rests = [
        [greeting.into_rest(), to_client].concat(),
        [handshake.into_rest(), to_server].concat(),
    ];
    Ok(([client.unwrap(), server.unwrap()], rests))
}

/// The plaintext in whole records, and what is answered to them.
fn opened(session: &mut Session, bytes: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Fault> {
    let (mut bytes, mut plain, mut out) = (bytes.to_vec(), Vec::new(), Vec::new());
    while let Some(length) = session.whole(&bytes)? {
        let record = &mut bytes[..length];
        if let Opened::Data(range) = session.open(record, &mut out)? {
            plain.extend_from_slice(&record[range]);
        }
        bytes.drain(..length);
    }
    Ok((plain, out))
}

#[test]
fn a_handshake_comes_in_any_pieces_and_what_stands_behind_it_is_left() {
    for (key, name) in [
        ("server", "localhost"),
        ("rsa", "rsa.test"),
        ("ed25519", "ed25519.test"),
    ] {
        let door = door(key);
        for piece in [1, 7, 300, usize::MAX] {
            let ([mut client, mut server], rests) = agree(&door, &settings(name), piece).unwrap();
            // Tickets, which nobody uses.
            assert_eq!(opened(&mut client, &rests[0]).unwrap(), Default::default());
            assert_eq!(opened(&mut server, &rests[1]).unwrap(), Default::default());
            for round in 0..3 {
                let data = vec![7; 20_000 * round + 1];
                let mut sealed = Vec::new();
                client.seal(&data, &mut sealed).unwrap();
                assert!(opened(&mut server, &sealed).unwrap().0 == data);
                sealed.clear();
                server.seal(&data, &mut sealed).unwrap();
                assert!(opened(&mut client, &sealed).unwrap().0 == data);
                // It may cross a takeover, too.
                client = Session::restored(&client.save()).unwrap();
            }
        }
    }
}

#[test]
fn whom_not_to_believe_is_said() {
    let mut wrong = settings("localhost");
    wrong.ca = Some(file("ed25519.pem"));
    let refusal = agree(&door("server"), &wrong, usize::MAX).unwrap_err();
    assert_eq!(refusal.fault, TlsFault::UnknownIssuer);
    assert!(
        refusal.what.contains("CN=standfast test authority"),
        "{refusal:?}"
    );
    for name in ["other.test", "127.0.0.2", "[::1]"] {
        let refusal = agree(&door("server"), &settings(name), usize::MAX).unwrap_err();
        assert_eq!(refusal.fault, TlsFault::WrongName);
        assert!(
            refusal.what.contains("localhost, 127.0.0.1, a.test"),
            "{refusal:?}"
        );
    }
    // Who is believed whoever it is needs no name.
    let mut anybody = settings("other.test");
    (anybody.ca, anybody.insecure) = (None, true);
    assert!(agree(&door("server"), &anybody, usize::MAX).is_ok());
}

#[test]
fn what_is_no_answer_is_said() {
    for (answer, fault, what) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            TlsFault::NoTls,
            "plain HTTP",
        ),
        (b"220 mail ready\r\n", TlsFault::NoTls, "no TLS"),
        (
            &[21, 3, 3, 0, 2, 2, 40],
            TlsFault::Handshake,
            "HandshakeFailure",
        ),
        (&[21, 3, 3, 0, 2, 2, 48], TlsFault::Ours, "UnknownCA"),
        (&[22, 3, 3, 0, 4, 2, 0, 0, 0], TlsFault::Handshake, ""),
        (&[22, 3, 3, 0x48, 1], TlsFault::NoTls, "too long"),
        (&[23, 3, 3, 0, 1, 0], TlsFault::Handshake, ""),
    ] {
        let (mut greeting, mut out) = (greeting(&settings("localhost")), Vec::new());
        greeting.advance(&[], &mut out);
        match greeting.advance(answer, &mut out) {
            Greeted::Failed(refusal) => {
                assert_eq!(refusal.fault, fault, "{refusal:?}");
                assert!(refusal.what.contains(what), "{refusal:?}");
            }
            other => panic!("{answer:?}: {other:?}"),
        }
    }
}

/// A seeded stream of damage to what a server says: never a panic, and never a session with another.
#[test]
fn whatever_a_server_says_is_a_session_or_a_fault() {
    let mut random = Seeded::new(23);
    let door = door("server");
    for _ in 0..500 {
        let (mut greeting, mut hello) = (greeting(&settings("localhost")), Vec::new());
        greeting.advance(&[], &mut hello);
        let mut said = Vec::new();
        let mut handshake = door.handshake().unwrap().unwrap();
        assert!(matches!(handshake.advance(&hello, &mut said), Step::Waits));
        let whole = said.clone();
        for _ in 0..random.below(3) {
            let at = random.below(said.len());
            match random.below(3) {
                0 => said[at] ^= 1 << random.below(8),
                1 => said.truncate(at.max(1)),
                _ => said.insert(at, u8::try_from(random.below(256)).unwrap()),
            }
        }
        let done = greeting.advance(&said, &mut Vec::new());
        // Nothing in the header of a record counts but its length.
        assert!(
            !matches!(done, Greeted::Done(..)) || said.len() >= whole.len(),
            "{done:?}"
        );
    }
}

#[test]
fn a_server_may_give_tickets_but_not_without_end_and_ask_for_nothing_else() {
    let door = door("server");
    let ([client, server], [rest, _]) = agree(&door, &settings("localhost"), usize::MAX).unwrap();
    let again = |session: &Session| Session::restored(&session.save()).unwrap();
    let said = |server: &mut Session, message: &[u8]| {
        let mut sealed = Vec::new();
        server.put(ContentType::Handshake, message, &mut sealed);
        sealed
    };
    let (mut client, mut server) = (client, server);
    opened(&mut client, &rest).unwrap();
    // In two records, with a takeover between them, and as long as may be.
    let long = [&[4, 0, 0x80, 0][..], &[7; 0x8000]].concat();
    for piece in long.chunks(16_000) {
        let bytes = said(&mut server, piece);
        assert_eq!(opened(&mut client, &bytes).unwrap(), Default::default());
        client = again(&client);
    }
    let mut sealed = Vec::new();
    server.seal(b"between", &mut sealed).unwrap();
    assert_eq!(opened(&mut client, &sealed).unwrap().0, b"between");
    for (message, what) in [
        (&[1, 0, 0, 2, 3, 3][..], "an unexpected message"),
        (&[0, 0, 0, 0], "an unexpected message"),
        (&[13, 0, 0, 1, 0], "an unexpected message"),
        (&[4, 2, 0, 0, 0], "an unexpected message"),
    ] {
        let bytes = said(&mut again(&server), message);
        let fault = opened(&mut again(&client), &bytes).unwrap_err();
        assert_eq!(fault.what, what, "{message:?}");
    }
    let mut given = 0;
    let fault = loop {
        let bytes = said(&mut server, &[4, 0, 0, 1, 9]);
        match opened(&mut client, &bytes) {
            Ok(_) => given += 1,
            Err(fault) => break fault,
        }
    };
    assert_eq!((given, fault.what), (32, "too many tickets"));
    // A client gives none.
    let bytes = said(&mut again(&client), &[4, 0, 0, 1, 9]);
    assert!(opened(&mut again(&server), &bytes).is_err());
}
