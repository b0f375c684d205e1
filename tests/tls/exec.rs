//! Programs whose clients speak TLS: they have one end of a pair, and notice nothing.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{
    Client, VERSIONS, assert_ended, config, counts_plaintext, file, roots, with_tls, words,
};
use crate::exec::lives;
use crate::support::clients::{Raised, Stream, reset};
use crate::support::home::{Home, number, text};
use crate::support::{Server, lacks, output, read_to_fin, until};

/// `exec FLAGS... -- sh -c SCRIPT`, with TLS.
fn args(flags: &[&str], script: &str) -> Vec<String> {
    let mut args = with_tls(&[&["exec", "-l", "0"], flags].concat());
    args.extend(["--", "sh", "-c", script].map(str::to_owned));
    args
}

/// As that, for a server that stands somewhere already.
fn elsewhere(args: &[String]) -> Vec<&str> {
    let mut words = words(args);
    words.drain(1..3);
    words
}

fn serve(flags: &[&str], script: &str) -> Server {
    Server::start(&words(&args(flags, script)))
}

fn connect(server: &Server) -> Client {
    Client::of(server.address(), &config(&VERSIONS)).unwrap()
}

#[track_caller]
fn line(client: &mut Client) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        client.0.read_exact(&mut byte).unwrap();
        if byte[0] == b'\n' {
            return String::from_utf8(line).unwrap();
        }
        line.push(byte[0]);
    }
}

/// All that comes, to the server's goodbye.
#[track_caller]
fn rest(client: &mut Client) -> Vec<u8> {
    let mut rest = Vec::new();
    client.0.read_to_end(&mut rest).unwrap();
    rest
}

#[track_caller]
fn say(client: &mut Client, bytes: &[u8]) {
    client.0.write_all(bytes).unwrap();
    client.0.flush().unwrap();
}

fn say_goodbye(client: &mut Client) {
    client.0.conn.send_close_notify();
    client.0.flush().unwrap();
}

#[track_caller]
fn until_said(path: &Path, what: &str) {
    until(what, || {
        fs::read_to_string(path).is_ok_and(|said| said == what)
    });
}

#[test]
fn a_program_speaks_plaintext_and_the_log_counts_it() {
    let mut server = serve(&[], "exec cat");
    for version in VERSIONS {
        let closed = counts_plaintext(&mut server, version);
        assert!(!closed.facts.contains_key("upstream"), "{}", closed.line);
    }
    // It ends itself; what came of its client it has not read.
    let mut client = connect(&server);
    client.assert_echoes(b"x");
    client.0.sock.shutdown(Shutdown::Both).unwrap();
    assert_ended(&server.closed(), "tls-truncated", None);
    assert!(server.drain().success());
}

