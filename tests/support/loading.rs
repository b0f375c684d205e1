//! A running `standfast load`, the figures it comes to, and peers that do not echo as they should.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::ops::{Deref, DerefMut};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use rustix::process::Signal;
use serde_json::{Map, Value};

use super::kernel::in_table;
use super::{GUARD, Server, standfast, until};

/// `standfast load ARGS... TO`, which comes back fast unless `args` say how.
pub(crate) fn load_command(to: impl Display, args: &[&str]) -> Command {
    let mut command = standfast();
    command.arg("load").args(args);
    if !args.contains(&"--backoff") {
        command.args(["--backoff", "10ms:100ms"]);
    }
    command.arg(to.to_string());
    command
}

/// A running `standfast load`; killed when dropped. As a process it is all that a [`Server`] is.
pub(crate) struct Loading(Server);

impl Loading {
    /// `standfast load ARGS... TO`.
    pub(crate) fn start(to: impl Display, args: &[&str]) -> Self {
        Self::spawn(load_command(to, args))
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Self(Server::launch(command))
    }

    /// Waits for the next line on stderr with `what` in it.
    #[track_caller]
    pub(crate) fn says(&mut self, what: &str) -> String {
        self.log_line(what, |line| line.contains(what))
    }

    /// Waits for a line of progress that is put up later than now, with so many connections up.
    #[track_caller]
    pub(crate) fn goes_on_with(&mut self, up: usize) -> String {
        let _ = self.closed_so_far();
        let up = format!(" s: {up} of ");
        self.log_line(&up, |line| line.contains(&up) && line.contains(" up"))
    }

    /// How many lines so far have `what` in them.
    pub(crate) fn said(&self, what: &str) -> usize {
        self.lines.iter().filter(|line| line.contains(what)).count()
    }

    /// Waits for its end: exit code, stdout. Every line it said has its prefix.
    #[track_caller]
    pub(crate) fn ends(&mut self) -> (i32, String) {
        let status = self.wait();
        self.lines.retain(|line| !is_of_the_host(line));
        for line in &self.lines {
            let prefixed = line.starts_with("standfast: ");
            assert!(prefixed, "without its prefix: {line}");
        }
        let said = self.lines.join("\n");
        let code = status.code().unwrap_or_else(|| panic!("{status}; {said}"));
        (code, String::from_utf8(self.stdout_rest()).unwrap())
    }

    /// Ends it early, and waits for what it came to: it was started with `--json`.
    #[track_caller]
    pub(crate) fn interrupted(&mut self) -> Figures {
        self.signal(Signal::INT);
        self.figures()
    }

    /// Waits for its end and what it came to: it was started with `--json`.
    #[track_caller]
    pub(crate) fn figures(&mut self) -> Figures {
        let (code, stdout) = self.ends();
        assert_eq!(code, 0, "{:?}", self.lines);
        Figures::read(&stdout)
    }

    /// Ends it early, and waits for what it came to, which is a failure: it was started with `--json`.
    #[track_caller]
    pub(crate) fn failed(&mut self) -> Figures {
        self.signal(Signal::INT);
        let (code, stdout) = self.ends();
        assert_eq!(code, 1, "{:?}", self.lines);
        Figures::read(&stdout)
    }
}

impl Deref for Loading {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

impl DerefMut for Loading {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.0
    }
}

/// The remark that this host dropped packets, which may be another test's doing.
fn is_of_the_host(line: &str) -> bool {
    line.starts_with("standfast: this host dropped ")
}

/// As [`super::output`], without remarks about the host.
pub(crate) fn output(command: Command) -> (i32, String, String) {
    let (code, stdout, stderr) = super::output(command);
    (code, stdout, of_the_load(&stderr))
}

/// Of what it said, what does not concern the host.
pub(crate) fn of_the_load(stderr: &str) -> String {
    let lines = stderr.lines().filter(|line| !is_of_the_host(line));
    lines.collect::<Vec<_>>().join("\n")
}

