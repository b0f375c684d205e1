//! The control socket: what a running server is asked from outside its process.
//!
//! A Unix socket of mode 0600, answered to processes of the same user only. It stands under its path exactly as long
//! as the server runs: a lock beside it says who is alive, so that what `kill -9` left behind is told from a running
//! server, and it appears by a rename, so that nobody finds it half made.

pub mod path;
pub(crate) mod wire;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};

use crate::handle::Handle;
use crate::handoff::{give, take};
use crate::inspect::{ConnectionInfo, Status};
use wire::{Answer, Hello, Line, Question};

/// How long the server waits for one who connects and says nothing, or does not read.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a client waits for an answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Connections shown in one message.
const BATCH: usize = 128;

/// A server's control socket. Dropping it takes the path away.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    /// The socket's inode: what stands under `path` later may be another's.
    inode: u64,
    handle: Handle,
    /// Held as long as the server lives; a process that takes over gets it, too.
    _lock: Arc<OwnedFd>,
}

impl Control {
    /// Opens the control socket of the server behind `handle` at `path`, and answers there from now on. `lock`: what a
    /// former process had locked there.
    ///
    /// # Errors
    /// `AddrInUse` while another server has that path; `AlreadyExists` if something else than a socket stands there;
    /// and what the system says.
    pub(crate) fn open(path: &Path, handle: &Handle, lock: Option<OwnedFd>) -> io::Result<Self> {
        path::prepare(path)?;
        let lock = Arc::new(match lock {
            Some(lock) => lock,
            None => self::lock(path)?,
        });
        match fs::symlink_metadata(path) {
            Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "something that is no socket is there",
                ));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Bound under a name of its own and renamed over whatever a dead predecessor left.
        let temporary = beside(path, &format!(".{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let socket = socket()?;
        bind(&socket, &SocketAddrUnix::new(&temporary)?)?;
        let opened = fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))
            .and_then(|()| Ok(listen(&socket, 16)?))
            .and_then(|()| fs::rename(&temporary, path))
            .and_then(|()| fs::symlink_metadata(path));
        let inode = match opened {
            Ok(found) => found.ino(),
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                return Err(error);
            }
        };
        let handle = handle.clone();
        let (answering, held) = (handle.clone(), Arc::clone(&lock));
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || answer_all(&socket, &answering, &held))?;
        Ok(Self {
            path: path.to_owned(),
            inode,
            handle,
            _lock: lock,
        })
    }

    /// Where it stands.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // After a takeover the path is the other process's, even while it has not replaced the socket there yet.
        if self.handle.shared.was_given() {
            return;
        }
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The lock that a living server holds beside its control socket.
fn lock(path: &Path) -> io::Result<OwnedFd> {
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(beside(path, ".lock"))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock.into()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another server runs there",
        )),
        Err(error) => Err(error.into()),
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Answers each client on a thread of its own: one that hangs holds up nobody else.
fn answer_all(socket: &OwnedFd, handle: &Handle, lock: &Arc<OwnedFd>) {
    loop {
        let client = match accept_with(socket.as_fd(), SocketFlags::CLOEXEC) {
            Ok(client) => client,
            Err(error) => {
                log::debug!(error:% = io::Error::from(error); "cannot accept on the control socket");
                // Out of descriptors, most likely; the client waits in the queue meanwhile.
                thread::park_timeout(Duration::from_millis(100));
                continue;
            }
        };
        let (handle, lock) = (handle.clone(), Arc::clone(lock));
        let answering = thread::Builder::new()
            .name("control-client".to_owned())
            .spawn(move || {
                let answered =
                    Line::new(client, PATIENCE).and_then(|line| answer(line, &handle, &lock));
                if let Err(error) = answered {
                    log::debug!(error:%; "control client failed");
                }
            });
        if let Err(error) = answering {
            log::warn!(error:%; "cannot answer a control client");
        }
    }
}

