//! Under a service manager: what it is told (`sd_notify(3)`), and the sockets it passes (`sd_listen_fds(3)`).

/// Its descriptor store in a keeper's place.
mod store;

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    GUARD, Server, assert_echoes, cannot_run, connect, listening, now, output, pass, read_to_fin,
    restarted, send_until_stuck, shell, standfast, until,
};

/// The variables by which a service manager speaks, here to one server at a time.
const VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// A folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("standfast-systemd-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A service manager's end of the conversation. It hears what it is asked to hear, not before.
struct Manager {
    socket: UnixDatagram,
    notify_socket: OsString,
    folder: Folder,
}

/// What a process told the manager. Dropped, it closes the descriptors that came along.
#[derive(Debug)]
struct Said {
    pid: u32,
    lines: Vec<String>,
    descriptors: Vec<OwnedFd>,
}

impl Said {
    fn has(&self, line: &str) -> bool {
        self.lines.iter().any(|said| said == line)
    }

    fn is(&self, pid: u32, line: &str) -> bool {
        self.pid == pid && self.has(line)
    }
}

impl Manager {
    /// At a path, as systemd is.
    fn new() -> Self {
        let folder = Folder::new();
        let path = folder.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self::at(socket, path.into(), folder)
    }

    /// At a name in the abstract namespace.
    fn at_a_name() -> Self {
        let folder = Folder::new();
        let name = folder.path("notify");
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Self::at(socket, format!("@{name}").into(), folder)
    }

    fn at(socket: UnixDatagram, notify_socket: OsString, folder: Folder) -> Self {
        sockopt::set_socket_passcred(&socket, true).unwrap();
        Self {
            socket,
            notify_socket,
            folder,
        }
    }

    /// `standfast ARGS...` as this manager starts it.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = standfast();
        for name in VARIABLES {
            command.env_remove(name);
        }
        command.env("NOTIFY_SOCKET", &self.notify_socket);
        command.args(args);
        command
    }

    /// A server on a free port, with a control socket that [`Self::command`] can name by [`Self::control`].
    fn serve(&self, period: Option<Duration>) -> Server {
        let mut command = self.command(&["serve", "-l", "0", "--control", &self.control()]);
        if let Some(period) = period {
            command.env("WATCHDOG_USEC", period.as_micros().to_string());
        }
        Server::spawn(command, 1)
    }

    /// The process that takes over from `server`, as it serves.
    fn replace(&self, server: &mut Server, period: Option<Duration>) -> Server {
        let address = server.address();
        let new = server.replaced_by(1, || {
            let mut command = self.replacing(&address.to_string());
            if let Some(period) = period {
                command.env("WATCHDOG_USEC", period.as_micros().to_string());
            }
            command
        });
        assert_eq!(new.address(), address);
        new
    }

    fn replacing(&self, address: &str) -> Command {
        let control = self.control();
        self.command(&["serve", "--replace", "-l", address, "--control", &control])
    }

    fn control(&self) -> String {
        self.folder.path("control.sock")
    }

    /// What is said next.
    fn hear(&self) -> Said {
        let said = self.hear_within(GUARD);
        said.unwrap_or_else(|| panic!("nothing more is said"))
    }

    fn hear_within(&self, bound: Duration) -> Option<Said> {
        self.socket.set_read_timeout(Some(bound)).unwrap();
        let mut text = [0; 4096];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut text)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let count = match received {
            Ok(received) => received.bytes,
            Err(error) => {
                let error = std::io::Error::from(error);
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                return None;
            }
        };
        let mut said = Said {
            pid: 0,
            lines: str::from_utf8(&text[..count])
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect(),
            descriptors: Vec::new(),
        };
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(descriptors) => {
                    said.descriptors.extend(descriptors);
                }
                RecvAncillaryMessage::ScmCredentials(who) => {
                    said.pid = who.pid.as_raw_nonzero().get().cast_unsigned();
                }
                _ => {}
            }
        }
        Some(said)
    }

    /// Hears on until `line` is said, which `pid` has to be.
    #[track_caller]
    fn hear_from(&self, pid: u32, line: &str) -> Said {
        let start = now();
        // The watchdog's words come for ever.
        while start.elapsed() < GUARD {
            let said = self.hear();
            if said.has(line) {
                assert_eq!(said.pid, pid, "who said {said:?}");
                return said;
            }
        }
        panic!("{line} is not said");
    }

    /// Everything said by now.
    fn hear_the_rest(&self) -> Vec<Said> {
        std::iter::from_fn(|| self.hear_within(Duration::from_millis(1))).collect()
    }

    /// `ready` is said by `server`, and is true.
    #[track_caller]
    fn hear_ready(&self, server: &Server) {
        let said = self.hear_from(server.pid(), "READY=1");
        let address = server.address();
        assert!(
            said.has(&format!("STATUS=listening on {address}")),
            "{said:?}"
        );
        assert_echoes(&mut connect(address), b"hello");
    }
}

