//! One process per connection, the socket itself as its stdin and stdout: what inetd, tcpserver and `ncat -e` do.
//!
//! The engine gives the socket away and keeps watch from afar; over TLS it relays to one end of a pair, the other end of which
//! is the program's (`relayed.rs`). The process is watched by its pidfd, and by its stderr if
//! that goes to the log. What takes time, starting processes and ending those that outlive their connection, is done by
//! one thread (`nursery.rs`). `options.rs` is what an embedder decides of them, `environment.rs` what a program is told
//! of its connection, `lines.rs` its stderr as log lines, `program.rs` where it is, `journey.rs` what crosses a takeover.

mod environment;
mod journey;
mod lines;
mod nursery;
mod options;
mod program;
mod relayed;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::Signal;

use crate::handle::Handle;
use crate::liveness::close::CloseReason;
use crate::os::children::Owned;
use crate::os::sys;
use crate::service::{Context, Exported, Patience, Ready, Service, Survive};
use crate::services::exec::environment::Secured;
use crate::services::exec::lines::{Lines, STDERR_REST, STDERR_TURN};
use crate::services::exec::nursery::{
    GRACE, Group, Job, Kept, Leaving, Nursery, Slot, Spawned, Ticket, Watch, Words, say,
};
use crate::services::exec::program::Program;

pub use options::{ExecOptions, Stderr};

/// How long a process may go on after its client was lost: it may have something to finish.
const AFTERLIFE: Duration = Duration::from_secs(10);

/// One process per connection, with the socket as its stdin and stdout; over TLS, one end of a pair of sockets that is relayed
/// to its client.
///
/// The connection lives as long as the process; a process that outlives its connection gets SIGTERM, and SIGKILL
/// 2 s later. Linux only: processes are watched by pidfd.
#[derive(Debug)]
pub struct Exec {
    program: Arc<Program>,
    options: ExecOptions,
    nursery: Arc<Nursery>,
    server: OnceLock<Handle>,
}

/// A connection's process, as [`Exec`] remembers it.
#[derive(Debug)]
pub struct Process {
    id: u64,
    phase: Phase,
    /// Counts among the processes.
    ticket: Option<Ticket>,
    lines: Lines,
}

#[derive(Debug)]
enum Phase {
    Starting(Arc<Slot>),
    Running(Running),
    /// It has ended, and whether somebody else has the socket yet is not known.
    Ended {
        running: Running,
        /// It ended of itself, and the client had said before that it was done.
        after_client: bool,
        kept: Arc<OnceLock<Kept>>,
    },
    /// It has ended, and somebody else has the other end of the pair that its client is relayed to.
    Left(Left),
    /// There is none: no room for it, it could not be started, or it has ended.
    Over,
}

#[derive(Debug)]
struct Running {
    group: Group,
    /// `None`: another process started it.
    child: Option<Owned>,
    /// The last signal it was sent, at its time limit or because its client is silent.
    sent: Option<Signal>,
    /// Its stderr is watched, too.
    logs: bool,
    /// It says no more to a client that is relayed to it; and whether that had said before that it was done.
    parted: Option<bool>,
}

/// The process of a connection has ended, and somebody else has its end of the pair.
#[derive(Clone, Copy, Debug)]
struct Left {
    pid: i32,
    /// It ended of itself, and the client had said before that it was done.
    after_client: bool,
}

/// Which watched descriptor is which.
const PIDFD: usize = 0;
const STDERR: usize = 1;

impl Exec {
    /// Runs `program`, looked for in PATH as execvp(3) does unless it has a slash, with `arguments`.
    ///
    /// # Errors
    /// There is no such program, or it may not be executed.
    pub fn new(
        program: &OsStr,
        arguments: Vec<OsString>,
        options: ExecOptions,
    ) -> io::Result<Self> {
        Ok(Self {
            program: Arc::new(Program::find(program, arguments, &options)?),
            options,
            nursery: Arc::new(Nursery::new()),
            server: OnceLock::new(),
        })
    }

