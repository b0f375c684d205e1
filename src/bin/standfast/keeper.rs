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
//! | `READY=1` | it serves; whoever served before it does not any more |
//! | `MAINPID=` | that process has taken over from it |
//! | `STOPPING=1` | its end will be an end, and no crash |
//! | `WATCHDOG=1`, or anything else | it turns |
//! | `STATUS=` | to be shown; of one that ends before it serves, why |
//! | `X_SUCCESSOR=`, a descriptor | start a server that takes over at that control socket; the answer is `PID=` or `ERROR=` |
//!
//! One thread, one loop: it waits in poll(2) for signals and messages. What it has of clients is nothing.

mod line;

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, access};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use signal_hook::consts::SIGCHLD;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use standfast::process::raise_descriptor_limit;

use crate::args::ProcessArgs;
use crate::keeper::line::{Held, Line};
use crate::kept::{self, CRASHED, KEEPER, STORED};
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

/// Before another server is started: not at all, where the last one had served so long; then doubled, up to the most.
const SETTLED: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MOST: Duration = Duration::from_secs(5);

/// So many in a row that end before they serve are enough.
const ENOUGH: u32 = 5;

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
    /// When the next one is started.
    start_at: Option<Instant>,
    /// Ends in a row with less than [`SETTLED`] before them, and of those the ones without having served.
    falls: u32,
    unserved: u32,
    has_served: bool,
    /// Servers that crashed, and what became of the last one, for the next one to tell.
    crashes: u64,
    crashed: Option<String>,
    /// It was told to end.
    ends: bool,
    /// All is over, with that exit code, once every process has ended.
    over: Option<u8>,
}

