//! The control socket: what a running server is asked from outside its process.
//!
//! A Unix socket of mode 0600, answered to processes of the same user only. It stands under its path exactly as long
//! as the server runs, or the one that has taken over from it: that goes on with the socket itself, so whoever connects
//! meanwhile waits in its queue.

mod behind;
mod client;
mod orders;
pub mod path;
mod restart;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, absolute};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, SocketType, accept_with, listen};

use crate::address::endpoint::Endpoint;
pub use crate::config::{ControlSocket, Keeper, Replace};
use crate::handle::Handle;
use crate::handle::wanted::Wanted;
use crate::handoff::compare::compare;
use crate::handoff::give::{self, Paths};
use crate::handoff::take;
pub use crate::os::kept::{Kept, Stored};
use crate::os::socket_file::SocketFile;
pub use crate::os::successor::Successor;
use crate::os::threads;
pub use crate::vault::found::make_room_for;
use crate::wire::baton::{Baton, Fate};
use crate::wire::line::{Line, now};
use crate::wire::question::{Answer, Hello, Question};
use behind::Former;
pub use client::Client;
use orders::Orders;

/// What a thread that answers a client has as its stack, bytes: it shall be had where there is little left.
const STACK: usize = 512 * 1024;

/// How long the server waits for one who connects and says nothing, or does not read.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a client hears that its answer is yet to come.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// Clients answered at a time; the one that is there longest is hung up on for one more.
const CLIENTS: usize = 16;

/// How long the end of the server waits until those who gave it an order have heard that it was taken.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A server's control socket. Dropping it takes the path away, and waits a moment for those who gave an order.
#[derive(Debug)]
pub(crate) struct Control {
    desk: Arc<Desk>,
}

/// What the threads share that answer.
pub(crate) struct Desk {
    pub(crate) file: SocketFile,
    /// Where clients connect, while it is this process's.
    socket: Mutex<Option<Arc<OwnedFd>>>,
    /// Dropped, they end the thread that lets clients in: before it begins, and from then on.
    begin: Mutex<Option<Sender<Arc<OwnedFd>>>>,
    open: Mutex<Option<PipeWriter>>,
    /// Paths of listeners, given away together with this one. The server alone keeps them: they go when it ends, not
    /// when the last client here has its answer.
    listeners: Vec<Weak<SocketFile>>,
    handle: Handle,
    /// Those who are being answered, the longest there first.
    clients: Mutex<VecDeque<Arc<OwnedFd>>>,
    orders: Orders,
    /// What is under way.
    turn: Mutex<Turn>,
    turned: Condvar,
    /// Why the last takeover did not come about.
    refusal: Mutex<Option<String>>,
    /// The process that was taken over from, if it is to be asked for what stayed with it.
    former: Mutex<Option<Former>>,
    /// Held until this server has ended: the process that took over hears of that by it.
    given: Mutex<Option<Arc<Baton>>>,
    /// That process had ended before it could serve.
    in_vain: AtomicBool,
}

/// On which thread a client is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Its own.
    Own,
    /// That which lets clients in: there is no memory for another. All others wait for the end of it.
    All,
}

/// What is done by one at a time.
#[derive(Default)]
struct Turn {
    /// A process takes over.
    giving: bool,
    /// A successor is being started.
    restarting: bool,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Control {
    /// Prepares the control socket of the server behind `handle`: what may fail fails now. Clients are answered from
    /// [`listen`](Desk::listen) or [`answer_at`](Desk::answer_at) on.
    pub(crate) fn open(
        file: SocketFile,
        listeners: &[Arc<SocketFile>],
        handle: &Handle,
    ) -> io::Result<(Self, Arc<Desk>)> {
        let (begin, begun) = mpsc::channel();
        let (closed, open) = io::pipe()?;
        let desk = Arc::new(Desk {
            file,
            socket: Mutex::default(),
            begin: Mutex::new(Some(begin)),
            open: Mutex::new(Some(open)),
            listeners: listeners.iter().map(Arc::downgrade).collect(),
            handle: handle.clone(),
            clients: Mutex::default(),
            orders: Orders::default(),
            turn: Mutex::default(),
            turned: Condvar::new(),
            refusal: Mutex::default(),
            former: Mutex::default(),
            given: Mutex::default(),
            in_vain: AtomicBool::new(false),
        });
        let answering = Arc::clone(&desk);
        threads::start("control", move || {
            if let Ok(socket) = begun.recv() {
                answering.answer_all(&socket, &closed);
            }
        })?;
        Ok((
            Self {
                desk: Arc::clone(&desk),
            },
            desk,
        ))
    }

    /// Where it stands.
    pub(crate) fn path(&self) -> &Path {
        self.desk.file.path()
    }

    /// Whether this server was given to a process that ended before it could serve: nobody serves any more.
    pub(crate) fn was_given_in_vain(&self) -> bool {
        self.desk.in_vain.load(Ordering::Acquire)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.desk.orders.until_none(LAST_WORDS);
        self.desk.file.withdraw();
        self.desk.close();
        if let Some(baton) = lock(&self.desk.given).take() {
            // A thread listens to it yet.
            baton.line.hang_up();
        }
    }
}

impl Desk {
    /// Opens the socket under its path, for this user alone, and answers there from now on.
    pub(crate) fn listen(&self) -> io::Result<()> {
        let socket = self.file.bind(SocketType::SEQPACKET)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        listen(&socket, 64)?;
        self.answer_at(socket);
        Ok(())
    }

