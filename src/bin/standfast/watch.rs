//! `serve --watch`: has the server restarted when the file of its program has changed, and what is there runs.
//!
//! The file is looked at by its path a few times a second, on a thread of its own. That sees what inotify(7) does not: a
//! path that leads through links, a folder that goes and comes (`cargo clean`), a file system that another host writes to.
//!
//! The process that was started stays for as long as a successor of its own serves, and passes signals on: in a terminal
//! Ctrl-C ends the server, whichever build it is by then. Successors are orphans, which become its children: so its exit code is
//! that of the last of them.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind, PipeReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open, set_child_subreaper,
};
use standfast::Server;
use standfast::control::Client;
use standfast::process::children::{self, Adopted};
use standfast::process::threads;

use crate::Failure;
use crate::args::ProcessArgs;
use crate::args::control::ControlPath;
use crate::blocking::wait;
use crate::signals::Meaning;
use crate::{kept, orphans, successor, takeover};

/// Between two looks at the file. It is tried once two of them have found the same.
const PAUSE: Duration = Duration::from_millis(250);

/// How often it is looked whether `--version` has been answered, and how many times: for 10 s.
const GLANCE: Duration = Duration::from_millis(10);
const GLANCES: u32 = 1000;

/// How much of an answer is read.
const ANSWER_MOST: u64 = 4096;

/// The exit code of a successor that another one has taken over from: to whoever stays in front, which alone sees it.
const HANDED_OVER: u8 = 5;

/// How long the successor may take to hear of a signal.
const PATIENCE: Duration = Duration::from_secs(5);

/// A server whose program is watched.
#[derive(Debug)]
pub(crate) struct Watch {
    program: PathBuf,
    control: OnceLock<PathBuf>,
    /// Dropped, it ends the thread that looks.
    looking: Mutex<Option<Sender<()>>>,
    /// The process that was started last to take over.
    started: Mutex<Option<Adopted>>,
    /// It has, from this one.
    is_succeeded: AtomicBool,
}

impl Watch {
    /// If that is asked for.
    pub(crate) fn of(args: &ProcessArgs) -> Result<Option<Arc<Self>>, Failure> {
        if !args.watch {
            return Ok(None);
        }
        if args.control == Some(ControlPath::Off) {
            return Err(Failure::usage(
                "--watch needs the control socket, which is off",
            ));
        }
        if is_in_front() && std::env::var_os("NOTIFY_SOCKET").is_none() {
            adopt_orphans()?;
        }
        let program = takeover::program().map_err(|error| {
            Failure::failed(format!(
                "cannot watch the program: it is not known where its file is: {error}"
            ))
        })?;
        Ok(Some(Arc::new(Self {
            program,
            control: OnceLock::new(),
            looking: Mutex::default(),
            started: Mutex::default(),
            is_succeeded: AtomicBool::new(false),
        })))
    }

    /// It is asked at its control socket.
    pub(crate) fn ask(&self, server: &Server) {
        if let Some(control) = server.control() {
            // Once: a process has one server.
            let _ = self.control.set(control.to_owned());
        }
    }

    /// Looks from now on.
    pub(crate) fn begin(&self) {
        let Some(control) = self.control.get().cloned() else {
            log::warn!("the program is not watched: there is no control socket");
            return;
        };
        let (looking, ended) = mpsc::channel();
        *lock(&self.looking) = Some(looking);
        let program = self.program.clone();
        if let Err(error) = threads::start("watch", move || look_on(&program, &control, &ended)) {
            log::warn!(error:%; "the program is not watched");
        }
    }

    /// Looks no more.
    pub(crate) fn end(&self) {
        *lock(&self.looking) = None;
    }

    /// Process `pid` was started to take over.
    pub(crate) fn has_started(&self, pid: u32) {
        *lock(&self.started) = children::adopt(pid);
    }

    /// Process `pid` has taken over.
    pub(crate) fn handed_over(&self, pid: u32) {
        self.end();
        let started = lock(&self.started);
        let started = started.as_ref().map(Adopted::pid);
        // Another's successor serves in its own place.
        let is_own =
            started.is_some_and(|started| started.as_raw_nonzero().get().cast_unsigned() == pid);
        self.is_succeeded.store(is_own, Ordering::Release);
    }

    fn client(&self) -> Option<Client> {
        let is_succeeded = self.is_succeeded.load(Ordering::Acquire);
        let control = self.control.get();
        let control = control.filter(|_| is_succeeded && is_in_front())?;
        Some(Client::at(control.clone()).within(PATIENCE))
    }