/// A process that serves, is to serve or has served.
struct Server {
    pid: Pid,
    /// `None`: it was closed at the other end.
    line: Option<Line>,
    stage: Stage,
    since: Instant,
    /// It is ended if it says nothing until then.
    due: Instant,
    hung: bool,
    ends: bool,
    words: String,
    wants: Vec<Held>,
    /// What it has stored of its connections, and whether those are its own.
    stored: Vec<Held>,
    owns: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starts,
    Serves,
    /// Another has taken over from it.
    Left,
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

/// This program with the arguments that this process has.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    let mut args = env::args_os();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args);
    command
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
            start_at: Some(now()),
            falls: 0,
            unserved: 0,
            has_served: false,
            crashes: 0,
            crashed: None,
            ends: false,
            over: None,
        })
    }

    fn run(mut self) -> ExitCode {
        loop {
            if self.start_at.is_some_and(|at| at <= now()) {
                self.start_at = None;
                self.start_afresh();
            }
            if let (Some(code), true) = (self.over, self.servers.is_empty()) {
                return ExitCode::from(code);
            }
            self.wait();
            self.hear_signals();
            for at in 0..self.servers.len() {
                self.hear(at, HEARD_A_TURN);
            }
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                // Others are orphans, which process 1 gets.
                if let Some(at) = self.servers.iter().position(|server| server.pid == pid) {
                    self.hear(at, HEARD_AT_LAST);
                    let server = self.servers.remove(at);
                    self.ended(server, ExitStatus::from_raw(status.as_raw()));
                }
            }
            self.end_who_hangs();
            self.supervisor.turns();
        }
    }

    /// Waits for a signal, a message, or the next moment at which there is something to do.
    fn wait(&mut self) {
        let from = now();
        let due = self.servers.iter().filter(|one| one.stage != Stage::Left);
        let next = due.map(|server| server.due).chain(self.start_at).min();
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
                    if self.start_at.take().is_some() {
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
            // It may have ended, and has not been waited for: the number is nobody else's.
            let _ = kill_process(server.pid, signal);
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
        } else if let Some(control) = field("X_SUCCESSOR") {
            let answer = match self.start_successor(at, control, descriptors) {
                Ok(pid) => format!("PID={pid}"),
                Err(error) => format!("ERROR={error}"),
            };
            if let Some(line) = &self.servers[at].line {
                line.say(&answer);
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
        self.unserved = 0;
        self.has_served = true;
        self.crashed = None;
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
                self.fall();
            } else {
                self.over = Some(1);
            }
        }
    }

    fn start(&mut self, with: impl FnOnce(&mut Command)) -> io::Result<Pid> {
        let (line, theirs) = Line::pair()?;
        let mut command = command(self.program());
        with(&mut command);
        let is_successor = command
            .get_envs()
            .any(|(name, _)| name == OsStr::new(SUCCESSOR));
        let mut keeper = format!("{} {} {}", process::id(), theirs.as_raw_fd(), self.crashes);
        let mut lent = vec![theirs.as_fd()];
        // A successor has the sockets from the server that it takes over from.
        let held = self.held.iter().map(|held| ("", held));
        let stored = self.stored.iter().map(|held| (STORED, held));
        for (kind, held) in held.chain(stored).filter(|_| !is_successor) {
            let numbers = held
                .descriptors
                .iter()
                .map(|one| one.as_raw_fd().to_string());
            let numbers: Vec<_> = numbers.collect();
            keeper.push_str(&format!(" {kind}{}:{}", held.name, numbers.join("+")));
            lent.extend(held.descriptors.iter().map(AsFd::as_fd));
        }
        command.env(KEEPER, keeper);
        let silence = self.silence.as_micros().to_string();
        command.env("WATCHDOG_USEC", silence);
        for name in ["NOTIFY_SOCKET", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        // One thread: nobody else starts a process meanwhile.
        lent.iter()
            .try_for_each(|one| fcntl_setfd(one, FdFlags::empty()))?;
        let started = command.spawn();
        lent.iter()
            .try_for_each(|one| fcntl_setfd(one, FdFlags::CLOEXEC))?;
        let pid = Pid::from_child(&started?);
        let now = now();
        self.servers.push(Server {
            pid,
            line: Some(line),
            stage: Stage::Starts,
            since: now,
            due: now + START.max(self.silence),
            hung: false,
            ends: false,
            words: String::new(),
            wants: Vec::new(),
            stored: Vec::new(),
            owns: false,
        });
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

    /// Another server is started: the sooner, the longer the last one has served.
    fn fall(&mut self) {
        let pause = match self.falls {
            0 => Duration::ZERO,
            falls => PAUSE.saturating_mul(1 << (falls - 1).min(16)),
        };
        self.falls = self.falls.saturating_add(1);
        self.start_at = Some(now() + pause.min(PAUSE_MOST));
    }

    fn ended(&mut self, mut server: Server, status: ExitStatus) {
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
        let pid = server.pid.as_raw_nonzero();
        let how = if server.hung {
            "stood still, was ended"
        } else {
            "ended"
        };
        let mut what = format!("pid {pid} {how}: {status}");
        if unserved {
            self.unserved += 1;
            // It may have listened already, and clients have come.
            for want in server.wants {
                if !self.held.iter().any(|held| held.is_same(&want)) {
                    self.held.push(want);
                }
            }
            if !server.words.is_empty() {
                what = format!("{what}: {}", server.words);
            }
        } else if server.since.elapsed() >= SETTLED {
            self.falls = 0;
        }
        if self.unserved >= ENOUGH {
            logger::fail_here(&format!(
                "the keeper gives up: {ENOUGH} servers in a row have ended before they served, the last one with {what}"
            ));
            self.over = Some(code);
            return self.signal(Signal::TERM, |_| true);
        }
        if !unserved {
            self.crashes += 1;
            self.crashed = Some(what);
        }
        // One that was just taking over either has done so, or ends.
        if !starting {
            self.fall();
        }
    }

    /// Ends servers that have said nothing for too long. What they hold is free once they have ended.
    fn end_who_hangs(&mut self) {
        let now = now();
        for server in &mut self.servers {
            if server.stage != Stage::Left && server.due <= now && !server.hung {
                server.hung = true;
                server.due = now + START;
                let _ = kill_process(server.pid, Signal::KILL);
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