    /// Answers from now on those who connect to `socket`.
    pub(crate) fn answer_at(&self, socket: OwnedFd) {
        let socket = Arc::new(socket);
        *lock(&self.socket) = Some(Arc::clone(&socket));
        if let Some(begin) = lock(&self.begin).take() {
            // The thread waits for it.
            let _ = begin.send(socket);
        }
    }

    /// Lets nobody in any more. The socket may be another process's by now: nothing is done to it.
    fn close(&self) {
        lock(&self.begin).take();
        lock(&self.open).take();
        lock(&self.socket).take();
    }

    /// Answers each client on a thread of its own: one that hangs holds up nobody else. Until this end is `closed`.
    fn answer_all(self: Arc<Self>, socket: &OwnedFd, closed: &PipeReader) {
        // A descriptor kept for the time when there is no other.
        let mut spare = None;
        loop {
            spare = spare.or_else(|| rustix::io::fcntl_dupfd_cloexec(socket, 0).ok());
            let client = match self.next(socket, closed, &mut spare) {
                Ok(Some(client)) => Arc::new(client),
                Ok(None) => return,
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(error) => {
                    log::debug!(error:% = io::Error::from(error); "cannot accept on the control socket");
                    // Out of descriptors, most likely; the client waits in the queue meanwhile.
                    thread::park_timeout(Duration::from_millis(100));
                    continue;
                }
            };
            self.enter(&client);
            let last = spare.is_none();
            let patience = if last { LAST_WORDS } else { PATIENCE };
            let (desk, asks) = (Arc::clone(&self), Arc::clone(&client));
            let serve = move || desk.serve(&asks, patience, Whose::Own);
            match threads::start_with("control-client", STACK, serve) {
                // One after the other; its descriptor becomes the spare one without ever being free.
                Ok(answering) if last => {
                    let _ = answering.join();
                    spare = Arc::try_unwrap(client).ok().and_then(|mut client| {
                        let kept = rustix::io::dup2(socket, &mut client);
                        kept.is_ok().then_some(client)
                    });
                }
                Ok(_) => {}
                Err(error) => {
                    log::debug!(error:%; "no thread for a control client");
                    self.serve(&client, LAST_WORDS, Whose::All);
                }
            }
        }
    }

    /// Waits for a client, or until this end is `closed`. Out of descriptors it gets the spare one.
    fn next(
        &self,
        socket: &OwnedFd,
        closed: &PipeReader,
        spare: &mut Option<OwnedFd>,
    ) -> rustix::io::Result<Option<OwnedFd>> {
        let mut polled = [
            PollFd::new(socket, PollFlags::IN),
            PollFd::new(closed, PollFlags::empty()),
        ];
        poll(&mut polled, None)?;
        if !polled[1].revents().is_empty() {
            return Ok(None);
        }
        let accepted = match accept_with(socket, SocketFlags::CLOEXEC) {
            Err(Errno::MFILE | Errno::NFILE) if spare.is_some() => {
                let _alone = lock(&self.handle.shared.accepting.descriptors);
                drop(spare.take());
                accept_with(socket, SocketFlags::CLOEXEC)
            }
            accepted => accepted,
        };
        accepted.map(Some)
    }

    fn enter(&self, client: &Arc<OwnedFd>) {
        let mut clients = lock(&self.clients);
        clients.push_back(Arc::clone(client));
        if clients.len() > CLIENTS
            && let Some(oldest) = clients.pop_front()
        {
            let _ = rustix::net::shutdown(&oldest, Shutdown::Both);
        }
    }

    fn leave(&self, client: &Arc<OwnedFd>) {
        lock(&self.clients).retain(|other| !Arc::ptr_eq(other, client));
    }

    fn serve(&self, client: &Arc<OwnedFd>, patience: Duration, thread: Whose) {
        let line = Line::new(Arc::clone(client), patience);
        let answered = line.and_then(|line| self.answer(line, client, thread));
        self.leave(client);
        if let Err(error) = answered {
            log::debug!(error:%; "control client failed");
        }
        // The workers may be idle.
        self.handle.memory().replenish();
    }