    /// Has the successor do what a signal to this process asks for. Answers whether there is one.
    pub(crate) fn passes_on(&self, meaning: Meaning) -> bool {
        let Some(client) = self.client() else {
            return false;
        };
        let passed = match meaning {
            Meaning::End | Meaning::Leave => client.drain(),
            Meaning::EndAtOnce => client.stop(),
            Meaning::Restart => client.restart().map(drop),
            Meaning::Reopen => client.status().and_then(|status| {
                let pid = i32::try_from(status.pid).ok().and_then(Pid::from_raw);
                pid.map_or(Ok(()), |pid| Ok(kill_process(pid, Signal::USR1)?))
            }),
            Meaning::None => Ok(()),
        };
        if let Err(error) = passed {
            log::warn!(error:%; "the server does not hear of the signal");
        }
        true
    }

    /// Stays until the last of the successors has ended, if this process's own has taken over from it. Answers the exit code,
    /// if that one did not end well, or if this is a successor that another one has taken over from.
    pub(crate) fn stay(&self) -> Option<u8> {
        if !is_in_front() {
            let handed_over = self.is_succeeded.load(Ordering::Acquire);
            return handed_over.then_some(HANDED_OVER);
        }
        let client = self.client()?;
        log::info!("staying, to pass signals on to the successor");
        let mut serves = lock(&self.started).take();
        let mut last = None;
        loop {
            if let Some(mut one) = serves.take() {
                until_ended(one.pid());
                last = one.status();
            }
            match client.status() {
                Ok(status) => serves = children::adopt(status.pid),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) =>
                {
                    break;
                }
                Err(_) => thread::park_timeout(PAUSE),
            }
        }
        let failed = last.filter(|last| !last.success())?;
        if failed.code() == Some(HANDED_OVER.into()) {
            log::error!("the last successor ended as soon as it had taken over");
            return Some(1);
        }
        log::error!("the last successor ended: {failed}");
        Some(successor::exit_code(failed))
    }
}

/// Whether this is the process that was started, and no other stays in front of it.
fn is_in_front() -> bool {
    !takeover::is_successor() && kept::by().is_none()
}

/// Has the orphans of this process's descendants become its children: a successor is one, whose end is to be learnt. Not under
/// systemd, which has to wait for successors itself.
fn adopt_orphans() -> Result<(), Failure> {
    let are_reaped = children::has_others();
    if let Err(error) = set_child_subreaper(Some(getpid())) {
        log::debug!(error:% = io::Error::from(error); "how a successor ends will not be known");
    } else if !are_reaped {
        orphans::reap()?;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a process. What this one has left of its own, as programs that serve on, it waits for, too.
fn until_ended(pid: Pid) {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        thread::park_timeout(PAUSE);
        return;
    };
    while matches!(wait(&process, PollFlags::IN, 4 * PAUSE), Ok(false)) {
        // One that is somebody's is looked at again.
        let _ = children::reap_others();
    }
}

fn look_on(program: &Path, control: &Path, ended: &Receiver<()>) {
    let look = || takeover::found(program).and_then(|path| Some(fs::metadata(path).ok()?.into()));
    // A file that has been replaced since is found here yet.
    let running = fs::metadata("/proc/self/exe").ok().map(File::from);
    let mut looks = Looks::from(running.or_else(look));
    let shown = program.display();
    let mut is_busy = false;
    while ended.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
        let seen = look();
        if !looks.has_news(seen) {
            continue;
        }
        let version = version(program);
        if look() != seen {
            continue;
        }
        let was_busy = std::mem::take(&mut is_busy);
        match version {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                is_busy = true;
                if !was_busy {
                    log::info!(program:% = shown; "the new program is still open for writing");
                }
                continue;
            }
            Err(error) => {
                log::warn!(program:% = shown, error:%; "the new program does not run, the server goes on");
            }
            Ok(version) => {
                log::info!(program:% = shown, version = version.as_str(); "restarting: the program has changed");
                if let Err(error) = takeover::restart_at(control) {
                    log::warn!(error:%; "not restarted, the server goes on");
                }
            }
        }
        looks.tried(seen);
    }
}

/// What tells a file from the one that was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct File {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Permissions, too; and another name of the same file.
    changed: (i64, i64),
}

impl From<Metadata> for File {
    fn from(of: Metadata) -> Self {
        Self {
            device: of.dev(),
            inode: of.ino(),
            size: of.size(),
            modified: (of.mtime(), of.mtime_nsec()),
            changed: (of.ctime(), of.ctime_nsec()),
        }
    }
}

impl File {
    /// What a name that is taken away does not change: a linker's output has two for a while.
    fn content(self) -> (u64, u64, u64, (i64, i64)) {
        (self.device, self.inode, self.size, self.modified)
    }
}

/// The looks so far.
#[derive(Debug)]
struct Looks {
    running: Option<File>,
    tried: Option<File>,
    last: Option<File>,
}

