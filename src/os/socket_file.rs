//! A Unix socket's path: taken by one living process, and cleared away at the end.
//!
//! A lock beside the path says who is alive, so that what `kill -9` left behind is told from a running server. The
//! socket is bound under its final name: so the system lists it, and nobody else can take the name unnoticed. What is
//! cleared away is the very socket that was bound, never what somebody else has put in its place.

#[cfg(control)]
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
#[cfg(control)]
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[cfg(target_os = "linux")]
use rustix::fs::{AtFlags, OFlags, chownat, open};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with,
};

/// The path of a Unix socket, while it is this process's. Dropping it takes the socket and the lock away.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    permit: Permit,
    /// Nothing before it is this process's, and once another process has it.
    held: Mutex<Option<Held>>,
}

/// What makes a path this process's.
#[derive(Clone, Debug)]
struct Held {
    /// As long as the server lives; a process that takes over gets it, at the commit.
    lock: Arc<File>,
    /// What was bound. As long as the socket is open, nothing else can be the same.
    place: Option<Place>,
}

impl Held {
    fn by(lock: File, place: Option<Place>) -> Self {
        let lock = Arc::new(lock);
        Self { lock, place }
    }
}

/// A file of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Place {
    device: u64,
    inode: u64,
}

impl From<Metadata> for Place {
    fn from(of: Metadata) -> Self {
        Self {
            device: of.dev(),
            inode: of.ino(),
        }
    }
}

#[cfg(control)]
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.device, self.inode)
    }
}

#[cfg(control)]
impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (device, inode) = text.split_once('-').ok_or(())?;
        let number = |text: &str| text.parse().map_err(|_| ());
        Ok(Self {
            device: number(device)?,
            inode: number(inode)?,
        })
    }
}

/// Who may connect to a Unix socket: what is to be changed about the mode, the owner and the group of its path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Permit {
    pub(crate) mode: Option<u32>,
    pub(crate) owner: Option<u32>,
    pub(crate) group: Option<u32>,
}

impl SocketFile {
    /// Takes `path`, where nothing stands but perhaps a dead server's socket.
    ///
    /// # Errors
    /// `AddrInUse` while another server has it; `AlreadyExists` if something else than a socket stands there; and
    /// what the system says.
    pub(crate) fn claim(path: &Path, permit: Permit) -> io::Result<Self> {
        // What is no name for a socket needs no lock.
        address(path)?;
        let refuse = || refuse(path, FileTypeExt::is_socket, "something that is no socket");
        refuse()?;
        let file = Self::inheriting(path, permit);
        *file.held() = Some(Held::by(lock(path)?, None));
        if refuse()?.is_some() {
            if is_alive(path) {
                return Err(taken());
            }
            fs::remove_file(path)?;
        }
        Ok(file)
    }

    /// The path of a process that is being taken over: nothing is ours there before [`inherit`](Self::inherit).
    pub(crate) fn inheriting(path: &Path, permit: Permit) -> Self {
        Self {
            path: path.to_owned(),
            permit,
            held: Mutex::default(),
        }
    }

    /// A socket bound to this path, for those who are permitted. Nobody can connect to it before it listens.
    ///
    /// # Errors
    /// `AddrInUse` if another program was quicker; and what the system says.
    pub(crate) fn bind(&self, kind: SocketType) -> io::Result<OwnedFd> {
        let socket = socket(kind)?;
        bind(&socket, &address(&self.path)?).map_err(|error| match error {
            Errno::ADDRINUSE => taken(),
            error => error.into(),
        })?;
        let place = Place::from(fs::symlink_metadata(&self.path)?);
        if let Some(held) = &mut *self.held() {
            held.place = Some(place);
        }
        self.permit_at(place)?;
        Ok(socket)
    }

