//! The service manager, told by the protocol of `sd_notify(3)` that the server is ready, that it ends, which process it
//! is after a takeover, and that its workers turn.
//!
//! Without a manager (no `NOTIFY_SOCKET`) nothing happens. One that does not hear costs a line in the log and a bounded
//! wait, never the server.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::process::{self, Command};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::retry_on_intr;
use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg, sendmsg_addr,
};
use sd_notify::NotifyState;
use standfast::process::threads;

use crate::blocking::wait;
use crate::kept;

/// How long the manager may take to hear. It is deaf for seconds while it reads all of its units anew.
const PATIENCE: Duration = Duration::from_secs(5);

/// How soon it is tried again where the manager's queue is full (`net.unix.max_dgram_qlen`, unix(7)).
const AGAIN: Duration = Duration::from_millis(100);

/// Most messages that wait for that; the eldest are left out.
const UNSAID: usize = 16;

/// What is left for the end itself when a drain has taken its time.
const MARGIN: Duration = Duration::from_secs(5);

/// The way to the service manager, if there is one; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Supervisor(Option<Arc<Speaker>>);

#[derive(Debug)]
struct Speaker {
    /// Open from the start: a server that is out of descriptors is alive, and says so.
    socket: OwnedFd,
    /// `None`: the socket is the keeper's and this server's alone.
    manager: Option<SocketAddrUnix>,
    /// The manager ends this process if it says nothing for that long.
    watchdog: Option<Duration>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Another process is the service: a word of this one would count for it, or against it.
    handed_over: bool,
    /// Dropped, it ends the watchdog's thread.
    watching: Option<Sender<()>>,
    /// What found no room in the manager's queue.
    unsaid: VecDeque<String>,
}

impl Supervisor {
    /// The manager that started this process: its keeper, if it has one.
    pub(crate) fn from_env() -> Self {
        let watchdog = sd_notify::watchdog_enabled().filter(|period| !period.is_zero());
        if let Some(socket) = kept::line() {
            return Self(socket.map(|socket| Arc::new(Speaker::on(socket, None, watchdog))));
        }
        let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        Self(name.and_then(|name| match Speaker::new(&name, watchdog) {
            Ok(speaker) => Some(Arc::new(speaker)),
            Err(error) => {
                log::warn!(notify_socket:? = name, error:%; "no way to the service manager");
                None
            }
        }))
    }

    /// The server listens on `addresses` and serves.
    pub(crate) fn ready<A: fmt::Display>(&self, addresses: &[A]) {
        let status = listening(addresses);
        let said = [NotifyState::Ready, NotifyState::Status(&status)];
        self.say(&said, SendFlags::empty());
    }

    /// The server is about to end, when it has drained or at once. To be said before it is told so, or its end may come
    /// first; whoever tells it is not held up. `takes`: how long a drain is meant to last, where the manager may not be as
    /// patient (`EXTEND_TIMEOUT_USEC=`).
    pub(crate) fn stopping(&self, takes: Option<Duration>) {
        let mut said = vec![NotifyState::Stopping, NotifyState::Status("draining")];
        if let Some(takes) = takes {
            let takes = takes.saturating_add(MARGIN).as_micros();
            let takes = u32::try_from(takes).unwrap_or(u32::MAX);
            said.push(NotifyState::ExtendTimeoutUsec(takes));
        }
        self.say(&said, SendFlags::DONTWAIT);
    }

    /// Process `pid` has taken over and serves. When this returns the manager has heard so, or is not going to, and
    /// this process may end; it tells the manager nothing any more.
    pub(crate) fn handed_over(&self, pid: u32) {
        let Some(speaker) = &self.0 else { return };
        let mut state = speaker.state();
        if state.handed_over {
            return;
        }
        state.handed_over = true;
        state.watching = None;
        if speaker.manager.is_some() && !is_of_this_service(pid) {
            // systemd refuses it as a main process, or, asked by root, would later end it with this service.
            log::warn!(pid; "the new process is not part of this service, which ends");
            return;
        }
        let mut states = vec![NotifyState::MainPid(pid)];
        if speaker.watchdog.is_some() {
            // The new process's first word comes half a period later, and this one's last may be as old.
            states.push(NotifyState::Watchdog);
        }
        speaker.tell(&mut state, &states, SendFlags::empty());
        drop(state);
        match speaker.await_hearing() {
            Ok(true) => {}
            Ok(false) => log::warn!(pid; "the service manager may not know the new process yet"),
            Err(error) => log::debug!(error:%; "cannot wait for the service manager"),
        }
    }