impl Looks {
    fn from(running: Option<File>) -> Self {
        Self {
            running,
            tried: None,
            last: None,
        }
    }

    /// Whether `seen` is another file than what runs and what was tried, and nobody seems to be writing it any more.
    fn has_news(&mut self, seen: Option<File>) -> bool {
        let stays = self.last == seen;
        self.last = seen;
        let Some(file) = seen else { return false };
        let runs = self.running.map(File::content) == Some(file.content());
        stays && !runs && self.tried != seen
    }

    fn tried(&mut self, file: Option<File>) {
        self.tried = file;
    }
}

/// What the program answers to `--version`.
///
/// # Errors
/// Why it does not run, in words.
fn version(program: &Path) -> io::Result<String> {
    let (answer, theirs) = io::pipe()?;
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null());
    command.stdout(theirs.try_clone()?).stderr(theirs);
    let mut asked = children::spawn(&mut command)?;
    for _ in 0..GLANCES {
        if let Some(status) = asked.try_wait()? {
            return judged(status, &first_line(answer)?);
        }
        thread::park_timeout(GLANCE);
    }
    asked.kill()?;
    asked.wait()?;
    let bound = (GLANCE * GLANCES).as_secs();
    Err(io::Error::other(format!(
        "no answer to --version within {bound} s"
    )))
}

/// What can be read now: a process that the program has left behind may keep the pipe open.
fn first_line(answer: PipeReader) -> io::Result<String> {
    rustix::io::ioctl_fionbio(&answer, true)?;
    let mut said = Vec::new();
    match answer.take(ANSWER_MOST).read_to_end(&mut said) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
        _ => {}
    }
    let said = String::from_utf8_lossy(&said);
    Ok(said.lines().next().unwrap_or_default().trim().to_owned())
}

fn judged(status: ExitStatus, said: &str) -> io::Result<String> {
    let why = match (status.success(), said.strip_prefix("standfast ")) {
        (true, Some(version)) => return Ok(version.to_owned()),
        (true, None) => format!("to --version it says {said:?}"),
        (false, _) if said.is_empty() => format!("--version ended with {status}"),
        (false, _) => format!("--version ended with {status}: {said}"),
    };
    Err(io::Error::other(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64, at: i64) -> Option<File> {
        Some(File {
            device: 1,
            inode,
            size: 1000,
            modified: (at, 0),
            changed: (at, 0),
        })
    }

    #[test]
    fn what_runs_is_no_news_whatever_names_it_has() {
        let mut looks = Looks::from(file(1, 10));
        let renamed = file(1, 10).map(|file| File {
            changed: (99, 0),
            ..file
        });
        for seen in [file(1, 10), file(1, 10), renamed, renamed, None, None] {
            assert!(!looks.has_news(seen), "{seen:?}");
        }
        assert!(!looks.has_news(file(1, 10)), "it is back");
        assert!(!looks.has_news(file(1, 10)));
    }

    #[test]
    fn a_new_file_is_tried_once_it_stays_the_same_and_then_no_more() {
        let mut looks = Looks::from(file(1, 10));
        assert!(!looks.has_news(file(2, 11)));
        assert!(!looks.has_news(file(2, 12)), "it is being written");
        assert!(!looks.has_news(None), "and again from the beginning");
        assert!(!looks.has_news(file(3, 13)));
        assert!(looks.has_news(file(3, 13)));
        assert!(looks.has_news(file(3, 13)), "it was not tried yet");
        looks.tried(file(3, 13));
        assert!(!looks.has_news(file(3, 13)));
        let executable = file(3, 13).map(|file| File {
            changed: (14, 0),
            ..file
        });
        assert!(!looks.has_news(executable));
        assert!(looks.has_news(executable), "chmod is a change, too");
        looks.tried(executable);
        assert!(!looks.has_news(file(1, 10)));
        assert!(!looks.has_news(file(1, 10)), "the running one is back");
    }

    #[test]
    fn a_program_is_judged_by_what_it_answers() {
        let of = |script: &str| {
            let mut command = Command::new("sh");
            let status = command.args(["-c", script]).status().unwrap();
            let why = |said| judged(status, said).map_err(|error| error.to_string());
            [why("standfast 1.2.3"), why("other 1"), why("")]
        };
        let [ours, other, nothing] = of("exit 0");
        assert_eq!(ours, Ok("1.2.3".to_owned()));
        assert_eq!(other, Err("to --version it says \"other 1\"".to_owned()));
        assert_eq!(nothing, Err("to --version it says \"\"".to_owned()));
        let [ours, _, nothing] = of("exit 3");
        let ended = "--version ended with exit status: 3";
        assert_eq!(ours, Err(format!("{ended}: standfast 1.2.3")));
        assert_eq!(nothing, Err(ended.to_owned()));
    }
}