    /// Lets those connect who are permitted to.
    ///
    /// # Errors
    /// What could not be done to the socket, and what the system said.
    fn permit_at(&self, place: Place) -> io::Result<()> {
        let Permit { mode, owner, group } = self.permit;
        let failed = |what: String| {
            move |error: io::Error| io::Error::new(error.kind(), format!("cannot {what}: {error}"))
        };
        if self.permit == Permit::default() {
            return Ok(());
        }
        let named = Named::find(&self.path, place)?;
        if let Some(uid) = owner {
            let failed = failed(format!("give it to user {uid}"));
            named.chown(Some(uid), None).map_err(failed)?;
        }
        if let Some(gid) = group {
            let failed = failed(format!("give it to group {gid}"));
            named.chown(None, Some(gid)).map_err(failed)?;
        }
        if let Some(mode) = mode {
            let failed = failed(format!("give it the mode {mode:o}"));
            named.chmod(mode).map_err(failed)?;
        }
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the socket and the lock away, if they are this process's: whoever cleans up a folder may have taken them
    /// away before, and another server may have come since. To be called while the socket is open.
    pub(crate) fn withdraw(&self) {
        let Some(held) = self.held().take() else {
            return;
        };
        let found = fs::symlink_metadata(&self.path).ok().map(Place::from);
        if found.is_some() && found == held.place {
            let _ = fs::remove_file(&self.path);
        }
        let name = beside(&self.path, LOCK);
        if is_named(&held.lock, &name) {
            let _ = fs::remove_file(name);
        }
    }
}

/// For a process that takes over.
impl SocketFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What a process needs that takes over.
    pub(crate) fn lend(&self) -> Option<(Arc<File>, Place)> {
        let held = self.held().clone()?;
        Some((held.lock, held.place?))
    }

    /// The same from a keeper: its permits were given by whoever bound it. This process may be root yet, and the keeper has
    /// both from one who is not.
    pub(crate) fn resume(&self, lock: OwnedFd, place: Place) {
        *self.held() = Some(Held::by(lock.into(), Some(place)));
    }

    /// The socket that was bound at `place` is this process's from here on, with its lock.
    pub(crate) fn inherit(&self, lock: OwnedFd, place: Place) {
        *self.held() = Some(Held::by(lock.into(), Some(place)));
        if let Err(error) = self.permit_at(place) {
            // The clients are served here by now.
            log::warn!(path:% = self.path.display(), error:%; "a socket stays as its predecessor had it");
        }
    }

    /// Another process has the path from here on: its end is the end of the lock, too, however long this one stays.
    pub(crate) fn give(&self) {
        self.held().take();
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// A socket by its name, held: in a folder of others the name may be something else at any time.
#[cfg(target_os = "linux")]
struct Named(File);

#[cfg(target_os = "linux")]
impl Named {
    fn find(path: &Path, place: Place) -> io::Result<Self> {
        // Not by `custom_flags`, which leaves out what musl counts as an access mode (its O_SEARCH is O_PATH).
        let by_name = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = File::from(open(path, by_name, rustix::fs::Mode::empty())?);
        if Place::from(found.metadata()?) != place {
            return Err(taken());
        }
        Ok(Self(found))
    }

    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let uid = uid.map(rustix::fs::Uid::from_raw);
        let gid = gid.map(rustix::fs::Gid::from_raw);
        Ok(chownat(&self.0, "", uid, gid, AtFlags::EMPTY_PATH)?)
    }

    fn chmod(&self, mode: u32) -> io::Result<()> {
        // There is no fchmod(2) of what is open by its name alone (open(2), O_PATH).
        let name = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        fs::set_permissions(name, fs::Permissions::from_mode(mode))
    }
}

/// A socket by its name.
#[cfg(not(target_os = "linux"))]
struct Named(PathBuf);

#[cfg(not(target_os = "linux"))]
impl Named {
    fn find(path: &Path, place: Place) -> io::Result<Self> {
        if Place::from(fs::symlink_metadata(path)?) != place {
            return Err(taken());
        }
        Ok(Self(path.to_owned()))
    }

    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        std::os::unix::fs::lchown(&self.0, uid, gid)
    }