    fn answer(&self, line: Line, client: &Arc<OwnedFd>, thread: Whose) -> io::Result<()> {
        if !line.is_of_this_user()? {
            log::warn!("control client of another user refused");
            // Read first: who has something unread left at the end hears of a reset, not of the reason.
            let _ = line.receive::<serde::de::IgnoredAny>();
            return line.send(&Answer::Refused(
                "this server is another user's: ask as that user".to_owned(),
            ));
        }
        let question: Question = match line.receive() {
            Ok(question) => question,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => {
                let _ = line.send(&Answer::Refused(format!("not a question: {error}")));
                return Err(error);
            }
        };
        if line.is_hung_up()? {
            // Who has given up is not obeyed: this server may have been stopped for long.
            log::debug!("a control client has gone before it was heard");
            return Ok(());
        }
        let handle = &self.handle;
        let ordered = question.is_order().then(|| self.orders.note());
        if handle.shared.was_given() {
            return self.send_on(&line);
        }
        let answer = match &question {
            Question::Status => Answer::Status(Box::new(handle.status())),
            Question::List => self.list(&line, None)?,
            Question::Metrics => return self.lend_metrics(&line),
            Question::Kill { id } => self.kill(&line, *id)?,
            Question::Drain => {
                log::info!(by = "control"; "draining");
                handle.drain();
                Answer::Done
            }
            Question::Stop => {
                log::info!(by = "control"; "ending at once");
                handle.stop();
                Answer::Done
            }
            Question::Restart if thread == Whose::All => Answer::Refused(
                "there is no memory for a thread that waits for the successor".to_owned(),
            ),
            Question::Restart => {
                self.leave(client);
                let mut turn = self.wait_while(&line, |turn| turn.restarting || turn.giving)?;
                if handle.shared.was_given() {
                    drop(turn);
                    return self.send_on(&line);
                }
                turn.restarting = true;
                drop(turn);
                let _under_way = Claim(self, |turn| &mut turn.restarting);
                return line.send(&match self.restart(&line) {
                    Ok(takeover) => Answer::Restarted(takeover),
                    Err(why) => Answer::Refused(why),
                });
            }
            Question::TakeOver(hello) => {
                self.leave(client);
                let given = self.give(line, hello)?;
                drop(ordered);
                if let Some(baton) = given {
                    self.answer_for_those_behind(&baton.line);
                }
                return Ok(());
            }
        };
        // Another process may serve by now, where this one has not heard of it yet; and a takeover that was under way may
        // have been too far to be called off.
        if handle.is_ending() || handle.shared.is_freezing() {
            drop(self.wait_while(&line, |turn| turn.giving)?);
        }
        // Given away meanwhile, the server was not told of, or not all of it.
        if handle.shared.was_given() {
            return self.send_on(&line);
        }
        if self.is_passed_on(&question, &answer, &line)? {
            return Ok(());
        }
        line.send(&answer)
    }

    /// Shows all connections, those of a process that is left `behind` as such.
    fn list(&self, line: &Line, behind: Option<u32>) -> io::Result<Answer> {
        let mut listing = self.handle.list();
        while let Some(asked) = listing.ask() {
            let mut batch = listing.told(line.hear(&asked)?);
            if !batch.is_empty() {
                batch.iter_mut().for_each(|one| one.behind = behind);
                line.send(&Answer::Connections(batch))?;
            }
        }
        Ok(Answer::Done)
    }

    /// Ends connection `id`, as long as who asks waits for that.
    fn kill(&self, line: &Line, id: u64) -> io::Result<Answer> {
        let wanted = Wanted::as_long_as(line.waits());
        let workers = self.handle.kill_if(id, &wanted);
        Ok(match line.hear(&workers)? {
            Some(_) => Answer::Done,
            None => Answer::Refused(format!("no connection {id}")),
        })
    }

    /// Lends the sockets at which this server is told of to a process that is about to take over.
    fn lend_metrics(&self, line: &Line) -> io::Result<()> {
        if let Some(beside) = self.handle.shared.beside.get() {
            return beside.lend(|sockets| {
                let addresses = sockets.iter().map(|(address, _)| address.clone());
                line.send(&Answer::Metrics(addresses.collect()))?;
                let sockets: Vec<_> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
                line.pass(b"metrics", &sockets, Some(now() + PATIENCE))
            });
        }
        line.send(&Answer::Metrics(Vec::new()))
    }

    /// Has the client ask the process that has taken over, once that is where it gets to.
    fn send_on(&self, line: &Line) -> io::Result<()> {
        drop(self.wait_while(line, |turn| turn.giving)?);
        line.send(&Answer::Moved)
    }

