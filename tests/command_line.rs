//! Addresses, options, refusals: what the command line promises.

/// What people type who know netcat.
mod habits;
/// The log on stderr.
mod log;
/// The log in a file.
mod log_file;
/// Less of the log.
mod log_rate;
/// What is asked wrongly, or what the system does not allow.
pub(crate) mod refusals;

use std::collections::{BTreeSet, HashMap};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use self::refusals::one_line;
use crate::support::{
    GUARD, Server, assert_echoes, cannot_run, connect, facts, lacks, listening, now, output, row,
    shell, standfast, until,
};

// Addresses.

#[test]
fn a_bare_port_is_this_host_only() {
    let server = Server::start(&["-l", "0"]);
    assert_eq!(server.address().ip().to_string(), "127.0.0.1");
    assert_ne!(server.address().port(), 0, "the real port is printed");
    assert_echoes(&mut server.connect(), b"hello");
    assert!(
        TcpStream::connect(("127.0.119.4", server.address().port())).is_err(),
        "no other address of this host answers"
    );
}

#[test]
fn a_colon_and_a_port_are_every_address_ipv4_and_ipv6() {
    let mut server = Server::start(&["-l", ":0"]);
    let port = server.address().port();
    assert_eq!(server.address().to_string(), format!("[::]:{port}"));
    for address in ["127.0.0.1", "127.0.0.2", "::1"] {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        let mut client = connect(address);
        assert_echoes(&mut client, b"hello");
        let peer = client.local_addr().unwrap().to_string();
        drop(client);
        assert_eq!(server.closed().get("peer"), peer, "as the client sees it");
    }
}

#[test]
fn a_host_and_a_port_are_that_address() {
    for host in ["127.0.0.2", "[::1]"] {
        let address = format!("{host}:0");
        let server = Server::start(&["-l", &address]);
        let shown = server.address().to_string();
        assert_eq!(shown.rsplit_once(':').unwrap().0, host);
        assert_echoes(&mut server.connect(), b"hello");
    }
}

#[test]
fn a_name_is_every_address_it_has() {
    let resolved: BTreeSet<_> = ("localhost", 0).to_socket_addrs().unwrap().collect();
    let mut command = standfast();
    command.args(["serve", "-l", "localhost:0"]);
    let server = Server::spawn(command, resolved.len());
    for address in &server.addresses {
        assert!(address.ip().is_loopback(), "{address}");
        assert_echoes(&mut connect(*address), b"hello");
    }
}

#[test]
fn each_listener_prints_exactly_one_line_in_the_order_asked() {
    let mut command = standfast();
    command.args(["serve", "-l", "127.0.0.3:0", "--listen", "[::1]:0"]);
    command.args(["-l", "0", "-l", "127.0.0.2:0"]);
    let mut server = Server::spawn(command, 4);
    let hosts: Vec<_> = server
        .addresses
        .iter()
        .map(|a| a.ip().to_string())
        .collect();
    assert_eq!(hosts, ["127.0.0.3", "::1", "127.0.0.1", "127.0.0.2"]);
    for address in &server.addresses {
        assert_echoes(&mut connect(*address), b"hello");
    }
    assert!(server.drain().success());
    assert_eq!(server.stdout_rest(), b"", "nothing else is on stdout");
    assert_eq!(server.summary()["accepted"], "4");
}

/// Starts `command` with a socket of this process as its stdin.
fn launch_with(mut command: Command, socket: impl Into<Stdio>) -> Server {
    command.stdin(socket).stdout(Stdio::piped());
    Server::launch(command)
}

#[test]
fn an_inherited_listener_is_served() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let command = shell(
        r#"exec "$@" 3<&0 </dev/null"#,
        &["serve", "-l", "fd:3", "--keepalive", "33:7:5"],
    );
    let mut server = launch_with(command, OwnedFd::from(listener));
    assert_eq!(listening(&server.stdout_line()), address);
    let before = now();
    let mut client = connect(address);
    assert_echoes(&mut client, b"hello");
    assert_keepalive_idle(&client, 33, before);
    drop(client);
    assert_eq!(server.closed().get("listener"), address.to_string());
    assert!(server.drain().success());
}

#[test]
fn systemd_passes_listeners_by_name() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // 3 is no socket at all: it must not even be looked at.
    let command = shell(
        r#"LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=other:web exec "$@" 4<&0 3</dev/null </dev/null"#,
        &["serve", "-l", "systemd:web"],
    );
    let mut server = launch_with(command, OwnedFd::from(listener));
    assert_eq!(listening(&server.stdout_line()), address);
    assert_echoes(&mut connect(address), b"hello");
    assert!(server.drain().success());
    assert_eq!(server.stdout_rest(), b"");
}