    fn chmod(&self, mode: u32) -> io::Result<()> {
        fs::set_permissions(&self.0, fs::Permissions::from_mode(mode))
    }
}

const LOCK: &str = ".lock";

fn taken() -> io::Error {
    io::Error::new(ErrorKind::AddrInUse, "another program listens there")
}

/// The name of the socket at `path`: the whole path, free of links, if it is not too long. So the system lists it in
/// `/proc/net/unix`, and systemd-tmpfiles(8) clears away what is not listed there.
fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    let whole = || {
        let folder = path.parent()?;
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        SocketAddrUnix::new(fs::canonicalize(folder).ok()?.join(path.file_name()?)).ok()
    };
    Ok(whole().map_or_else(|| SocketAddrUnix::new(path), Ok)?)
}

/// What stands at `path`, if anything does.
///
/// # Errors
/// `AlreadyExists`, and `what` it is, if it is not `wanted`.
fn refuse(
    path: &Path,
    wanted: impl Fn(&fs::FileType) -> bool,
    what: &str,
) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(found) if !wanted(&found.file_type()) => Err(io::Error::new(
            ErrorKind::AlreadyExists,
            format!("{what} is there"),
        )),
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether somebody has the socket at `path`, whatever its type. It is not disturbed, and nothing is waited for: to a
/// socket of datagrams another one connects without a word, and every other type refuses it (unix(7), EPROTOTYPE).
pub(crate) fn is_alive(path: &Path) -> bool {
    let tried = SocketAddrUnix::new(path)
        .and_then(|address| connect(&socket(SocketType::DGRAM)?, &address));
    !matches!(tried, Err(Errno::CONNREFUSED | Errno::NOENT))
}

/// The lock that a living server holds beside its socket.
fn lock(path: &Path) -> io::Result<File> {
    let name = beside(path, LOCK);
    let not_ours = || {
        let what = format!("{}: something that is no lock", name.display());
        refuse(&name, fs::FileType::is_file, &what)
    };
    loop {
        not_ours()?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            // What has the sticky bit is spared by systemd-tmpfiles(8), too (tmpfiles.d(5)).
            .mode(0o1600)
            // A pipe is not waited for.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
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
            return Ok(lock);
        }
    }
}

