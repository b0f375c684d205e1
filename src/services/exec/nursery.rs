//! The thread that starts processes, and ends those that outlive their connection.
//!
//! A fork takes about a millisecond, in which no other connection of a worker would be served: so this thread does it,
//! and wakes the connection. It is also the one who has time: SIGTERM, a grace, SIGKILL, and the wait that leaves no
//! zombie.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::address::endpoint::Peer;
use crate::handle::Handle;
use crate::os::children::{self, Owned};
use crate::os::holder;
use crate::os::sys::users::linux::{self, Confinement};
use crate::os::threads;
use crate::services::exec::environment::{self, Secured};
use crate::services::exec::lines::{Lines, STDERR_REST, Spent};
use crate::services::exec::options::Stderr;
use crate::services::exec::program::Program;
use crate::time::deadline::Moment;

/// How long a process may take to end after SIGTERM.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// How often it is looked whether a process that is to end has ended.
const GLANCE: Duration = Duration::from_millis(20);

/// How long those whom a process has started and left may hold on to its socket before it is theirs: as a rule they end
/// with it.
pub(super) const FAREWELL: Duration = Duration::from_millis(200);

/// What is to be done, and who is to end.
#[derive(Debug)]
pub(super) struct Nursery {
    /// Processes that count.
    children: Arc<AtomicUsize>,
    /// What they have said in the log.
    spoken: Mutex<Spent>,
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    jobs: VecDeque<Job>,
    leaving: Vec<Leaving>,
    /// Sockets whose process has ended.
    left: Vec<Left>,
    /// Everything is to end, and then the thread.
    over: Option<Over>,
    /// The thread runs.
    runs: bool,
}

impl Work {
    fn is_new(&self) -> bool {
        !(self.jobs.is_empty() && self.leaving.is_empty() && self.left.is_empty())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Soon,
    Now,
}

/// A process to start.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) peer: Peer,
    /// What it has dialled.
    pub(super) local: Option<SocketAddr>,
    /// What is known of its TLS session, if it has one.
    pub(super) tls: Option<Secured>,
    pub(super) socket: OwnedFd,
    pub(super) slot: Arc<Slot>,
}

/// A socket whose process has ended.
#[derive(Debug)]
struct Left {
    inode: u64,
    group: Group,
    /// Who has it then is to keep it.
    until: Moment,
    answer: Arc<OnceLock<Kept>>,
}

/// Whether somebody has a socket yet whose process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Nobody,
    /// A process that is known, or is not.
    Somebody(Option<u32>),
    /// Proc(5) does not tell.
    Unknown,
}

/// Where a connection finds its process.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Start>);

#[derive(Debug, Default)]
enum Start {
    #[default]
    Waiting,
    Done(io::Result<Spawned>),
    /// Nobody wants it any more. It counts until it has ended, and sees no end of its input before the signal.
    Abandoned(Option<Ticket>, Option<OwnedFd>),
}

/// A process that was started.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) child: Owned,
    pub(super) pidfd: OwnedFd,
    pub(super) stderr: Option<OwnedFd>,
}

/// A process that is to end, or is only awaited.
#[derive(Debug)]
pub(super) struct Leaving {
    id: u64,
    group: Group,
    watch: Watch,
    /// When it gets SIGTERM; never if it is only awaited.
    term: Moment,
    /// When it gets SIGKILL.
    kill: Moment,
    /// What it says yet: with nobody to read that, it would be ended by SIGPIPE.
    words: Option<Words>,
    /// That it has ended was said.
    said: bool,
    _ticket: Option<Ticket>,
}

/// The stderr of a process that has outlived its connection.
#[derive(Debug)]
pub(super) struct Words {
    pub(super) stderr: OwnedFd,
    pub(super) lines: Lines,
}

/// How a process's end is seen.
#[derive(Debug)]
pub(super) enum Watch {
    Child(Owned),
    /// Started by another process: its pidfd.
    Stranger(OwnedFd),
}

