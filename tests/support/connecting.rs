//! A running `standfast connect`: what is typed into it, what it prints, what it says. And whom it connects to: ports
//! that refuse, peers that accept when the test says so, a netcat that listens.

use std::fmt::Display;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::{GUARD, Server, pass, standfast, until};

/// `standfast connect ARGS... TO`, which comes back fast unless `args` say how.
pub(crate) fn connect_command(to: &str, args: &[&str]) -> Command {
    let mut command = standfast();
    command.arg("connect").args(args);
    if !args.contains(&"--backoff") {
        command.args(["--backoff", "10ms:100ms"]);
    }
    command.args(to.split(' '));
    command
}

/// A running `standfast connect`; killed when dropped. As a process it is all that a [`Server`] is.
pub(crate) struct Connecting {
    process: Server,
    stdin: Option<Typing>,
    /// Listens for as long as the process may come back, so that it never comes to a port that somebody else got.
    server: Option<Peer>,
}

impl Connecting {
    /// `standfast connect ARGS... TO` with pipes at both ends.
    pub(crate) fn start(to: impl Display + Copy, args: &[&str]) -> Self {
        Self::spawn(connect_command(&to.to_string(), args))
    }

    /// Starts `command` with pipes at both ends.
    pub(crate) fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self::launch(command)
    }

    /// Starts `command` with the stdin and stdout it has.
    pub(crate) fn launch(command: Command) -> Self {
        let mut process = Server::launch(command);
        let stdin = process.child.stdin.take().map(Typing::start);
        Self {
            process,
            stdin,
            server: None,
        }
    }

    /// One that is connected, `standfast connect ARGS...`, and its server's end.
    #[track_caller]
    pub(crate) fn connected(args: &[&str]) -> (Self, TcpStream) {
        let peer = Peer::start();
        let mut connecting = Self::start(peer.address(), args);
        let accepted = peer.accept();
        connecting.connects(peer.address());
        connecting.server = Some(peer);
        (connecting, accepted)
    }

    /// Types `bytes`, in the background if they are not taken at once.
    pub(crate) fn types(&self, bytes: impl Into<Vec<u8>>) {
        self.typing().bytes.send(bytes.into()).unwrap();
    }

    fn typing(&self) -> &Typing {
        self.stdin.as_ref().unwrap()
    }

    /// How many of the bytes typed went into the pipe so far.
    pub(crate) fn taken(&self) -> usize {
        self.typing().taken.load(Ordering::SeqCst)
    }

    /// Waits until it has read all of the `count` bytes typed so far, and has done with them what it does.
    #[track_caller]
    pub(crate) fn until_read(&self, count: usize) {
        let pipe = &self.typing().pipe;
        until("stdin is read", || {
            self.taken() == count && rustix::io::ioctl_fionread(pipe).unwrap() == 0
        });
        self.until_idle();
    }

    /// Waits until it takes no more of what is typed; answers how much it has taken.
    #[track_caller]
    pub(crate) fn until_stuck(&self) -> usize {
        let mut taken = usize::MAX;
        until("whoever types is stuck", || {
            pass(Duration::from_millis(100));
            std::mem::replace(&mut taken, self.taken()) == self.taken()
        });
        taken
    }

    /// Waits until all of its threads sleep.
    #[track_caller]
    pub(crate) fn until_idle(&self) {
        let tasks = format!("/proc/{}/task", self.pid());
        let mut idle = 0;
        until("every thread sleeps", || {
            let mut tasks = std::fs::read_dir(&tasks).unwrap();
            let all = tasks.all(|task| {
                let stat = std::fs::read_to_string(task.unwrap().path().join("stat"));
                stat.is_ok_and(|stat| stat.contains(") S "))
            });
            idle = if all { idle + 1 } else { 0 };
            idle == 4
        });
    }

    /// The end of stdin, behind all that was typed.
    pub(crate) fn ends_stdin(&mut self) {
        self.stdin = None;
    }

    /// The next line on stderr with `what` in it, without `standfast: `.
    #[track_caller]
    pub(crate) fn says(&mut self, what: &str) -> String {
        let line = self.log_line(what, |line| line.contains(what));
        let said = line.strip_prefix("standfast: ");
        said.unwrap_or_else(|| panic!("without its prefix: {line}"))
            .to_owned()
    }

    /// Waits until it is connected to `to`.
    #[track_caller]
    pub(crate) fn connects(&mut self, to: impl Display + Copy) -> String {
        self.says(&format!("connected to {to}"))
    }

    /// The next bytes on stdout are these.
    #[track_caller]
    pub(crate) fn prints(&mut self, bytes: &[u8]) {
        let printed = self.stdout_bytes(bytes.len());
        assert!(
            printed == bytes,
            "{:?} instead of {:?}",
            String::from_utf8_lossy(&printed),
            String::from_utf8_lossy(bytes)
        );
    }

    /// Waits for its end: the exit code. Every line it said has its prefix.
    #[track_caller]
    pub(crate) fn ends(&mut self) -> i32 {
        let status = self.process.wait();
        for line in &self.lines {
            assert!(
                line.starts_with("standfast: "),
                "without its prefix: {line}"
            );
        }
        let code = status.code();
        code.unwrap_or_else(|| panic!("{status}; it said:\n{}", self.lines.join("\n")))
    }

    /// How many lines so far have `what` in them.
    pub(crate) fn said(&self, what: &str) -> usize {
        self.lines.iter().filter(|line| line.contains(what)).count()
    }
}

impl Deref for Connecting {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.process
    }
}

