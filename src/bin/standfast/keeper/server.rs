//! A keeper's server: started with what it is to have, and asked how it ended.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{self, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::START;
use super::line::{Held, Line};
use crate::kept::{KEEPER, STORED};
use crate::successor::SUCCESSOR;

/// What a wait status says of a process that has left a core file (wait(2): `WCOREDUMP`).
const CORE: i32 = 0x80;

/// A process that serves, is to serve or has served.
pub(super) struct Server {
    pub(super) pid: Pid,
    /// `None`: it was closed at the other end.
    pub(super) line: Option<Line>,
    pub(super) stage: Stage,
    pub(super) since: Instant,
    /// It is ended if it says nothing until then.
    pub(super) due: Instant,
    pub(super) hung: bool,
    pub(super) ends: bool,
    pub(super) words: String,
    pub(super) wants: Vec<Held>,
    /// What it has stored of its connections, and whether those are its own.
    pub(super) stored: Vec<Held>,
    pub(super) owns: bool,
    /// It asks for a successor, which takes over at that control socket, as soon as it serves.
    pub(super) asks: Option<(String, Vec<OwnedFd>)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Starts,
    Serves,
    /// Another has taken over from it.
    Left,
}

impl Server {
    /// Starts that program as one, `now`. It is told what is `held`, what is `stored`, and how many have crashed; a successor has the sockets from
    /// the server that it takes over from. `silence`: how long it may say nothing once it serves.
    pub(super) fn start(
        program: &Path,
        (held, stored, crashes): (&[Held], &[Held], u64),
        (now, silence): (Instant, Duration),
        with: impl FnOnce(&mut Command),
    ) -> io::Result<Self> {
        let (line, theirs) = Line::pair()?;
        let mut command = command(program);
        with(&mut command);
        let is_successor = command
            .get_envs()
            .any(|(name, _)| name == OsStr::new(SUCCESSOR));
        let mut keeper = format!("{} {} {crashes}", process::id(), theirs.as_raw_fd());
        let mut lent = vec![theirs.as_fd()];
        let held = held.iter().map(|held| ("", held));
        let stored = stored.iter().map(|held| (STORED, held));
        for (kind, held) in held.chain(stored).filter(|_| !is_successor) {
            let numbers = held.descriptors.iter();
            let numbers: Vec<_> = numbers.map(|one| one.as_raw_fd().to_string()).collect();
            keeper.push_str(&format!(" {kind}{}:{}", held.name, numbers.join("+")));
            lent.extend(held.descriptors.iter().map(AsFd::as_fd));
        }
        command.env(KEEPER, keeper);
        command.env("WATCHDOG_USEC", silence.as_micros().to_string());
        for name in ["NOTIFY_SOCKET", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        // One thread: nobody else starts a process meanwhile.
        let lend = |flags| lent.iter().try_for_each(|one| fcntl_setfd(one, flags));
        lend(FdFlags::empty())?;
        let started = command.spawn();
        lend(FdFlags::CLOEXEC)?;
        Ok(Self {
            pid: Pid::from_child(&started?),
            line: Some(line),
            stage: Stage::Starts,
            since: now,
            due: now + START.max(silence),
            hung: false,
            ends: false,
            words: String::new(),
            wants: Vec::new(),
            stored: Vec::new(),
            owns: false,
            asks: None,
        })
    }

    /// How it has ended, if it has. It has yet to be waited for.
    pub(super) fn how_it_ended(&self) -> Option<ExitStatus> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(self.pid), options).ok()??;
        let core = if status.dumped() { CORE } else { 0 };
        let by_signal = status.terminating_signal().map(|signal| signal | core);
        let raw = by_signal.or_else(|| status.exit_status().map(|code| code << 8));
        raw.map(ExitStatus::from_raw)
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It may have ended, and has not been waited for: the number is nobody else's.
        let _ = kill_process(self.pid, signal);
    }

    /// What became of it, in words.
    pub(super) fn fate(&self, status: ExitStatus) -> String {
        let (pid, hung) = (self.pid.as_raw_nonzero(), self.hung);
        let how = if hung {
            "stood still, was ended"
        } else {
            "ended"
        };
        let mut what = format!("pid {pid} {how}: {status}");
        if self.stage == Stage::Starts && !self.words.is_empty() {
            what = format!("{what}: {}", self.words);
        }
        what
    }
}

/// That program with the arguments that this process has.
pub(super) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    let mut args = env::args_os();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args);
    command
}