/// Counts one process for as long as it lives.
#[derive(Debug)]
pub(super) struct Ticket(Arc<AtomicUsize>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A process and those it started, each connection's a group of its own (setpgid(2)): a signal reaches them all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group(Pid);

impl Group {
    pub(super) fn of(child: &Owned) -> Self {
        Self(child.pid())
    }

    /// `None` for a number that is no process's, such as 1 or -1, which would be everybody.
    pub(super) fn numbered(pid: i32) -> Option<Self> {
        Pid::from_raw(pid).filter(|_| pid > 1).map(Self)
    }

    pub(super) fn pid(self) -> i32 {
        self.0.as_raw_nonzero().get()
    }

    /// Called only while its first process lives or is unreaped, or somebody of it is known to be there: the number
    /// is not another's meanwhile.
    pub(super) fn signal(self, signal: Signal) {
        if let Err(error) = rustix::process::kill_process_group(self.0, signal) {
            log::debug!(pid = self.pid(), error:% = io::Error::from(error); "cannot signal a process");
        }
    }

    /// The end of its input, which it sees next, is none that its client has sent: tells it so by SIGHUP, or by SIGTERM where
    /// that is ignored, as under nohup(1).
    pub(super) fn hang_up(self) {
        self.signal(match children::ignores(self.0, Signal::HUP) {
            true => Signal::TERM,
            false => Signal::HUP,
        });
    }

    /// Whether anybody is left of it.
    pub(super) fn exists(self) -> bool {
        rustix::process::test_kill_process_group(self.0) != Err(rustix::io::Errno::SRCH)
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Start> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came of the start, once.
    pub(super) fn take(&self) -> Option<io::Result<Spawned>> {
        let mut start = self.lock();
        match std::mem::take(&mut *start) {
            Start::Done(done) => Some(done),
            other => {
                *start = other;
                None
            }
        }
    }
}

impl Nursery {
    pub(super) fn new() -> Self {
        Self {
            children: Arc::default(),
            spoken: Mutex::default(),
            work: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all processes have said in the log.
    pub(super) fn spoken(&self) -> &Mutex<Spent> {
        &self.spoken
    }

    /// Room for one more, if there are fewer than `most`.
    pub(super) fn admit(&self, most: Option<NonZeroUsize>) -> Option<Ticket> {
        let ticket = Ticket(Arc::clone(&self.children));
        let before = self.children.fetch_add(1, Ordering::AcqRel);
        most.is_none_or(|most| before < most.get())
            .then_some(ticket)
    }

    /// How many processes count.
    pub(super) fn children(&self) -> usize {
        self.children.load(Ordering::Acquire)
    }

    pub(super) fn start(&self, job: Job) {
        self.lock().jobs.push_back(job);
        self.changed.notify_all();
    }

    /// Nobody waits for what is being started there.
    pub(super) fn abandon(
        &self,
        id: u64,
        slot: &Slot,
        (ticket, far): (Option<Ticket>, Option<OwnedFd>),
        now: Moment,
    ) {
        let mut start = slot.lock();
        match std::mem::replace(&mut *start, Start::Abandoned(None, None)) {
            Start::Done(Ok(spawned)) => {
                drop(start);
                self.end_unwanted(id, spawned, (ticket, far), now);
            }
            Start::Done(Err(_)) => {}
            Start::Waiting | Start::Abandoned(..) => *start = Start::Abandoned(ticket, far),
        }
    }

    fn end_unwanted(
        &self,
        id: u64,
        spawned: Spawned,
        (ticket, far): (Option<Ticket>, Option<OwnedFd>),
        now: Moment,
    ) {
        let Spawned { child, stderr, .. } = spawned;
        let group = Group::of(&child);
        if let Some(far) = far {
            group.hang_up();
            drop(far);
        }
        let words = stderr.map(|stderr| Words {
            stderr,
            lines: Lines::default(),
        });
        let at_once = Some(Duration::ZERO);
        let leaving = Leaving::new(id, group, Watch::Child(child), words, ticket);
        self.end(leaving, now, at_once);
    }

    /// Finds out whether somebody has a socket yet whose process has ended at `now`.
    pub(super) fn look_for_holder(
        &self,
        inode: u64,
        group: Group,
        now: Moment,
    ) -> Arc<OnceLock<Kept>> {
        let answer = Arc::default();
        self.lock().left.push(Left {
            inode,
            group,
            until: now.after(FAREWELL),
            answer: Arc::clone(&answer),
        });
        self.changed.notify_all();
        answer
    }

    /// Ends a process in `patience` from `now`, or only awaits its end.
    pub(super) fn end(&self, leaving: Leaving, now: Moment, patience: Option<Duration>) {
        self.lock().leaving.push(Leaving {
            term: now.after_if(patience),
            ..leaving
        });
        self.changed.notify_all();
    }

    /// Runs the thread.
    pub(super) fn run(this: &Arc<Self>, program: Arc<Program>, server: Handle) -> io::Result<()> {
        let nursery = Arc::clone(this);
        threads::start("exec", move || nursery.work(&program, &server))?;
        this.lock().runs = true;
        Ok(())
    }

    fn work(&self, program: &Program, server: &Handle) {
        let mut work = self.lock();
        loop {
            let over = work.over;
            let jobs = std::mem::take(&mut work.jobs);
            let mut left = std::mem::take(&mut work.left);
            let mut leaving = std::mem::take(&mut work.leaving);
            // Workers do not wait for what takes time here.
            drop(work);
            for job in jobs {
                self.do_job(job, program, server.now());
                server.resume();
            }
            if tell_of_holders(&mut left, server) {
                server.resume();
            }
            let now = server.now();
            leaving.retain_mut(|one| one.still_there(now, over, &self.spoken));
            work = self.lock();
            let more = work.is_new() || work.over != over;
            work.left.append(&mut left);
            work.leaving.append(&mut leaving);
            if more {
                continue;
            }
            let to_end = work.leaving.iter().any(|one| one.term != Moment::NEVER);
            if over.is_some() && !to_end {
                work.runs = false;
                self.changed.notify_all();
                return;
            }
            let to_kill = work.leaving.iter().any(|one| one.kill != Moment::NEVER);
            let pause = if to_kill || !work.left.is_empty() {
                GLANCE
            } else if work.leaving.is_empty() {
                Duration::MAX
            } else {
                10 * GLANCE
            };
            let waited = self.changed.wait_timeout(work, pause);
            work = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn do_job(&self, job: Job, program: &Program, now: Moment) {
        let (id, slot) = (job.id, Arc::clone(&job.slot));
        if matches!(*slot.lock(), Start::Abandoned(..)) {
            return;
        }
        let spawned = spawn(program, job);
        let mut start = slot.lock();
        if let Start::Abandoned(ticket, far) = &mut *start {
            let held = (ticket.take(), far.take());
            drop(start);
            if let Ok(spawned) = spawned {
                self.end_unwanted(id, spawned, held, now);
            }
        } else {
            *start = Start::Done(spawned);
        }
    }

    /// Ends what is left; returns when that is done.
    pub(super) fn stop(&self, server: &Handle) {
        let mut work = self.lock();
        let until = server.now().after(2 * GRACE);
        while work.runs && server.now() < until {
            work.over = Some(if server.is_stopping() {
                Over::Now
            } else {
                Over::Soon
            });
            self.changed.notify_all();
            let waited = self.changed.wait_timeout(work, GLANCE);
            work = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Looks who has those sockets, and tells what is known then: that nobody has one, or that somebody is to keep it.
/// Answers whether anything is.
fn tell_of_holders(left: &mut Vec<Left>, server: &Handle) -> bool {
    if left.is_empty() {
        return false;
    }
    let inodes: Vec<u64> = left.iter().map(|one| one.inode).collect();
    let partners: Vec<u32> = server.partner().into_iter().collect();
    let holders = holder::of_sockets(&inodes, &partners);
    let never = match &holders {
        Ok(_) => false,
        // There is none, and will be none.
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    let (now, before) = (server.now(), left.len());
    left.retain(|one| {
        let kept = match &holders {
            Ok(holders) => match holders.of.get(&one.inode) {
                Some(&pid) => Kept::Somebody(Some(pid)),
                // One of another user's, as a program that changes its own user leaves.
                None if holders.overlooks(one.group.pid()) && one.group.exists() => {
                    Kept::Somebody(None)
                }
                None => Kept::Nobody,
            },
            Err(_) => Kept::Unknown,
        };
        let known = kept == Kept::Nobody || one.until <= now || never;
        if known {
            // Once for each.
            let _ = one.answer.set(kept);
        }
        !known
    });
    left.len() < before
}

impl Leaving {
    pub(super) fn new(
        id: u64,
        group: Group,
        watch: Watch,
        words: Option<Words>,
        ticket: Option<Ticket>,
    ) -> Self {
        Self {
            id,
            group,
            watch,
            term: Moment::NEVER,
            kill: Moment::NEVER,
            words,
            said: false,
            _ticket: ticket,
        }
    }

    /// Does what is due. Answers whether somebody is to be awaited yet.
    fn still_there(&mut self, now: Moment, over: Option<Over>, spoken: &Mutex<Spent>) -> bool {
        let to_end = self.term != Moment::NEVER;
        let termed = self.kill != Moment::NEVER;
        let status = match &mut self.watch {
            // An error means that there is none to wait for.
            Watch::Child(child) => child
                .try_wait()
                .map_or(Some(None), |status| status.map(Some)),
            Watch::Stranger(pidfd) => has_ended(pidfd.as_fd()).then_some(None),
        };
        if let Some(Words { stderr, lines }) = &mut self.words {
            lines.read(stderr.as_fd(), STDERR_REST, (now, spoken), self.id);
            if status.is_some() {
                lines.end((now, spoken), self.id);
            }
        }
        if let Some(status) = status
            && !std::mem::replace(&mut self.said, true)
        {
            say(self.id, self.group.pid(), termed, status);
        }
        let ended = status.is_some();
        // Others of its group have the grace that it has.
        if ended && !(termed && self.group.exists()) {
            return false;
        }
        if to_end && (now >= self.kill || over == Some(Over::Now)) {
            self.group.signal(Signal::KILL);
            return !ended;
        }
        if to_end && !termed && (now >= self.term || over.is_some()) {
            self.group.signal(Signal::TERM);
            self.kill = now.after(GRACE);
        }
        true
    }
}

/// Starts a process. By `posix_spawn(3)`, as the standard library does unless asked for more: the address space is
/// not copied, no signal is blocked, and those that this process was not started to ignore are at their defaults.
fn spawn(program: &Program, job: Job) -> io::Result<Spawned> {
    let mut command = Command::new(&program.path);
    command
        .arg0(&program.name)
        .args(&program.arguments)
        .process_group(0);
    environment::tell(&mut command, job.local, job.peer, job.tls.as_ref());
    let mut pipe = None;
    command.stderr(match program.stderr {
        Stderr::Log => {
            let (reader, writer) = io::pipe()?;
            let reader = OwnedFd::from(reader);
            let flags = rustix::fs::fcntl_getfl(&reader)?;
            rustix::fs::fcntl_setfl(&reader, flags | OFlags::NONBLOCK)?;
            pipe = Some(reader);
            Stdio::from(writer)
        }
        Stderr::Inherit => Stdio::inherit(),
        Stderr::Socket => Stdio::from(job.socket.try_clone()?),
        Stderr::Null => Stdio::null(),
    });
    command.stdin(Stdio::from(job.socket.try_clone()?));
    command.stdout(Stdio::from(job.socket));
    if program.confinement != Confinement::default() {
        linux::confine(&mut command, program.confinement.clone());
    }
    let mut child = children::spawn(&mut command)?;
    match rustix::process::pidfd_open(child.pid(), PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Spawned {
            child,
            pidfd,
            stderr: pipe,
        }),
        Err(error) => {
            // Unseen it could not run.
            let _ = child.kill();
            let _ = child.wait();
            Err(error.into())
        }
    }
}

/// Whether the process of a pidfd has ended (`pidfd_open(2)`: it is readable then).
pub(super) fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let now = rustix::event::Timespec::default();
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Tells how a process ended that was sent a signal, or was not.
pub(super) fn say(id: u64, pid: i32, sent: bool, status: Option<ExitStatus>) {
    let Some(status) = status else {
        log::debug!(id, pid; "a process has ended that another server had started: how is not known");
        return;
    };
    // Those that end a process whose client has gone; others are its own fault, or that of a system out of memory.
    let usual = [libc::SIGTERM, libc::SIGPIPE, libc::SIGHUP, libc::SIGINT];
    match (status.code(), status.signal()) {
        (Some(0), _) => log::debug!(id, pid; "a process has ended"),
        (Some(status), _) => log::info!(id, pid, status; "a process has failed"),
        (None, Some(signal)) if sent || usual.contains(&signal) => {
            log::debug!(id, pid, signal; "a process was ended");
        }
        (None, signal) => log::warn!(id, pid, signal; "a process was killed"),
    }
}