    fn start_for(&self, conn: &mut Context<'_>) -> io::Result<Arc<Slot>> {
        let socket = match conn.has_tls() {
            true => conn.pair()?,
            false => conn.give_away()?,
        };
        let tls = conn.tls().map(|(session, issuer)| Secured {
            session,
            issuer: issuer.map(str::to_owned),
        });
        let slot = Arc::<Slot>::default();
        self.nursery.start(Job {
            id: conn.id(),
            peer: conn.peer(),
            local: conn.local().ok(),
            tls,
            socket,
            slot: Arc::clone(&slot),
        });
        Ok(slot)
    }

    /// The process was started, or it was not.
    fn started(&self, process: &mut Process, conn: &mut Context<'_>) {
        let Phase::Starting(slot) = &process.phase else {
            return;
        };
        match slot.take() {
            None => conn.pause(),
            Some(Err(error)) => {
                log::warn!(id = process.id, program:% = self.program.path.display(), error:%; "cannot start a process");
                process.phase = Phase::Over;
                process.ticket = None;
                // Nobody has the socket; in a failure of this, too, closing it is all there is to do.
                let _ = conn.take_back();
                conn.hang_up_far();
                conn.finish();
            }
            Some(Ok(Spawned {
                child,
                pidfd,
                stderr,
            })) => {
                let group = Group::of(&child);
                log::debug!(id = process.id, pid = child.id(); "started a process");
                conn.watch(pidfd);
                let logs = stderr.is_some();
                if let Some(stderr) = stderr {
                    conn.watch(stderr);
                }
                conn.set_alarm(self.options.timeout);
                process.phase = Phase::Running(Running {
                    group,
                    child: Some(child),
                    sent: None,
                    logs,
                    // It may have said all by now; of its client nothing was heard meanwhile.
                    parted: (conn.has_tls() && conn.has_far_ended()).then_some(false),
                });
            }
        }
    }

    /// It has said something on stderr, or has ended.
    fn look(&self, process: &mut Process, conn: &mut Context<'_>) {
        let Phase::Running(running) = &mut process.phase else {
            return self.hear_left(process, conn);
        };
        let ended = running.has_ended(conn);
        if running.logs
            && let Some(stderr) = conn.watched().get(STDERR)
        {
            let budget = if ended.is_some() {
                STDERR_REST
            } else {
                STDERR_TURN
            };
            let spent = (conn.turn.now, self.nursery.spoken());
            let more = process
                .lines
                .read(stderr.as_fd(), budget, spent, process.id);
            if more && ended.is_none() {
                conn.again();
            }
        }
        let Some(status) = ended else { return };
        if running.sent == Some(Signal::TERM) && running.group.exists() {
            // The rest of its group has until the SIGKILL, too.
            return;
        }
        process
            .lines
            .end((conn.turn.now, self.nursery.spoken()), process.id);
        say(
            process.id,
            running.group.pid(),
            running.sent.is_some(),
            status,
        );
        process.ticket = None;
        conn.set_alarm(None);
        let Phase::Running(running) = std::mem::replace(&mut process.phase, Phase::Over) else {
            return;
        };
        if conn.has_tls() {
            return Self::leave(process, &running, conn);
        }
        conn.recount();
        let after_client = running.sent.is_none() && conn.has_peer_finished();
        match conn.inode() {
            Ok(inode) => {
                let now = conn.turn.now;
                let kept = self.nursery.look_for_holder(inode, running.group, now);
                process.phase = Phase::Ended {
                    running,
                    after_client,
                    kept,
                };
                conn.pause();
            }
            Err(error) => {
                log::debug!(id = process.id, error:%; "cannot name a socket");
                part(conn, after_client);
            }
        }
    }

