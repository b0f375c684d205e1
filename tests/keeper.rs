//! `serve --keep`: a process that stays, and what clients notice of a server that crashes behind it.

/// Crashes and takeovers by turns, of an embedder's service.
mod chained;
/// Crashes: who waits is served, and what stays as it was.
mod crashes;
/// Servers that do not come to serve, and how all ends.
mod ends;
/// Programs and their connections.
mod programs;
/// Too little of memory, address space or descriptors.
mod scarce;
/// Real supervisors, containers and terminals, which a restart was refused under.
mod supervisors;
/// What an embedder's service has chosen for its connections.
mod survive;
/// Restarts and reloads behind it.
mod takeovers;
/// Connections that outlive a crash.
mod vault;
/// Relays that do.
mod vault_forward;
/// A hub's lines and printed ones.
mod vault_lines;

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::home::{Home, number};
use crate::support::{Server, assert_echoes, children, until};
use crate::takeover::restart::copy;

/// A keeper with its server; both ended when dropped.
struct Kept {
    home: Home,
    keeper: Server,
}

impl Kept {
    /// `serve --keep ARGS...`, on a free port unless `args` say where.
    fn start(args: &[&str]) -> Self {
        let home = Home::new();
        let keeper = home.serve(&[&["--keep"], args].concat());
        Self { home, keeper }
    }

    /// By `command`, which says that it serves `listeners` times.
    fn spawn(home: Home, command: Command, listeners: usize) -> Self {
        let keeper = Server::spawn(command, listeners);
        Self { home, keeper }
    }

    /// `serve --keep ARGS...` by a copy of the program, and where that is.
    fn by_a_copy(args: &[&str]) -> (Self, PathBuf) {
        let home = Home::new();
        let program = home.join("standfast-here");
        copy(&program);
        let mut command = home.command(&program);
        command.args(["serve", "--keep", "-l", "0"]).args(args);
        (Self::spawn(home, command, 1), program)
    }

    fn status(&self) -> serde_json::Value {
        self.home.json(&["status"])
    }

    /// The process that serves.
    fn server(&self) -> Pid {
        pid(number(&self.status()["pid"]))
    }

    fn connect(&self) -> TcpStream {
        let mut client = self.keeper.connect();
        assert_echoes(&mut client, b"hello");
        client
    }

    /// The keeper has heard all that its server had to say when it began to serve: else it would not start another one.
    fn until_it_knows(&self) {
        self.home.taken_over(&["restart"]);
        until("one server is left", || {
            children(self.keeper.pid()) == [self.server()]
        });
    }

    /// Asked to end, it ends as it should.
    #[track_caller]
    fn assert_drains(&mut self) {
        let status = self.keeper.drain();
        assert_eq!(status.code(), Some(0), "{:?}", self.keeper.lines);
    }

    /// Ends the process that serves by `signal`, and answers its number.
    fn crash(&self, signal: Signal) -> Pid {
        let server = self.server();
        kill_process(server, signal).unwrap();
        server
    }

    /// Waits until another process than `former` serves.
    fn until_another_serves(&self, former: Pid) -> Pid {
        let mut found = former;
        until("another server serves", || {
            let answer = self.home.standfast(&["status", "--json"]).output().unwrap();
            let status = serde_json::from_slice::<serde_json::Value>(&answer.stdout);
            found = status.map_or(former, |status| pid(number(&status["pid"])));
            found != former
        });
        found
    }
}

fn pid(number: u64) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}