#[test]
fn systemd_passes_all_listeners() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let command = shell(
        r#"LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0 </dev/null"#,
        &["serve", "-l", "systemd", "-l", "0"],
    );
    let mut server = launch_with(command, OwnedFd::from(listener));
    assert_eq!(listening(&server.stdout_line()), address);
    let own = listening(&server.stdout_line());
    for address in [address, own] {
        assert_echoes(&mut connect(address), b"hello");
    }
}

#[test]
fn what_is_no_inherited_listener_is_refused() {
    let refused = |script: &str, address: &str, stdin: Stdio| {
        let mut server = launch_with(shell(script, &["serve", "-l", address]), stdin);
        let status = server.wait();
        let line = one_line(&server.lines.join("\n"));
        assert_eq!(status.code(), Some(1), "{line}");
        assert!(
            line.contains(&format!("cannot listen on {address}")),
            "{line}"
        );
        line
    };
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
    for (address, stdin, why) in [
        ("fd:77", Stdio::null(), "inherited no descriptor"),
        ("fd:0", Stdio::null(), "not a socket"),
        ("fd:0", OwnedFd::from(udp).into(), "not a stream socket"),
        ("fd:0", OwnedFd::from(connected).into(), "not listening"),
        ("systemd", Stdio::null(), "LISTEN_FDS"),
    ] {
        let line = refused(r#"exec "$@""#, address, stdin);
        assert!(line.contains(why), "{line}");
    }
    let not_for_us = r#"LISTEN_PID=1 LISTEN_FDS=1 exec "$@""#;
    assert!(refused(not_for_us, "systemd", Stdio::null()).contains("LISTEN_PID"));
    let named = r#"LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:api exec "$@" 3<&0 4<&0"#;
    let line = refused(named, "systemd:nosuch", OwnedFd::from(tcp).into());
    assert!(line.contains("web, api"), "names what there is: {line}");
}

// Options at work.

#[test]
fn a_backlog_over_somaxconn_is_said_and_not_fatal() {
    let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let somaxconn: u32 = somaxconn.trim().parse().unwrap();
    let asked = (somaxconn + 1).to_string();
    let mut server = Server::start(&["-q", "--backlog", &asked]);
    assert_echoes(&mut server.connect(), b"hello");
    assert!(server.drain().success());
    let [line] = server.lines.as_slice() else {
        panic!("one warning:\n{}", server.lines.join("\n"))
    };
    let said = facts(line);
    assert!(line.contains(" warn backlog capped"), "{line}");
    assert_eq!(said["asked"], asked);
    assert_eq!(said["allowed"], somaxconn.to_string());
}

/// How many clients the system lets in, up to `most`, while the server is stopped and accepts nobody.
fn backlog_of(server: &Server, most: usize) -> Vec<TcpStream> {
    server.suspend();
    let mut waiting = Vec::new();
    while waiting.len() < most
        && let Ok(client) =
            TcpStream::connect_timeout(&server.address(), Duration::from_millis(900))
    {
        client.set_read_timeout(Some(GUARD)).unwrap();
        waiting.push(client);
    }
    waiting
}

#[test]
fn the_backlog_is_as_asked() {
    let server = Server::start(&["--backlog", "4"]);
    let waiting = backlog_of(&server, 20);
    assert_eq!(waiting.len(), 5, "listen(2) of Linux lets one more in");
    server.resume();
    for mut client in waiting {
        assert_echoes(&mut client, b"hello");
    }
}

#[test]
fn the_default_backlog_is_worth_the_name() {
    let server = Server::start(&[]);
    let waiting = backlog_of(&server, 600);
    assert_eq!(waiting.len(), 600);
    server.resume();
    for mut client in waiting {
        assert_echoes(&mut client, b"hello");
    }
}

/// The server's end of `client`, which came after `before`, sends its first keepalive probe after `idle` seconds.
fn assert_keepalive_idle(client: &TcpStream, idle: u64, before: Instant) {
    let (near, far) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    until("a keepalive timer", || {
        row(far, near).is_some_and(|row| row.keepalive.is_some())
    });
    let left = row(far, near).unwrap().keepalive.unwrap();
    let idle = Duration::from_secs(idle);
    let passed = before.elapsed();
    let is_right = left <= idle && left + passed > idle * 3 / 4;
    assert!(is_right, "{left:?} of {idle:?}, {passed:?} after it came");
}

#[test]
fn keepalive_is_set_on_every_connection() {
    for (flags, idle) in [
        (&["-l", "0"][..], 60),
        (&["--keepalive", "33:7:5"], 33),
        (&["--dead-after", "60s"], 29),
    ] {
        let server = Server::start(flags);
        let before = now();
        let mut client = server.connect();
        assert_echoes(&mut client, b"hello");
        assert_keepalive_idle(&client, idle, before);
    }
    let server = Server::start(&["--keepalive", "off"]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let (near, far) = (client.local_addr().unwrap(), server.address());
    assert_eq!(row(far, near).unwrap().keepalive, None);
}

// Talk.

#[test]
fn help_and_version_are_answers() {
    for args in [
        &["-h"][..],
        &["--help"],
        &["serve", "-h"],
        &["serve", "--help"],
        &["check", "--help"],
        &["-V"],
        &["--version"],
    ] {
        let mut command = standfast();
        command.args(args);
        let (code, stdout, stderr) = output(command);
        assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}");
        assert!(!stdout.is_empty(), "{args:?}");
    }
    let mut command = standfast();
    command.args(["serve", "--help"]);
    let (_, help, _) = output(command);
    for flag in [
        "-l, --listen",
        "--keepalive",
        "--dead-after",
        "--user-timeout",
        "-i, --read-timeout",
        "--write-timeout",
        "--half-close-timeout",
        "--drain-timeout",
        "-m, --max-conns",
        "--max-conns-per-ip",
        "--when-full",
        "--backlog",
        "--buffer",
        "--workers",
        "--prefix",
        "--upstream-wait",
        "--balance",
        "--max-fails",
        "--fail-timeout",
        "--send-proxy",
        "--upstream-tls",
        "--upstream-tls-ca",
        "--upstream-tls-insecure",
        "--connect-timeout",
        "--backoff",
        "--log-format",
        "-v, --verbose",
        "-q, --quiet",
        "slow readers",
        "Exit codes",
    ] {
        assert!(help.contains(flag), "{flag} in the help");
    }
}

/// `standfast check ARGS...`, by name: the value and what is said of it.
fn check(args: &[&str]) -> HashMap<String, String> {
    let mut command = standfast();
    command.arg("check").args(args);
    let (code, stdout, stderr) = output(command);
    assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}");
    let rows = stdout
        .lines()
        .map(|line| line.trim_start().split_once(' ').unwrap());
    rows.map(|(name, value)| (name.to_owned(), value.trim_start().to_owned()))
        .collect()
}

