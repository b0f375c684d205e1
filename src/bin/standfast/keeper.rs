//! `serve --keep`: the process that stays. It serves nobody: it has the listening sockets, so that clients queue while no
//! server runs, starts a server, is what a supervisor and a terminal see of it, and starts another one where it crashes.
//!
//! With its servers it speaks as a service manager does, by the messages of `sd_notify(3)`, each over a socket of its own:
//!
//! | a server says | and that means |
//! |---|---|
//! | `FDSTORE=1`, `FDNAME=`, descriptors | keep these beside what there is; from its `READY=1` on they are all |
//! | `X_STORE=`, descriptors | of its connections: keep these, from now on |
//! | `X_GIVE_UP=` | no more |
//! | `X_OWNS=1` | connections are its own: of another's nothing is to be kept |
//! | `X_SECRET=1` | clients have TLS: what is kept of them is for nobody to look at |
//! | `READY=1` | it serves; whoever served before it does not any more |
//! | `MAINPID=` | that process has taken over from it |
//! | `STOPPING=1` | its end will be an end, and no crash |
//! | `WATCHDOG=1`, or anything else | it turns |
//! | `STATUS=` | to be shown; of one that ends before it serves, why |
//! | `X_SUCCESSOR=`, a descriptor | start a server that takes over at that control socket; the answer is `PID=` or `ERROR=` |
//!
//! One thread, one loop: it waits in poll(2) for signals and messages. What it has of clients is nothing.

mod falls;
mod line;
mod server;

use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, access};
use rustix::process::{Pid, Signal, WaitOptions, wait};
use signal_hook::consts::SIGCHLD;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use standfast::process::raise_descriptor_limit;

use crate::args::ProcessArgs;
use crate::keeper::falls::{ENOUGH, Falls};
use crate::keeper::line::Held;
use crate::keeper::server::{Server, Stage, command};
use crate::kept::{self, CRASHED, KEEPER};
use crate::signals::{self, Meaning};
use crate::successor::{self, SUCCESSOR};
use crate::supervisor::Supervisor;
use crate::{Failure, logger, store, takeover};

/// What the variable is to the keeper itself, and to one of a server that reads its file anew when it hangs up.
const ITSELF: &str = "itself";
const ITSELF_RELOADS: &str = "itself, reloads";

/// How long a server may take until it serves, and how long it may say nothing when it does, unless the service manager
/// has its own opinion.
const START: Duration = Duration::from_secs(90);
const SILENCE: Duration = Duration::from_secs(30);

/// How long the system has a server yet that has ended, while the next one starts.
const LEAVE: Duration = Duration::from_secs(1);

/// More than that no server listens on.
const HELD_MOST: usize = 4096;

/// Messages of one server that are heard before others and signals have their turn, and when it has ended.
const HEARD_A_TURN: usize = 256;
const HEARD_AT_LAST: usize = 64 * 1024;

/// So late the keeper was stopped itself, or starved.
const STOOD_STILL: Duration = Duration::from_millis(500);

struct Keeper {
    program: PathBuf,
    signals: SignalDelivery<UnixStream, SignalOnly>,
    hangup: Meaning,
    supervisor: Supervisor,
    /// How long a server that serves may say nothing.
    silence: Duration,
    servers: Vec<Server>,
    held: Vec<Held>,
    /// What one that has crashed had stored of its connections.
    stored: Vec<Held>,
    falls: Falls,
    /// When the system is to forget those that have ended, at the latest.
    leave_at: Option<Instant>,
    has_served: bool,
    /// Servers that crashed, and what became of the last one, for the next one to tell.
    crashes: u64,
    crashed: Option<String>,
    /// It was told to end.
    ends: bool,
    /// All is over, with that exit code, once every process has ended.
    over: Option<u8>,
}

/// Whether this process is to become a keeper: it has none yet, and is nobody's successor.
pub(crate) fn is_asked_for(process: &ProcessArgs) -> bool {
    (process.keep || process.keep_or_end) && kept::by().is_none() && !takeover::is_successor()
}

/// Makes this process, which has parsed its command line and done nothing else, a keeper: executed anew, it has no memory of
/// that. Returns only why it cannot.
pub(crate) fn become_one(args: &ProcessArgs) -> Failure {
    let itself = if args.config.is_some() {
        ITSELF_RELOADS
    } else {
        ITSELF
    };
    let failed = |error: io::Error| Failure::failed(format!("cannot become the keeper: {error}"));
    // Of a server that had none.
    store::clear();
    match takeover::program() {
        Ok(program) => failed(command(&program).env(KEEPER, itself).exec()),
        Err(error) => failed(error),
    }
}