/// What `standfast load --json ARGS... TO` comes to when it is left to itself.
#[track_caller]
pub(crate) fn figures(to: impl Display, args: &[&str]) -> Figures {
    Loading::start(to, &[&["--json", "--quiet"], args].concat()).figures()
}

/// What a load came to, from `--json`.
#[derive(Debug)]
pub(crate) struct Figures(pub(crate) Map<String, Value>);

impl Figures {
    #[track_caller]
    pub(crate) fn read(stdout: &str) -> Self {
        assert_eq!(stdout.lines().count(), 1, "one line: {stdout:?}");
        match serde_json::from_str(stdout) {
            Ok(Value::Object(figures)) => Self(figures),
            _ => panic!("no object: {stdout:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn count(&self, name: &str) -> u64 {
        let count = self.0.get(name).and_then(Value::as_u64);
        count.unwrap_or_else(|| panic!("no count {name} in {self:?}"))
    }

    /// A figure that may be a fraction.
    #[track_caller]
    pub(crate) fn number(&self, name: &str) -> f64 {
        let number = self.0.get(name).and_then(Value::as_f64);
        number.unwrap_or_else(|| panic!("no number {name} in {self:?}"))
    }

    /// Bytes that were lost, duplicated, reordered, corrupted.
    #[track_caller]
    pub(crate) fn faults(&self) -> [u64; 4] {
        ["lost", "duplicated", "reordered", "corrupted"].map(|name| self.count(name))
    }

    /// `connections` connections were made and kept, and whatever was sent on them came back: messages of `size` bytes.
    #[track_caller]
    pub(crate) fn assert_flawless(&self, connections: u64, size: u64) {
        self.assert_unbroken(connections);
        let (sent, echoed) = (self.count("sent"), self.count("echoed"));
        assert!(sent > 0 && sent == echoed, "{self:?}");
        let bytes = ["sent_bytes", "received_bytes"].map(|name| self.count(name));
        assert_eq!(bytes, [sent * size; 2], "{self:?}");
        assert_eq!(self.faults(), [0; 4], "{self:?}");
    }

    /// `connections` connections were made, each at once, and kept.
    #[track_caller]
    pub(crate) fn assert_unbroken(&self, connections: u64) {
        let counts = ["connections", "connects", "up"].map(|name| self.count(name));
        assert_eq!(counts, [connections; 3], "{self:?}");
        let troubles = ["reconnects", "failed", "ended"].map(|name| self.count(name));
        assert_eq!(troubles, [0; 3], "{self:?}");
    }

    /// All that ended did so for `reason`; how many that were.
    #[track_caller]
    pub(crate) fn ended_all_for(&self, reason: &str) -> u64 {
        let ended = self.count("ended");
        assert_eq!(self.count(reason), ended, "{self:?}");
        ended
    }
}

/// What a load expects of a server that it never notices.
pub(crate) const NOTHING_HAPPENED: [&str; 16] = [
    "--expect",
    "lost==0",
    "--expect",
    "duplicated==0",
    "--expect",
    "reordered==0",
    "--expect",
    "corrupted==0",
    "--expect",
    "reconnects==0",
    "--expect",
    "failed==0",
    "--expect",
    "ended==0",
    "--expect",
    "unsent==0",
];

/// A row of the table, by its name.
#[track_caller]
pub(crate) fn row<'a>(table: &'a str, name: &str) -> &'a str {
    let mut lines = table.lines();
    let row = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix("  "));
    row.unwrap_or_else(|| panic!("no {name:?} in:\n{table}"))
        .trim_start()
}

/// The numbers of a row that counts, by what they count: `3 connects, 0 reconnects`.
#[track_caller]
pub(crate) fn counts(table: &str, name: &str) -> HashMap<String, u64> {
    let parts = row(table, name).split(", ");
    let parts = parts.filter_map(|part| part.split_once(' '));
    parts
        .filter_map(|(count, what)| Some((what.to_owned(), count.parse().ok()?)))
        .collect()
}

