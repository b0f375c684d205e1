//! A Unix socket's path: taken by one living process, shown when the socket is ready, and cleared away at the end.
//!
//! A lock beside the path says who is alive, so that what `kill -9` left behind is told from a running server; the
//! socket appears there by a rename, so that nobody finds it half made.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
#[cfg(control)]
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with,
};
use rustix::process::{Pid, test_kill_process};

/// The path of a Unix socket, while it is this process's. Dropping it takes the socket and the lock away.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Which of this process's it is.
    number: usize,
    /// Held as long as the server lives; a process that takes over gets it, at the commit.
    lock: OnceLock<OwnedFd>,
    /// The socket is bound under another name yet.
    hidden: AtomicBool,
    /// Another process has the lock: nothing is taken away here.
    given: AtomicBool,
}

impl SocketFile {
    /// Takes `path`, where nothing stands but perhaps a dead server's socket.
    ///
    /// # Errors
    /// `AddrInUse` while another server has it; `AlreadyExists` if something else than a socket stands there; and
    /// what the system says.
    pub(crate) fn claim(path: &Path) -> io::Result<Self> {
        // A rename would reach further than connect(2) does.
        SocketAddrUnix::new(path)?;
        refuse_others(path)?;
        let file = Self::heir(path);
        let lock = lock(path)?;
        if is_alive(path) {
            let _ = fs::remove_file(beside(path, LOCK));
            return Err(io::Error::new(
                ErrorKind::AddrInUse,
                "another program listens there",
            ));
        }
        file.inherit(lock);
        Ok(file)
    }

    /// The path of a process that is being taken over: nothing is ours there before [`inherit`](Self::inherit).
    pub(crate) fn heir(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            lock: OnceLock::new(),
            hidden: AtomicBool::new(false),
            given: AtomicBool::new(false),
        }
    }

    /// The lock is this process's from here on.
    pub(crate) fn inherit(&self, lock: OwnedFd) {
        // Once: a path is taken over at its server's start, or never.
        let _ = self.lock.set(lock);
    }

    /// A socket bound to this path, and not seen there before [`show`](Self::show).
    pub(crate) fn bind(&self, kind: SocketType) -> io::Result<OwnedFd> {
        let hidden = self.hidden_path();
        let _ = fs::remove_file(&hidden);
        let socket = socket(kind)?;
        bind(&socket, &SocketAddrUnix::new(&hidden)?)?;
        self.hidden.store(true, Ordering::Release);
        Ok(socket)
    }

    /// Puts the socket in its place, over whatever a dead or a replaced server left there.
    pub(crate) fn show(&self) -> io::Result<()> {
        fs::rename(self.hidden_path(), &self.path)?;
        self.sweep();
        self.hidden.store(false, Ordering::Release);
        Ok(())
    }

    /// Takes away what processes left that ended before they showed their socket.
    fn sweep(&self) {
        let folder = self
            .path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let entries = fs::read_dir(folder.unwrap_or_else(|| Path::new(".")));
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let process = name.to_str().and_then(|name| {
                let (process, _) = name.strip_prefix(HIDDEN)?.split_once('-')?;
                Pid::from_raw(process.parse().ok()?)
            });
            let is_left = process
                .is_some_and(|process| matches!(test_kill_process(process), Err(Errno::SRCH)));
            let path = entry.path();
            if is_left && refuse_others(&path).is_ok() && !is_alive(&path) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Where the socket is until it is shown: beside its path, for a rename reaches no further.
    pub(crate) fn hidden_path(&self) -> PathBuf {
        let name = format!("{HIDDEN}{}-{}", std::process::id(), self.number);
        self.path.with_file_name(name)
    }

    #[cfg(control)]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    #[cfg(control)]
    pub(crate) fn lock(&self) -> Option<BorrowedFd<'_>> {
        self.lock.get().map(AsFd::as_fd)
    }

    /// Another process has the path from here on.
    #[cfg(control)]
    pub(crate) fn give(&self) {
        self.given.store(true, Ordering::Release);
    }
}

impl SocketFile {
    /// Takes the socket and the lock away, if they are this process's.
    pub(crate) fn withdraw(&self) {
        if self.hidden.swap(false, Ordering::AcqRel) {
            let _ = fs::remove_file(self.hidden_path());
        }
        // While the lock is ours, so is what stands there.
        if self.lock.get().is_some() && !self.given.swap(true, Ordering::AcqRel) {
            if refuse_others(&self.path).is_ok() {
                let _ = fs::remove_file(&self.path);
            }
            let _ = fs::remove_file(beside(&self.path, LOCK));
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.withdraw();
    }
}

const LOCK: &str = ".lock";

/// What the name of a socket begins with before it is shown; the process follows, and which of its sockets.
const HIDDEN: &str = ".standfast-";

/// Counts the sockets of this process.
static NUMBER: AtomicUsize = AtomicUsize::new(0);

fn refuse_others(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "something that is no socket is there",
        )),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether somebody listens at `path`.
pub(crate) fn is_alive(path: &Path) -> bool {
    let tried = SocketAddrUnix::new(path)
        .and_then(|address| connect(&socket(SocketType::SEQPACKET)?, &address));
    // Another type of socket that listens, or one with a full queue, is alive as well.
    matches!(tried, Ok(()) | Err(Errno::PROTOTYPE | Errno::AGAIN))
}

/// The lock that a living server holds beside its socket.
fn lock(path: &Path) -> io::Result<OwnedFd> {
    let name = beside(path, LOCK);
    loop {
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&name)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(io::Error::new(
                    ErrorKind::AddrInUse,
                    "another server runs there",
                ));
            }
            Err(error) => return Err(error.into()),
        }
        // A server that ended in between took the name away: that lock locks nothing.
        if is_named(&lock, &name) {
            return Ok(lock.into());
        }
    }
}

fn is_named(file: &File, name: &Path) -> bool {
    let (Ok(this), Ok(named)) = (file.metadata(), fs::symlink_metadata(name)) else {
        return false;
    };
    (this.dev(), this.ino()) == (named.dev(), named.ino())
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A Unix socket that no child of this process gets.
pub(crate) fn socket(kind: SocketType) -> rustix::io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    let flags = SocketFlags::CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = SocketFlags::empty();
    let socket = socket_with(AddressFamily::UNIX, kind, flags, None)?;
    #[cfg(not(target_os = "linux"))]
    rustix::io::ioctl_fioclex(&socket)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own, gone at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("standfast-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn one_process_has_a_path_and_nothing_stays_behind() {
        let folder = Folder::new("one");
        let path = folder.0.join("x");
        let first = SocketFile::claim(&path).unwrap();
        let _socket = first.bind(SocketType::STREAM).unwrap();
        assert!(!path.exists(), "not shown before it is ready");
        first.show().unwrap();
        assert!(path.exists());
        let refused = SocketFile::claim(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AddrInUse);
        drop(first);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
        SocketFile::claim(&path).unwrap();
    }

    #[test]
    fn what_a_killed_server_left_is_replaced_and_what_is_no_socket_is_not() {
        let folder = Folder::new("stale");
        let path = folder.0.join("x");
        let killed = SocketFile::claim(&path).unwrap();
        drop(killed.bind(SocketType::STREAM).unwrap());
        killed.show().unwrap();
        killed.given.store(true, Ordering::Release);
        drop(killed);
        assert!(path.exists() && beside(&path, LOCK).exists());
        let next = SocketFile::claim(&path).unwrap();
        let _socket = next.bind(SocketType::STREAM).unwrap();
        next.show().unwrap();
        drop(next);
        fs::write(&path, "precious").unwrap();
        let refused = SocketFile::claim(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
