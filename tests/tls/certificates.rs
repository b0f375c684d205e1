//! Certificates: read anew by a successor, told of, and who the client is that has shown one.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};

use super::{Client, VERSIONS, assert_ended, config, file, roots, with_tls, words};
use crate::support::home::Home;
use crate::support::{lacks, output, standfast};

/// What shows a client's certificate.
fn shows(versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let certificate = CertificateDer::from_pem_file(file("client.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("client.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_protocol_versions(versions).unwrap();
    let config = config.with_root_certificates(roots());
    let config = config.with_client_auth_cert(vec![certificate], key);
    Arc::new(config.unwrap())
}

/// A certificate and its key in a folder of their own.
fn pair(home: &Home) -> (PathBuf, PathBuf) {
    let pair = (home.join("a.pem"), home.join("a.key"));
    become_that(&pair, "server");
    pair
}

fn become_that((certificate, key): &(PathBuf, PathBuf), name: &str) {
    fs::copy(file(&format!("{name}.pem")), certificate).unwrap();
    fs::copy(file(&format!("{name}.key")), key).unwrap();
}

#[test]
fn a_restart_reads_them_anew_and_touches_nobody() {
    let home = Home::new();
    let pair = pair(&home);
    let args = [
        "echo",
        "--tls-cert",
        pair.0.to_str().unwrap(),
        "--tls-key",
        pair.1.to_str().unwrap(),
    ];
    let server = home.serve(&args);
    let config = config(&VERSIONS);
    let mut client = Client::of(server.address(), &config).unwrap();
    client.assert_echoes(b"before");
    become_that(&pair, "rsa");
    let (_next, _) = home.restart(&[]);
    client.assert_echoes(b"after");
    // Who has a ticket is not shown any.
    let new = super::config(&VERSIONS);
    assert!(Client::of(server.address(), &new).is_err(), "another");
    let mut other = Client::named(server.address(), &config, "rsa.test").unwrap();
    other.assert_echoes(b"a new one");
    // The key of another one, then an old one: they go on with what they have.
    for (certificate, what) in [("server", "not the key of"), ("expired", "has expired")] {
        fs::copy(file(&format!("{certificate}.pem")), &pair.0).unwrap();
        if certificate == "expired" {
            fs::copy(file("server.key"), &pair.1).unwrap();
        }
        let (code, stdout, said) = output(home.standfast(&["restart"]));
        assert_ne!(code, 0, "{stdout}");
        assert!(
            said.contains(what) || stdout.contains(what),
            "{said}{stdout}"
        );
        client.assert_echoes(b"and on");
        other.assert_echoes(b"and on");
        let mut new = Client::named(server.address(), &config, "rsa.test").unwrap();
        new.assert_echoes(b"new");
        new.end();
    }
    client.end();
    other.end();
}

#[test]
fn one_that_has_expired_ends_a_start() {
    let home = Home::new();
    let (certificate, key) = (file("expired.pem"), file("server.key"));
    let args = ["serve", "--tls-cert", &certificate, "--tls-key", &key];
    let (code, line) = home.refusal(&args);
    assert_eq!(code, 2, "{line}");
    assert!(
        line.contains(&certificate) && line.contains("it has expired"),
        "{line}"
    );
}

#[test]
fn check_tells_of_each_and_warns_of_those_that_expire_soon() {
    let mut args = with_tls(&["check", "echo"]);
    let home = Home::new();
    let soon = home.join("soon.pem").to_str().unwrap().to_owned();
    let made = !lacks(&["openssl"]);
    if made {
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req",
            "-x509",
            "-days",
            "10",
            "-subj",
            "/CN=soon/O=\x1b[2J",
            "-key",
        ]);
        openssl.args([&file("server.key"), "-out", &soon]);
        openssl.args(["-addext", "subjectAltName=DNS:soon.test"]);
        assert!(openssl.output().unwrap().status.success());
        args.extend(["--tls-cert".to_owned(), soon.clone()]);
        args.extend(["--tls-key".to_owned(), file("server.key")]);
    }
    let mut check = standfast();
    check.args(&args);
    let told = String::from_utf8(check.output().unwrap().stdout).unwrap();
    let has = |words: &[&str]| {
        let all = |line: &str| words.iter().all(|word| line.contains(word));
        assert!(told.lines().any(all), "{words:?}: {told}");
    };
    has(&[
        "certificate",
        "server.pem",
        "for localhost, 127.0.0.1, a.test",
    ]);
    has(&["signed by", "CN=standfast test authority", "alone"]);
    has(&["valid until", "2126-11-05"]);
    if made {
        has(&["warning: ", &soon, "expires in"]);
        assert!(!told.contains('\x1b'), "{told}");
    }
}

#[test]
fn who_a_client_is_and_whom_it_wants_is_told_and_goes_along() {
    let home = Home::new();
    let authority = file("ca.pem");
    let args = with_tls(&["echo", "--tls-client-ca", &authority]);
    let args = words(&args);
    let mut server = home.serve(&args);
    for version in VERSIONS {
        let config = shows(&[version]);
        let mut client = Client::named(server.address(), &config, "a.test").unwrap();
        client.assert_echoes(b"hello");
        server = home.succeed(&mut server, &args);
        client.assert_echoes(b"hello");
        let listed = home.json(&["list"]);
        let tls = &listed[0]["tls"];
        assert_eq!(tls["name"], "a.test", "{listed}");
        assert_eq!(tls["client"], "CN=client", "{listed}");
        let (_, table, _) = output(home.standfast(&["list"]));
        assert!(
            table.contains("SNI") && table.contains("CN=client"),
            "{table}"
        );
        client.end();
        let closed = server.closed();
        assert_ended(&closed, "peer-closed", None);
        let line = &closed.line;
        assert!(
            line.contains(" sni=a.test client=\"CN=client\" ")
                || line.contains(" sni=a.test client=CN=client "),
            "{line}"
        );
        // Resumed: it has not shown it again, and is known.
        let mut client = Client::named(server.address(), &config, "a.test").unwrap();
        client.assert_echoes(b"hello");
        assert_eq!(client.0.conn.handshake_kind(), Some(HandshakeKind::Resumed));
        let listed = home.json(&["list"]);
        assert_eq!(listed[0]["tls"]["client"], "CN=client", "{listed}");
        client.end();
        server.closed();
    }
}

/// A ticket of before lets nobody in who would have to show a certificate now.
#[test]
fn where_certificates_are_asked_for_from_now_on_a_ticket_is_none() {
    let home = Home::new();
    let before = with_tls(&["echo"]);
    let authority = file("ca.pem");
    let after = with_tls(&["echo", "--tls-client-ca", &authority]);
    let mut server = home.serve(&words(&before));
    let configs = VERSIONS.map(|version| config(&[version]));
    for config in &configs {
        let mut client = Client::of(server.address(), config).unwrap();
        client.assert_echoes(b"hello");
        client.end();
    }
    let server = home.succeed(&mut server, &words(&after));
    for config in &configs {
        let client = Client::of(server.address(), config);
        let served = client.and_then(|mut client| {
            use std::io::{Read, Write};
            client.0.write_all(b"x")?;
            client.0.read_exact(&mut [0])
        });
        assert!(served.is_err());
    }
}