/// In a network of its own, with IPv4 alone.
#[test]
fn check_leaves_out_what_serve_cannot_listen_on() {
    let script =
        r#"ip link set lo up && echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 && exec "$@""#;
    let apart = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", script, "sh"]);
        command.arg(standfast().get_program()).args(args);
        command
    };
    if lacks(&["unshare", "ip"]) {
        return;
    }
    let (code, shown, said) = output(apart(&[
        "check",
        "-l",
        "[::1]:7000",
        "-l",
        "127.0.0.1:7000",
    ]));
    if said.contains("unshare") {
        let test = "check_leaves_out_what_serve_cannot_listen_on";
        return cannot_run(test, "root, for namespaces");
    }
    assert_eq!(code, 0, "{said}");
    assert!(
        shown.contains("resolved           [::1]:7000       refused"),
        "{shown}"
    );
    assert!(
        shown.contains("resolved           127.0.0.1:7000\n"),
        "{shown}"
    );
    let (code, _, said) = output(apart(&["serve", "-l", "[::1]:7000"]));
    assert_eq!(code, 1, "{said}");
}

#[test]
fn check_prints_what_the_settings_do() {
    let rows = check(&[]);
    for (name, value) in [
        ("service", "echo"),
        ("listen", "127.0.0.1:7000"),
        ("keepalive", "60:10:3"),
        ("dead-after", "102s"),
        ("user-timeout", "off"),
        ("read-timeout", "10m"),
        ("write-timeout", "5m"),
        ("half-close-timeout", "1m"),
        ("drain-timeout", "10s"),
        ("max-conns-per-ip", "off"),
        ("buffer", "256k"),
    ] {
        let shown = rows[name].split_whitespace().next().unwrap();
        assert_eq!(shown, value, "{name}");
    }
    // Who is silent is not gone; and an answer may take long.
    for (service, read, half_close) in [
        (&["echo"][..], "10m", "1m"),
        (&["discard"], "10m", "1m"),
        (&["print"], "off", "1m"),
        (&["hub"], "off", "1m"),
        (&["forward", "80"], "off", "10m"),
        (&["exec", "cat"], "off", "10m"),
    ] {
        let rows = check(service);
        let first = |name: &str| rows[name].split_whitespace().next().unwrap().to_owned();
        let shown = (first("read-timeout"), first("half-close-timeout"));
        assert_eq!(
            shown,
            (read.to_owned(), half_close.to_owned()),
            "{service:?}"
        );
    }
    let cores = std::thread::available_parallelism().unwrap();
    assert_eq!(rows["workers"], cores.to_string());

    let rows = check(&[
        "discard",
        "-l",
        "fd:3",
        "--dead-after",
        "10",
        "--user-timeout",
        "1500ms",
        "--idle-timeout",
        "90",
        "--write-timeout",
        "off",
        "--half-close-timeout",
        "2h",
        "--drain-timeout",
        "1d",
        "-m",
        "50",
        "--max-conns-per-ip",
        "3",
        "--when-full",
        "wait",
        "--backlog",
        "7",
        "--buffer",
        "1m",
        "--workers",
        "5",
    ]);
    for (name, value) in [
        ("service", "discard"),
        ("listen", "fd:3"),
        ("keepalive", "4:1:4"),
        ("dead-after", "10s"),
        ("user-timeout", "1500ms"),
        ("read-timeout", "90s"),
        ("write-timeout", "off"),
        ("half-close-timeout", "2h"),
        ("drain-timeout", "1d"),
        ("max-conns", "50"),
        ("max-conns-per-ip", "3"),
        ("backlog", "7"),
        ("buffer", "1m"),
        ("workers", "5"),
    ] {
        let shown = rows[name].split_whitespace().next().unwrap();
        assert_eq!(shown, value, "{name}");
    }
    assert!(rows["user-timeout"].contains("slow readers"), "{rows:?}");
    assert!(rows["max-conns"].contains("backlog"), "{rows:?}");
}

