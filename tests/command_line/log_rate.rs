//! `--log-rate`: ends of connections of one reason are left out of the log, and counted.

use crate::support::home::Home;
use crate::support::{Server, assert_echoes, connect, facts, read_to_fin, until};

/// How many ends of `reason` the log has, and how many it says it has not.
fn said(lines: &[String], reason: &str) -> (usize, usize) {
    let of_reason = lines
        .iter()
        .filter(|line| facts(line).get("reason").is_some_and(|it| it == reason));
    let closed = of_reason
        .clone()
        .filter(|line| line.contains(" info closed "));
    let left_out = of_reason.filter(|line| line.contains(" info log lines left out "));
    let counts = left_out.map(|line| facts(line)["count"].parse::<usize>().unwrap());
    (closed.count(), counts.sum())
}

#[test]
fn a_flood_of_one_reason_is_counted_and_hides_no_other() {
    let home = Home::new();
    let mut server = home.serve(&["--log-rate", "1/s:5", "--deny", "127.0.0.2"]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    const FLOOD: usize = 300;
    for _ in 0..FLOOD {
        let denied = crate::support::clients::connect_from([127, 0, 0, 2].into(), server.address());
        drop(denied);
    }
    drop(client);
    assert_eq!(
        server
            .log_line("the other one", |line| line.contains("reason=peer-closed"))
            .matches(" closed ")
            .count(),
        1
    );
    until("all have come", || {
        home.json(&["status"])["accepted"] == FLOOD + 1
    });
    // By itself, not at the end.
    server.log_line("what was left out", |line| {
        line.contains(" info log lines left out count=") && line.ends_with(" reason=denied")
    });
    assert!(server.drain().success());
    let (closed, left_out) = said(&server.lines, "denied");
    assert_eq!(closed + left_out, FLOOD);
    assert!(closed >= 5 && left_out > 0, "{closed}");
    assert_eq!(server.summary()["denied"], FLOOD.to_string());
}

#[test]
fn in_every_service_what_a_drain_ends_is_counted_before_the_end_is_said() {
    for service in [
        &["echo"][..],
        &["discard"],
        &["hub"],
        &["print"],
        &["exec", "--", "cat"],
        &["forward", "127.0.0.1:1"],
    ] {
        let home = Home::new();
        let args = [&["--log-rate", "1/s:2", "--drain-timeout", "1s"], service].concat();
        let mut server = home.serve(&args);
        const CLIENTS: usize = 20;
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| connect(server.address())).collect();
        until("all are in", || {
            home.json(&["status"])["accepted"] == CLIENTS
        });
        server.signal(rustix::process::Signal::TERM);
        for client in &mut clients {
            // Some are cut.
            let _ = std::io::Read::read_to_end(client, &mut Vec::new());
        }
        drop(clients);
        server.wait();
        let of_any = [
            "drain",
            "upstream-failed",
            "peer-closed",
            "peer-reset",
            "service",
        ];
        let all = of_any.map(|reason| said(&server.lines, reason));
        let sum = all
            .iter()
            .map(|(closed, left_out)| closed + left_out)
            .sum::<usize>();
        assert_eq!(sum, CLIENTS, "{service:?}: {}", server.lines.join("\n"));
        assert!(all.iter().any(|&(_, left_out)| left_out > 0), "{service:?}");
        assert!(
            server.lines.last().unwrap().contains(" info ended "),
            "{service:?}"
        );
        assert_eq!(
            server.summary()["closed"],
            CLIENTS.to_string(),
            "{service:?}"
        );
    }
}

#[test]
fn every_end_is_said_unless_a_rate_is_asked_for() {
    let mut server = Server::start(&[]);
    for _ in 0..200 {
        let mut client = server.connect();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        read_to_fin(&mut client);
    }
    assert!(server.drain().success());
    assert_eq!(said(&server.lines, "peer-closed"), (200, 0));
}

#[test]
fn a_successor_goes_on_and_each_says_what_it_left_out() {
    let home = Home::new();
    let mut server = home.serve(&["--log-rate", "1/s:1"]);
    let come = |server: &Server| {
        for _ in 0..50 {
            let mut client = server.connect();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            read_to_fin(&mut client);
        }
    };
    come(&server);
    let mut next = home.succeed(&mut server, &["--log-rate", "1/s:1"]);
    come(&next);
    assert!(next.drain().success());
    for server in [&server, &next] {
        let (closed, left_out) = said(&server.lines, "peer-closed");
        assert_eq!(closed + left_out, 50, "{}", server.lines.join("\n"));
    }
}

#[test]
fn what_is_no_rate_is_refused() {
    let home = Home::new();
    for wrong in ["0", "-1", "10/m", "10/s:0", "many"] {
        let (code, line) = home.refusal(&["serve", "-l", "0", "--log-rate", wrong]);
        assert_eq!(code, 2, "{line}");
        assert!(line.contains("such as 100/s or 100/s:20"), "{line}");
    }
}