    /// Tells the manager in time, from now on, that this process is alive, as long as `is_turning` finds it so: whether
    /// every worker completes a turn within the time it is given. If the manager does not ask, nothing happens.
    pub(crate) fn watch(&self, is_turning: impl Fn(Duration) -> bool + Send + 'static) {
        let Some(speaker) = &self.0 else { return };
        let Some(period) = speaker.watchdog else {
            return;
        };
        let (watching, ended) = mpsc::channel();
        speaker.state().watching = Some(watching);
        let this = self.clone();
        let started = threads::start("watchdog", move || {
            this.keep_alive(period, &is_turning, &ended);
        });
        if let Err(error) = started {
            log::warn!(error:%; "no watchdog: the service manager will think this process hangs");
        }
    }

    fn keep_alive(
        &self,
        period: Duration,
        is_turning: &impl Fn(Duration) -> bool,
        ended: &Receiver<()>,
    ) {
        let mut pause = period / 2;
        while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            // Half a period of waiting and a quarter for the answer: the next word is in time.
            if is_turning(period / 4) {
                self.say(&[NotifyState::Watchdog], SendFlags::DONTWAIT);
                pause = period / 2;
            } else {
                log::warn!("a worker stands still, the watchdog of the service manager is not fed");
                pause = period / 8;
            }
        }
    }

    /// What the manager was told of in `text` by a server that this process keeps, told in this one's name.
    pub(crate) fn pass_on(&self, text: &str) {
        const OURS: [&str; 4] = ["READY=", "STATUS=", "STOPPING=", "EXTEND_TIMEOUT_USEC="];
        let lines = text.lines();
        let lines = lines.filter(|line| OURS.iter().any(|ours| line.starts_with(ours)));
        let lines: Vec<_> = lines.map(NotifyState::Custom).collect();
        if !lines.is_empty() {
            self.say(&lines, SendFlags::DONTWAIT);
        }
    }

    /// A server is just being replaced by the next one.
    pub(crate) fn reloading(&self) {
        let mut said = vec![NotifyState::Reloading];
        // Type=notify-reload wants to know which one it is.
        said.extend(NotifyState::monotonic_usec_now());
        self.say(&said, SendFlags::DONTWAIT);
    }

    /// It was not, and goes on.
    pub(crate) fn reloaded(&self) {
        self.say(&[NotifyState::Ready], SendFlags::DONTWAIT);
    }

    /// The manager ends this process if it hears nothing for that long.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.0.as_ref()?.watchdog
    }

    /// Says something of a descriptor. `waits`: where its queue is full, within bounds.
    pub(crate) fn store(
        &self,
        text: &str,
        descriptor: Option<BorrowedFd<'_>>,
        waits: bool,
    ) -> io::Result<()> {
        let speaker = self.0.as_ref().ok_or(ErrorKind::NotConnected)?;
        let flags = if waits {
            SendFlags::empty()
        } else {
            SendFlags::DONTWAIT
        };
        speaker.send(text, descriptor.as_slice(), flags)
    }

    /// How soon [`turns`](Self::turns) is to be called again.
    pub(crate) fn next_word(&self) -> Option<Duration> {
        let speaker = self.0.as_ref()?;
        let owes = !speaker.state().unsaid.is_empty();
        let alive = speaker.watchdog.map(|period| period / 4);
        alive.into_iter().chain(owes.then_some(AGAIN)).min()
    }

    /// This process turns.
    pub(crate) fn turns(&self) {
        let alive = self.watchdog().map(|_| NotifyState::Watchdog);
        self.say(alive.as_slice(), SendFlags::DONTWAIT);
    }

    fn say(&self, states: &[NotifyState<'_>], flags: SendFlags) {
        let Some(speaker) = &self.0 else { return };
        let mut state = speaker.state();
        if !state.handed_over {
            speaker.tell(&mut state, states, flags);
        }
    }
}

