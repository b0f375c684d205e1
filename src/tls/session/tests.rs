//! A session with a client that is rustls's own, saved and read back at any moment; and what others do to it.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedCipherSuite};

use super::*;
use crate::seeded::Seeded;
use crate::tls::handshake::{Facts, Failure, Step};
use crate::tls::{Tls, TlsSettings};

fn file(name: &str) -> std::path::PathBuf {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/support/tls").join(name)
}

fn server() -> TlsSettings {
    let names = ["server", "rsa", "ed25519"];
    let pair = |name: &&str| (file(&format!("{name}.pem")), file(&format!("{name}.key")));
    TlsSettings {
        certificates: names.iter().map(pair).collect(),
        protocols: vec!["h2".to_owned(), "http/1.1".to_owned()],
        ..TlsSettings::default()
    }
}

fn suites() -> Vec<SupportedCipherSuite> {
    rustls::crypto::ring::ALL_CIPHER_SUITES.to_vec()
}

fn client(suites: &[SupportedCipherSuite], name: &'static str) -> ClientConnection {
    let name = ServerName::try_from(name).unwrap();
    ClientConnection::new(config(suites), name).unwrap()
}

fn config(suites: &[SupportedCipherSuite]) -> Arc<ClientConfig> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites = suites.to_vec();
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(file("ca.pem")).unwrap();
    roots.add(authority).unwrap();
    let versions: Vec<_> = [&rustls::version::TLS13, &rustls::version::TLS12]
        .into_iter()
        .filter(|version| suites.iter().any(|suite| suite.version() == *version))
        .collect();
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// What a client has to say.
fn said(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Has the client hear `bytes`, and answers the plaintext in them.
fn hears(client: &mut ClientConnection, mut bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        let state = client.process_new_packets().unwrap();
        let from = plain.len();
        plain.resize(from + state.plaintext_bytes_to_read(), 0);
        client.reader().read_exact(&mut plain[from..]).unwrap();
    }
    plain
}

/// A handshake, of which the client's part comes in pieces of so many bytes.
fn agree(tls: &Tls, client: &mut ClientConnection, piece: usize) -> (Session, Vec<u8>, Facts) {
    let mut handshake = tls.handshake().unwrap().unwrap();
    loop {
        let from_client = said(client);
        assert!(!from_client.is_empty(), "both wait");
        let mut done = None;
        let mut rest = Vec::new();
        for bytes in from_client.chunks(piece) {
            if done.is_some() {
                rest.extend_from_slice(bytes);
                continue;
            }
            let mut out = Vec::new();
            match handshake.advance(bytes, &mut out) {
                Step::Waits => {}
                Step::Done(session, facts) => done = Some((*session, facts)),
                Step::Failed(failure) => panic!("{failure:?}"),
            }
            assert_eq!(hears(client, &out), b"");
        }
        if let Some((session, facts)) = done {
            let rest = [handshake.into_rest(), rest].concat();
            return (session, rest, facts);
        }
    }
}

/// The plaintext in whole records, what is answered to them, and what they were.
type All = (Vec<u8>, Vec<u8>, Vec<Opened>);

fn opened(session: &mut Session, bytes: &[u8]) -> Result<All, Fault> {
    let (mut bytes, mut plain, mut out, mut all) =
        (bytes.to_vec(), Vec::new(), Vec::new(), Vec::new());
    while let Some(length) = session.whole(&bytes)? {
        let record = &mut bytes[..length];
        let opened = session.open(record, &mut out)?;
        if let Opened::Data(range) = &opened {
            plain.extend_from_slice(&record[range.clone()]);
        }
        all.push(opened);
        bytes.drain(..length);
    }
    assert_eq!(bytes, b"", "a record that is not whole");
    Ok((plain, out, all))
}

fn sealed(session: &mut Session, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    session.seal(data, &mut out).unwrap();
    out
}

/// As another process goes on with it.
fn again(session: &Session) -> Session {
    Session::restored(&session.save()).unwrap()
}

fn pair(suite: SupportedCipherSuite) -> (Session, ClientConnection) {
    let name = match suite.suite().as_str() {
        Some(name) if name.contains("_RSA_") => "x.rsa.test",
        _ => "localhost",
    };
    let mut client = client(&[suite], name);
    let tls = Tls::new(&server()).unwrap();
    let (session, rest, _) = agree(&tls, &mut client, usize::MAX);
    assert_eq!(rest, b"");
    (session, client)
}

