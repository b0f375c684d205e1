//! What a program is told of its connection: the variables of ucspi-tcp (tcp-environ(5)), of ncat (ncat(1), "exec
//! environment") and of systemd (systemd.socket(5), `Accept=yes`); of TLS those of ucspi-ssl, which are `mod_ssl`'s, and of
//! stunnel (stunnel(8), "exec").

use std::env;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use crate::address::endpoint::Peer;
use crate::inspect::TlsInfo;

/// What this process was told by whoever started it, and no program of a connection's is to believe: of another
/// connection, or of a supervisor that is not its own.
const NOT_THEIRS: [&str; 36] = [
    "FDSTORE",
    "HTTPS",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "NCAT_LOCAL_ADDR",
    "NCAT_LOCAL_PORT",
    "NCAT_REMOTE_ADDR",
    "NCAT_REMOTE_PORT",
    "NOTIFY_SOCKET",
    "REMOTE_ADDR",
    "REMOTE_HOST",
    "REMOTE_PORT",
    "REMOTE_USER",
    "SSL_CIPHER",
    "SSL_PROTOCOL",
    "SSL_TLS_SNI",
    // A program may start a standfast of its own.
    "STANDFAST_CRASHED",
    "STANDFAST_KEEPER",
    "STANDFAST_SUCCESSOR",
    "SYSTEMD_EXEC_PID",
    "TCP6INTERFACE",
    "TCP6LOCALHOST",
    "TCP6LOCALIP",
    "TCP6LOCALPORT",
    "TCP6REMOTEHOST",
    "TCP6REMOTEIP",
    "TCP6REMOTEPORT",
    "TCPLOCALHOST",
    "TCPLOCALIP",
    "TCPREMOTEHOST",
    "TCPREMOTEINFO",
    "UNIXREMOTEPID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// As [`NOT_THEIRS`], all that begin so: whose a certificate is.
const NOR_THESE: [&[u8]; 2] = [b"SSL_CLIENT_", b"SSL_SERVER_"];

/// What is known of a client that speaks TLS.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) session: TlsInfo,
    /// Who has signed its certificate.
    pub(super) issuer: Option<String>,
}

/// Tells `command` of the connection from `peer` to `local`. Nothing of it comes from the client but its address, and over TLS
/// the host name that it asks for and the names in its certificate, in which no character controls anything.
pub(super) fn tell(
    command: &mut Command,
    local: Option<SocketAddr>,
    peer: Peer,
    tls: Option<&Secured>,
) {
    for name in NOT_THEIRS {
        command.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        if NOR_THESE
            .iter()
            .any(|begins| name.as_bytes().starts_with(begins))
        {
            command.env_remove(name);
        }
    }
    if let Some(tls) = tls {
        command.envs(of_tls(tls));
    }
    match peer {
        Peer::Tcp(remote) => {
            // Of an IPv4 client of a dual-stack listener, both are IPv4.
            let local = local.map(|local| match Peer::from(local) {
                Peer::Tcp(local) => local,
                Peer::Unix(_) => local,
            });
            command.envs(of_tcp(remote, local));
        }
        Peer::Unix(process) => {
            // The names of ucspi-unix. Not the path: the listener was bound under another, and renamed.
            command.env("PROTO", "UNIX").env("NCAT_PROTO", "UNIX");
            if let Some(process) = process {
                command.env("UNIXREMOTEPID", process.to_string());
            }
        }
    }
}

