//! The new process ends as soon as everything is its own: nobody serves any more, and everybody says so.

use std::net::TcpStream;

use rustix::process::Signal;

use crate::support::home::{Home, text};
use crate::support::{Server, assert_echoes, restarted};

/// A server whose successors end by `fault`.
fn doomed(home: &Home, fault: &str) -> Server {
    let mut command = home.standfast(&["serve", "-l", "0"]);
    command.env("STANDFAST_FAULT", fault);
    let server = Server::spawn(command, 1);
    assert_echoes(&mut server.connect(), b"hello");
    server
}

#[test]
fn restart_says_that_the_successor_has_ended_and_nobody_serves() {
    for fault in ["abort-running", "abort-serving"] {
        let home = Home::new();
        let mut server = doomed(&home, fault);
        let path = home.socket_of(&server);
        let (code, stdout, line) = restarted(|| home.standfast(&["restart"]));
        assert_eq!(
            (code, stdout.as_str(), line.lines().count()),
            (1, "", 1),
            "{line}"
        );
        let truth = format!(
            "took over and has ended, all connections with it: nobody serves at {}",
            text(&path)
        );
        assert!(line.contains(&truth), "{line}");
        server.wait();
        TcpStream::connect(server.address()).unwrap_err();
    }
}

#[test]
fn a_server_given_to_a_process_that_ended_at_once_says_so_and_has_failed() {
    for by_signal in [true, false] {
        let home = Home::new();
        let mut server = doomed(&home, "abort-running");
        let what = loop {
            let new = (!by_signal).then(|| home.faulty(&server, &[], "abort-running"));
            if by_signal {
                server.signal(Signal::USR2);
            }
            let line = server.log_line("what became of it", |line| {
                line.contains(" error the process that took over")
                    || line.contains(" warn takeover ")
            });
            drop(new);
            // Refused on a busy machine.
            if line.contains(" error ") {
                break line;
            }
        };
        assert!(
            what.contains("has ended at once: nobody serves any more"),
            "{what}"
        );
        assert_eq!(server.wait().code(), Some(1), "{:?}", server.lines);
    }
}