    /// Whether somebody else has the socket of a process that has ended is known, or not yet.
    fn settle(process: &mut Process, conn: &mut Context<'_>) {
        let Phase::Ended {
            running,
            after_client,
            kept,
        } = &process.phase
        else {
            return;
        };
        let Some(kept) = kept.get() else {
            return conn.pause();
        };
        part(conn, *after_client);
        match *kept {
            // Unread input, and what comes yet, would make closing a reset, and that would take undelivered output
            // along: the engine delivers it, and hears the client out.
            Kept::Nobody => {
                if let Err(error) = conn.take_back() {
                    log::debug!(id = process.id, error:%; "cannot take a socket back");
                }
            }
            Kept::Unknown => {
                log::warn!(id = process.id; "cannot see in /proc whether a connection is somebody's yet: left to the system");
            }
            Kept::Somebody(holder) => {
                let (id, pid) = (process.id, running.group.pid());
                log::info!(id, pid, holder; "a process has left its connection to another one");
            }
        }
        process.phase = Phase::Over;
    }

    /// Its time is over: SIGTERM, then SIGKILL.
    fn remind(&self, process: &mut Process, conn: &mut Context<'_>) {
        let Phase::Running(running) = &mut process.phase else {
            return;
        };
        let signal = match running.sent {
            None => {
                log::info!(id = process.id, pid = running.group.pid(); "a process ran into its time limit");
                Signal::TERM
            }
            Some(Signal::TERM) => Signal::KILL,
            // Another user's, as a program that changes its own user is: it ends when it likes.
            Some(_) => {
                log::info!(id = process.id, pid = running.group.pid(); "a process cannot be ended");
                conn.hang_up_far();
                return conn.finish();
            }
        };
        running.end(signal, conn);
        if running.has_ended(conn).is_some() {
            // That was said before, and is not again.
            self.look(process, conn);
        }
    }
}

impl Running {
    /// Sends it and those it has started the first of the signals that end them, or the next.
    fn end(&mut self, signal: Signal, conn: &mut Context<'_>) {
        conn.set_alarm(Some(GRACE));
        self.sent = Some(signal);
        self.group.signal(signal);
    }

    /// Whether it has ended, and how if that is known.
    fn has_ended(&mut self, conn: &Context<'_>) -> Option<Option<ExitStatus>> {
        match &mut self.child {
            // It is ours, so this answers.
            Some(child) => match child.try_wait() {
                Ok(status) => status.map(Some),
                // Ended, and nobody knows how: SIGCHLD is ignored.
                Err(_) => Some(None),
            },
            None => {
                let pidfd = conn.watched().get(PIDFD)?;
                nursery::has_ended(pidfd.as_fd()).then_some(None)
            }
        }
    }
}

/// Ends the connection of a process that has ended.
fn part(conn: &mut Context<'_>, after_client: bool) {
    if after_client {
        conn.finish();
    } else {
        conn.finish_as(CloseReason::Service);
    }
}

impl Service for Exec {
    type State = Process;

