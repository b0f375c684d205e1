//! Its descriptor store in a keeper's place: connections go on in the process that it starts next.

use std::collections::BTreeMap;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::Signal;
use serde_json::Value;

use super::{Manager, Said};
use crate::signals::send;
use crate::support::{Server, assert_echoes, cannot_run, connect, listening, read_to_fin, until};

/// Starts what follows as systemd does: with the descriptors that come on stdin, by the names that come with them.
const PASSES: &str = r#"
import fcntl, os, socket, sys
line = socket.socket(fileno=0)
names, descriptors, *_ = socket.recv_fds(line, 65536, 253)
descriptors = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 500) for one in descriptors]
for at, one in enumerate(descriptors):
    os.dup2(one, 3 + at)
os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
if descriptors:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(descriptors)), LISTEN_FDNAMES=names.decode())
os.execvp(sys.argv[1], sys.argv[1:])
"#;

/// A manager with a store.
struct Store {
    manager: Manager,
    most: usize,
    held: BTreeMap<String, OwnedFd>,
    /// Who has said what.
    said: Vec<(u32, String)>,
}

impl Store {
    /// `None`, and it says so: that cannot be done here.
    fn new(test: &str, most: usize) -> Option<Self> {
        let python = Command::new("python3").arg("--version").output();
        if python.is_err() {
            cannot_run(test, "python3");
            return None;
        }
        Some(Self {
            manager: Manager::new(),
            most,
            held: BTreeMap::new(),
            said: Vec::new(),
        })
    }

    /// Starts a server with what there is, and hears it until it is ready.
    fn serve(&mut self, args: &[&str]) -> Server {
        let control = self.manager.control();
        let arguments = [&["serve", "--workers", "1", "--control", &control], args].concat();
        let command = self.manager.command(&arguments);
        let mut passing = Command::new("python3");
        passing.args(["-c", PASSES]).arg(command.get_program());
        passing.args(command.get_args());
        passing.env("NOTIFY_SOCKET", &self.manager.notify_socket);
        passing.env("FDSTORE", self.most.to_string());
        passing.env("MANAGERPID", std::process::id().to_string());
        passing.env_remove("SYSTEMD_EXEC_PID");
        let (line, theirs) = UnixStream::pair().unwrap();
        passing.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped());
        let mut server = Server::launch(passing);
        // The last that came is the first.
        let names: Vec<&str> = self.held.keys().rev().map(String::as_str).collect();
        let descriptors: Vec<_> = self.held.values().rev().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        }
        let text = format!("{}:", names.join(":"));
        let text = text.strip_suffix(':').filter(|_| !names.is_empty());
        let text = IoSlice::new(text.unwrap_or(" ").as_bytes());
        sendmsg(&line, &[text], &mut control, SendFlags::empty()).unwrap();
        self.hear_until(server.pid(), "READY=1");
        let address = listening(&server.stdout_line());
        server.addresses.push(address);
        server
    }

    #[track_caller]
    fn hear_until(&mut self, pid: u32, line: &str) {
        until(line, || {
            let said = self.manager.hear();
            let is_it = said.is(pid, line);
            self.heard(said);
            is_it
        });
    }

    fn hear_the_rest(&mut self) {
        for said in self.manager.hear_the_rest() {
            self.heard(said);
        }
    }

    fn heard(&mut self, said: Said) {
        let field = |name: &str| {
            let mut lines = said.lines.iter();
            lines.find_map(|line| line.strip_prefix(name).map(str::to_owned))
        };
        if said.has("FDSTORE=1") {
            let name = field("FDNAME=").unwrap();
            assert!(said.has("FDPOLL=0") && name.len() <= 60, "{said:?}");
            assert!(self.held.len() < self.most, "one too many: {name}");
            let one = said.descriptors.into_iter().next().unwrap();
            assert!(self.held.insert(name, one).is_none(), "twice by one name");
        } else if said.has("FDSTOREREMOVE=1") {
            let name = field("FDNAME=").unwrap();
            assert!(self.held.remove(&name).is_some(), "{name} is not there");
        }
        let pid = said.pid;
        self.said
            .extend(said.lines.into_iter().map(|line| (pid, line)));
    }

    /// Who has the connections, as the server says.
    fn keeper(&self) -> Value {
        let control = self.manager.control();
        let mut asking = self
            .manager
            .command(&["status", "--json", "--control", &control]);
        let answer = asking.output().unwrap();
        serde_json::from_slice::<Value>(&answer.stdout).unwrap()["keeper"].clone()
    }

    fn restart(&self) -> Server {
        let mut command = self
            .manager
            .command(&["restart", "--control", &self.manager.control()]);
        command.stdout(Stdio::piped()).stdin(Stdio::null());
        Server::launch(command)
    }
}

/// An answer is on its way, more than one client takes, and a client is idle.
fn clients(server: &Server) -> (TcpStream, TcpStream, usize) {
    let mut idle = connect(server.address());
    assert_echoes(&mut idle, b"hello");
    let busy = connect(server.address());
    busy.set_nonblocking(true).unwrap();
    let mut sent = 0;
    until("nothing more is taken", || {
        match (&busy).write(&[b'x'; 65536]) {
            Ok(count) => sent += count,
            Err(_) => return true,
        }
        false
    });
    busy.set_nonblocking(false).unwrap();
    (idle, busy, sent)
}