/// Stays until all is over, and answers the exit code, if this process is a keeper.
pub(crate) fn stay() -> Option<ExitCode> {
    let hangup = match env::var_os(KEEPER)?.to_str()? {
        ITSELF => Meaning::End,
        ITSELF_RELOADS => Meaning::Restart,
        _ => return None,
    };
    let code = Keeper::new(hangup).map(Keeper::run);
    Some(code.unwrap_or_else(|error| {
        logger::fail_here(&format!("cannot become the keeper: {error}"));
        ExitCode::FAILURE
    }))
}

impl Keeper {
    fn new(hangup: Meaning) -> io::Result<Self> {
        // A server's sockets are to fit in, twice during a takeover.
        raise_descriptor_limit();
        let (read, write) = UnixStream::pair()?;
        let known = signals::of_a_server(hangup).map(|(number, _)| number);
        let known = known.chain([SIGCHLD]);
        let supervisor = Supervisor::from_env();
        let silence = supervisor.watchdog().map_or(SILENCE, |period| period / 2);
        Ok(Self {
            program: takeover::program()?,
            signals: SignalDelivery::with_pipe(read, write, SignalOnly, known)?,
            hangup,
            supervisor,
            silence,
            servers: Vec::new(),
            held: Vec::new(),
            stored: Vec::new(),
            falls: Falls::new(now()),
            leave_at: None,
            has_served: false,
            crashes: 0,
            crashed: None,
            ends: false,
            over: None,
        })
    }

    fn run(mut self) -> ExitCode {
        loop {
            if self.falls.is_due(now()) {
                self.start_afresh();
            }
            self.reap();
            if let (Some(code), true) = (self.over, self.servers.is_empty()) {
                return ExitCode::from(code);
            }
            self.wait();
            self.hear_signals();
            for at in 0..self.servers.len() {
                self.hear(at, HEARD_A_TURN);
            }
            self.see_who_ended();
            self.end_who_hangs();
            self.supervisor.turns();
        }
    }

    /// Those of the servers that have ended are judged; the system has them until the next one serves. To let it forget
    /// a process with thousands of descriptors takes it up to 50 ms, where somebody has looked at them in /proc.
    fn see_who_ended(&mut self) {
        let ended = |servers: &[Server]| {
            let mut each = servers.iter().enumerate();
            each.find_map(|(at, server)| Some((at, server.how_it_ended()?)))
        };
        while let Some((at, status)) = ended(&self.servers) {
            self.ended(at, status);
        }
    }

