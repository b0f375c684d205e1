//! Real supervisors: what they make of a restart, a crash and an end.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::restart::put_script;
use crate::support::home::{Home, number, text};
use crate::support::{assert_echoes, connect, lacks, restarted, until};

/// A supervisor that runs one server; ended, and the server with it, when dropped.
pub(crate) struct Supervised {
    pub(crate) home: Home,
    pub(crate) supervisor: Child,
    pub(crate) end: Signal,
    log: PathBuf,
}

impl Supervised {
    /// By runsvdir(8) of runit.
    pub(crate) fn by_runit(args: &str) -> Self {
        let home = Home::new();
        let (serve, log) = (serve(&home, args), home.join("log"));
        fs::create_dir_all(home.join("services/standfast")).unwrap();
        let run = home.join("services/standfast/run");
        put_script(
            &run,
            &format!("#!/bin/sh\nexec {serve} 2>>{}\n", log.display()),
        );
        let mut command = Command::new("runsvdir");
        command.arg(home.join("services"));
        Self::start(home, command, Signal::HUP, log)
    }

    pub(crate) fn by_supervisord(args: &str) -> Self {
        let home = Home::new();
        let (serve, log) = (serve(&home, args), home.join("log"));
        let config = format!(
            "[supervisord]\nnodaemon=true\nlogfile={0}/supervisord.log\npidfile={0}/supervisord.pid\n\
             [program:standfast]\ncommand={serve}\nautorestart=true\nstdout_logfile={0}/stdout\nstderr_logfile={1}\n",
            home.path.display(),
            log.display()
        );
        fs::write(home.join("supervisord.conf"), config).unwrap();
        let mut command = Command::new("supervisord");
        command.arg("-c").arg(home.join("supervisord.conf"));
        Self::start(home, command, Signal::TERM, log)
    }

    fn start(home: Home, mut command: Command, end: Signal, log: PathBuf) -> Self {
        command
            .env_remove("RUST_LOG")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("SYSTEMD_EXEC_PID")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let this = Self {
            supervisor: command.spawn().unwrap(),
            home,
            end,
            log,
        };
        until("it serves", || this.pid().is_some());
        this
    }

    pub(crate) fn standfast(&self, order: &str) -> Command {
        let control = self.home.join("c.sock");
        self.home.standfast(&[order, "--control", text(&control)])
    }

    /// The process that serves, if one does.
    pub(crate) fn pid(&self) -> Option<Pid> {
        let status = self.standfast("status").arg("--json").output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
        Pid::from_raw(i32::try_from(number(&status["pid"])).unwrap())
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let status = self.standfast("status").arg("--json").output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        let address = status["listeners"][0]["address"].as_str().unwrap();
        connect(address.parse::<SocketAddr>().unwrap())
    }

    /// Waits until another process than `former` serves that the supervisor has started itself.
    pub(crate) fn until_started_anew(&self, former: Pid) -> Pid {
        let mut anew = None;
        until("the supervisor's own server serves", || {
            anew = self
                .pid()
                .filter(|&pid| pid != former && self.has_started(pid));
            anew.is_some()
        });
        anew.unwrap()
    }

    pub(crate) fn has_started(&self, pid: Pid) -> bool {
        let parent = |pid: i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(") ")?
                .1
                .split(' ')
                .nth(1)?
                .parse::<i32>()
                .ok()
        };
        let supervisor = self.supervisor.id().cast_signed();
        let its = parent(pid.as_raw_nonzero().get());
        // With runit there is a runsv between the two.
        its == Some(supervisor) || its.and_then(parent) == Some(supervisor)
    }

    pub(crate) fn logged(&self, what: &str) -> bool {
        fs::read_to_string(&self.log).is_ok_and(|log| log.contains(what))
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.supervisor);
        let _ = kill_process(pid, self.end);
        let _ = self.supervisor.wait();
    }
}

fn serve(home: &Home, args: &str) -> String {
    let control = home.join("c.sock");
    let standfast = env!("CARGO_BIN_EXE_standfast");
    format!(
        "{standfast} serve {args} -l 127.0.0.1:0 --control {}",
        text(&control)
    )
}

type Start = fn(&str) -> Supervised;

/// A restart would leave the supervisor starting servers in vain; everything else goes as it should.
fn assert_holds_without_replace(start: Start, name: &str) {
    let server = start("echo");
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let first = server.pid().unwrap();
    let (code, _, line) = restarted(|| server.standfast("restart"));
    let why =
        format!("{name}, which started this process, would start another one beside its successor");
    assert!(
        code == 1 && line.contains(&why) && line.contains("--replace"),
        "{line}"
    );
    kill_process(first, Signal::USR2).unwrap();
    until("the same in the log", || server.logged(&why));
    assert_echoes(&mut client, b"and on");
    kill_process(first, Signal::KILL).unwrap();
    let second = server.until_started_anew(first);
    assert_echoes(&mut server.connect(), b"after a crash");
    assert!(server.standfast("drain").output().unwrap().status.success());
    server.until_started_anew(second);
    assert_echoes(&mut server.connect(), b"after a drain");
    let control = server.home.join("c.sock");
    kill_process(Pid::from_child(&server.supervisor), server.end).unwrap();
    until("the server has ended with its supervisor", || {
        !control.exists()
    });
}

/// The supervisor's next server takes over from the successor.
fn assert_holds_with_replace(start: Start) {
    let server = start("echo --replace");
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let first = server.pid().unwrap();
    let (code, stdout, line) = restarted(|| server.standfast("restart"));
    assert_eq!((code, line.as_str()), (0, ""), "{stdout}");
    server.until_started_anew(first);
    assert_echoes(&mut client, b"and on");
    let control = server.home.join("c.sock");
    kill_process(Pid::from_child(&server.supervisor), server.end).unwrap();
    until("the server has ended with its supervisor", || {
        !control.exists()
    });
}

#[test]
fn runit_starts_no_server_in_vain() {
    if lacks(&["runsvdir", "runsv"]) {
        return;
    }
    assert_holds_without_replace(Supervised::by_runit, "runsv");
}

#[test]
fn under_runit_the_next_server_takes_over_from_the_successor() {
    if lacks(&["runsvdir", "runsv"]) {
        return;
    }
    assert_holds_with_replace(Supervised::by_runit);
}

#[test]
fn supervisord_starts_no_server_in_vain() {
    if lacks(&["supervisord"]) {
        return;
    }
    assert_holds_without_replace(Supervised::by_supervisord, "supervisord");
}

#[test]
fn under_supervisord_the_next_server_takes_over_from_the_successor() {
    if lacks(&["supervisord"]) {
        return;
    }
    assert_holds_with_replace(Supervised::by_supervisord);
}

/// It closes the pipe that it reads with the process that it started.
#[test]
fn print_is_not_restarted_where_supervisord_reads_its_stdout() {
    if lacks(&["supervisord"]) {
        return;
    }
    let server = Supervised::by_supervisord("print --replace");
    let first = server.pid();
    let (code, _, line) = restarted(|| server.standfast("restart"));
    let why = "supervisord closes the pipe that is this process's stdout";
    assert!(code == 1 && line.contains(why), "{line}");
    assert_eq!(server.pid(), first);
}
