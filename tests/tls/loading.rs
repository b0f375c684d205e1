//! `load --tls`: every byte is verified within.

use super::{file, with_tls, words};
use crate::support::Server;
use crate::support::home::Home;
use crate::support::loading::{Loading, figures, load_command, output};

/// `--tls` with the authority that has signed for `localhost`.
fn flags() -> Vec<String> {
    let flags = ["--tls", "--tls-ca", &file("ca.pem")];
    flags.map(str::to_owned).to_vec()
}

#[test]
fn every_byte_comes_back_as_it_was_sent() {
    let mut server = Server::start(&words(&with_tls(&["echo"])));
    let flags = flags();
    for (args, size) in [
        (&["-c", "20", "-T", "500ms"][..], 64),
        (
            &[
                "-c",
                "3",
                "--size",
                "300k",
                "--pipeline",
                "3",
                "-T",
                "500ms",
            ],
            300 << 10,
        ),
    ] {
        let args = [&words(&flags), args].concat();
        let figures = figures(server.address(), &args);
        let connections = figures.count("connections");
        figures.assert_flawless(connections, size);
        assert!((figures.number("tls_version") - 1.3).abs() < 1e-9);
    }
    let args = [&words(&flags)[..], &["-c", "4", "--churn", "-T", "500ms"]].concat();
    let (code, table, said) = output(load_command(server.address(), &args));
    assert_eq!(code, 0, "{said}");
    assert!(table.contains("TLS            1.3, TLS13_"), "{table}");
    assert!(table.contains("0 lost, 0 duplicated"), "{table}");
    assert_eq!(server.drain().code(), Some(0));
}

#[test]
fn takeovers_under_it_are_not_noticed() {
    let home = Home::new();
    let args = with_tls(&["echo"]);
    let args = words(&args);
    let mut server = home.serve(&args);
    let flags = flags();
    let load = ["-c", "10", "--size", "5000", "--pipeline", "4", "-T", "60s"];
    let load = [&words(&flags), &load[..], &["--json"]].concat();
    let mut loading = Loading::start(server.address(), &load);
    for _ in 0..5 {
        // Each process serves some of it.
        loading.goes_on_with(10);
        server = home.succeed(&mut server, &args[1..]);
    }
    let figures = loading.interrupted();
    figures.assert_unbroken(10);
    assert_eq!(figures.faults(), [0; 4]);
}

#[test]
fn a_certificate_that_is_refused_ends_it() {
    let server = Server::start(&words(&with_tls(&["echo"])));
    let other = file("ed25519.pem");
    let args = ["--tls", "--tls-ca", &other, "-c", "9", "-q"];
    let (code, table, said) = output(load_command(server.address(), &args));
    assert_eq!((code, &table[..]), (1, ""), "{said}");
    assert!(said.contains("--tls-ca says whom to trust"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    // Of TLS 1.3 a server refuses this side's behind the handshake.
    let authority = file("ca.pem");
    let wants = with_tls(&["echo", "--tls-client-ca", &authority]);
    let server = Server::start(&words(&wants));
    let args = ["--tls", "--tls-ca", &authority, "-c", "3", "-q"];
    let (code, _, said) = output(load_command(server.address(), &args));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("CertificateRequired"), "{said}");
}