    /// Waits as long as something is under way, and says so to the client.
    ///
    /// # Errors
    /// The client has hung up.
    fn wait_while(
        &self,
        line: &Line,
        under_way: impl Fn(&Turn) -> bool,
    ) -> io::Result<MutexGuard<'_, Turn>> {
        let mut turn = lock(&self.turn);
        while under_way(&turn) {
            let waited = self.turned.wait_timeout(turn, SIGN_OF_LIFE);
            let (guard, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            turn = guard;
            if waited.timed_out() {
                drop(turn);
                line.send(&Answer::Wait)?;
                turn = lock(&self.turn);
            }
        }
        if line.is_hung_up()? {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(turn)
    }

    /// The right to give this server away, or to keep it: one at a time has it, and nobody once it was given.
    fn claim(&self) -> Option<Claim<'_>> {
        let mut turn = lock(&self.turn);
        if turn.giving || self.handle.shared.was_given() {
            return None;
        }
        turn.giving = true;
        Some(Claim(self, |turn| &mut turn.giving))
    }

    /// Gives the server to the asking process, one at a time, or says why not. Answers what it has in common with that, if
    /// it has the server.
    fn give(&self, line: Line, hello: &Hello) -> io::Result<Option<Arc<Baton>>> {
        let shared = &self.handle.shared;
        let claim = self.claim();
        let outcome = match &claim {
            Some(_) => compare(hello, &self.handle, &take::network()).and_then(|fates| {
                // Who is not seen from here does not end with this process's surroundings.
                line.peer().map_or(Ok(()), |pid| self.object(pid))?;
                Ok(fates)
            }),
            None => Err("another takeover is under way".to_owned()),
        };
        // Its own word for it may be from another namespace of processes.
        let pid = line.peer().unwrap_or(hello.pid);
        let fates = match outcome {
            Ok(fates) => fates,
            Err(why) => {
                log::warn!(pid, reason = why.as_str(); "takeover refused");
                shared.chronicle.refused();
                *lock(&self.refusal) = Some(why.clone());
                return line.send(&Answer::Refused(why)).map(|()| None);
            }
        };
        log::info!(pid, version = hello.version.as_str(); "takeover asked for");
        line.send(&Answer::Giving {
            pid: std::process::id(),
            hears: true,
        })?;
        let addresses = self.handle.addresses();
        let stay = addresses
            .iter()
            .zip(&fates)
            .filter(|(_, fate)| **fate == Fate::Stays);
        let stay: Vec<_> = stay
            .filter_map(|(address, _)| match address {
                Endpoint::Unix(path) => absolute(path).ok(),
                _ => None,
            })
            .collect();
        let listeners = self.listeners.iter().filter_map(Weak::upgrade);
        // The path of one that stays goes with it.
        let listeners = listeners.filter(|file| {
            let path = absolute(file.path());
            path.is_ok_and(|path| !stay.contains(&path))
        });
        let listeners: Vec<_> = listeners.collect();
        let files = || std::iter::once(&self.file).chain(listeners.iter().map(Arc::as_ref));
        let (locks, places): (Vec<_>, _) = files().filter_map(SocketFile::lend).unzip();
        let socket = lock(&self.socket).clone();
        let socket = socket.iter().map(|socket| socket.as_fd());
        let paths = Paths {
            descriptors: socket.chain(locks.iter().map(AsFd::as_fd)).collect(),
            places,
        };
        shared.takeover.set_partner(Some(pid));
        match give::give(line, &self.handle, pid, fates, hello.past, &paths) {
            Ok((takeover, baton)) => {
                files().for_each(SocketFile::give);
                self.close();
                *lock(&self.given) = Some(Arc::clone(&baton));
                log::info!(
                    pid = takeover.pid,
                    connections = takeover.connections,
                    staying = takeover.staying,
                    frozen_ms = takeover.frozen_ms();
                    "handed over"
                );
                if baton.line.is_hung_up().unwrap_or(false) {
                    log::error!(pid; "the process that took over has ended at once: nobody serves any more");
                    self.in_vain.store(true, Ordering::Release);
                } else {
                    let farewell = || shared.lifecycle.handed_over(&takeover);
                    // Whatever becomes of it, the server may end.
                    let _ = catch_unwind(AssertUnwindSafe(farewell));
                }
                baton.say_told();
                let _ = shared.takeover.gave.set(takeover);
                Ok(Some(baton))
            }
            Err(why) => {
                shared.takeover.set_partner(None);
                log::warn!(pid, reason = why.as_str(); "takeover failed, serving on");
                shared.chronicle.failed();
                *lock(&self.refusal) = Some(why);
                Ok(None)
            }
        }
    }

    fn object(&self, pid: u32) -> Result<(), String> {
        let why = self.handle.shared.lifecycle.objection(pid);
        why.map_or(Ok(()), Err)
    }
}

/// Something that one at a time does; over when this is dropped.
struct Claim<'a>(&'a Desk, fn(&mut Turn) -> &mut bool);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        *(self.1)(&mut lock(&self.0.turn)) = false;
        self.0.turned.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