/// What a [`Peer`] got, and may remember.
pub(crate) struct Got<'a> {
    /// Connections before this one.
    pub(crate) connection: usize,
    /// Messages before this one.
    pub(crate) number: usize,
    /// The message.
    pub(crate) bytes: Vec<u8>,
    /// What this connection's answers before have left here.
    pub(crate) kept: &'a mut Vec<u8>,
}

/// A peer that accepts connections, and does with each as the test says, on threads of its own.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    accepting: Option<JoinHandle<()>>,
}

impl Peer {
    /// Does `what` with each connection, of which there were so many before.
    pub(crate) fn start(what: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Self {
        Self::counting(Arc::default(), what)
    }

    /// Answers each message of `size` bytes with what `answer` makes of it, which may be nothing.
    pub(crate) fn answering(
        size: usize,
        answer: impl Fn(Got<'_>) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let answered = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&answered);
        Self::counting(answered, move |connection, mut stream| {
            let mut kept = Vec::new();
            for number in 0.. {
                let mut bytes = vec![0; size];
                if stream.read_exact(&mut bytes).is_err() {
                    return;
                }
                let bytes = answer(Got {
                    connection,
                    number,
                    bytes,
                    kept: &mut kept,
                });
                if stream.write_all(&bytes).is_err() {
                    return;
                }
                counter.fetch_add(1, Ordering::SeqCst);
            }
        })
    }

    fn counting(
        answered: Arc<AtomicUsize>,
        what: impl Fn(usize, TcpStream) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let accepting = thread::spawn({
            let (over, what) = (Arc::clone(&over), Arc::new(what));
            move || {
                for (number, stream) in listener.incoming().enumerate() {
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    let (stream, what) = (stream.unwrap(), Arc::clone(&what));
                    stream.set_nodelay(true).unwrap();
                    stream.set_read_timeout(Some(GUARD)).unwrap();
                    stream.set_write_timeout(Some(GUARD)).unwrap();
                    thread::spawn(move || what(number, stream));
                }
            }
        });
        Self {
            address,
            over,
            answered,
            accepting: Some(accepting),
        }
    }

    /// Messages answered so far.
    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    /// Waits until `more` messages are answered.
    #[track_caller]
    pub(crate) fn until_answered(&self, more: usize) {
        let enough = self.answered() + more;
        until("messages answered", || self.answered() >= enough);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Whom it waits for.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// A port of this host where nobody listens, on an address that nothing connects from by itself.
pub(crate) fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.71.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// The established connections of the server at `address`: each client's, and how many bytes from it wait to be read by
/// the server (`/proc/net/tcp`, proc(5)). While others come and go, the kernel may leave one out.
pub(crate) fn connections_of(address: SocketAddr) -> HashMap<SocketAddrV4, u64> {
    let server = in_table(address);
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    // Some come twice.
    let rows = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        if fields[1] != server || fields[3] != "01" {
            return None;
        }
        let (ip, port) = fields[2].split_once(':')?;
        let ip = u32::from_str_radix(ip, 16).ok()?.to_ne_bytes();
        let port = u16::from_str_radix(port, 16).ok()?;
        let waiting = u64::from_str_radix(fields[4].split_once(':')?.1, 16).ok()?;
        Some((SocketAddrV4::new(ip.into(), port), waiting))
    });
    rows.collect()
}

/// A new terminal: what is written on it can be read from the first, the second is for a process.
#[expect(unsafe_code, reason = "no safe crate here opens a terminal")]
pub(crate) fn terminal() -> (File, OwnedFd) {
    let (mut near, mut far) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: it writes two descriptors; the name and the settings are not asked for.
    let answer =
        unsafe { libc::openpty(&raw mut near, &raw mut far, none, none.cast(), none.cast()) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: it has just been made, and is nobody else's.
    let near = unsafe { File::from_raw_fd(near) };
    // SAFETY: the same.
    let far = unsafe { OwnedFd::from_raw_fd(far) };
    (near, far)
}
