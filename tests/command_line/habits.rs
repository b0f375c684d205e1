//! What people type who know netcat: it is understood, or answered with the form that is.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use super::refusals::one_line;
use crate::support::home::Home;
use crate::support::{GUARD, Server, assert_echoes, output, standfast};

#[test]
fn a_netcat_that_listens_is_understood() {
    for args in [
        &["-lk", "0"][..],
        &["echo", "-klv", "0"],
        &["-lvnp", "0"],
        &["-l", "-p", "0"],
        &["-k", "-p", "0"],
        &["-4", "-l", "0"],
        &["-4", "-p", "localhost:0"],
        &["-l", "127.0.0.1", "0"],
        &["-lk", "127.0.0.1", "0", "echo"],
        &["-l", "0", "-i", "5min"],
    ] {
        let mut command = standfast();
        command.arg("serve").args(args);
        let server = Server::spawn(command, 1);
        assert!(server.address().is_ipv4(), "{args:?}");
        assert_echoes(&mut server.connect(), b"hello\n");
    }
}

#[test]
fn a_netcat_that_listens_on_a_path_is_understood() {
    let home = Home::new();
    for flag in ["-U", "-lU", "-lkU"] {
        let path = home.join(flag);
        let mut command = home.standfast(&["serve", flag]);
        command
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut server = Server::launch(command);
        let listening = format!("listening on unix:{}", path.display());
        assert_eq!(server.stdout_line(), listening);
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(GUARD)).unwrap();
        client.write_all(b"hello\n").unwrap();
        let mut echo = [0; 6];
        client.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"hello\n");
    }
}

#[test]
fn what_is_no_command_is_answered_with_the_one_that_was_meant() {
    for (line, hint) in [
        ("-l 7000", "to listen: standfast serve -l 7000"),
        ("-lk 7000", "to listen: standfast serve -l 7000"),
        ("-lvnp 4444", "to listen: standfast serve -l 4444"),
        ("connect -l 7000", "to listen: standfast serve -l 7000"),
        ("serve 8080", "to listen there: standfast serve -l 8080"),
        ("serve *:8080", "to listen there: standfast serve -l *:8080"),
        ("check 8080", "to listen there: standfast check -l 8080"),
        ("7000", "to connect: standfast connect 7000"),
        ("db 80", "to connect: standfast connect db:80"),
        ("echo", "that is a service: standfast serve -l 7000 echo"),
        (
            "print -l 90",
            "that is a service: standfast serve -l 90 print",
        ),
        (
            "forward db:80",
            "that is a service: standfast serve -l 7000 forward",
        ),
        ("listen 90", "to listen: standfast serve -l 90"),
        ("listen", "to listen: standfast serve -l 7000"),
        (
            "serve -l 90 -e cat",
            "to run a program: standfast serve -l 90 exec",
        ),
        (
            "serve -lvp 90 -e cat",
            "to run a program: standfast serve -l 90 exec",
        ),
    ] {
        let mut command = standfast();
        command.args(line.split(' '));
        let (code, stdout, stderr) = output(command);
        assert_eq!((code, &*stdout), (2, ""), "{line}: {stderr}");
        assert!(one_line(&stderr).contains(hint), "{line}: {stderr}");
        let talks_of_a_host = ["connect echo", "connect forward", "connect listen"];
        assert!(
            !talks_of_a_host.iter().any(|it| stderr.contains(it)),
            "{line}: {stderr}"
        );
    }
}

#[test]
fn a_port_that_looks_like_the_listeners_among_the_upstreams_is_pointed_out() {
    let said = |line: &str| {
        let mut command = standfast();
        command.arg("check").args(line.split(' '));
        let (code, _, stderr) = output(command);
        assert_eq!(code, 0, "{line}: {stderr}");
        stderr
    };
    let doubt = said("forward 9000 127.0.0.1:9");
    assert!(
        one_line(&doubt).contains("to listen there: -l 9000"),
        "{doubt}"
    );
    for meant in [
        "forward -l 0 9000 127.0.0.1:9",
        "forward -p 0 9000 127.0.0.1:9",
        "forward 9000",
        "forward 127.0.0.1:9 9000",
    ] {
        assert_eq!(said(meant), "", "{meant}");
    }
}