#[test]
fn check_fills_in_what_the_system_decides() {
    let sysctl = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap();
        text.trim().to_owned()
    };
    let interval = sysctl("ipv4/tcp_keepalive_intvl");
    let rows = check(&["--keepalive", "61::2", "--backlog", "4294967295"]);
    assert!(
        rows["keepalive"].starts_with(&format!("61:{interval}:2 ")),
        "{rows:?}"
    );
    assert!(
        rows["backlog"].starts_with(&sysctl("core/somaxconn")),
        "{rows:?}"
    );
    assert!(rows["backlog"].contains("somaxconn"), "{rows:?}");

    let rows = check(&["--keepalive", "off"]);
    assert!(rows["dead-after"].starts_with("off "), "{rows:?}");
    assert!(rows["keepalive"].contains("never found"), "{rows:?}");
}

#[test]
fn check_opens_nothing() {
    let server = Server::start(&[]);
    let address = server.address().to_string();
    assert_eq!(check(&["-l", &address])["listen"], address);
}

#[test]
fn both_families_of_every_address_stand_beside_each_other() {
    for turned in [false, true] {
        // Free a moment ago.
        let free = TcpListener::bind("[::]:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut addresses = [format!("0.0.0.0:{port}"), format!("[::]:{port}")];
        if turned {
            addresses.reverse();
        }
        let server = Server::spawn(
            {
                let mut command = standfast();
                command.args(["serve", "-l", &addresses[0], "-l", &addresses[1]]);
                command
            },
            2,
        );
        for client in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
            assert_echoes(&mut connect(client.parse().unwrap()), b"hello");
        }
        drop(server);
    }
}

#[test]
fn a_name_has_one_port_on_all_of_its_addresses() {
    let mut server = Server::start(&["-l", "localhost:0"]);
    let first = server.address();
    assert_eq!(server.drain().code(), Some(0));
    let listening = server.lines.iter().filter(|it| it.contains(" listening "));
    for line in listening {
        let port = format!(":{} ", first.port());
        assert!(line.contains(&port), "{line}");
    }
}

#[test]
fn the_hint_to_take_over_stands_only_where_a_server_can_be() {
    let refused = |address: &str| {
        let mut command = standfast();
        command.args(["serve", "-l", address]);
        let (code, _, stderr) = output(command);
        assert_eq!(code, 1, "{stderr}");
        stderr
    };
    let server = Server::start(&[]);
    assert!(refused(&server.address().to_string()).contains("--replace"));
    // This test's own process is no server.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let said = refused(&other.local_addr().unwrap().to_string());
    assert!(
        said.ends_with("; stop that one, or choose another address"),
        "{said}"
    );
}