/// Makes `command`, which starts this process's successor, take what the manager gave this process: its watchdog, too.
/// The sockets passed to this process come by the takeover.
pub(crate) fn succeed(command: &mut Command) {
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    // Another's number there means that the watchdog is not for us, and no more for the successor.
    let watched = env::var("WATCHDOG_PID").ok();
    if watched.and_then(|pid| pid.parse().ok()) == Some(process::id()) {
        command.env_remove("WATCHDOG_PID");
    }
}

impl Speaker {
    fn new(name: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let manager = address(name)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self::on(socket.into(), Some(manager), watchdog))
    }

    fn on(socket: OwnedFd, manager: Option<SocketAddrUnix>, watchdog: Option<Duration>) -> Self {
        Self {
            socket,
            manager,
            watchdog,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells it behind all that was not said yet. What finds no room waits, in order; but a word of mere life does not.
    fn tell(&self, state: &mut State, states: &[NotifyState<'_>], flags: SendFlags) {
        let waiting = state.unsaid.len();
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        if !lines.is_empty() {
            state.unsaid.push_back(lines.join("\n"));
        }
        while let Some(text) = state.unsaid.front() {
            if let Err(error) = self.send(text, &[], flags) {
                let is_full =
                    flags.contains(SendFlags::DONTWAIT) && error.kind() == ErrorKind::WouldBlock;
                if is_full && state.unsaid.len() <= UNSAID {
                    break;
                }
                log::warn!(said = text.lines().next(), error:%; "the service manager does not hear");
            }
            state.unsaid.pop_front();
        }
        if matches!(states, [NotifyState::Watchdog]) && state.unsaid.len() > waiting {
            state.unsaid.pop_back();
        }
    }

    /// Waits until the manager has heard all that was said before. Answers whether it has, in time: it closes the
    /// descriptor that comes with a barrier when it is there (`sd_notify_barrier(3)`).
    fn await_hearing(&self) -> io::Result<bool> {
        let (ours, theirs) = io::pipe()?;
        self.send("BARRIER=1", &[theirs.as_fd()], SendFlags::empty())?;
        drop(theirs);
        wait(&ours, PollFlags::empty(), PATIENCE)
    }

    fn send(&self, text: &str, descriptors: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let text = [IoSlice::new(text.as_bytes())];
        let flags = flags | SendFlags::NOSIGNAL;
        retry_on_intr(|| match &self.manager {
            Some(manager) => sendmsg_addr(&self.socket, manager, &text, &mut control, flags),
            None => sendmsg(&self.socket, &text, &mut control, flags),
        })?;
        Ok(())
    }
}

/// A path, or `@NAME` in the abstract namespace, which the crate `sd-notify` takes for a path.
fn address(name: &OsStr) -> io::Result<SocketAddrUnix> {
    match name.as_bytes() {
        [b'/', ..] => Ok(SocketAddrUnix::new(name)?),
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => Ok(SocketAddrUnix::new_abstract_name(name)?),
        _ => Err(ErrorKind::Unsupported.into()),
    }
}

/// What a person reads in `systemctl status`: one line, whatever is in the name of a socket.
fn listening<A: fmt::Display>(addresses: &[A]) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    format!("listening on {}", addresses.join(", ")).replace(char::is_control, "?")
}

/// Whether process `pid` belongs to the same service as this one. Where the system does not tell, the manager decides.
pub(crate) fn is_of_this_service(pid: u32) -> bool {
    let of = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup"));
    match (of("self"), of(&pid.to_string())) {
        (Ok(ours), Ok(theirs)) => service(&ours) == service(&theirs),
        _ => true,
    }
}

/// What cgroups(7) shows of the service in `/proc/PID/cgroup`: the line of the unified hierarchy, or the one of
/// systemd's own. The other lines are about resources.
fn service(cgroups: &str) -> Vec<&str> {
    let decides = |line: &&str| line.starts_with("0::") || line.contains(":name=systemd:");
    cgroups.lines().filter(decides).collect()
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    #[test]
    fn a_status_is_one_line() {
        assert_eq!(
            listening(&["127.0.0.1:7000"]),
            "listening on 127.0.0.1:7000"
        );
        assert_eq!(
            listening(&["[::1]:7000", "unix:/tmp/a\nMAINPID=1"]),
            "listening on [::1]:7000, unix:/tmp/a?MAINPID=1"
        );
    }

    #[test]
    fn a_manager_is_at_a_path_or_at_an_abstract_name() {
        let path = address("/run/systemd/notify".as_ref()).unwrap();
        assert_eq!(path.path_bytes(), Some(b"/run/systemd/notify".as_slice()));
        #[cfg(target_os = "linux")]
        {
            let name = address("@notify".as_ref()).unwrap();
            assert_eq!(name.abstract_name(), Some(b"notify".as_slice()));
        }
        for wrong in ["vsock:2:1234", "notify", &"/long".repeat(30)] {
            assert!(address(wrong.as_ref()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_service_is_told_by_its_control_group_alone() {
        let ours = "4:memory:/a\n1:name=systemd:/system.slice/standfast.service\n0::/system.slice/standfast.service\n";
        assert_eq!(service(ours), service(&ours.replace("/a", "/b")));
        let shell = "0::/user.slice/user-0.slice/session-1.scope\n";
        assert_ne!(
            service(shell),
            service("0::/system.slice/standfast.service\n")
        );
        assert!(is_of_this_service(process::id()));
    }

    #[test]
    fn the_manager_hears_of_life_only_while_the_workers_turn() {
        let folder = env::temp_dir().join(format!("standfast-supervisor-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let period = Duration::from_millis(8);
        let speaker = Speaker::new(path.as_os_str(), Some(period)).unwrap();
        let supervisor = Supervisor(Some(Arc::new(speaker)));
        let (watching, ended) = mpsc::channel();
        let watching = Mutex::new(Some(watching));
        let answers = Mutex::new([false, true, false, false, true].into_iter());
        let is_turning = |patience| {
            assert_eq!(patience, period / 4);
            let answer = answers.lock().unwrap().next();
            if answer.is_none() {
                drop(watching.lock().unwrap().take());
            }
            answer.unwrap_or(false)
        };
        supervisor.keep_alive(period, &is_turning, &ended);
        fs::remove_dir_all(&folder).unwrap();
        let mut buffer = [0; 64];
        for _ in 0..2 {
            let count = manager.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], b"WATCHDOG=1");
        }
        let silence = manager.recv(&mut buffer).unwrap_err();
        assert_eq!(silence.kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn what_a_full_queue_has_no_room_for_is_said_later_and_in_order() {
        let (manager, ours) = UnixDatagram::pair().unwrap();
        manager.set_nonblocking(true).unwrap();
        let speaker = Speaker::on(ours.into(), None, Some(PATIENCE));
        let supervisor = Supervisor(Some(Arc::new(speaker)));
        let hear = || {
            let mut text = [0; 64];
            let count = manager.recv(&mut text).ok()?;
            Some(String::from_utf8(text[..count].to_vec()).unwrap())
        };
        let owes = || supervisor.next_word() == Some(AGAIN);
        while !owes() {
            supervisor.pass_on("STATUS=fills it");
        }
        supervisor.turns();
        supervisor.reloaded();
        let mut said: Vec<String> = iter::from_fn(hear).collect();
        supervisor.turns();
        assert!(!owes());
        said.extend(iter::from_fn(hear));
        said.retain(|text| text != "STATUS=fills it");
        assert_eq!(said, ["READY=1", "WATCHDOG=1"]);
    }
}
