//! Who asks and should not, or asks what is no question, or asks when nothing is left to answer with.

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::geteuid;
use serde_json::Value;

use crate::support::clients::{Bystander, assert_over};
use crate::support::home::{Home, number, refusal, text};
use crate::support::seeded::Seeded;
use crate::support::{
    Began, GUARD, Server, assert_echoes, cannot_run, connect, leave_descriptors, now, read_to_fin,
    until,
};

/// The sockets of the control path, which the standard library does not have.
pub(crate) mod seqpacket {
    use std::os::fd::OwnedFd;
    use std::path::Path;

    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

    pub(crate) fn socket(flags: SocketFlags) -> OwnedFd {
        let flags = flags | SocketFlags::CLOEXEC;
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    pub(crate) fn listen(path: &Path) -> OwnedFd {
        let socket = socket(SocketFlags::NONBLOCK);
        bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        rustix::net::listen(&socket, 16).unwrap();
        socket
    }

    /// Connects, unless that would have to wait.
    pub(crate) fn connect(path: &Path) -> Option<OwnedFd> {
        let socket = socket(SocketFlags::NONBLOCK);
        match rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()) {
            Ok(()) => Some(socket),
            Err(rustix::io::Errno::AGAIN) => None,
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
}

/// Somebody at the control socket who need not be a `standfast`.
pub(crate) struct Caller(UnixStream);

impl Caller {
    pub(crate) fn connect(path: &Path) -> Self {
        let mut caller = None;
        until("connected to the control socket", || {
            caller = Self::try_connect(path);
            caller.is_some()
        });
        caller.unwrap()
    }

    /// Unless the server's backlog is full.
    fn try_connect(path: &Path) -> Option<Self> {
        seqpacket::connect(path).map(Self::from)
    }

    /// One message; the server may have hung up already.
    pub(crate) fn say(&self, message: &[u8]) {
        let _ = rustix::net::send(&self.0, message, SendFlags::NOSIGNAL);
    }

    fn say_with(&self, message: &[u8], descriptors: &[&UnixStream]) {
        let descriptors: Vec<_> = descriptors.iter().map(|stream| stream.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let message = [IoSlice::new(message)];
        rustix::net::sendmsg(&self.0, &message, &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    /// The next message; `None` if the server has hung up instead.
    pub(crate) fn hear(&mut self) -> Option<Vec<u8>> {
        let mut message = vec![0; 1 << 20];
        loop {
            return match self.0.read(&mut message) {
                Ok(0) => None,
                Ok(length) => Some(message[..length].to_vec()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    let gone = error.kind() == ErrorKind::ConnectionReset;
                    assert!(gone, "neither an answer nor the end: {error}");
                    None
                }
            };
        }
    }
}

impl From<OwnedFd> for Caller {
    fn from(socket: OwnedFd) -> Self {
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        Self(stream)
    }
}

/// A server that is disturbed, and those who look whether it is.
struct Disturbed {
    home: Home,
    server: Server,
    path: PathBuf,
    bystander: Bystander,
    descriptors: usize,
}

impl Disturbed {
    fn start() -> Self {
        let home = Home::new();
        let server = home.serve(&["-v"]);
        let path = home.socket_of(&server);
        let bystander = Bystander::start(server.address());
        until("the bystander is served", || {
            number(&home.json(&["status"])["read"]) > 0
        });
        let descriptors = descriptors(&server);
        Self {
            home,
            server,
            path,
            bystander,
            descriptors,
        }
    }

    /// It answers, and serves who comes.
    #[track_caller]
    fn assert_well(&self) {
        let status = self.home.json(&["status"]);
        assert_eq!(status["pid"], self.server.pid());
        assert_eq!(status["draining"], false);
        assert_echoes(&mut self.server.connect(), b"hello");
    }

    /// Nothing came of it: nobody waited, no descriptor is left, no thread panicked.
    #[track_caller]
    fn assert_unhurt(mut self) {
        self.assert_well();
        until("as many descriptors as before", || {
            descriptors(&self.server) <= self.descriptors
        });
        self.bystander.assert_unhurt();
        assert!(self.server.drain().success());
        let panicked = self.server.lines.iter().any(|line| line.contains("panic"));
        assert!(!panicked, "{}", self.server.lines.join("\n"));
    }
}

fn descriptors(server: &Server) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", server.pid()));
    open.unwrap().count()
}

// Garbage.

/// Pseudo-random bytes that are the same in every run, and no question in any encoding: they begin with 255.
fn garbage(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Seeded::new(seed);
    let mut bytes = vec![255; length];
    for byte in bytes.iter_mut().skip(1) {
        *byte = random.next().to_le_bytes()[0];
    }
    bytes
}

#[test]
fn what_is_no_question_disturbs_nobody() {
    let disturbed = Disturbed::start();
    let lengths = [1, 2, 16, 500, 20_000].into_iter().cycle();
    let random = (0..120).zip(lengths);
    let random = random.map(|(seed, length)| garbage(seed, length));
    let odd: [&[u8]; 14] = [
        b"",
        b"\0",
        b"{",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b"\"nonsense\"",
        b"{\"kill\":{}}",
        b"{\"kill\":{\"id\":-1}}",
        b"{\"kill\":{\"id\":99999999999999999999999999}}",
        b"{\"take-over\":{}}",
        b"\"status\" and more",
        "\"st\u{fffd}tus\"".as_bytes(),
    ];
    let nested = vec![b'['; 100_000];
    let huge = vec![b'"'; 150_000];
    let messages = random
        .chain(odd.into_iter().map(<[u8]>::to_vec))
        .chain([nested, huge]);
    for (at, message) in messages.enumerate() {
        let mut caller = Caller::connect(&disturbed.path);
        caller.say(&message);
        // Whether it says why or hangs up, it does one of the two.
        caller.hear();
        if at % 20 == 0 {
            disturbed.assert_well();
        }
    }
    disturbed.assert_unhurt();
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let disturbed = Disturbed::start();
    for message in [&b"garbage"[..], b"\"status\"", b"\"list\""] {
        let (mut kept, passed) = UnixStream::pair().unwrap();
        kept.set_read_timeout(Some(GUARD)).unwrap();
        let mut caller = Caller::connect(&disturbed.path);
        caller.say_with(message, &[&passed; 100]);
        drop(passed);
        caller.hear();
        let end = kept.read(&mut [0]).unwrap();
        assert_eq!(end, 0, "nobody holds the other end any more");
    }
    disturbed.assert_unhurt();
}

#[test]
fn who_hangs_up_at_once_disturbs_nobody() {
    let disturbed = Disturbed::start();
    for at in 0..300 {
        let caller = Caller::connect(&disturbed.path);
        if at % 3 == 0 {
            caller.say(b"\"status\"");
        }
        drop(caller);
        if at % 100 == 0 {
            disturbed.assert_well();
        }
    }
    disturbed.assert_unhurt();
}

#[test]
fn a_hundred_who_connect_and_hang_disturb_nobody_and_are_let_go() {
    let disturbed = Disturbed::start();
    let callers: Vec<_> = (0..100).map(|_| Caller::connect(&disturbed.path)).collect();
    for _ in 0..3 {
        disturbed.assert_well();
    }
    for mut caller in callers {
        while caller.hear().is_some() {}
    }
    disturbed.assert_unhurt();
}

#[test]
fn who_hangs_does_not_hold_up_the_end() {
    let home = Home::new();
    for end in ["drain", "stop"] {
        let mut server = home.serve(&[]);
        let path = home.socket_of(&server);
        let callers: Vec<_> = (0..50).map(|_| Caller::connect(&path)).collect();
        // Answered means that all before it were accepted.
        home.answer(&["status"]);
        let start = Began::now();
        home.answer(&[end]);
        assert_eq!(server.wait().code(), Some(0));
        // The server's patience with them is 5 s.
        assert!(start.unhindered() < Duration::from_secs(3), "{end}");
        drop(callers);
    }
}

#[test]
fn who_asks_for_a_list_and_never_reads_it_disturbs_nobody() {
    const TEST: &str = "who_asks_for_a_list_and_never_reads_it_disturbs_nobody";
    // More than fits between two processes: about 300 bytes each.
    const CLIENTS: usize = 2_000;
    let allowed = standfast::process::raise_descriptor_limit().unwrap_or(u64::MAX);
    if allowed < 2 * CLIENTS as u64 {
        return cannot_run(TEST, "4000 descriptors (ulimit -Hn)");
    }
    let mut disturbed = Disturbed::start();
    let address = disturbed.server.address();
    let clients: Vec<_> = (0..CLIENTS).map(|_| connect(address)).collect();
    until("all are in", || {
        number(&disturbed.home.json(&["status"])["open"]) > CLIENTS as u64
    });
    disturbed.descriptors = descriptors(&disturbed.server);
    // The question is one.
    let mut caller = Caller::connect(&disturbed.path);
    caller.say(b"\"list\"");
    let first = String::from_utf8(caller.hear().unwrap()).unwrap();
    assert!(first.contains("peer"), "{first}");
    let deaf: Vec<_> = (0..20)
        .map(|_| {
            let caller = Caller::connect(&disturbed.path);
            caller.say(b"\"list\"");
            caller
        })
        .collect();
    for _ in 0..3 {
        disturbed.assert_well();
        let list = disturbed.home.json(&["list"]);
        let entries = list.as_array().unwrap().iter();
        let peers = entries.map(|entry| entry["peer"].as_str().unwrap());
        let peers: HashSet<_> = peers.collect();
        let listed = |client: &TcpStream| {
            let peer = client.local_addr().unwrap().to_string();
            peers.contains(&*peer)
        };
        assert!(clients.iter().all(listed));
    }
    drop((deaf, clients));
    disturbed.assert_unhurt();
}

// Out of descriptors.

#[test]
fn with_every_place_taken_it_can_still_be_asked() {
    for when_full in ["close", "wait"] {
        let home = Home::new();
        let serve = ["serve", "-l", "0", "--when-full", when_full];
        let command = home.shell(r#"ulimit -n 100; exec "$@""#, &serve);
        let server = Server::spawn(command, 1);
        let mut clients: Vec<_> = (0..36).map(|_| server.connect()).collect();
        for client in &mut clients {
            assert_echoes(client, b"hello");
        }
        let mut more: Vec<_> = (0..50).map(|_| server.connect()).collect();
        if when_full == "close" {
            for client in &mut more {
                assert_eq!(read_to_fin(client), b"");
            }
        }
        for _ in 0..5 {
            assert_eq!(home.json(&["status"])["open"], 36);
            assert_eq!(home.json(&["list"]).as_array().unwrap().len(), 36);
        }
        home.answer(&["kill", "1"]);
        assert_over(&mut clients[0]);
        for client in &mut clients[1..] {
            assert_echoes(client, b"and the others go on");
        }
    }
}

#[test]
fn out_of_descriptors_it_can_still_be_asked() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    // The one that is left may be the server's own already: a thread in accept(2) has its next one.
    leave_descriptors(&server, 1);
    let mut more: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for client in &mut more {
        client.write_all(b"hello").unwrap();
    }
    server.log_line("the pause", |line| line.contains(" accepting paused"));
    let open = number(&home.json(&["status"])["open"]);
    for _ in 0..10 {
        assert_eq!(number(&home.json(&["status"])["open"]), open);
        let list = home.json(&["list"]);
        assert_eq!(list.as_array().unwrap().len() as u64, open);
    }
    for client in &mut clients {
        assert_echoes(client, b"and the others go on");
    }
    // An operator makes room.
    let waiting = usize::try_from(open).unwrap() - clients.len();
    home.answer(&["kill", "1"]);
    assert_over(&mut clients[0]);
    let mut answer = [0; 5];
    more[waiting].read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
    home.answer(&["stop"]);
    server.wait();
}

#[test]
fn who_hangs_at_the_control_socket_takes_no_clients_place() {
    let home = Home::new();
    let command = home.shell(r#"ulimit -n 100; exec "$@""#, &["serve", "-l", "0"]);
    let mut server = Server::spawn(command, 1);
    let path = home.socket_of(&server);
    let callers: Vec<_> = (0..100)
        .filter_map(|_| {
            // A moment for the server to accept: it has none left, or it does.
            let mut caller = None;
            let start = now();
            while caller.is_none() && start.elapsed() < Duration::from_millis(20) {
                caller = Caller::try_connect(&path);
            }
            caller
        })
        .collect();
    let start = Began::now();
    let mut clients: Vec<_> = (0..36).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, b"hello");
    }
    assert_eq!(home.json(&["status"])["open"], 36);
    // Not because they were let go: that is after 5 s.
    assert!(
        start.unhindered() < Duration::from_secs(4),
        "it took {:?}",
        start.unhindered()
    );
    drop((clients, callers));
    for _ in 0..36 {
        assert_eq!(
            server.closed().reason(),
            "peer-closed",
            "nobody was turned away"
        );
    }
    assert!(server.drain().success());
}

// Other users.

/// Another user of this host, who can run the binary.
pub(crate) struct User {
    pub(crate) uid: u32,
    standfast: PathBuf,
}

impl User {
    /// Only root can be somebody else.
    pub(crate) fn with(uid: u32, home: &Home) -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        // Where it was built others may not be able to look. Copied by another process: a child that some other test
        // starts meanwhile must not inherit a file that is open for writing, it could not be run then.
        let standfast = home.join(&format!("standfast-of-{uid}"));
        let mut copy = Command::new("cp");
        copy.arg(env!("CARGO_BIN_EXE_standfast")).arg(&standfast);
        assert!(copy.status().unwrap().success());
        fs::set_permissions(&standfast, Permissions::from_mode(0o755)).unwrap();
        Some(Self { uid, standfast })
    }

    pub(crate) fn nobody(home: &Home) -> Option<Self> {
        Self::with(65534, home)
    }

    /// One that has nothing on this host yet.
    pub(crate) fn unused(home: &Home) -> Option<Self> {
        let start = 20_000 + std::process::id() % 20_000;
        let uid = (start..60_000).find(|uid| {
            let nothing = |path: String| fs::symlink_metadata(path).is_err();
            nothing(format!("/tmp/standfast-{uid}")) && nothing(format!("/run/user/{uid}"))
        });
        Self::with(uid?, home)
    }

    /// `standfast ARGS...` run by this user, without a runtime folder.
    pub(crate) fn standfast(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.standfast);
        command.args(args).uid(self.uid).gid(self.uid);
        command.env_remove("RUST_LOG").env_remove("XDG_RUNTIME_DIR");
        command.current_dir("/");
        command
    }
}

/// Every command, asked by another user, is refused; answers what was said.
#[track_caller]
fn assert_refused(ask: impl Fn(&[&str]) -> Command, path: &Path) -> Vec<String> {
    let refused = super::COMMANDS.iter().map(|command| {
        let (code, line) = refusal(ask(&[*command, &["--control", text(path)]].concat()));
        assert_eq!(code, 1, "{command:?}: {line}");
        line
    });
    refused.collect()
}

#[test]
fn another_users_process_gets_no_answer() {
    const TEST: &str = "another_users_process_gets_no_answer";
    let home = Home::new();
    let Some(nobody) = User::nobody(&home) else {
        return cannot_run(TEST, "root, to be another user");
    };
    let path = home.join("control.sock");
    let mut server = home.serve(&["--control", text(&path)]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let ask = |args: &[&str]| nobody.standfast(args);
    // The socket's mode keeps them out; so does the server, if somebody opens it wide.
    assert_refused(ask, &path);
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    for _ in 0..4 {
        for line in assert_refused(ask, &path) {
            assert!(line.contains("another user"), "{line}");
        }
    }
    let line = server.log_line("the refusal", |line| line.contains("another user"));
    assert!(line.contains(" warn "), "{line}");
    let status = home.json(&["status", text(&path)]);
    assert_eq!(
        (&status["open"], &status["draining"]),
        (&1.into(), &Value::Bool(false))
    );
    assert_echoes(&mut client, b"nothing happened");
    drop(client);
    assert!(server.drain().success());
}

#[test]
fn root_is_another_user_too() {
    const TEST: &str = "root_is_another_user_too";
    let home = Home::new();
    let Some(user) = User::unused(&home) else {
        return cannot_run(TEST, "root, to be another user");
    };
    let folder = home.join("theirs");
    fs::create_dir(&folder).unwrap();
    chown(&folder, Some(user.uid), Some(user.uid)).unwrap();
    let path = folder.join("control.sock");
    let command = user.standfast(&["serve", "-l", "0", "--control", text(&path)]);
    let mut server = Server::spawn(command, 1);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    for _ in 0..4 {
        for line in assert_refused(|args| home.standfast(args), &path) {
            assert!(line.contains("another user"), "{line}");
        }
    }
    // Also when it is no standfast that asks.
    for question in ["\"status\"", "\"list\"", "\"drain\"", "\"stop\""] {
        let mut caller = Caller::connect(&path);
        caller.say(question.as_bytes());
        let heard = String::from_utf8(caller.hear().unwrap_or_default()).unwrap();
        assert!(!heard.contains("pid") && !heard.contains("peer"), "{heard}");
    }
    assert_echoes(&mut client, b"nothing happened");
    assert_echoes(&mut server.connect(), b"and it takes new ones");
    drop(client);
    assert!(server.drain().success());
}
