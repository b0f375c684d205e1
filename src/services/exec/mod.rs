//! One process per connection, the socket itself as its stdin and stdout: what inetd, tcpserver and `ncat -e` do.
//!
//! The engine gives the socket away and keeps watch from afar; the process is watched by its pidfd, and by its stderr if
//! that goes to the log. What takes time, starting processes and ending those that outlive their connection, is done by
//! one thread (`nursery.rs`). `options.rs` is what an embedder decides of them, `environment.rs` what a program is told
//! of its connection, `lines.rs` its stderr as log lines, `program.rs` where it is.

mod environment;
mod lines;
mod nursery;
mod options;
mod program;

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
use crate::services::exec::lines::{Lines, STDERR_REST, STDERR_TURN};
use crate::services::exec::nursery::{
    GRACE, Group, Job, Kept, Leaving, Nursery, Slot, Spawned, Ticket, Watch, Words, say,
};
use crate::services::exec::program::Program;

pub use options::{ExecOptions, Stderr};

/// How long a process may go on after its client was lost: it may have something to finish.
const AFTERLIFE: Duration = Duration::from_secs(10);

/// The form of an exported state, with a process and without.
const STATE: u16 = 1;
const STATE_WITHOUT: u16 = 2;

/// One process per connection, with the socket as its stdin and stdout.
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
        let socket = conn.give_away()?;
        let slot = Arc::<Slot>::default();
        self.nursery.start(Job {
            id: conn.id(),
            peer: conn.peer(),
            local: conn.local().ok(),
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
                });
            }
        }
    }

    /// It has said something on stderr, or has ended.
    fn look(&self, process: &mut Process, conn: &mut Context<'_>) {
        let Phase::Running(running) = &mut process.phase else {
            return;
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

    fn input(&self, _: &mut Process, _: &mut Context<'_>, bytes: &[u8]) -> usize {
        // What is heard out before the end.
        bytes.len()
    }

    fn ready(&self, process: &mut Process, conn: &mut Context<'_>, what: Ready) {
        match what {
            Ready::Resumed => {
                self.started(process, conn);
                Self::settle(process, conn);
            }
            Ready::Alarm => self.remind(process, conn),
            Ready::Watched => self.look(process, conn),
        }
    }

    fn recall(&self, process: &mut Process, conn: &mut Context<'_>) -> bool {
        match &mut process.phase {
            Phase::Running(running) => {
                if running.sent.is_none() {
                    running.end(Signal::TERM, conn);
                }
                true
            }
            Phase::Ended { .. } => true,
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
            | CloseReason::IoError => Some(AFTERLIFE),
            _ => Some(Duration::ZERO),
        };
        let ticket = process.ticket.take();
        let now = conn.turn.now;
        match std::mem::replace(&mut process.phase, Phase::Over) {
            Phase::Starting(slot) => self.nursery.abandon(process.id, &slot, ticket, now),
            Phase::Running(running) => {
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
            Phase::Ended { .. } | Phase::Over => {}
        }
    }

    fn survive(&self) -> Survive {
        Survive::State
    }

    fn export(&self, process: &Process) -> Option<Exported> {
        let running = match &process.phase {
            // One that is being started is ours to wait for.
            Phase::Starting(_) => return None,
            // That it has ended is seen by its pidfd there, too.
            Phase::Running(running) | Phase::Ended { running, .. } => running,
            Phase::Over => {
                return Some(Exported {
                    schema: STATE_WITHOUT,
                    bytes: process.id.to_le_bytes().to_vec(),
                });
            }
        };
        let sent = match running.sent {
            None => 0,
            Some(Signal::KILL) => 2,
            Some(_) => 1,
        };
        let mut bytes = process.id.to_le_bytes().to_vec();
        bytes.extend(running.group.pid().to_le_bytes());
        bytes.extend([sent, u8::from(running.logs)]);
        bytes.extend(process.lines.waiting());
        Some(Exported {
            schema: STATE,
            bytes,
        })
    }

    fn import(&self, exported: &Exported) -> Result<Process, String> {
        const AMISS: &str = "the state of a process that cannot be read";
        let (id, bytes) = exported.bytes.split_first_chunk().ok_or(AMISS)?;
        let id = u64::from_le_bytes(*id);
        match exported.schema {
            STATE => {}
            STATE_WITHOUT => {
                return Ok(Process {
                    id,
                    phase: Phase::Over,
                    ticket: None,
                    lines: Lines::default(),
                });
            }
            schema => {
                return Err(format!(
                    "the state of a process in form {schema}, this one reads {STATE} and {STATE_WITHOUT}"
                ));
            }
        }
        let (pid, bytes) = bytes.split_first_chunk().ok_or(AMISS)?;
        let ([sent, logs], waiting) = bytes.split_first_chunk().ok_or(AMISS)?;
        let running = Running {
            group: Group::numbered(i32::from_le_bytes(*pid)).ok_or(AMISS)?,
            child: None,
            sent: match sent {
                0 => None,
                1 => Some(Signal::TERM),
                2 => Some(Signal::KILL),
                _ => return Err(AMISS.to_owned()),
            },
            logs: *logs == 1,
        };
        Ok(Process {
            id,
            phase: Phase::Running(running),
            ticket: self.nursery.admit(None),
            lines: Lines::from_waiting(waiting),
        })
    }

    fn stop(&self, _: Duration) -> bool {
        // What is left has had its time: it is bounded by the grace before SIGKILL.
        if let Some(server) = self.server.get() {
            self.nursery.stop(server);
        }
        true
    }
}