fn answer(line: Line, handle: &Handle, lock: &OwnedFd) -> io::Result<()> {
    if !line.is_of_this_user()? {
        log::warn!("control client of another user refused");
        return line.send(&Answer::Refused("this server is another user's".to_owned()));
    }
    let question = match line.receive() {
        Ok(question) => question,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        Err(error) => {
            let _ = line.send(&Answer::Refused(format!("not a question: {error}")));
            return Err(error);
        }
    };
    match question {
        Question::Status => return line.send(&Answer::Status(handle.status())),
        Question::List => {
            for batch in handle.connections() {
                for part in batch.chunks(BATCH) {
                    line.send(&Answer::Connections(part.to_vec()))?;
                }
            }
        }
        Question::Kill { id } => {
            if !handle.kill(id) {
                return line.send(&Answer::Refused(format!("no connection {id}")));
            }
        }
        Question::Drain => handle.drain(),
        Question::Stop => handle.stop(),
        Question::TakeOver(hello) => return give(line, handle, lock, &hello),
    }
    line.send(&Answer::Done)
}

/// Gives the server to the asking process, one at a time, or says why not.
fn give(line: Line, handle: &Handle, lock: &OwnedFd, hello: &Hello) -> io::Result<()> {
    let shared = &handle.shared;
    let alone = shared
        .giving
        .compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire);
    let outcome = match alone {
        Err(_) => Err("another takeover is under way".to_owned()),
        Ok(_) => give::compare(hello, handle, &take::network()),
    };
    if let Err(why) = outcome {
        log::warn!(pid = hello.pid, reason = why.as_str(); "takeover refused");
        if alone.is_ok() {
            shared.giving.store(false, Ordering::Release);
        }
        return line.send(&Answer::Refused(why));
    }
    log::info!(pid = hello.pid, version = hello.version.as_str(); "takeover asked for");
    line.send(&Answer::Giving)?;
    match give::give(line, handle, lock.as_fd()) {
        Ok(given) => {
            log::info!(
                pid = hello.pid,
                connections = given.connections,
                frozen_ms = given.frozen.as_secs_f64() * 1e3;
                "handed over"
            );
        }
        Err(why) => {
            log::warn!(pid = hello.pid, reason = why.as_str(); "takeover failed, serving on");
            shared.giving.store(false, Ordering::Release);
        }
    }
    Ok(())
}

/// A running server, asked from another process.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// The server whose control socket is at `path`.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The control sockets this user's servers have, of those that listen first on `port`, or of all.
    #[must_use]
    pub fn candidates(port: Option<u16>) -> Vec<PathBuf> {
        path::existing(port)
    }

    /// Where it is asked.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn ask(&self, question: &Question) -> io::Result<Line> {
        let socket = socket()?;
        connect(&socket, &SocketAddrUnix::new(&self.path)?)?;
        let line = Line::new(socket, ANSWER)?;
        line.send(question)?;
        Ok(line)
    }

    /// Asks for the server itself.
    pub(crate) fn take_over(&self, hello: Hello) -> io::Result<Line> {
        let line = self.ask(&Question::TakeOver(hello))?;
        match line.receive()? {
            Answer::Giving => Ok(line),
            Answer::Refused(why) => Err(io::Error::other(why)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Asks for something that is done or refused.
    fn order(&self, question: &Question) -> io::Result<()> {
        match self.ask(question)?.receive()? {
            Answer::Refused(why) => Err(io::Error::other(why)),
            _ => Ok(()),
        }
    }

    /// The server, its listeners and its counters.
    ///
    /// # Errors
    /// No server answers there, or it refuses.
    pub fn status(&self) -> io::Result<Status> {
        match self.ask(&Question::Status)?.receive()? {
            Answer::Status(status) => Ok(status),
            Answer::Refused(why) => Err(io::Error::other(why)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Every open connection, in the order of their numbers.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn connections(&self) -> io::Result<Vec<ConnectionInfo>> {
        let line = self.ask(&Question::List)?;
        let mut all = Vec::new();
        loop {
            match line.receive()? {
                Answer::Connections(batch) => all.extend(batch),
                Answer::Refused(why) => return Err(io::Error::other(why)),
                _ => break,
            }
        }
        all.sort_by_key(|connection: &ConnectionInfo| connection.id);
        Ok(all)
    }

    /// Ends connection `id`.
    ///
    /// # Errors
    /// As [`status`](Self::status); there is no such connection.
    pub fn kill(&self, id: u64) -> io::Result<()> {
        self.order(&Question::Kill { id })
    }

    /// Makes the server drain.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn drain(&self) -> io::Result<()> {
        self.order(&Question::Drain)
    }

    /// Ends the server at once.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn stop(&self) -> io::Result<()> {
        self.order(&Question::Stop)
    }
}