/// Of TLS 1.3, with a client that knows no other suite.
fn new_pair() -> (Session, ClientConnection) {
    pair(rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256)
}

/// As [`new_pair`], of TLS 1.2.
fn old_pair() -> (Session, ClientConnection) {
    pair(rustls::crypto::ring::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)
}

#[test]
fn bytes_go_both_ways_in_every_suite_and_through_any_number_of_processes() {
    let mut random = Seeded::new(16);
    for suite in suites() {
        let (mut session, mut client) = pair(suite);
        for round in 0..20 {
            let data: Vec<u8> = (0..random.below(50_000))
                .map(|at| u8::try_from(at * round % 251).unwrap())
                .collect();
            client.writer().write_all(&data).unwrap();
            let (plain, answer, _) = opened(&mut session, &said(&mut client)).unwrap();
            assert_eq!((plain == data, &answer[..]), (true, &b""[..]), "{suite:?}");
            let back = sealed(&mut session, &data);
            assert!(hears(&mut client, &back) == data, "{suite:?}");
            session = again(&session);
        }
        let length = session.save().len();
        assert!((75..=125).contains(&length), "{suite:?}: {length}");
    }
}

#[test]
fn a_key_gives_way_to_the_next_from_either_side() {
    let suites = suites();
    for suite in suites.into_iter().filter(|suite| suite.tls13().is_some()) {
        let (mut session, mut client) = pair(suite);
        for round in 0..100 {
            client.refresh_traffic_keys().unwrap();
            client.writer().write_all(b"hello").unwrap();
            let (plain, answer, _) = opened(&mut session, &said(&mut client)).unwrap();
            assert_eq!(plain, b"hello", "{round}");
            assert_eq!(hears(&mut client, &answer), b"");
            session = again(&session);
            // Ours, as soon as a key has sealed two records.
            session.limit = 3;
            assert_eq!(hears(&mut client, &sealed(&mut session, b"back")), b"back");
        }
    }
}