/// A process that is nobody's child here; ended with its test.
struct Orphan(u32);

impl Orphan {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.cast_signed()).unwrap();
        // It may have ended.
        let _ = kill_process(pid, signal);
    }

    fn field(&self, name: &str) -> Option<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_start_matches(':').trim().to_owned())
    }

    fn has_ended(&self) -> bool {
        self.field("State")
            .is_none_or(|state| state.starts_with('Z'))
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

// Ready and stopping.

#[test]
fn the_manager_hears_that_it_is_ready_once_clients_are_served_and_that_it_ends() {
    for manager in [Manager::new(), Manager::at_a_name()] {
        // Nothing but its word says when: the line on stdout is not waited for.
        let mut command = manager.command(&["serve", "-l", "0"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut server = Server::launch(command);
        let said = manager.hear();
        assert!(said.is(server.pid(), "READY=1"), "{said:?}");
        let status = said.lines[1].strip_prefix("STATUS=").unwrap();
        let address = listening(status);
        let mut client = connect(address);
        assert_echoes(&mut client, b"hello");
        // It ends only when this client has its answer.
        let mut stuck = connect(address);
        send_until_stuck(&mut stuck, &[b'x'; 65536]);
        server.signal(Signal::TERM);
        let said = manager.hear();
        assert!(said.is(server.pid(), "STOPPING=1"), "{said:?}");
        assert!(server.is_running(), "it drains");
        drop(client);
        assert!(!read_to_fin(&mut stuck).is_empty());
        drop(stuck);
        assert_eq!(server.wait().code(), Some(0));
        assert!(manager.hear_the_rest().is_empty());
    }
}

#[test]
fn a_server_that_cannot_start_does_not_say_that_it_is_ready() {
    let manager = Manager::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, stdout, _) = output(manager.command(&["serve", "-l", &address]));
    assert_eq!((code, &*stdout), (1, ""));
    let said = manager.hear_the_rest();
    assert!(!said.iter().any(|said| said.has("READY=1")), "{said:?}");
}

#[test]
fn a_drain_by_the_control_socket_is_heard_as_well() {
    let manager = Manager::new();
    let mut server = manager.serve(None);
    manager.hear_ready(&server);
    let control = manager.control();
    let (code, _, stderr) = output(manager.command(&["drain", "--control", &control]));
    assert_eq!(code, 0, "{stderr}");
    manager.hear_from(server.pid(), "STOPPING=1");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_manager_that_is_not_there_harms_nothing() {
    for (notify_socket, warnings) in [
        ("/nonexistent/notify", 2),
        ("@standfast-nobody-listens-there", 2),
        ("vsock:2:1234", 1),
        ("", 0),
    ] {
        let mut command = standfast();
        command
            .args(["serve", "-q", "-l", "0", "--control", "off"])
            .env("NOTIFY_SOCKET", notify_socket)
            .env("WATCHDOG_USEC", "3600000000");
        let mut server = Server::spawn(command, 1);
        assert_echoes(&mut server.connect(), b"hello");
        assert_eq!(server.drain().code(), Some(0));
        let lines = &server.lines;
        assert_eq!(lines.len(), warnings, "{notify_socket}: {lines:?}");
        assert!(
            lines
                .iter()
                .all(|line| line.contains(" warn ") && line.contains("the service manager")),
            "{lines:?}"
        );
    }
}

#[test]
fn behind_a_keeper_the_manager_hears_of_everything_from_the_keeper() {
    let manager = Manager::new();
    let control = manager.control();
    let ask = |order: &str| manager.command(&[order, "--control", &control]);
    let serve = ["serve", "--keep", "-l", "0", "--control", &control];
    let mut command = manager.command(&serve);
    command.env("WATCHDOG_USEC", "1000000");
    let mut keeper = Server::spawn(command, 1);
    let pid = keeper.pid();
    manager.hear_ready(&keeper);
    manager.hear_from(pid, "WATCHDOG=1");
    let mut client = connect(keeper.address());
    let (code, _, stderr) = restarted(|| ask("restart"));
    assert_eq!(code, 0, "{stderr}");
    let said = manager.hear_from(pid, "RELOADING=1");
    assert!(said.lines[1].starts_with("MONOTONIC_USEC="), "{said:?}");
    manager.hear_ready(&keeper);
    assert_echoes(&mut client, b"over a restart");
    // A crash is heard of by a status alone: the service goes on.
    let (_, status, _) = output({
        let mut status = ask("status");
        status.arg("--json");
        status
    });
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let server = status["pid"]
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok());
    kill_process(Pid::from_raw(server.unwrap()).unwrap(), Signal::KILL).unwrap();
    manager.hear_ready(&keeper);
    keeper.signal(Signal::TERM);
    manager.hear_from(pid, "STOPPING=1");
    assert_eq!(keeper.wait().code(), Some(0));
    let rest = manager.hear_the_rest();
    assert!(rest.iter().all(|said| said.pid == pid), "{rest:?}");
}

// The watchdog.

const PERIOD: Duration = Duration::from_millis(400);

#[test]
fn the_watchdog_is_fed_again_and_again() {
    let manager = Manager::new();
    let mut server = manager.serve(Some(PERIOD));
    manager.hear_ready(&server);
    for _ in 0..5 {
        manager.hear_from(server.pid(), "WATCHDOG=1");
    }
    assert_eq!(server.drain().code(), Some(0));
}

#[test]
fn a_watchdog_for_another_process_is_left_alone() {
    let manager = Manager::new();
    let mut command = manager.command(&["serve", "-l", "0"]);
    let usec = PERIOD.as_micros().to_string();
    command
        .env("WATCHDOG_USEC", usec)
        .env("WATCHDOG_PID", std::process::id().to_string());
    let server = Server::spawn(command, 1);
    manager.hear_ready(&server);
    // Time in which it would have been fed, several times over.
    assert!(manager.hear_within(PERIOD * 3).is_none());
}

#[test]
fn the_watchdog_is_not_fed_while_a_worker_stands_still() {
    let manager = Manager::new();
    let control = manager.control();
    let args = ["serve", "-l", "0", "--workers", "2", "--control", &control];
    let mut command = manager.command(&args);
    command.env("WATCHDOG_USEC", PERIOD.as_micros().to_string());
    let mut server = Server::spawn(command, 1);
    manager.hear_from(server.pid(), "WATCHDOG=1");
    let Some(held) = Held::thread(server.pid(), "worker-1") else {
        return cannot_run("a worker stands still", "the right to ptrace");
    };
    server.log_line("the standstill", |line| line.contains("stands still"));
    manager.hear_the_rest();
    let said = manager.hear_within(PERIOD * 2);
    assert!(said.is_none(), "{said:?}");
    drop(held);
    manager.hear_from(server.pid(), "WATCHDOG=1");
    assert_echoes(&mut server.connect(), b"hello");
    assert_eq!(server.drain().code(), Some(0));
}

/// One thread of a process, which stands still meanwhile. Only the thread that holds it can let it go.
struct Held(libc::pid_t);

impl Held {
    fn thread(pid: u32, name: &str) -> Option<Self> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let named = |task: &Path| {
            fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let task = tasks.map(|task| task.path()).find(|task| named(task));
        let id = task.unwrap().file_name().unwrap().to_str().unwrap().parse();
        let id = id.unwrap();
        if !Self::ask(id, libc::PTRACE_SEIZE) {
            return None;
        }
        let held = Self(id);
        assert!(Self::ask(id, libc::PTRACE_INTERRUPT));
        held.wait();
        Some(held)
    }

    #[expect(unsafe_code, reason = "no safe crate traces")]
    fn ask(id: libc::pid_t, request: libc::c_uint) -> bool {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: these requests read and write no memory of ours.
        unsafe { libc::ptrace(request, id, none, none) == 0 }
    }

    #[expect(unsafe_code, reason = "no safe crate waits for a thread")]
    fn wait(&self) {
        let mut status: libc::c_int = 0;
        // SAFETY: the call writes one int to `status`, which outlives it.
        let stopped = unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL) };
        assert_eq!(stopped, self.0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        Self::ask(self.0, libc::PTRACE_DETACH);
    }
}

// Takeovers.

#[test]
fn a_takeover_is_told_by_the_old_process_before_the_new_one_speaks() {
    let manager = Manager::new();
    let mut old = manager.serve(None);
    manager.hear_ready(&old);
    let mut client = old.connect();
    assert_echoes(&mut client, b"before");
    let mut new = manager.replace(&mut old, None);
    // The first word of all, or systemd, which hears the main process only, refuses what the new one says.
    let said = manager.hear();
    let main_pid = format!("MAINPID={}", new.pid());
    assert!(said.is(old.pid(), &main_pid), "{said:?}");
    manager.hear_ready(&new);
    assert_eq!(old.wait().code(), Some(0));
    assert_echoes(&mut client, b"after");
    drop(client);
    assert_eq!(new.drain().code(), Some(0));
    // No word of the old one's own end, which is not the service's.
    manager.hear_from(new.pid(), "STOPPING=1");
    let rest = manager.hear_the_rest();
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn the_old_process_does_not_end_before_the_manager_has_heard() {
    let manager = Manager::new();
    let mut old = manager.serve(None);
    manager.hear_ready(&old);
    let new = manager.replace(&mut old, None);
    // The new one serves, whatever the manager is doing.
    assert_echoes(&mut new.connect(), b"hello");
    let said = manager.hear_from(old.pid(), &format!("MAINPID={}", new.pid()));
    drop(said);
    // The manager has the barrier, and has not done yet what was said before it.
    let barrier = manager.hear_from(old.pid(), "BARRIER=1");
    assert_eq!((barrier.lines.len(), barrier.descriptors.len()), (1, 1));
    pass(Duration::from_millis(500));
    assert!(old.is_running());
    drop(barrier);
    assert_eq!(old.wait().code(), Some(0));
    manager.hear_ready(&new);
}

#[test]
fn the_old_process_does_not_wait_for_ever_for_a_deaf_manager() {
    let manager = Manager::new();
    let mut old = manager.serve(None);
    manager.hear_ready(&old);
    let new = manager.replace(&mut old, None);
    assert_eq!(old.wait().code(), Some(0));
    assert_echoes(&mut new.connect(), b"hello");
    assert!(
        old.lines
            .iter()
            .any(|line| line.contains(" warn ") && line.contains("service manager")),
        "{:?}",
        old.lines
    );
}

#[test]
fn the_watchdog_goes_over_to_the_new_process() {
    let manager = Manager::new();
    let mut old = manager.serve(Some(PERIOD));
    manager.hear_ready(&old);
    manager.hear_from(old.pid(), "WATCHDOG=1");
    let mut new = manager.replace(&mut old, Some(PERIOD));
    let said = manager.hear_from(old.pid(), &format!("MAINPID={}", new.pid()));
    assert!(said.has("WATCHDOG=1"), "it begins anew: {said:?}");
    for _ in 0..3 {
        manager.hear_from(new.pid(), "WATCHDOG=1");
    }
    assert_eq!(old.wait().code(), Some(0));
    assert_eq!(new.drain().code(), Some(0));
}

#[test]
fn a_takeover_that_fails_is_not_told() {
    let manager = Manager::new();
    let mut old = manager.serve(None);
    manager.hear_ready(&old);
    let mut command = manager.replacing(&old.address().to_string());
    command.env("STANDFAST_FAULT", "wrong-version");
    let (code, stdout, _) = output(command);
    assert_eq!((code, &*stdout), (1, ""));
    assert_echoes(&mut old.connect(), b"hello");
    assert_eq!(old.drain().code(), Some(0));
    let said = manager.hear();
    assert!(said.is(old.pid(), "STOPPING=1"), "{said:?}");
}

#[test]
fn a_successor_is_the_managers_child_before_it_is_its_main_process() {
    let manager = Manager::new();
    let control = manager.control();
    // Its watchdog is for this very process, as systemd has it.
    let script = r#"WATCHDOG_PID=$$ exec "$@""#;
    let command = manager.command(&["serve", "-l", "0", "--control", &control]);
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.env("WATCHDOG_USEC", PERIOD.as_micros().to_string());
    let mut old = Server::spawn(shell, 1);
    manager.hear_ready(&old);
    manager.hear_from(old.pid(), "WATCHDOG=1");
    let mut client = old.connect();
    assert_echoes(&mut client, b"before");

    let mut restart = manager.command(&["restart", "--control", &control]);
    let mut restart = restart
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let said = loop {
        let said = manager.hear();
        if said.lines[0].starts_with("MAINPID=") {
            break said;
        }
        // Whoever else spoke must not outlive this test.
        let other = (said.pid != old.pid()).then(|| Orphan(said.pid));
        assert!(other.is_none(), "{said:?}");
    };
    let pid = said.lines[0].strip_prefix("MAINPID=").unwrap();
    let new = Orphan(pid.parse().unwrap());
    // The old one waits for the barrier, so it is not by its end that the other has become an orphan.
    assert!(old.is_running());
    let parent = new.field("PPid").unwrap();
    assert_ne!(parent, old.pid().to_string());
    until("the old process and the command end", || {
        let ended = restart.try_wait().unwrap();
        assert!(ended.is_none_or(|status| status.success()), "{ended:?}");
        !old.is_running() && ended.is_some()
    });
    assert_echoes(&mut client, b"after");
    drop(client);
    // The watchdog that was for the old one's number is for the new one now.
    for _ in 0..3 {
        manager.hear_from(new.0, "WATCHDOG=1");
    }
    new.signal(Signal::TERM);
    manager.hear_from(new.0, "STOPPING=1");
    until("the new process ends", || new.has_ended());
}

// Sockets that were passed.

/// As systemd starts a service with `listener` for its socket.
fn with_listener(manager: &Manager, listener: &TcpListener) -> Server {
    let control = manager.control();
    let command = manager.command(&["serve", "-l", "systemd", "--control", &control]);
    let mut shell = Command::new("sh");
    let script =
        r#"LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=standfast.socket exec "$@" 3<&0 </dev/null"#;
    shell.args(["-c", script, "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.env("NOTIFY_SOCKET", &manager.notify_socket);
    let passed = OwnedFd::from(listener.try_clone().unwrap());
    shell.stdin(passed).stdout(Stdio::piped());
    let mut server = Server::launch(shell);
    let address = listening(&server.stdout_line());
    server.addresses.push(address);
    assert_eq!(address, listener.local_addr().unwrap());
    server
}

#[test]
fn a_passed_socket_is_taken_over_without_being_passed_again() {
    let manager = Manager::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // It waits in the queue before there is a server.
    let mut early = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    early.set_read_timeout(Some(GUARD)).unwrap();
    let mut old = with_listener(&manager, &listener);
    manager.hear_ready(&old);
    assert_echoes(&mut early, b"early");

    let control = manager.control();
    let replace = ["serve", "--replace", "-l", "systemd", "--control", &control];
    let mut new = old.replaced_by(1, || manager.command(&replace));
    assert_eq!(new.address(), old.address());
    manager.hear_from(old.pid(), &format!("MAINPID={}", new.pid()));
    manager.hear_ready(&new);
    assert_eq!(old.wait().code(), Some(0));
    assert_echoes(&mut early, b"late");
    drop(early);
    assert_eq!(new.drain().code(), Some(0));
    // The socket is the manager's, and goes on without a server.
    let mut next = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    next.set_read_timeout(Some(GUARD)).unwrap();
    let third = with_listener(&manager, &listener);
    assert_echoes(&mut next, b"hello");
    drop(third);
}

#[test]
fn with_nothing_passed_and_nothing_to_take_over_it_does_not_start() {
    let manager = Manager::new();
    let control = manager.control();
    let replace = ["serve", "--replace", "-l", "systemd", "--control", &control];
    let (code, stdout, stderr) = output(manager.command(&replace));
    assert_eq!((code, &*stdout), (1, ""), "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(last.contains("systemd passed no sockets"), "{stderr}");
    assert!(manager.hear_the_rest().is_empty());
}

#[test]
fn a_descriptor_of_the_servers_own_is_none_it_inherited() {
    // The first listener has one of these numbers.
    for number in 3..10 {
        // Whatever the tests have inherited themselves, as from make -j.
        let listener = format!("fd:{number}");
        let script = format!("exec {number}>&-; exec \"$@\"");
        let (code, stdout, stderr) = output(shell(&script, &["serve", "-l", "0", "-l", &listener]));
        assert_eq!((code, &*stdout), (1, ""), "{stderr}");
        let said = format!(
            "standfast: cannot listen on fd:{number}: this process inherited no descriptor of that number"
        );
        assert_eq!(stderr, said);
    }
}