#[test]
fn a_program_is_told_whom_it_serves_and_nothing_that_is_not_its_own() {
    let home = Home::new();
    let script = "env | grep ^SSL_ | sort; echo $PROTO $TCPREMOTEIP";
    let shows = |version| {
        let certificate = CertificateDer::from_pem_file(file("client.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(file("client.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_protocol_versions(&[version]).unwrap();
        let config = config.with_root_certificates(roots());
        let config = config.with_client_auth_cert(vec![certificate], key);
        Arc::new(config.unwrap())
    };
    let authority = file("ca.pem");
    let flags = ["--tls-client-ca", &authority, "--tls-client-auth"];
    let flags = [&flags[..], &["optional"]].concat();
    let mut command = home.standfast(&["serve"]);
    command
        .args(args(&flags, script))
        .env("SSL_CLIENT_DN", "CN=somebody else")
        .env("SSL_TLS_SNI", "elsewhere");
    let mut server = Server::spawn(command, 1);
    for (version, protocol, cipher) in [
        (VERSIONS[0], "TLSv1.2", "ECDHE-ECDSA-"),
        (VERSIONS[1], "TLSv1.3", "TLS_"),
    ] {
        let shows = shows(version);
        // In full, and by a ticket.
        for _ in 0..2 {
            let mut client = Client::of(server.address(), &shows).unwrap();
            let told = String::from_utf8(rest(&mut client)).unwrap();
            drop(client);
            let closed = server.closed();
            let whose = closed.line.split("client=").nth(1).unwrap();
            let whose = whose.split(['"', ' ']).find(|part| !part.is_empty());
            let whose = whose.unwrap();
            for expected in [
                &format!("SSL_PROTOCOL={protocol}\n"),
                &format!("SSL_CIPHER={cipher}"),
                "SSL_TLS_SNI=localhost\n",
                &format!("SSL_CLIENT_DN={whose}"),
                &format!("SSL_CLIENT_S_DN={whose}"),
                "SSL_CLIENT_I_DN=CN=",
                "TCP 127.0.0.1\n",
            ] {
                assert!(told.contains(expected), "{expected:?} in {told}");
            }
        }
    }
    let mut client = connect(&server);
    let told = String::from_utf8(rest(&mut client)).unwrap();
    assert!(!told.contains("SSL_CLIENT"), "{told}");
    let mut command = home.standfast(&["serve", "exec", "-l", "0", "--", "sh", "-c", script]);
    command.env("SSL_CLIENT_DN", "CN=somebody else");
    let plain = Server::spawn(command, 1);
    let told = String::from_utf8(read_to_fin(&mut plain.connect())).unwrap();
    assert!(!told.contains("SSL_CLIENT"), "{told}");
}

#[test]
fn all_that_a_program_wrote_arrives_however_soon_it_ends_and_whatever_it_left_unread() {
    let mut server = serve(&[], "head -c 10000000 /dev/zero");
    for version in VERSIONS {
        for says in [0, 100_000] {
            let mut client = Client::of(server.address(), &config(&[version])).unwrap();
            say(&mut client, &vec![b'x'; says]);
            let came = rest(&mut client);
            assert_eq!(came.len(), 10_000_000);
            drop(client);
            assert_ended(&server.closed(), "service", None);
        }
    }
    assert!(server.drain().success());
}

#[test]
fn a_program_that_never_reads_holds_its_client_up_and_nobody_else() {
    let mut server = serve(&["--workers", "1"], "echo $$; exec sleep 1000");
    let before = server.resident();
    let mut client = connect(&server);
    let pid = line(&mut client);
    let patience = Some(std::time::Duration::from_millis(500));
    client.0.sock.set_write_timeout(patience).unwrap();
    let mut sent = 0;
    let stuck = loop {
        match client.0.write_all(&[b'x'; 65536]) {
            Ok(()) => sent += 65536,
            Err(error) => break error,
        }
    };
    assert_eq!(stuck.kind(), ErrorKind::WouldBlock, "{sent} bytes");
    // What waits is bounded by --buffer, not by what it sends.
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more behind {sent}");
    let mut other = connect(&server);
    line(&mut other);
    let socket = client.0.sock.try_clone().unwrap();
    drop(client);
    reset(socket);
    assert_ended(&server.closed(), "peer-reset", None);
    until("it was hung up on", || !lives(&pid));
}

#[test]
fn a_program_that_closes_its_socket_may_work_on() {
    let home = Home::new();
    let (go, done) = (home.join("go"), home.join("done"));
    let script = format!(
        "echo $$; exec <&- >&-; until [ -e {} ]; do sleep 0.05; done; printf worked >{}",
        text(&go),
        text(&done)
    );
    let args = args(&[], &script);
    let args = elsewhere(&args);
    let mut server = home.serve(&args);
    let mut client = connect(&server);
    let pid = line(&mut client);
    assert_eq!(rest(&mut client), b"", "a goodbye");
    // What comes for it is of no use to anybody.
    say(&mut client, &vec![b'x'; 500_000]);
    let mut server = home.succeed(&mut server, &args);
    say(&mut client, &vec![b'x'; 500_000]);
    assert!(lives(&pid));
    assert_eq!(number(&home.json(&["status"])["open"]), 1);
    fs::write(&go, "").unwrap();
    until_said(&done, "worked");
    drop(client);
    let closed = server.closed();
    let reason = closed.facts["reason"].as_str();
    assert!(
        ["service", "tls-truncated"].contains(&reason),
        "{}",
        closed.line
    );
    assert!(server.drain().success());
}

#[test]
fn whom_a_program_leaves_has_its_connection_over_a_takeover_too() {
    let home = Home::new();
    let script =
        "exec 3<&0; (read x; echo late $x; read y; echo later $y; read z) <&3 & echo $$; exec 3<&-";
    let args = args(&[], script);
    let args = elsewhere(&args);
    let mut server = home.serve(&args);
    let mut client = connect(&server);
    let pid = line(&mut client);
    server.log_line("it is said", |line| {
        line.contains("a process has left its connection to another one")
            && line.contains(&format!("pid={pid}"))
    });
    say(&mut client, b"one\n");
    assert_eq!(line(&mut client), "late one");
    let mut server = home.succeed(&mut server, &args);
    say(&mut client, b"two\n");
    assert_eq!(line(&mut client), "later two");
    client.end();
    let closed = server.closed();
    let reason = closed.facts["reason"].as_str();
    assert!(
        ["service", "peer-closed"].contains(&reason),
        "{}",
        closed.line
    );
    assert!(server.drain().success());
}

/// Of a transfer that was cut on the way, no program takes what it has for the whole.
#[test]
fn the_end_of_its_input_is_one_that_its_client_has_said() {
    for what in [
        "goodbye",
        "no goodbye",
        "nohup",
        "reset",
        "killed",
        "max-age",
    ] {
        let home = Home::new();
        let (file, taken) = (home.join("said"), home.join("taken"));
        let script = format!(
            "trap 'printf cut >{0}; exit' HUP; echo $$; cat >{1}; printf whole >{0}",
            text(&file),
            text(&taken)
        );
        let flags = match what {
            "max-age" => &["--max-age", "5s"][..],
            _ => &[],
        };
        let args = args(flags, &script);
        let mut server = match what {
            // As by nohup(1); no shell that finds a signal ignored can trap it.
            "nohup" => {
                let words = [&["serve"], &words(&args)[..]].concat();
                Server::spawn(home.shell("trap '' HUP; exec \"$@\"", &words), 1)
            }
            _ => home.serve(&elsewhere(&args)),
        };
        let mut client = connect(&server);
        let pid = line(&mut client);
        if what != "max-age" {
            say(&mut client, b"half of it");
            until_said(&taken, "half of it");
        }
        match what {
            "goodbye" => say_goodbye(&mut client),
            "no goodbye" | "nohup" => client.0.sock.shutdown(Shutdown::Write).unwrap(),
            "reset" => {
                let socket = client.0.sock.try_clone().unwrap();
                drop(client);
                reset(socket);
            }
            "killed" => drop(home.answer(&["kill", "1"])),
            _ => {}
        }
        match what {
            "goodbye" => until_said(&file, "whole"),
            "no goodbye" | "reset" => until_said(&file, "cut"),
            // Behind SIGHUP comes SIGTERM, or instead of it.
            _ => {
                until("it has ended", || !lives(&pid));
                let said = fs::read_to_string(&file).unwrap_or_default();
                assert_ne!(said, "whole", "{what}");
            }
        }
        let reason = server.closed().facts["reason"].clone();
        let expected = match what {
            "goodbye" => "peer-closed",
            "no goodbye" | "nohup" => "tls-truncated",
            "reset" => "peer-reset",
            other => other,
        };
        assert_eq!(reason, expected);
    }
}

#[test]
fn at_the_read_deadline_a_program_has_its_last_words() {
    let script =
        "trap 'echo bye; exit' TERM; head -c 1000000 /dev/zero; while :; do sleep 0.05; done";
    let mut server = serve(&["--read-timeout", "1s"], script);
    let mut client = connect(&server);
    let came = rest(&mut client);
    assert_eq!((came.len(), &came[1_000_000..]), (1_000_004, &b"bye\n"[..]));
    drop(client);
    assert_ended(&server.closed(), "read-timeout", None);
    assert!(server.drain().success());
}

#[test]
fn limits_and_drains_are_those_of_any_program() {
    let home = Home::new();
    let flags = ["--max-children", "1", "--drain-timeout", "60s"];
    let args = args(&flags, "echo $$; read x; echo got $x; exec sleep 1000");
    let mut server = home.serve(&elsewhere(&args));
    let mut client = connect(&server);
    let pid = line(&mut client);
    let mut second = connect(&server);
    assert_eq!(rest(&mut second), b"", "a goodbye");
    drop(second);
    let closed = server.closed();
    assert_ended(&closed, "limit", None);
    assert_eq!(closed.facts["limit"], "max-children");
    let list = home.json(&["list"]);
    let shown = &list.as_array().unwrap()[0];
    assert_eq!(
        (shown["service"].as_str(), shown["tls"]["name"].as_str()),
        (Some("exec"), Some("localhost")),
        "{list}"
    );
    assert!(shown["upstream"].is_null(), "{list}");
    // It goes on while the server drains, until that is told a second time.
    server.signal(Signal::TERM);
    let drains = || home.json(&["status"])["draining"] == true;
    until("it drains", drains);
    say(&mut client, b"this\n");
    assert_eq!(line(&mut client), "got this");
    crate::support::until_another_signal_counts();
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(1), "{:?}", server.lines);
    until("it has ended", || !lives(&pid));
    assert_eq!(
        client.0.read(&mut [0]).map_err(|error| error.kind()).ok(),
        None,
        "no goodbye"
    );
}

#[test]
fn takeovers_carry_a_program_its_session_and_every_byte_between_them() {
    let home = Home::new();
    let args = args(&["--workers", "2"], "echo $$; exec cat");
    let args = elsewhere(&args);
    let mut server = home.serve(&args);
    let address = server.address();
    let (over, moved) = (AtomicBool::new(false), AtomicU64::new(0));
    let (over, moved) = (&over, &moved);
    thread::scope(|scope| {
        let raised = Raised(over);
        for number in 0..6_u64 {
            let config = config(&[VERSIONS[usize::from(number % 2 == 0)]]);
            scope.spawn(move || {
                let mut client = Client::of(address, &config).unwrap();
                let pid = line(&mut client);
                let mut said = Stream::default();
                let mut heard = Stream::default();
                // Of the largest, some waits both ways.
                let length = 1 + 60_000 * usize::try_from(number).unwrap();
                while !over.load(Ordering::Relaxed) {
                    say(&mut client, &said.next(length));
                    let mut came = vec![0; length];
                    client.0.read_exact(&mut came).unwrap();
                    heard.verify(&came);
                    moved.fetch_add(1, Ordering::Relaxed);
                }
                assert!(lives(&pid));
                client.end();
            });
        }
        for _ in 0..5 {
            let before = moved.load(Ordering::Relaxed);
            until("bytes move", || moved.load(Ordering::Relaxed) > before + 6);
            server = home.succeed(&mut server, &args);
        }
        drop(raised);
    });
    for _ in 0..6 {
        assert_ended(&server.closed(), "peer-closed", None);
    }
    assert!(server.drain().success());
}

#[test]
fn what_waits_either_way_goes_along_and_so_do_the_ends() {
    let home = Home::new();
    let go = home.join("go");
    let script = format!(
        "until [ -e {} ]; do sleep 0.05; done; sum=$(cksum); echo $sum; head -c 6000000 /dev/zero; echo end",
        text(&go)
    );
    let args = args(&["--buffer", "1m"], &script);
    let args = elsewhere(&args);
    let mut server = home.serve(&args);
    for version in VERSIONS {
        let mut client = Client::of(server.address(), &config(&[version])).unwrap();
        let mut bytes = Stream::default().next(900_000);
        say(&mut client, &bytes);
        server = home.succeed(&mut server, &args);
        bytes.extend(b"and more");
        say(&mut client, b"and more");
        say_goodbye(&mut client);
        server = home.succeed(&mut server, &args);
        fs::write(&go, "").unwrap();
        let sum = line(&mut client);
        fs::remove_file(&go).unwrap();
        let mut cksum = std::process::Command::new("cksum")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cksum.stdin.take().unwrap().write_all(&bytes).unwrap();
        let expected = cksum.wait_with_output().unwrap().stdout;
        assert_eq!(sum.as_bytes(), expected.trim_ascii_end());
        let mut first = vec![0; 100];
        client.0.read_exact(&mut first).unwrap();
        server = home.succeed(&mut server, &args);
        let rest = rest(&mut client);
        assert_eq!(
            (rest.len(), &rest[rest.len() - 4..]),
            (5_999_904, &b"end\n"[..])
        );
        drop(client);
        assert_ended(&server.closed(), "peer-closed", None);
    }
    assert!(server.drain().success());
}

#[test]
fn a_takeover_that_comes_to_nothing_changes_nothing() {
    let home = Home::new();
    let args = args(&[], "echo $$; exec cat");
    let args = elsewhere(&args);
    let server = home.serve(&args);
    let mut client = connect(&server);
    let pid = line(&mut client);
    let mut failing = home.faulty(&server, &args, "abort-freeze");
    assert!(!failing.wait().success());
    client.assert_echoes(&vec![b'x'; 400_000]);
    assert!(lives(&pid));
    client.end();
}

#[test]
fn behind_a_keeper_a_crash_ends_the_connection_and_the_input_of_its_program() {
    let home = Home::new();
    let file = home.join("said");
    let script = format!("echo $$; cat >/dev/null; printf over >{}", text(&file));
    let args = args(&["--keep"], &script);
    let mut server = home.serve(&elsewhere(&args));
    let mut client = connect(&server);
    let pid = line(&mut client);
    let (code, said, _) = output(home.standfast(&["restart"]));
    assert_eq!(code, 0, "{said}");
    say(&mut client, b"after a restart");
    assert!(lives(&pid) && !file.exists());
    let serves = Pid::from_raw(i32::try_from(home.pid(&[])).unwrap()).unwrap();
    kill_process(serves, Signal::KILL).unwrap();
    assert!(client.0.read(&mut [0]).is_err(), "no goodbye");
    until_said(&file, "over");
    until("it has ended", || !lives(&pid));
    server.log_line("what the crash has cost", |line| {
        line.contains(" closed: ") && line.contains("reason=crash")
    });
    let mut client = connect(&server);
    line(&mut client);
    say_goodbye(&mut client);
    assert_eq!(rest(&mut client), b"");
}

#[test]
fn git_clones_over_it() {
    if lacks(&["git", "socat"]) {
        return;
    }
    let home = Home::new();
    let (source, copy, proxy) = (home.join("source"), home.join("copy"), home.join("proxy"));
    let git = |args: &[&str]| {
        let mut git = home.command("git");
        git.args(["-c", "user.name=a", "-c", "user.email=a@b"])
            .args(args)
            .env("HOME", home.join("nowhere"))
            .env("GIT_PROXY_COMMAND", &proxy);
        output(git)
    };
    let ended = git(&["init", "-q", text(&source)]);
    assert_eq!(ended.0, 0, "{ended:?}");
    fs::write(source.join("large"), Stream::default().next(3_000_000)).unwrap();
    for args in [&["add", "large"][..], &["commit", "-q", "-m", "one"]] {
        let ended = git(&[&["-C", text(&source)], args].concat());
        assert_eq!(ended.0, 0, "{ended:?}");
    }
    let script = format!(
        "exec git -c safe.directory='*' daemon --inetd --export-all --base-path={}",
        text(&home.join("."))
    );
    let args = args(&[], &script);
    let mut server = home.serve(&elsewhere(&args));
    let to = format!(
        // Half-closed, it would wait for half a second.
        "#!/bin/sh\nexec socat -t 60 - OPENSSL:{},cafile={},commonname=server\n",
        server.address(),
        file("ca.pem")
    );
    fs::write(&proxy, to).unwrap();
    fs::set_permissions(&proxy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let ended = git(&["clone", "-q", "git://localhost/source", text(&copy)]);
    assert_eq!(ended.0, 0, "{ended:?} {:?}", server.lines);
    assert_eq!(
        fs::read(source.join("large")).unwrap(),
        fs::read(copy.join("large")).unwrap()
    );
    let closed = server.closed();
    let reason = closed.facts["reason"].as_str();
    assert!(
        ["service", "peer-closed", "tls-truncated"].contains(&reason),
        "{}",
        closed.line
    );
}