    /// Takes leave of all children that have ended: of a server not while clients wait for the next one, or not soon.
    fn reap(&mut self) {
        let starts = self.servers.iter().any(|one| one.stage == Stage::Starts);
        if starts && self.leave_at.is_some_and(|at| now() < at) {
            return;
        }
        self.leave_at = None;
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            // Others are orphans, which process 1 gets, and who was judged before.
            if let Some(at) = self.servers.iter().position(|server| server.pid == pid) {
                self.ended(at, ExitStatus::from_raw(status.as_raw()));
            }
        }
    }

    /// Waits for a signal, a message, or the next moment at which there is something to do.
    fn wait(&mut self) {
        let from = now();
        let due = self.servers.iter().filter(|one| one.stage != Stage::Left);
        let due = due.map(|server| server.due).chain(self.falls.start_at);
        let next = due.chain(self.leave_at).min();
        let next = next.map(|at| at.saturating_duration_since(from));
        // The service manager hears from here in time, too.
        let most = self.supervisor.next_word();
        let bound = next.into_iter().chain(most).min();
        let timeout = bound.and_then(|bound| Timespec::try_from(bound).ok());
        let mut polled = vec![PollFd::new(self.signals.get_read(), PollFlags::IN)];
        let lines = self
            .servers
            .iter()
            .filter_map(|server| server.line.as_ref());
        polled.extend(lines.map(|line| PollFd::new(&line.0, PollFlags::IN)));
        // A signal is as good as what it waits for.
        let _ = poll(&mut polled, timeout.as_ref());
        let late = bound.map_or(Duration::ZERO, |bound| from.elapsed().saturating_sub(bound));
        if late > STOOD_STILL {
            // It was stopped itself, and so perhaps were they.
            let least = now() + self.silence;
            for server in &mut self.servers {
                server.due = server.due.max(least);
            }
        }
    }

    fn hear_signals(&mut self) {
        let came: Vec<_> = self.signals.pending().collect();
        for number in came {
            let known = signals::of_a_server(self.hangup).find(|(known, _)| *known == number);
            let Some((_, meaning)) = known else { continue };
            // What has no name means no more than one that has.
            let signal = Signal::from_named_raw(number).unwrap_or(Signal::TERM);
            match meaning {
                Meaning::End | Meaning::EndAtOnce | Meaning::Leave => {
                    self.ends = true;
                    if self.falls.start_at.take().is_some() {
                        // No server runs whose end would tell.
                        self.over = Some(0);
                    }
                    self.signal(signal, |_| true);
                }
                // One that does not hear it yet would end of it, and has the new file anyway.
                Meaning::Reopen => self.signal(signal, |stage| stage != Stage::Starts),
                Meaning::Restart => self.signal(signal, |stage| stage == Stage::Serves),
                Meaning::None => {}
            }
        }
    }

    fn signal(&self, signal: Signal, to: impl Fn(Stage) -> bool) {
        for server in self.servers.iter().filter(|server| to(server.stage)) {
            server.signal(signal);
        }
    }

    /// Hears what a server has said, so many messages at most.
    fn hear(&mut self, at: usize, most: usize) {
        for _ in 0..most {
            let Some(line) = self.servers[at].line.as_ref() else {
                return;
            };
            match line.receive() {
                Ok(Some((text, descriptors))) => self.told(at, &text, descriptors),
                Ok(None) => self.servers[at].line = None,
                // It has gone without reading an answer: what it said before that is behind this.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(_) => return,
            }
        }
    }

    fn told(&mut self, at: usize, text: &str, descriptors: Vec<OwnedFd>) {
        let field = |name: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        };
        let silence = self.silence;
        let server = &mut self.servers[at];
        if server.stage == Stage::Serves {
            server.due = now() + silence;
        }
        if let Some(words) = field("STATUS") {
            words.clone_into(&mut server.words);
        }
        server.ends |= field("STOPPING").is_some();
        if field("FDSTORE").is_some() {
            let name = field("FDNAME").unwrap_or_default();
            if server.wants.len() < HELD_MOST {
                server.wants.extend(Held::by(name, descriptors));
            }
        } else if let Some(name) = field("X_STORE") {
            if server.stored.len() < HELD_MOST {
                server.stored.extend(Held::by(name, descriptors));
            }
        } else if let Some(name) = field("X_GIVE_UP") {
            server.stored.retain(|held| held.name != name);
        } else if field("X_OWNS").is_some() {
            self.owns(at);
        } else if field("X_SECRET").is_some() {
            crate::keep_keys_from_others(true);
        } else if let Some(control) = field("X_SUCCESSOR") {
            if server.stage == Stage::Starts {
                // It has yet to say that it serves, which those who ask it know already.
                server.asks = Some((control.to_owned(), descriptors));
            } else {
                self.answer(at, control, descriptors);
            }
        } else if let Some(pid) = field("MAINPID") {
            self.left_to(at, pid.parse().unwrap_or_default());
        } else if field("READY").is_some() {
            self.ready(at);
        }
        if self.servers[at].stage == Stage::Serves {
            self.supervisor.pass_on(text);
        }
    }

    /// A server serves: nobody else does, and what it has given is all that is kept.
    fn ready(&mut self, at: usize) {
        let now = now();
        for server in &mut self.servers {
            if server.stage == Stage::Serves {
                server.stage = Stage::Left;
            }
        }
        let server = &mut self.servers[at];
        server.stage = Stage::Serves;
        server.since = now;
        server.due = now + self.silence;
        self.held = std::mem::take(&mut server.wants);
        let asks = server.asks.take();
        self.falls.serves();
        self.has_served = true;
        self.crashed = None;
        if let Some((control, descriptors)) = asks {
            self.answer(at, &control, descriptors);
        }
    }

    /// Connections are this server's: what others have stored is of no use any more.
    fn owns(&mut self, at: usize) {
        self.stored.clear();
        for (of, server) in self.servers.iter_mut().enumerate() {
            server.owns = of == at;
            if of != at {
                server.stored.clear();
            }
        }
    }

    /// A server says which process has taken over from it.
    fn left_to(&mut self, at: usize, pid: u32) {
        let by = |server: &Server| server.pid.as_raw_nonzero().get().cast_unsigned() == pid;
        if let Some(next) = self.servers.iter().position(by) {
            self.servers[at].stage = Stage::Left;
            if self.servers[next].stage == Stage::Starts {
                // It says so itself a moment later, and what is to be kept.
                self.servers[next].stage = Stage::Serves;
            }
        } else {
            // Another's: with the end of this one there is nothing to keep any more.
            self.servers[at].ends = true;
            self.supervisor.handed_over(pid);
        }
    }

    /// Starts a successor for a server that asks for one, and tells it.
    fn answer(&mut self, at: usize, control: &str, descriptors: Vec<OwnedFd>) {
        let answer = match self.start_successor(at, control, descriptors) {
            Ok(pid) => format!("PID={pid}"),
            Err(error) => format!("ERROR={error}"),
        };
        if let Some(line) = &self.servers[at].line {
            line.say(&answer);
        }
    }

    fn start_successor(
        &mut self,
        at: usize,
        control: &str,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<Pid> {
        let is_under_way = self.servers.iter().any(|one| one.stage == Stage::Starts);
        let refused = if self.ends || self.servers[at].stage != Stage::Serves {
            Some("this server ends, or does not serve")
        } else {
            is_under_way.then_some("another process is just being started")
        };
        if let Some(why) = refused {
            return Err(io::Error::other(why));
        }
        let pid = self.start(|command| {
            command.env(SUCCESSOR, control);
            if let Some(stdin) = descriptors.into_iter().next() {
                command.stdin(stdin);
            }
        })?;
        self.supervisor.reloading();
        Ok(pid)
    }

    /// Starts a server that takes over from nobody.
    fn start_afresh(&mut self) {
        let crashed = self.crashed.clone();
        let started = self.start(|command| {
            if let Some(crashed) = crashed {
                command.env(CRASHED, crashed);
            }
        });
        if let Err(error) = started {
            // A machine that is out of memory or processes will have some again.
            logger::fail_here(&format!("the keeper cannot start a server: {error}"));
            if self.has_served {
                self.falls.fall(now());
            } else {
                self.over = Some(1);
            }
        }
    }

    fn start(&mut self, with: impl FnOnce(&mut Command)) -> io::Result<Pid> {
        let given = (&self.held[..], &self.stored[..], self.crashes);
        let server = Server::start(self.program(), given, (now(), self.silence), with)?;
        let pid = server.pid;
        self.servers.push(server);
        Ok(pid)
    }

    /// What is started: this very program where its file is gone, or just being replaced.
    fn program(&self) -> &Path {
        let found = takeover::found(&self.program);
        let runs = found.is_some_and(|path| access(path, Access::EXEC_OK).is_ok());
        if runs {
            &self.program
        } else {
            Path::new("/proc/self/exe")
        }
    }

    fn ended(&mut self, at: usize, status: ExitStatus) {
        self.hear(at, HEARD_AT_LAST);
        let mut server = self.servers.remove(at);
        self.leave_at = Some(now() + LEAVE);
        if server.owns {
            self.stored = std::mem::take(&mut server.stored);
        }
        let code = successor::exit_code(status);
        let others = |stage| self.servers.iter().any(|server| server.stage == stage);
        let (starting, serving) = (others(Stage::Starts), others(Stage::Serves));
        let unserved = server.stage == Stage::Starts;
        if server.stage == Stage::Left || self.over.is_some() {
            return;
        }
        if unserved && serving {
            // What it was to take over from goes on.
            return self.supervisor.reloaded();
        }
        let is_end = server.ends || self.ends || (!unserved && code == 0);
        if is_end || (unserved && !self.has_served && code == 2) {
            self.over = Some(code);
            return self.signal(Signal::TERM, |_| true);
        }
        let what = server.fate(status);
        let served = (!unserved).then(|| now().saturating_duration_since(server.since));
        self.falls.ended(served);
        if unserved {
            // It may have listened already, and clients have come.
            for want in server.wants {
                if !self.held.iter().any(|held| held.is_same(&want)) {
                    self.held.push(want);
                }
            }
        }
        if self.falls.are_enough() {
            logger::fail_here(&format!(
                "the keeper gives up: {ENOUGH} servers in a row have ended before they served, the last one with {what}"
            ));
            self.over = Some(code);
            return self.signal(Signal::TERM, |_| true);
        }
        // One that had the connections has served, though it came to say only so much.
        if !unserved || server.owns {
            self.crashes += 1;
            self.crashed = Some(what);
        }
        // One that was just taking over either has done so, or ends.
        if !starting {
            self.falls.fall(now());
        }
    }

    /// Ends servers that have said nothing for too long. What they hold is free once they have ended.
    fn end_who_hangs(&mut self) {
        let now = now();
        for server in &mut self.servers {
            if server.stage != Stage::Left && server.due <= now && !server.hung {
                server.hung = true;
                server.due = now + START;
                server.signal(Signal::KILL);
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a process that only waits has no turn whose time it could be given"
)]
fn now() -> Instant {
    Instant::now()
}