#[test]
fn without_new_keys_it_ends_with_a_goodbye_where_they_are_used_up() {
    let (mut session, mut client) = old_pair();
    session.limit = session.out.number + 3;
    let (mut out, data) = (Vec::new(), vec![7; 10 * FRAGMENT]);
    assert_eq!(session.seal(&data, &mut out), Err(UsedUp));
    assert_eq!(hears(&mut client, &out), vec![7; 2 * FRAGMENT]);
    assert!(session.is_closed());
    // rustls answers a read of nothing, and no error, behind a close_notify.
    assert_eq!(client.reader().read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(session.seal(b"more", &mut out), Ok(()), "it is dropped");
    // Asked for another handshake behind the last number, it says nothing; and no takeover is refused for it.
    (session.is_closed, session.message) = (false, vec![CLIENT_HELLO, 0, 0, 0]);
    assert_eq!(session.answer(&mut out), Ok(()));
    assert_eq!(session.out.number, session.limit);
}

#[test]
fn a_goodbye_is_heard_either_way_and_nothing_behind_it() {
    for (mut session, mut client) in [new_pair(), old_pair()] {
        client.writer().write_all(b"last").unwrap();
        client.send_close_notify();
        let said = said(&mut client);
        let (plain, _, all) = opened(&mut session, &said).unwrap();
        assert_eq!(
            (&plain[..], all.last()),
            (&b"last"[..], Some(&Opened::Closed))
        );
        let mut session = again(&session);
        assert!(session.is_over() && !session.is_closed());
        assert_eq!(
            session.open(&mut [23, 3, 3, 0, 1, 7], &mut Vec::new()),
            Ok(Opened::Nothing)
        );
        // Half-closed: this side goes on.
        assert_eq!(
            hears(&mut client, &sealed(&mut session, b"answer")),
            b"answer"
        );
        let mut out = Vec::new();
        session.close(&mut out);
        session.close(&mut out);
        assert_eq!(hears(&mut client, &out), b"");
        assert_eq!(client.reader().read(&mut [0; 8]).unwrap(), 0);
    }
}

#[test]
fn what_is_damaged_is_refused_with_an_alert_that_the_client_can_read() {
    for (mut session, mut client) in [new_pair(), old_pair()] {
        client.writer().write_all(b"hello").unwrap();
        let mut record = said(&mut client);
        *record.last_mut().unwrap() ^= 1;
        let fault = opened(&mut session, &record).unwrap_err();
        assert_eq!(fault.alert, AlertDescription::BadRecordMac);
        let mut out = Vec::new();
        session.give_up(fault.alert, &mut out);
        client.read_tls(&mut &out[..]).unwrap();
        let error = client.process_new_packets().unwrap_err();
        assert_eq!(
            error,
            rustls::Error::AlertReceived(AlertDescription::BadRecordMac)
        );
        assert!(session.is_closed());
    }
}

/// What a client that does as it likes may send: it has this side's keys.
fn from_client(session: &Session, records: &[(ContentType, &[u8])]) -> Vec<u8> {
    let mut client = again(session).into;
    let mut out = Vec::new();
    for (kind, data) in records {
        client.seal(*kind, data, &mut out).unwrap();
    }
    out
}

#[test]
fn a_peer_that_does_what_it_may_not_is_told_so() {
    type A = AlertDescription;
    const ALERT: ContentType = ContentType::Alert;
    const MESSAGE: ContentType = ContentType::Handshake;
    const DATA: ContentType = ContentType::ApplicationData;
    let update = [KEY_UPDATE, 0, 0, 1, 0];
    let hello = [CLIENT_HELLO, 0, 0, 2, 3, 3];
    let (new, old) = (new_pair().0, old_pair().0);
    for (session, records, alert) in [
        (&new, vec![(ALERT, &[1, 90][..]); 5], A::UnexpectedMessage),
        (&old, vec![(ALERT, &[1, 41][..]); 5], A::UnexpectedMessage),
        (&new, vec![(ALERT, &[1][..])], A::DecodeError),
        (&new, vec![(ALERT, &[1, 0, 0][..])], A::DecodeError),
        (&old, vec![(MESSAGE, &hello[..]); 2], A::NoRenegotiation),
        (&new, vec![(MESSAGE, &hello[..])], A::UnexpectedMessage),
        (&old, vec![(MESSAGE, &update[..])], A::UnexpectedMessage),
        (
            &new,
            vec![(MESSAGE, &[24, 0, 0, 2, 0, 0][..])],
            A::UnexpectedMessage,
        ),
        (
            &new,
            vec![(MESSAGE, &[24, 0, 0, 1, 2][..])],
            A::IllegalParameter,
        ),
        (
            &new,
            vec![(MESSAGE, &[24, 0, 0, 1, 0, 24][..])],
            A::UnexpectedMessage,
        ),
        (&new, vec![(MESSAGE, &[][..])], A::UnexpectedMessage),
        (
            &new,
            vec![(MESSAGE, &update[..2]), (DATA, b"x")],
            A::UnexpectedMessage,
        ),
        (
            &new,
            vec![(ContentType::ChangeCipherSpec, &[1][..])],
            A::UnexpectedMessage,
        ),
        (
            &old,
            vec![(ContentType::ChangeCipherSpec, &[1][..])],
            A::UnexpectedMessage,
        ),
        (
            &new,
            vec![(ContentType::Unknown(9), b"x")],
            A::UnexpectedMessage,
        ),
    ] {
        let bytes = from_client(session, &records);
        let fault = opened(&mut again(session), &bytes).unwrap_err();
        assert_eq!(fault.alert, alert, "{records:?}");
    }
    for (bytes, alert) in [
        (&[20, 3, 3, 0, 1, 1][..], A::UnexpectedMessage),
        (&[22, 3, 3, 0, 0][..], A::UnexpectedMessage),
        (b"GET / HTTP/1.0", A::UnexpectedMessage),
        (&[23, 2, 0, 0, 0], A::ProtocolVersion),
        (&[23, 3, 3, 0x41, 1], A::RecordOverflow),
        (&[23, 3, 3, 0, 0], A::BadRecordMac),
        (
            &[
                23, 3, 3, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
            A::BadRecordMac,
        ),
    ] {
        let fault = opened(&mut again(&new), bytes).unwrap_err();
        assert_eq!(fault.alert, alert, "{bytes:?}");
    }
    // Padded without end, and longer than may be.
    let long = vec![0; FRAGMENT + 1];
    let bytes = from_client(&new, &[(DATA, &long)]);
    assert_eq!(
        opened(&mut again(&new), &bytes).unwrap_err().alert,
        A::RecordOverflow
    );
    let bytes = from_client(&new, &[(ContentType::Unknown(0), &[0; 9])]);
    assert_eq!(
        opened(&mut again(&new), &bytes).unwrap_err().alert,
        A::UnexpectedMessage
    );
}

#[test]
fn many_new_keys_with_no_data_between_them_are_too_many() {
    let (mut session, _) = new_pair();
    let update = [KEY_UPDATE, 0, 0, 1, 1];
    let mut answers = 0;
    for round in 0..UPDATES {
        let bytes = from_client(&session, &[(ContentType::Handshake, &update)]);
        let (_, answer, _) = opened(&mut session, &bytes).unwrap();
        answers += usize::from(!answer.is_empty());
        session = again(&session);
        assert_eq!(session.updates, round + 1);
    }
    assert_eq!(answers, 1, "none was used since");
    let bytes = from_client(&session, &[(ContentType::Handshake, &update)]);
    let fault = opened(&mut session, &bytes).unwrap_err();
    assert_eq!(fault.what, "too many KeyUpdates");
}

#[test]
fn a_message_in_pieces_goes_along() {
    let (mut session, _) = new_pair();
    for byte in [KEY_UPDATE, 0, 0, 1, 1] {
        let bytes = from_client(&session, &[(ContentType::Handshake, &[byte])]);
        assert_eq!(opened(&mut session, &bytes).unwrap().0, b"");
        session = again(&session);
    }
    assert_eq!((session.updates, session.into.number), (1, 0));
}

#[test]
fn the_client_gives_up_and_that_is_no_goodbye() {
    let (session, _) = new_pair();
    let bytes = from_client(&session, &[(ContentType::Alert, &[2, 48])]);
    let mut session = again(&session);
    let (_, _, all) = opened(&mut session, &bytes).unwrap();
    assert_eq!(all, [Opened::Alert(AlertDescription::UnknownCA)]);
    let mut out = Vec::new();
    session.close(&mut out);
    assert_eq!(out, b"", "nobody hears it");
}

#[test]
fn a_handshake_comes_in_any_pieces_and_what_stands_behind_it_is_left() {
    let tls = Tls::new(&server()).unwrap();
    for suite in suites() {
        for piece in [1, 7, 300, usize::MAX] {
            let mut client = client(&[suite], "rsa.test");
            if suite.suite().as_str().unwrap().contains("ECDSA") {
                client = self::client(&[suite], "a.test");
            }
            // Sent with the client's last word.
            client.writer().write_all(b"at once").unwrap();
            let (mut session, mut rest, facts) = agree(&tls, &mut client, piece);
            rest.extend(said(&mut client));
            assert_eq!(opened(&mut session, &rest).unwrap().0, b"at once");
            assert!(
                facts
                    .name
                    .as_deref()
                    .is_some_and(|name| name.ends_with(".test"))
            );
            assert!(!facts.resumed);
            let version = if suite.tls13().is_some() {
                "1.3"
            } else {
                "1.2"
            };
            assert_eq!(facts.version, version);
        }
    }
}

#[test]
fn the_name_that_a_client_asks_for_says_which_certificate_it_sees() {
    let tls = Tls::new(&server()).unwrap();
    // rustls's client refuses any other one.
    for name in [
        "localhost",
        "a.test",
        "rsa.test",
        "x.rsa.test",
        "ed25519.test",
    ] {
        let mut client = client(&suites(), name);
        let (_, _, facts) = agree(&tls, &mut client, usize::MAX);
        assert_eq!(facts.name.as_deref(), Some(name));
    }
}

#[test]
fn whoever_has_the_key_of_the_tickets_resumes() {
    let (before, after) = (Tls::new(&server()).unwrap(), Tls::new(&server()).unwrap());
    after.take_ticket_keys(&before.ticket_keys());
    for suite in suites() {
        let config = config(&[suite]);
        let name = match suite.suite().as_str() {
            Some(name) if name.contains("_RSA_") => "rsa.test",
            _ => "localhost",
        };
        let client = || {
            let name = ServerName::try_from(name).unwrap();
            ClientConnection::new(Arc::clone(&config), name).unwrap()
        };
        let mut first = client();
        let (mut session, _, _) = agree(&before, &mut first, usize::MAX);
        hears(&mut first, &sealed(&mut session, b"x"));
        let mut second = client();
        let (mut session, _, facts) = agree(&after, &mut second, usize::MAX);
        assert!(facts.resumed, "{suite:?}");
        assert_eq!(
            hears(&mut second, &sealed(&mut session, b"again")),
            b"again"
        );
    }
}

fn failure(bytes: &[u8]) -> (Failure, Vec<u8>) {
    let tls = Tls::new(&server()).unwrap();
    let mut out = Vec::new();
    match tls.handshake().unwrap().unwrap().advance(bytes, &mut out) {
        Step::Failed(failure) => (failure, out),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_tls_gets_an_alert() {
    let alert = |out: &[u8]| (out[0], out[5], out.len());
    let (plain, out) = failure(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((plain.what, alert(&out)), ("plain HTTP", (21, 2, 7)));
    let (garbage, out) = failure(b"hello\n");
    assert_eq!((garbage.what, alert(&out)), ("no TLS", (21, 2, 7)));
    let (cut, out) = failure(&[22, 3, 1, 0, 5, 1, 0, 0, 1, 9]);
    assert_eq!((cut.what, alert(&out)), ("no TLS handshake", (21, 2, 7)));
}

/// A record that cannot be opened, in the middle of a handshake: one alert, and no panic of rustls's.
#[test]
fn what_is_damaged_in_a_handshake_is_answered_once() {
    let tls = Tls::new(&server()).unwrap();
    for suite in suites() {
        let mut client = client(&[suite], "rsa.test");
        if suite.suite().as_str().unwrap().contains("ECDSA") {
            client = self::client(&[suite], "a.test");
        }
        let (mut handshake, mut out) = (tls.handshake().unwrap().unwrap(), Vec::new());
        handshake.advance(&said(&mut client), &mut out);
        hears(&mut client, &out);
        let mut finished = said(&mut client);
        *finished.last_mut().unwrap() ^= 1;
        out.clear();
        let step = handshake.advance(&finished, &mut out);
        assert!(matches!(step, Step::Failed(_)), "{step:?}");
        client.read_tls(&mut &out[..]).unwrap();
        let heard = client.process_new_packets();
        assert!(matches!(heard, Err(rustls::Error::AlertReceived(_))));
    }
}

/// A seeded stream of damage to what a client says, in and behind its handshake, torn anywhere: never a panic, and never
/// a byte that it has not sent.
#[test]
fn whatever_comes_is_what_was_sent_or_a_fault() {
    let mut random = Seeded::new(17);
    let tls = Tls::new(&server()).unwrap();
    let mut hello = said(&mut client(&suites(), "localhost"));
    for _ in 0..2_000 {
        let mut bytes = hello.clone();
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] = u8::try_from(random.below(256)).unwrap();
        }
        let mut handshake = tls.handshake().unwrap().unwrap();
        let (left, right) = bytes.split_at(random.below(bytes.len()));
        for part in [left, right] {
            if matches!(handshake.advance(part, &mut Vec::new()), Step::Failed(_)) {
                break;
            }
        }
    }
    hello.clear();
    for (session, mut client) in [new_pair(), old_pair()] {
        for piece in [&b"one"[..], b"two", b"three"] {
            client.writer().write_all(piece).unwrap();
            hello.extend(said(&mut client));
        }
        for round in 0..20_000 {
            let mut bytes = hello.clone();
            for _ in 0..random.below(3) {
                let at = random.below(bytes.len());
                match random.below(3) {
                    0 => bytes[at] ^= 1 << random.below(8),
                    1 => drop(bytes.drain(at..)),
                    _ => bytes.insert(at, u8::try_from(random.below(256)).unwrap()),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            let mut session = again(&session);
            let mut plain = Vec::new();
            while let Ok(Some(length)) = session.whole(&bytes) {
                match session.open(&mut bytes[..length], &mut Vec::new()) {
                    Ok(Opened::Data(range)) => plain.extend_from_slice(&bytes[range]),
                    Ok(_) => {}
                    Err(_) => break,
                }
                bytes.drain(..length);
            }
            assert!(b"onetwothree".starts_with(&plain), "round {round}");
        }
        hello.clear();
    }
}

#[test]
fn what_was_saved_is_read_back_or_refused() {
    let mut random = Seeded::new(18);
    for (session, _) in [new_pair(), old_pair()] {
        let saved = session.save();
        for length in 0..saved.len() {
            assert!(Session::restored(&saved[..length]).is_none(), "{length}");
        }
        for _ in 0..5_000 {
            let mut bytes = saved.to_vec();
            let at = random.below(bytes.len());
            bytes[at] = u8::try_from(random.below(256)).unwrap();
            let _ = Session::restored(&bytes);
        }
        let shown = format!("{session:?}");
        assert!(
            !shown.contains("secret") && !shown.contains("key"),
            "{shown}"
        );
    }
}
