//! TLS at the door: who comes in, how it ends, and that a takeover carries it; and at the dial.

mod certificates;
mod dialling;
mod exec;
mod floods;
mod loading;
mod upstreams;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::fs::{SeekFrom, seek};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};

use crate::support::clients::Raised;
use crate::support::home::Home;
use crate::support::{Closed, Server, connect, lacks, read_to_fin, standfast, until};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

fn file(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/tls");
    let file = folder.join(name);
    if name.ends_with(".key") {
        // A checkout has them readable by everybody, which would be said.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    file.to_str().unwrap().to_owned()
}

/// `args`, and what a server needs for the name `localhost`.
fn with_tls(args: &[&str]) -> Vec<String> {
    let (certificate, key) = (file("server.pem"), file("server.key"));
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    args.iter()
        .chain(&tls)
        .map(|&word| word.to_owned())
        .collect()
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(file("ca.pem")).unwrap();
    roots.add(authority).unwrap();
    roots
}

fn config(versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_protocol_versions(versions).unwrap();
    let config = config.with_root_certificates(roots());
    Arc::new(config.with_no_client_auth())
}

/// A client that has made its handshake.
struct Client(StreamOwned<ClientConnection, TcpStream>);

impl Client {
    fn of(address: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<Self> {
        Self::named(address, config, "localhost")
    }

    fn named(
        address: SocketAddr,
        config: &Arc<ClientConfig>,
        name: &'static str,
    ) -> std::io::Result<Self> {
        let name = ServerName::try_from(name).unwrap();
        let client = ClientConnection::new(Arc::clone(config), name).unwrap();
        let mut client = Self(StreamOwned::new(client, connect(address)));
        while client.0.conn.is_handshaking() {
            client.0.conn.complete_io(&mut client.0.sock)?;
        }
        Ok(client)
    }

    #[track_caller]
    fn assert_echoes(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
        let mut echoed = vec![0; bytes.len()];
        self.0.read_exact(&mut echoed).unwrap();
        assert!(echoed == bytes, "{} bytes", bytes.len());
    }

    /// Says goodbye, and hears the server's.
    #[track_caller]
    fn end(mut self) {
        self.0.conn.send_close_notify();
        self.0.flush().unwrap();
        assert_eq!(self.0.read(&mut [0]).unwrap(), 0, "a goodbye");
    }
}

/// A client of this version or that, for others' tests.
pub(crate) fn client(address: SocketAddr) -> impl Read + Write + use<> {
    Client::of(address, &config(&VERSIONS)).unwrap().0
}

/// What a server of this process needs.
pub(crate) fn settings() -> standfast::Tls {
    let mut settings = standfast::TlsSettings::default();
    settings.certificates = vec![(file("server.pem").into(), file("server.key").into())];
    standfast::Tls::new(&settings).unwrap()
}

#[track_caller]
fn assert_ended(closed: &Closed, reason: &str, tls: Option<&str>) {
    assert_eq!(closed.get("reason"), reason, "{}", closed.line);
    let said = tls.map(|what| match what.contains(' ') {
        true => format!(" tls=\"{what}\" "),
        false => format!(" tls={what} "),
    });
    let line = &closed.line;
    let is_said = match said {
        Some(said) => line.contains(&said),
        None => !line.contains(" tls="),
    };
    assert!(is_said, "{tls:?}: {line}");
}

/// What a client has echoed is counted as the service saw it.
#[track_caller]
fn counts_plaintext(server: &mut Server, version: &'static SupportedProtocolVersion) -> Closed {
    let mut client = Client::of(server.address(), &config(&[version])).unwrap();
    client.assert_echoes(b"hello");
    client.assert_echoes(&vec![7; 300_000]);
    client.end();
    let closed = server.closed();
    assert_ended(&closed, "peer-closed", None);
    let counted = [&closed.facts["read"], &closed.facts["written"]];
    assert_eq!(counted, ["300005", "300005"], "{}", closed.line);
    closed
}

#[test]
fn the_service_sees_plaintext_and_the_log_counts_it() {
    let mut server = Server::start(&words(&with_tls(&["echo"])));
    for version in VERSIONS {
        counts_plaintext(&mut server, version);
    }
    assert_eq!(server.drain().code(), Some(0));
}

#[test]
fn others_programs_speak_it_too() {
    let mut server = Server::start(&words(&with_tls(&["echo"])));
    let (address, authority) = (server.address().to_string(), file("ca.pem"));
    let (host, port) = address.split_once(':').unwrap();
    let socat = format!("OPENSSL:{address},cafile={authority},commonname=server");
    let verified = ["-CAfile", &authority, "-verify_return_error", "-quiet"];
    let of_openssl = |version| {
        let connect = ["s_client", "-connect", &address, version];
        [&connect[..], &verified[..]].concat()
    };
    for (program, args) in [
        ("openssl", of_openssl("-tls1_2")),
        ("openssl", of_openssl("-tls1_3")),
        ("ncat", vec!["--ssl", host, port]),
        ("socat", vec!["-", &socat]),
    ] {
        if lacks(&[program]) {
            continue;
        }
        let mut client = Command::new(program)
            .args(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = client.stdin.take().unwrap();
        stdin.write_all(b"hello from there\n").unwrap();
        let mut echoed = [0; 17];
        let mut stdout = client.stdout.take().unwrap();
        stdout.read_exact(&mut echoed).unwrap();
        assert_eq!(&echoed, b"hello from there\n", "{program} {args:?}");
        drop(stdin);
        client.kill().unwrap();
        client.wait().unwrap();
        let closed = server.closed();
        let reason = closed.facts["reason"].as_str();
        assert!(
            ["peer-closed", "tls-truncated"].contains(&reason),
            "{program}: {}",
            closed.line
        );
    }
}

#[test]
fn the_name_asked_for_says_which_certificate_is_shown() {
    let mut args = with_tls(&["echo"]);
    for name in ["rsa", "ed25519"] {
        for (flag, ending) in [("--tls-cert", "pem"), ("--tls-key", "key")] {
            args.extend([flag.to_owned(), file(&format!("{name}.{ending}"))]);
        }
    }
    let server = Server::start(&words(&args));
    for name in [
        "localhost",
        "a.test",
        "rsa.test",
        "x.rsa.test",
        "ed25519.test",
    ] {
        for version in VERSIONS {
            let config = config(&[version]);
            let mut client = Client::named(server.address(), &config, name).unwrap();
            client.assert_echoes(name.as_bytes());
            client.end();
        }
    }
    let other = Client::named(server.address(), &config(&VERSIONS), "other.test");
    assert!(other.is_err(), "the first is for another name");
}

#[test]
fn who_speaks_no_tls_is_told_so() {
    let mut server = Server::start(&words(&with_tls(&["echo"])));
    for (bytes, what) in [
        (&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], "plain HTTP"),
        (b"hello\n", "no TLS"),
        (&[22, 3, 1, 0, 5, 1, 0, 0, 1, 9], "no TLS handshake"),
        (&[22, 3, 1, 0x48, 1], "a record that is too long"),
    ] {
        let mut client = server.connect();
        client.write_all(bytes).unwrap();
        let alert = read_to_fin(&mut client);
        assert_eq!((alert[0], alert[5], alert.len()), (21, 2, 7), "{what}");
        assert_ended(&server.closed(), "tls-handshake", Some(what));
    }
    let mut cut = server.connect();
    cut.write_all(&[22, 3, 1]).unwrap();
    cut.shutdown(Shutdown::Write).unwrap();
    assert_ended(&server.closed(), "tls-handshake", Some("cut short"));
    let unknown =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let unknown = unknown.with_safe_default_protocol_versions().unwrap();
    let unknown = unknown.with_root_certificates(RootCertStore::empty());
    let unknown = Arc::new(unknown.with_no_client_auth());
    assert!(Client::of(server.address(), &unknown).is_err());
    assert_ended(&server.closed(), "tls-handshake", Some("UnknownCA"));
}

#[test]
fn a_handshake_has_its_time() {
    let args = with_tls(&["echo", "--tls-handshake-timeout", "1s"]);
    let mut server = Server::start(&words(&args));
    let mut silent = server.connect();
    assert_eq!(read_to_fin(&mut silent), b"");
    assert_ended(&server.closed(), "tls-handshake", Some("late"));
    // Who looks whether the port is open is not worth a line.
    drop(server.connect());
    let mut client = Client::of(server.address(), &config(&VERSIONS)).unwrap();
    client.assert_echoes(b"hello");
    client.end();
    assert_ended(&server.closed(), "peer-closed", None);
}

#[test]
fn an_end_without_a_goodbye_is_told_apart() {
    let mut server = Server::start(&words(&with_tls(&["echo"])));
    for version in VERSIONS {
        let config = config(&[version]);
        let mut client = Client::of(server.address(), &config).unwrap();
        client.assert_echoes(b"hello");
        // The end of its answer is none that somebody on the way could have made.
        client.0.sock.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.0.read(&mut [0]).unwrap(), 0, "a goodbye");
        drop(client);
        assert_ended(&server.closed(), "tls-truncated", None);
        // Gone at once: it resets when ours comes.
        let mut client = Client::of(server.address(), &config).unwrap();
        client.assert_echoes(b"hello");
        drop(client);
        assert_ended(&server.closed(), "tls-truncated", None);
        // A goodbye, and gone: what of ours comes then is answered by a reset.
        let mut client = Client::of(server.address(), &config).unwrap();
        client.assert_echoes(b"hello");
        client.0.conn.send_close_notify();
        client.0.flush().unwrap();
        drop(client);
        assert_ended(&server.closed(), "peer-closed", None);
    }
}

#[test]
fn what_is_damaged_ends_with_an_alert() {
    let mut server = Server::start(&words(&with_tls(&["echo"])));
    for (bytes, what) in [
        (
            &[
                23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
            ][..],
            "a record that was damaged",
        ),
        (b"GET / HTTP/1.1", "no TLS"),
        (&[23, 3, 3, 0x50, 1], "a record that is too long"),
    ] {
        let mut client = Client::of(server.address(), &config(&VERSIONS)).unwrap();
        client.assert_echoes(b"hello");
        client.0.sock.write_all(bytes).unwrap();
        let error = client.0.read(&mut [0]).unwrap_err();
        assert!(error.to_string().contains("alert"), "{error}");
        drop(client);
        assert_ended(&server.closed(), "tls-alert", Some(what));
    }
}

#[test]
fn clients_may_have_to_show_a_certificate() {
    let authority = file("ca.pem");
    let shows = || {
        let certificate = CertificateDer::from_pem_file(file("client.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(file("client.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_protocol_versions(&VERSIONS).unwrap();
        let config = config.with_root_certificates(roots());
        Arc::new(
            config
                .with_client_auth_cert(vec![certificate], key)
                .unwrap(),
        )
    };
    for auth in ["required", "optional"] {
        let args = [
            "echo",
            "--tls-client-ca",
            &authority,
            "--tls-client-auth",
            auth,
        ];
        let mut server = Server::start(&words(&with_tls(&args)));
        let mut client = Client::of(server.address(), &shows()).unwrap();
        client.assert_echoes(b"hello");
        client.end();
        assert_ended(&server.closed(), "peer-closed", None);
        // Of TLS 1.3 a client hears of it behind its own handshake.
        let without = Client::of(server.address(), &config(&VERSIONS));
        let served = without.and_then(|mut client| {
            client.0.write_all(b"x")?;
            client.0.read_exact(&mut [0])
        });
        assert_eq!(served.is_ok(), auth == "optional", "{served:?}");
        if auth == "required" {
            let closed = server.closed();
            assert_ended(&closed, "tls-handshake", Some("no client certificate"));
        }
    }
}

#[test]
fn files_that_are_no_use_are_named() {
    let home = Home::new();
    let [empty, garbage, missing] = ["empty.pem", "garbage.pem", "missing.pem"]
        .map(|name| home.join(name).to_str().unwrap().to_owned());
    fs::write(&empty, "").unwrap();
    fs::write(
        &garbage,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let (certificate, key, other) = (file("server.pem"), file("server.key"), file("client.key"));
    for (certificate, key, named, what) in [
        (&certificate, &other, &other, "it is not the key of"),
        (&missing, &key, &missing, "No such file"),
        (&certificate, &missing, &missing, "No such file"),
        (&empty, &key, &empty, "no certificate in it"),
        (&certificate, &empty, &empty, "no private key in it"),
        (&garbage, &key, &garbage, ""),
        (
            &certificate,
            &certificate,
            &certificate,
            "no private key in it",
        ),
    ] {
        let args = [
            "serve",
            "-l",
            "0",
            "--tls-cert",
            certificate,
            "--tls-key",
            key,
        ];
        let (code, line) = home.refusal(&args);
        assert_eq!(code, 2, "{line}");
        assert!(line.contains(named) && line.contains(what), "{line}");
    }
    for (args, what) in [
        (
            vec!["serve", "--tls-cert", &certificate],
            "each certificate needs its key",
        ),
        (
            vec!["serve", "--tls-alpn", "h2"],
            "--tls-alpn needs --tls-cert",
        ),
    ] {
        let (code, line) = home.refusal(&args);
        assert_eq!((code, line.contains(what)), (2, true), "{line}");
    }
}

#[test]
fn a_key_that_everybody_can_read_is_said() {
    let home = Home::new();
    let key = home.join("open.key");
    fs::copy(file("server.key"), &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let certificate = file("server.pem");
    let args = [
        "echo",
        "--tls-cert",
        &certificate,
        "--tls-key",
        key.to_str().unwrap(),
    ];
    let server = home.serve(&args);
    assert!(!server.addresses.is_empty());
    let mut server = server;
    server.log_line("a key that can be read", |line| {
        line.contains("everybody on this machine can read this private key")
    });
}

#[test]
fn the_other_services_have_it_too() {
    let config = config(&VERSIONS);
    let upstream = Server::start(&["echo"]);
    let to = upstream.address().to_string();
    let relay = Server::start(&words(&with_tls(&["forward", &to])));
    let mut client = Client::of(relay.address(), &config).unwrap();
    client.assert_echoes(&vec![b'x'; 500_000]);
    client.end();
    let hub = Server::start(&words(&with_tls(&["hub"])));
    let [mut one, mut other] = [(); 2].map(|()| Client::of(hub.address(), &config).unwrap());
    // Both are in once each has heard the other.
    let mut heard = [0; 6];
    until("both are in", || {
        one.0.write_all(b"hello\n").unwrap();
        other
            .0
            .sock
            .set_read_timeout(Some(std::time::Duration::from_millis(50)))
            .unwrap();
        other.0.read_exact(&mut heard).is_ok()
    });
    assert_eq!(&heard, b"hello\n");
    let mut print = Server::start(&words(&with_tls(&["print"])));
    let mut client = Client::of(print.address(), &config).unwrap();
    client.0.write_all(b"to stdout\n").unwrap();
    client.0.flush().unwrap();
    assert_eq!(print.stdout_line(), "to stdout");
    client.end();
}

#[test]
fn a_takeover_carries_sessions_and_handshakes() {
    let home = Home::new();
    // One of them waits for all takeovers, however busy the machine is.
    let args = with_tls(&["echo", "--tls-handshake-timeout", "10m"]);
    let args = words(&args);
    let mut server = home.serve(&args);
    let configs = VERSIONS.map(|version| config(&[version]));
    let mut clients = Vec::new();
    for config in &configs {
        for _ in 0..5 {
            let mut client = Client::of(server.address(), config).unwrap();
            client.assert_echoes(b"before");
            clients.push(client);
        }
    }
    // The first bytes of a handshake, the rest of which comes later.
    let name = ServerName::try_from("localhost").unwrap();
    let mut late = ClientConnection::new(Arc::clone(&configs[1]), name).unwrap();
    let mut hello = Vec::new();
    late.write_tls(&mut hello).unwrap();
    let mut late = (late, server.connect());
    late.1.write_all(&hello[..100]).unwrap();
    for generation in 0..5 {
        // A record of which the new process gets the rest; and of TLS 1.3, new keys.
        let mut torn = Vec::new();
        for client in &mut clients {
            if generation % 2 == 1 && client.0.conn.protocol_version() == Some(TLS13.version) {
                client.0.conn.refresh_traffic_keys().unwrap();
            }
            client
                .0
                .conn
                .writer()
                .write_all(&[generation; 1000])
                .unwrap();
            let mut record = Vec::new();
            client.0.conn.write_tls(&mut record).unwrap();
            let (now, then) = record.split_at(700);
            client.0.sock.write_all(now).unwrap();
            torn.push(then.to_vec());
        }
        server = home.succeed(&mut server, &args);
        for (client, then) in clients.iter_mut().zip(torn) {
            client.0.sock.write_all(&then).unwrap();
            let mut echoed = [0; 1000];
            client.0.read_exact(&mut echoed).unwrap();
            assert_eq!(echoed, [generation; 1000]);
            client.assert_echoes(b"and on");
        }
    }
    late.1.write_all(&hello[100..]).unwrap();
    let mut late = Client(StreamOwned::new(late.0, late.1));
    late.assert_echoes(b"begun elsewhere");
    clients.push(late);
    for (config, kind) in configs.iter().zip([HandshakeKind::Resumed; 2]) {
        let mut client = Client::of(server.address(), config).unwrap();
        client.assert_echoes(b"resumed");
        assert_eq!(client.0.conn.handshake_kind(), Some(kind));
        clients.push(client);
    }
    let count = clients.len();
    for client in clients {
        client.end();
    }
    for _ in 0..count {
        assert_ended(&server.closed(), "peer-closed", None);
    }
}

#[test]
fn what_waits_sealed_goes_along() {
    let home = Home::new();
    let args = with_tls(&["echo", "--buffer", "2m"]);
    let args = words(&args);
    let mut server = home.serve(&args);
    for version in VERSIONS {
        let mut client = Client::of(server.address(), &config(&[version])).unwrap();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
        thread::scope(|scope| {
            let (mut sender, mut sent) = (client.0.sock.try_clone().unwrap(), Vec::new());
            let mut written = 0;
            while written < bytes.len() {
                written += client.0.conn.writer().write(&bytes[written..]).unwrap();
                while client.0.conn.wants_write() {
                    client.0.conn.write_tls(&mut sent).unwrap();
                }
            }
            scope.spawn(move || sender.write_all(&sent).unwrap());
            let mut first = [0; 1];
            client.0.read_exact(&mut first).unwrap();
            for _ in 0..2 {
                server = home.succeed(&mut server, &args);
            }
            let mut rest = vec![0; bytes.len() - 1];
            client.0.read_exact(&mut rest).unwrap();
            assert!([&first[..], &rest].concat() == bytes);
        });
        client.end();
    }
}

#[test]
fn under_load_nobody_notices_a_takeover() {
    let home = Home::new();
    let args = with_tls(&["echo"]);
    let args = words(&args);
    let mut server = home.serve(&args);
    let address = server.address();
    let (over, handshakes) = (AtomicBool::new(false), AtomicU64::new(0));
    let (over, handshakes) = (&over, &handshakes);
    thread::scope(|scope| {
        let raised = Raised(over);
        for number in 0..6_u8 {
            let config = config(&[VERSIONS[usize::from(number % 2)]]);
            scope.spawn(move || {
                let mut client = Client::of(address, &config).unwrap();
                let bytes: Vec<u8> = (0..20_000_u32)
                    .map(|at| (at % 249) as u8 ^ number)
                    .collect();
                for length in (1..bytes.len()).step_by(1117).cycle() {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    client.assert_echoes(&bytes[..length]);
                }
                client.end();
            });
            let fresh = self::config(&[VERSIONS[usize::from(number % 2)]]);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let mut client = Client::of(address, &fresh).unwrap();
                    client.assert_echoes(b"x");
                    client.end();
                    handshakes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..5 {
            let before = handshakes.load(Ordering::Relaxed);
            until("clients come", || {
                handshakes.load(Ordering::Relaxed) > before + 10
            });
            server = home.succeed(&mut server, &args);
        }
        drop(raised);
    });
}

#[test]
fn a_successor_without_tls_is_refused_and_the_clients_stay() {
    let home = Home::new();
    let args = with_tls(&["echo"]);
    let server = home.serve(&words(&args));
    let mut client = Client::of(server.address(), &config(&VERSIONS)).unwrap();
    client.assert_echoes(b"before");
    let address = server.address().to_string();
    let (code, line) = home.refusal(&["serve", "--replace", "-l", &address, "echo"]);
    assert_eq!(code, 1, "{line}");
    assert!(
        line.contains("have TLS, the new process has none there"),
        "{line}"
    );
    client.assert_echoes(b"it serves on");
    client.end();
}

/// Of a transfer that was cut on the way, nobody behind the server is told that it was whole.
#[test]
fn an_upstream_sees_the_end_of_a_client_that_said_goodbye_alone() {
    let upstream = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = upstream.local_addr().unwrap().to_string();
    let mut server = Server::start(&words(&with_tls(&["forward", &to])));
    for says_goodbye in [true, false] {
        let mut client = Client::of(server.address(), &config(&VERSIONS)).unwrap();
        client.0.write_all(b"half of it").unwrap();
        client.0.flush().unwrap();
        let (mut taken, _) = upstream.accept().unwrap();
        taken.set_read_timeout(Some(crate::support::GUARD)).unwrap();
        let mut came = [0; 10];
        taken.read_exact(&mut came).unwrap();
        assert_eq!(&came, b"half of it");
        taken.write_all(b"an answer").unwrap();
        client.0.read_exact(&mut [0; 9]).unwrap();
        if says_goodbye {
            client.0.conn.send_close_notify();
            client.0.flush().unwrap();
        }
        client.0.sock.shutdown(Shutdown::Write).unwrap();
        let end = taken.read(&mut came);
        if says_goodbye {
            assert_eq!(end.unwrap(), 0);
            drop(taken);
            assert_eq!(client.0.read(&mut [0]).unwrap(), 0, "a goodbye");
            assert_ended(&server.closed(), "peer-closed", None);
        } else {
            assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
            assert_ended(&server.closed(), "tls-truncated", None);
        }
    }
}

/// What is read of others is there for the next server, should this one crash.
#[test]
fn what_clients_with_tls_say_is_not_where_a_keeper_has_it() {
    for tls in [false, true] {
        let home = Home::new();
        let args = ["echo", "--keep"];
        let server = match tls {
            true => home.serve(&words(&with_tls(&args))),
            false => home.serve(&args),
        };
        if tls {
            let mut client = Client::of(server.address(), &config(&VERSIONS)).unwrap();
            client.assert_echoes(b"nobody else is to read this");
        } else {
            crate::support::assert_echoes(&mut server.connect(), b"nobody else is to read this");
        }
        let status = fs::read_to_string(format!("/proc/{}/status", home.pid(&[]))).unwrap();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        let fds = format!("/proc/{}/fd", parent.unwrap().trim());
        let vaults: Vec<_> = fs::read_dir(fds)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|fd| {
                fs::read_link(fd)
                    .unwrap()
                    .to_string_lossy()
                    .contains("vault")
            })
            .collect();
        assert!(!vaults.is_empty());
        let said = b"nobody else is to read this";
        let found = vaults.iter().any(|fd| {
            let written = written(&File::open(fd).unwrap());
            written.windows(said.len()).any(|part| part == said)
        });
        assert_eq!(found, !tls);
    }
}

/// What was ever written of a file that has room for gigabytes.
fn written(file: &File) -> Vec<u8> {
    let (mut bytes, mut end) = (Vec::new(), 0);
    while let Ok(data) = seek(file, SeekFrom::Data(end)) {
        end = seek(file, SeekFrom::Hole(data)).unwrap();
        let from = bytes.len();
        bytes.resize(from + usize::try_from(end - data).unwrap(), 0);
        file.read_exact_at(&mut bytes[from..], data).unwrap();
    }
    bytes
}

#[test]
fn a_drain_says_goodbye() {
    let mut server = Server::start(&words(&with_tls(&["echo"])));
    let mut client = Client::of(server.address(), &config(&VERSIONS)).unwrap();
    client.assert_echoes(b"hello");
    let _silent = server.connect();
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(client.0.read(&mut [0]).unwrap(), 0, "a goodbye");
    drop(client);
    assert_eq!(server.wait().code(), Some(0), "{:?}", server.lines);
}

#[test]
fn behind_a_keeper_a_crash_ends_sessions_and_a_restart_does_not() {
    let home = Home::new();
    let args = with_tls(&["echo", "--keep"]);
    let server = home.serve(&words(&args));
    let config = config(&VERSIONS);
    let mut client = Client::of(server.address(), &config).unwrap();
    client.assert_echoes(b"before");
    let (code, said, _) = crate::support::output(home.standfast(&["restart"]));
    assert_eq!(code, 0, "{said}");
    client.assert_echoes(b"after a restart");
    let pid = home.pid(&[]);
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert!(client.0.read(&mut [0]).is_err(), "no goodbye");
    let mut client = Client::of(server.address(), &config).unwrap();
    client.assert_echoes(b"after the crash");
    client.end();
}

/// Their journals stand beside the connections, of which those with TLS are not there.
#[test]
fn behind_a_keeper_hub_and_print_go_on_after_a_crash_without_their_sessions() {
    for service in ["hub", "print"] {
        let home = Home::new();
        let args = with_tls(&[service, "--keep"]);
        let mut server = home.serve(&words(&args));
        let config = config(&VERSIONS);
        for _ in 0..2 {
            let mut clients = [(); 2].map(|()| Client::of(server.address(), &config).unwrap());
            for client in &mut clients {
                client.0.write_all(b"a line\nand half a").unwrap();
                client.0.flush().unwrap();
            }
            if service == "print" {
                let mut printed = 0;
                while printed < 2 {
                    // The one that goes on after a crash says that it listens.
                    printed += usize::from(server.stdout_line() == "a line");
                }
            } else {
                let mut heard = [0; 7];
                clients[0].0.read_exact(&mut heard).unwrap();
                assert_eq!(&heard, b"a line\n");
            }
            let pid = i32::try_from(home.pid(&[])).unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            for mut client in clients {
                let mut rest = Vec::new();
                assert!(client.0.read_to_end(&mut rest).is_err(), "no goodbye");
            }
            // How many that were is counted as of a second before at the most.
            server.log_line("what the crash has cost", |line| {
                line.contains(" closed: ") && line.contains("reason=crash")
            });
        }
    }
}

#[test]
fn check_says_that_it_is_on() {
    let mut check = standfast();
    check.arg("check").args(with_tls(&["echo"]));
    let told = String::from_utf8(check.output().unwrap().stdout).unwrap();
    let mut lines = told.lines();
    assert!(
        lines.any(|line| line.starts_with("tls ") && line.contains("on")),
        "{told}"
    );
}