    fn name(&self) -> &'static str {
        "exec"
    }

    fn patience(&self) -> Patience {
        Patience::with_work()
    }

    fn children(&self) -> Option<usize> {
        Some(self.nursery.children())
    }

    fn descriptors(&self) -> usize {
        // The socket, the pidfd, the pipe of stderr; and what a start needs besides for a moment.
        3
    }

    fn has_pairs(&self) -> bool {
        true
    }

    fn outlasts_drain(&self) -> bool {
        true
    }

    fn start(&self, server: &Handle) {
        if self.server.set(server.clone()).is_err() {
            return;
        }
        if let Err(error) = sys::keep_descriptors() {
            log::warn!(error:%; "programs get the descriptors that this one was started with");
        }
        let program = Arc::clone(&self.program);
        if let Err(error) = Nursery::run(&self.nursery, program, server.clone()) {
            log::error!(error:%; "cannot start the thread that starts processes");
            server.drain();
        }
    }

    fn open(&self, conn: &mut Context<'_>) -> Process {
        let mut process = Process {
            id: conn.id(),
            phase: Phase::Over,
            ticket: self.nursery.admit(self.options.max_children),
            lines: Lines::default(),
        };
        if process.ticket.is_none() {
            conn.name_limit("max-children");
            conn.finish_as(CloseReason::Limit);
            return process;
        }
        match self.start_for(conn) {
            Ok(slot) => {
                process.phase = Phase::Starting(slot);
                conn.pause();
            }
            Err(error) => {
                log::warn!(id = process.id, error:%; "cannot give a socket to a process");
                process.ticket = None;
                conn.finish();
            }
        }
        process
    }

    fn input(&self, _: &mut Process, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        // Without a far side, what is heard out before the end.
        if let Some(mut far) = conn.far() {
            far.write(bytes);
        }
        bytes.len()
    }

    fn end(&self, _: &mut Process, conn: &mut Context<'_>, _: &[u8]) {
        Self::client_ended(conn);
    }

    fn far_end(&self, process: &mut Process, conn: &mut Context<'_>) {
        Self::program_ended(process, conn);
    }

    fn ready(&self, process: &mut Process, conn: &mut Context<'_>, what: Ready) {
        match what {
            Ready::Resumed => {
                self.started(process, conn);
                Self::settle(process, conn);
            }
            Ready::Alarm => {
                Self::say_left(process, conn);
                self.remind(process, conn);
            }
            Ready::Watched => self.look(process, conn),
        }
    }

    fn recall(&self, process: &mut Process, conn: &mut Context<'_>) -> bool {
        match &mut process.phase {
            Phase::Running(running) => {
                if running.sent.is_none() {
                    running.end(Signal::TERM, conn);
                }
                if conn.has_tls() {
                    conn.finish_later();
                }
                true
            }
            Phase::Ended { .. } => true,
            Phase::Left(_) => {
                conn.hang_up_far();
                false
            }
            Phase::Starting(_) | Phase::Over => false,
        }
    }

    fn over(&self, process: &mut Process, conn: &mut Context<'_>, reason: CloseReason) {
        let patience = match reason {
            CloseReason::HandedOff => None,
            CloseReason::PeerReset
            | CloseReason::KeepaliveDead
            | CloseReason::Unacknowledged
            | CloseReason::Unreachable
            | CloseReason::TlsTruncated
            | CloseReason::TlsAlert
            | CloseReason::IoError => Some(AFTERLIFE),
            _ => Some(Duration::ZERO),
        };
        let ticket = process.ticket.take();
        let now = conn.turn.now;
        match std::mem::replace(&mut process.phase, Phase::Over) {
            Phase::Starting(slot) => {
                let held = (ticket, conn.hold_far());
                self.nursery.abandon(process.id, &slot, held, now);
            }
            Phase::Running(mut running) => {
                if patience.is_some() {
                    running.hang_up(conn);
                }
                let watch = match running.child {
                    Some(child) => Some(Watch::Child(child)),
                    None => {
                        let pidfd = conn.watched().get(PIDFD);
                        pidfd.and_then(|pidfd| Some(Watch::Stranger(pidfd.try_clone().ok()?)))
                    }
                };
                let stderr = conn.watched().get(STDERR);
                let stderr = stderr.filter(|_| patience.is_some());
                let words = stderr.and_then(|stderr| {
                    Some(Words {
                        stderr: stderr.try_clone().ok()?,
                        lines: std::mem::take(&mut process.lines),
                    })
                });
                // Another process watches over a stranger that was handed off.
                if let Some(watch) = watch
                    && (patience.is_some() || matches!(watch, Watch::Child(_)))
                {
                    let id = process.id;
                    self.nursery.end(
                        Leaving::new(id, running.group, watch, words, ticket),
                        now,
                        patience,
                    );
                }
            }
            Phase::Left(_) => process.lines.end((now, self.nursery.spoken()), process.id),
            Phase::Ended { .. } | Phase::Over => {}
        }
    }

    fn survive(&self) -> Survive {
        Survive::State
    }

    fn export(&self, process: &Process) -> Option<Exported> {
        journey::export(process)
    }

    fn import(&self, exported: &Exported) -> Result<Process, String> {
        journey::import(exported, &self.nursery)
    }

    fn stop(&self, _: Duration) -> bool {
        // What is left has had its time: it is bounded by the grace before SIGKILL.
        if let Some(server) = self.server.get() {
            self.nursery.stop(server);
        }
        true
    }
}