fn is_named(file: &File, name: &Path) -> bool {
    let (Ok(this), Ok(named)) = (file.metadata(), fs::symlink_metadata(name)) else {
        return false;
    };
    Place::from(this) == Place::from(named)
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
    use std::os::unix::net::{UnixListener, UnixStream};

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
        let first = SocketFile::claim(&path, Permit::default()).unwrap();
        let _socket = first.bind(SocketType::STREAM).unwrap();
        assert!(path.exists());
        let refused = SocketFile::claim(&path, Permit::default()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AddrInUse);
        drop(first);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
        SocketFile::claim(&path, Permit::default()).unwrap();
    }

    /// A server at `path`, whose process is killed: its socket is closed, and its lock is free.
    fn kill(server: &SocketFile, socket: OwnedFd) {
        drop(socket);
        server.held().take();
    }

    #[test]
    fn what_a_killed_server_left_is_replaced_and_what_is_no_socket_is_not() {
        let folder = Folder::new("stale");
        let path = folder.0.join("x");
        let killed = SocketFile::claim(&path, Permit::default()).unwrap();
        let socket = killed.bind(SocketType::STREAM).unwrap();
        kill(&killed, socket);
        assert!(path.exists() && beside(&path, LOCK).exists());
        let next = SocketFile::claim(&path, Permit::default()).unwrap();
        let _socket = next.bind(SocketType::STREAM).unwrap();
        drop(next);
        fs::write(&path, "precious").unwrap();
        let refused = SocketFile::claim(&path, Permit::default()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn another_programs_socket_in_our_place_outlives_us() {
        let folder = Folder::new("foreign");
        let path = folder.0.join("x");
        let first = SocketFile::claim(&path, Permit::default()).unwrap();
        let _ours = first.bind(SocketType::STREAM).unwrap();
        fs::remove_file(&path).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
        assert!(!beside(&path, LOCK).exists(), "the lock was ours");
    }

    #[test]
    fn a_server_that_came_after_a_folder_was_cleaned_up_outlives_the_first() {
        let folder = Folder::new("cleaned");
        let path = folder.0.join("x");
        let first = SocketFile::claim(&path, Permit::default()).unwrap();
        let _ours = first.bind(SocketType::STREAM).unwrap();
        fs::remove_file(&path).unwrap();
        fs::remove_file(beside(&path, LOCK)).unwrap();
        let second = SocketFile::claim(&path, Permit::default()).unwrap();
        let _theirs = second.bind(SocketType::STREAM).unwrap();
        drop(first);
        assert!(is_alive(&path));
        let third = SocketFile::claim(&path, Permit::default()).unwrap_err();
        assert_eq!(third.to_string(), "another server runs there");
        // With the lock alone cleaned up, the socket still says that there is somebody.
        fs::remove_file(beside(&path, LOCK)).unwrap();
        let third = SocketFile::claim(&path, Permit::default()).unwrap_err();
        assert_eq!(third.to_string(), "another program listens there");
        drop(second);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }

    #[test]
    fn who_has_a_socket_is_alive_whatever_its_type_and_even_if_nobody_can_connect() {
        let folder = Folder::new("alive");
        let path = folder.0.join("x");
        for kind in [SocketType::STREAM, SocketType::SEQPACKET, SocketType::DGRAM] {
            let theirs = socket(kind).unwrap();
            bind(&theirs, &SocketAddrUnix::new(&path).unwrap()).unwrap();
            let listening = kind != SocketType::DGRAM;
            assert!(is_alive(&path), "{kind:?} before it listens");
            if listening {
                rustix::net::listen(&theirs, 0).unwrap();
                // One waits, and there is room for no other.
                connect(socket(kind).unwrap(), &SocketAddrUnix::new(&path).unwrap()).unwrap();
            }
            assert!(is_alive(&path), "{kind:?}");
            let refused = SocketFile::claim(&path, Permit::default()).unwrap_err();
            assert_eq!(refused.to_string(), "another program listens there");
            drop(theirs);
            assert!(!is_alive(&path), "{kind:?}");
            drop(SocketFile::claim(&path, Permit::default()).unwrap());
        }
    }

    #[test]
    fn a_pipe_in_the_place_of_the_lock_is_refused_and_not_waited_for() {
        let folder = Folder::new("fifo");
        let path = folder.0.join("x");
        let name = beside(&path, LOCK);
        rustix::fs::mkfifoat(rustix::fs::CWD, &name, rustix::fs::Mode::RWXU).unwrap();
        let refused = SocketFile::claim(&path, Permit::default()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        assert!(refused.to_string().contains("x.lock"), "{refused}");
        assert!(name.exists());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_lists_the_socket_by_its_whole_path() {
        let folder = Folder::new("listed");
        let link = folder.0.join("link");
        std::os::unix::fs::symlink(&folder.0, &link).unwrap();
        let file = SocketFile::claim(&link.join("x"), Permit::default()).unwrap();
        let _socket = file.bind(SocketType::STREAM).unwrap();
        let listed = fs::read_to_string("/proc/net/unix").unwrap();
        let whole = fs::canonicalize(&folder.0).unwrap().join("x");
        let mut paths = listed
            .lines()
            .filter_map(|line| line.split(' ').next_back());
        assert!(
            paths.any(|path| Path::new(path) == whole),
            "{}",
            whole.display()
        );
    }
}