impl DerefMut for Connecting {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.process
    }
}

/// A thread that types, for a pipe that is full blocks.
struct Typing {
    bytes: Sender<Vec<u8>>,
    taken: Arc<AtomicUsize>,
    /// The pipe's other end, to ask what of it is unread.
    pipe: OwnedFd,
}

impl Typing {
    fn start(mut stdin: ChildStdin) -> Self {
        let (bytes, received) = mpsc::channel::<Vec<u8>>();
        let taken = Arc::new(AtomicUsize::new(0));
        let pipe = stdin.as_fd().try_clone_to_owned().unwrap();
        let count = Arc::clone(&taken);
        thread::spawn(move || {
            for bytes in received {
                // As small as the pipe's own unit, so that `taken` is exact where it is stuck.
                for piece in bytes.chunks(4096) {
                    if stdin.write_all(piece).is_err() {
                        return;
                    }
                    count.fetch_add(piece.len(), Ordering::SeqCst);
                }
            }
        });
        Self { bytes, taken, pipe }
    }
}

/// A port of 127.0.0.1 that nobody else gets, and that refuses until somebody listens on it.
pub(crate) struct Port(Socket);

impl Port {
    pub(crate) fn new() -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into())
    }

    pub(crate) fn at(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&address.into()).unwrap();
        Self(socket)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().unwrap()
    }

    /// Listens from now on.
    pub(crate) fn listen(self) -> Peer {
        self.listen_with(16)
    }

    pub(crate) fn listen_with(self, backlog: i32) -> Peer {
        self.0.listen(backlog).unwrap();
        Peer::new(self.0.into())
    }
}

/// Somebody who listens, and does what the test says.
pub(crate) struct Peer(TcpListener);

impl Peer {
    /// On a free port of 127.0.0.1.
    pub(crate) fn start() -> Self {
        Port::new().listen()
    }

    fn new(listener: TcpListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// The next connection, with a hang guard on its reads and writes.
    #[track_caller]
    pub(crate) fn accept(&self) -> TcpStream {
        let mut accepted = None;
        until("somebody connects", || {
            accepted = self.who_waits();
            accepted.is_some()
        });
        accepted.unwrap()
    }

    /// The next connection, if there is one by now.
    pub(crate) fn who_waits(&self) -> Option<TcpStream> {
        let (stream, _) = self.0.accept().ok()?;
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        stream.set_write_timeout(Some(GUARD)).unwrap();
        Some(stream)
    }

    /// Accepts the next connection and closes it with a word, so that it is no receiver that waits for its input. Answers
    /// where it came from.
    #[track_caller]
    pub(crate) fn dismiss(&self) -> SocketAddr {
        let accepted = self.accept();
        let from = accepted.peer_addr().unwrap();
        Self::say_goodbye(accepted);
        from
    }

    /// Closes a connection with a word.
    pub(crate) fn say_goodbye(mut accepted: TcpStream) {
        accepted.write_all(b"goodbye\n").unwrap();
    }
}

/// The next bytes from the program are these.
#[track_caller]
pub(crate) fn assert_gets(peer: &mut impl Read, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    let read = peer.read_exact(&mut got);
    assert!(
        read.is_ok() && got == bytes,
        "{read:?}: {:?} instead of {:?}",
        String::from_utf8_lossy(&got),
        String::from_utf8_lossy(bytes)
    );
}

/// For `time` nothing comes from the program, no FIN either.
#[track_caller]
pub(crate) fn assert_silent(peer: &mut TcpStream, time: Duration) {
    peer.set_read_timeout(Some(time)).unwrap();
    let mut byte = [0];
    match peer.read(&mut byte) {
        Ok(0) => panic!("a FIN"),
        Ok(_) => panic!("{byte:?}"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}"),
    }
    peer.set_read_timeout(Some(GUARD)).unwrap();
}

/// The number of seconds in a line, behind `before`: `1.3` of `reconnecting in 1.3 s (attempt 4)`.
#[track_caller]
pub(crate) fn seconds_behind(line: &str, before: &str) -> f64 {
    let seconds = line.split_once(before).and_then(|(_, rest)| {
        let (number, _) = rest.trim_start().split_once(" s")?;
        number.parse().ok()
    });
    seconds.unwrap_or_else(|| panic!("no seconds behind {before:?}: {line}"))
}

/// The retry that a line announces.
#[track_caller]
pub(crate) fn attempt(line: &str) -> u32 {
    let attempt = line.split_once("(attempt ").and_then(|(_, rest)| {
        let (number, _) = rest.split_once(')')?;
        number.parse().ok()
    });
    attempt.unwrap_or_else(|| panic!("no attempt: {line}"))
}

/// A netcat that listens on a free port of 127.0.0.1; killed when dropped.
pub(crate) struct Netcat {
    pub(crate) process: Connecting,
    pub(crate) address: SocketAddr,
}

impl Netcat {
    /// `PROGRAM ARGS...`, which has to say on stderr where it listens; nothing if there is no such program.
    pub(crate) fn start(program: &str, args: &[&str]) -> Option<Self> {
        Command::new(program).arg("-h").output().ok()?;
        let mut command = Command::new(program);
        command.args(args);
        let mut process = Connecting::spawn(command);
        let said = process.log_line("where netcat listens", |line| {
            line.to_lowercase().starts_with("listening on ")
        });
        let mut words = said.split_ascii_whitespace();
        let port: u16 = words.find_map(|word| word.parse().ok()).unwrap();
        Some(Self {
            process,
            address: (Ipv4Addr::LOCALHOST, port).into(),
        })
    }
}