fn of_tls(tls: &Secured) -> Vec<(&'static str, String)> {
    let TlsInfo {
        version,
        cipher,
        name,
        client,
        ..
    } = &tls.session;
    let all = [
        ("SSL_PROTOCOL", Some(format!("TLSv{version}"))),
        ("SSL_CIPHER", Some(as_openssl_says(cipher))),
        ("SSL_TLS_SNI", name.clone()),
        ("SSL_CLIENT_S_DN", client.clone()),
        ("SSL_CLIENT_DN", client.clone()),
        ("SSL_CLIENT_I_DN", tls.issuer.clone()),
    ];
    let told = all.into_iter();
    told.filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

/// The name by which programs that expect these variables know a cipher (ciphers(1)).
fn as_openssl_says(cipher: &str) -> String {
    if let Some(rest) = cipher.strip_prefix("TLS13_") {
        return format!("TLS_{rest}");
    }
    let parts = cipher
        .strip_prefix("TLS_")
        .and_then(|rest| rest.split_once("_WITH_"));
    let Some((exchange, seal)) = parts else {
        return cipher.to_owned();
    };
    let seal = seal
        .replace("AES_", "AES")
        .replace("POLY1305_SHA256", "POLY1305");
    format!("{exchange}-{seal}").replace('_', "-")
}

fn of_tcp(remote: SocketAddr, local: Option<SocketAddr>) -> Vec<(&'static str, String)> {
    let six = remote.is_ipv6();
    let (ip, port) = (remote.ip().to_string(), remote.port().to_string());
    let mut all = vec![
        ("PROTO", if six { "TCP6" } else { "TCP" }.to_owned()),
        ("TCPREMOTEIP", ip.clone()),
        ("TCPREMOTEPORT", port.clone()),
        ("NCAT_PROTO", "TCP".to_owned()),
        ("NCAT_REMOTE_ADDR", ip.clone()),
        ("NCAT_REMOTE_PORT", port.clone()),
        ("REMOTE_ADDR", ip.clone()),
        ("REMOTE_PORT", port.clone()),
    ];
    if six {
        all.extend([("TCP6REMOTEIP", ip), ("TCP6REMOTEPORT", port)]);
    }
    if let Some(local) = local {
        let (ip, port) = (local.ip().to_string(), local.port().to_string());
        all.extend([
            ("TCPLOCALIP", ip.clone()),
            ("TCPLOCALPORT", port.clone()),
            ("NCAT_LOCAL_ADDR", ip.clone()),
            ("NCAT_LOCAL_PORT", port.clone()),
        ]);
        if six {
            all.extend([("TCP6LOCALIP", ip), ("TCP6LOCALPORT", port)]);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(remote: &str, local: &str) -> Vec<String> {
        let all = of_tcp(remote.parse().unwrap(), local.parse().ok());
        all.iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    #[test]
    fn an_ipv4_connection_is_told_in_three_dialects() {
        let all = shown("192.0.2.1:4711", "192.0.2.9:7000");
        for expected in [
            "PROTO=TCP",
            "TCPREMOTEIP=192.0.2.1",
            "TCPREMOTEPORT=4711",
            "TCPLOCALIP=192.0.2.9",
            "TCPLOCALPORT=7000",
            "NCAT_PROTO=TCP",
            "NCAT_REMOTE_ADDR=192.0.2.1",
            "NCAT_REMOTE_PORT=4711",
            "NCAT_LOCAL_ADDR=192.0.2.9",
            "NCAT_LOCAL_PORT=7000",
            "REMOTE_ADDR=192.0.2.1",
            "REMOTE_PORT=4711",
        ] {
            assert!(
                all.iter().any(|told| told == expected),
                "{expected} in {all:?}"
            );
        }
        assert!(!all.iter().any(|told| told.starts_with("TCP6")), "{all:?}");
    }

    #[test]
    fn a_cipher_has_the_name_that_openssl_gives_it() {
        for (registered, expected) in [
            ("TLS13_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"),
            (
                "TLS13_CHACHA20_POLY1305_SHA256",
                "TLS_CHACHA20_POLY1305_SHA256",
            ),
            (
                "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
                "ECDHE-ECDSA-AES128-GCM-SHA256",
            ),
            (
                "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
                "ECDHE-RSA-AES256-GCM-SHA384",
            ),
            (
                "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
                "ECDHE-RSA-CHACHA20-POLY1305",
            ),
        ] {
            assert_eq!(as_openssl_says(registered), expected);
        }
    }

    #[test]
    fn an_ipv6_connection_has_the_names_of_its_own_too() {
        let all = shown("[2001:db8::1]:4711", "[2001:db8::9]:7000");
        for expected in [
            "PROTO=TCP6",
            "TCPREMOTEIP=2001:db8::1",
            "TCP6REMOTEIP=2001:db8::1",
            "TCP6LOCALPORT=7000",
            "REMOTE_ADDR=2001:db8::1",
        ] {
            assert!(
                all.iter().any(|told| told == expected),
                "{expected} in {all:?}"
            );
        }
    }
}