fn assert_whole((mut idle, mut busy, sent): (TcpStream, TcpStream, usize)) {
    assert_echoes(&mut idle, b"and on");
    busy.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    busy.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), sent);
}

#[test]
fn connections_go_on_over_crashes_where_the_manager_has_them_in_its_store() {
    let Some(mut store) = Store::new("connections go on by systemd's store", 64) else {
        return;
    };
    let mut server = store.serve(&["-l", "0"]);
    let address = server.address();
    let clients = clients(&server);
    for crashes in 1..=3 {
        server.signal(Signal::KILL);
        server.wait();
        // A client may come meanwhile: it listens yet.
        let mut early = connect(address);
        store.hear_the_rest();
        server = store.serve(&["-l", "0"]);
        assert_eq!(server.address(), address);
        assert_echoes(&mut early, b"early");
        server.log_line("the former server crashed", |line| {
            line.contains("the former server crashed")
        });
        server.log_line("how many go on", |line| {
            line.contains("goes on with connections")
        });
        let status =
            store
                .manager
                .command(&["status", "--json", "--control", &store.manager.control()]);
        let status: Value = serde_json::from_slice(&{ status }.output().unwrap().stdout).unwrap();
        assert_eq!(status["crashes"], crashes);
        store.hear_the_rest();
        assert!(store.held.len() <= 10, "{:?}", store.held.keys());
    }
    assert_whole(clients);
    assert_eq!(server.drain().code(), Some(0));
    store.hear_the_rest();
    assert!(store.held.is_empty(), "{:?}", store.held.keys());
}

#[test]
fn a_server_that_is_told_that_the_next_one_follows_leaves_its_connections_there() {
    let Some(mut store) = Store::new("connections are left in systemd's store", 64) else {
        return;
    };
    let mut server = store.serve(&["-l", "0"]);
    let clients = clients(&server);
    for _ in 0..2 {
        send(&server, libc::SIGRTMIN() + 5);
        assert_eq!(server.wait().code(), Some(0), "{:?}", server.lines);
        store.hear_the_rest();
        server = store.serve(&["-l", "0"]);
        server.log_line("how many go on", |line| {
            line.contains("goes on with connections")
        });
        let crashed = server.lines.iter().filter(|line| line.contains("crash"));
        assert_eq!(crashed.count(), 0, "{:?}", server.lines);
    }
    assert_whole(clients);
}

#[test]
fn who_could_not_go_on_is_drained_though_another_server_follows() {
    let Some(mut store) = Store::new("who cannot go on is drained", 64) else {
        return;
    };
    // More than there are addresses for.
    let mut server = store.serve(&[
        "hub",
        "--buffer",
        "100000g",
        "--raw",
        "--echo-self",
        "-l",
        "0",
    ]);
    let mut client = connect(server.address());
    assert_echoes(&mut client, b"hello");
    send(&server, libc::SIGRTMIN() + 5);
    assert_eq!(read_to_fin(&mut client).len(), 0);
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
    store.hear_the_rest();
    assert!(store.held.is_empty(), "{:?}", store.held.keys());
}

#[test]
fn a_takeover_takes_away_what_the_old_server_stored_before_the_new_one_speaks() {
    let Some(mut store) = Store::new("a takeover and systemd's store", 64) else {
        return;
    };
    let mut old = store.serve(&["-l", "0"]);
    let clients = clients(&old);
    let mut restart = store.restart();
    let mut new = 0;
    until("the new server is ready", || {
        let said = store.manager.hear();
        let named = said
            .lines
            .iter()
            .find_map(|line| line.strip_prefix("MAINPID="));
        if let Some(named) = named {
            assert!(store.held.is_empty(), "{:?}", store.held.keys());
            new = named.parse().unwrap();
        } else {
            let is_speaker = said.pid == if new == 0 { old.pid() } else { new };
            assert!(
                is_speaker || said.lines.is_empty() || said.has("BARRIER=1"),
                "{said:?}"
            );
        }
        let is_ready = said.is(new, "READY=1");
        store.heard(said);
        is_ready
    });
    assert_eq!(restart.wait().code(), Some(0));
    // Whosever child the new server is by now.
    assert_eq!(store.keeper(), std::process::id());
    until("the old server ends", || !old.is_running());
    // The new one crashes: what it has stored is what the next one goes on with.
    let new = super::Orphan(new);
    new.signal(Signal::KILL);
    until("it ends", || new.has_ended());
    store.hear_the_rest();
    let server = store.serve(&["-l", "0"]);
    assert_whole(clients);
    drop(server);
}

#[test]
fn a_store_that_is_too_small_costs_a_line_and_no_client() {
    let Some(mut store) = Store::new("a small store", 2) else {
        return;
    };
    let mut server = store.serve(&["-l", "0"]);
    server.log_line("what is lacking", |line| {
        line.contains("FileDescriptorStoreMax=")
    });
    let mut client = connect(server.address());
    assert_echoes(&mut client, b"hello");
    drop(client);
    assert_eq!(server.drain().code(), Some(0));
    store.hear_the_rest();
    assert!(store.held.is_empty(), "{:?}", store.held.keys());
}
