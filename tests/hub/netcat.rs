//! `nc`, `ncat` and `socat` on either side: what people have at hand.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::hub::Hub;
use crate::support::home::number;
use crate::support::{GUARD, cannot_run, until};

/// Each that is installed, with the words before HOST and PORT, or None where both are one word.
fn netcats(test: &str) -> Vec<(&'static str, Vec<String>)> {
    let known = [
        ("nc", "{host} {port}"),
        ("ncat", "{host} {port}"),
        ("socat", "- TCP:{host}:{port}"),
    ];
    let mut found = Vec::new();
    for (name, words) in known {
        let mut command = Command::new(name);
        let run = command.arg("-h").stdin(Stdio::null()).output();
        if run.is_ok() {
            found.push((name, words.split(' ').map(str::to_owned).collect()));
        } else {
            cannot_run(test, name);
        }
    }
    found
}

fn start(name: &str, words: &[String], more: &[&str], hub: &Hub) -> Child {
    let address = hub.server.address();
    let words = words.iter().map(|word| {
        word.replace("{host}", &address.ip().to_string())
            .replace("{port}", &address.port().to_string())
    });
    // Not for ever: timeout(1) ends what nothing else does.
    Command::new("timeout")
        .arg(GUARD.as_secs().to_string())
        .arg(name)
        .args(more)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn netcats_hear_one_another() {
    let hub = Hub::start(&[]);
    let netcats = netcats("netcats_hear_one_another");
    let mut clients: Vec<(Child, BufReader<ChildStdout>)> = Vec::new();
    for (name, words) in &netcats {
        let mut child = start(name, words, &[], &hub);
        let stdout = BufReader::new(child.stdout.take().unwrap());
        clients.push((child, stdout));
    }
    until("all are in", || {
        hub.home.json(&["list"]).as_array().unwrap().len() == clients.len()
    });
    for speaker in 0..clients.len() {
        let line = format!("{} speaks\n", netcats[speaker].0);
        let stdin = clients[speaker].0.stdin.as_mut().unwrap();
        stdin.write_all(line.as_bytes()).unwrap();
        for (at, (_, stdout)) in clients.iter_mut().enumerate() {
            if at != speaker {
                let mut heard = String::new();
                stdout.read_line(&mut heard).unwrap();
                assert_eq!(heard, line, "{}", netcats[at].0);
            }
        }
    }
    for (child, _) in &mut clients {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_netcat_that_says_its_word_and_leaves_is_not_kept() {
    let hub = Hub::start(&[]);
    let mut listener = hub.join();
    for (name, words) in netcats("a_netcat_that_says_its_word_and_leaves_is_not_kept") {
        // -N: half-close at the end of stdin, as the others do by themselves.
        let more: &[&str] = if name == "nc" { &["-N"] } else { &[] };
        let mut child = start(name, &words, more, &hub);
        let mut stdin = child.stdin.take().unwrap();
        write!(stdin, "{name} was here").unwrap();
        drop(stdin);
        assert_eq!(listener.hear(), format!("{name} was here\n"));
        assert!(child.wait().unwrap().success(), "{name}");
    }
    until("only the listener is left", || {
        number(&hub.home.json(&["status"])["open"]) == 1
    });
}
