//! A server as a process: started, listened to, succeeded by another, ended with its test.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::{GUARD, connect, now, pass, standfast, until};

/// A running `standfast serve`; killed when dropped.
pub(crate) struct Server {
    pub(super) child: Child,
    stdout: Receiver<Vec<u8>>,
    printed: Vec<u8>,
    log: Receiver<String>,
    /// Every log line seen so far.
    pub(crate) lines: Vec<String>,
    /// The addresses of its `listening on` lines.
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Server {
    /// Starts `standfast serve ARGS...` with one listener, on a free port of 127.0.0.1 unless `args` name one.
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut command = standfast();
        command.arg("serve").args(args);
        if !args.iter().any(|arg| *arg == "-l" || *arg == "--listen") {
            command.args(["-l", "0"]);
        }
        Self::spawn(command, 1)
    }

    /// Starts `command` and waits for `listeners` lines `listening on`.
    pub(crate) fn spawn(mut command: Command, listeners: usize) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut server = Self::launch(command);
        server.until_listening(listeners);
        server
    }

    /// Waits for so many lines `listening on`, be that at a path.
    #[track_caller]
    fn until_listening(&mut self, listeners: usize) {
        for _ in 0..listeners {
            let line = self.stdout_line();
            let address = line.strip_prefix("listening on ");
            let address = address.unwrap_or_else(|| panic!("not the line of a listener: {line}"));
            self.addresses.extend(address.parse::<SocketAddr>().ok());
        }
    }

    /// Starts `command` with the stdin and stdout it has, and waits for nothing.
    pub(crate) fn launch(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take();
        let log = lines(child.stderr.take().unwrap());
        Self {
            child,
            stdout: stdout.map_or_else(|| mpsc::channel().1, chunks),
            printed: Vec::new(),
            log,
            lines: Vec::new(),
            addresses: Vec::new(),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A connected client, with a hang guard on its reads and writes.
    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.address())
    }

    /// The next log line that `wanted` accepts.
    pub(crate) fn log_line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.log_line_within(what, GUARD, wanted)
    }

    /// Has `change` put another program there until one took over for it: a busy machine may be too slow for that, which is
    /// said, and then nothing happens before the next change.
    #[track_caller]
    pub(crate) fn restarted_for(&mut self, change: impl Fn()) {
        loop {
            change();
            let line = self.log_line("what came of the change", |line| {
                line.contains(" took over ") || line.contains(" warn not restarted")
            });
            if line.contains(" took over ") {
                return;
            }
            assert!(is_too_slow(&line), "{line}");
        }
    }

    /// The same, waiting for at most `bound`.
    pub(crate) fn log_line_within(
        &mut self,
        what: &str,
        bound: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> String {
        let end = now() + bound;
        loop {
            match self.log.recv_timeout(end.saturating_duration_since(now())) {
                Ok(line) => {
                    self.lines.push(line.clone());
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(error) => {
                    let why = match error {
                        RecvTimeoutError::Timeout => "not in time",
                        RecvTimeoutError::Disconnected => "the server ended",
                    };
                    panic!(
                        "no log line for {what} ({why}); so far:\n{}",
                        self.lines.join("\n")
                    );
                }
            }
        }
    }

    /// The next `closed` line, its facts by key. The text format, as every test that does not ask for another.
    pub(crate) fn closed(&mut self) -> Closed {
        self.closed_within(GUARD)
    }

    pub(crate) fn closed_within(&mut self, bound: Duration) -> Closed {
        let line = self.log_line_within("a closed connection", bound, |line| {
            line.contains(" info closed ")
        });
        Closed {
            facts: facts(&line),
            line,
        }
    }

    /// The next line on stdout.
    pub(crate) fn stdout_line(&mut self) -> String {
        let end = now() + GUARD;
        loop {
            if let Some(at) = self.printed.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.printed.drain(..=at).collect();
                return String::from_utf8(line).unwrap().trim_end().to_owned();
            }
            match self
                .stdout
                .recv_timeout(end.saturating_duration_since(now()))
            {
                Ok(chunk) => self.printed.extend(chunk),
                Err(_) => {
                    let log: Vec<_> = self.log.try_iter().collect();
                    panic!("no line on stdout; stderr: {}", log.join("\n"));
                }
            }
        }
    }

    /// The next `count` bytes on stdout.
    pub(crate) fn stdout_bytes(&mut self, count: usize) -> Vec<u8> {
        let end = now() + GUARD;
        while self.printed.len() < count {
            let chunk = self
                .stdout
                .recv_timeout(end.saturating_duration_since(now()))
                .unwrap_or_else(|_| panic!("{} of {count} bytes on stdout", self.printed.len()));
            self.printed.extend(chunk);
        }
        self.printed.drain(..count).collect()
    }

    /// Everything still to come on stdout, to its end.
    pub(crate) fn stdout_rest(&mut self) -> Vec<u8> {
        let end = now() + GUARD;
        while let Ok(chunk) = self
            .stdout
            .recv_timeout(end.saturating_duration_since(now()))
        {
            self.printed.extend(chunk);
        }
        std::mem::take(&mut self.printed)
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let status = wait_for(&mut self.child, GUARD);
        while let Ok(line) = self.log.recv_timeout(GUARD) {
            self.lines.push(line);
        }
        status
    }

    /// SIGTERM, and the exit status that comes of it; `lines` has the whole log then.
    pub(crate) fn drain(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    /// The facts of the `ended` line, after the process has ended.
    pub(crate) fn summary(&self) -> HashMap<String, String> {
        let line = self.lines.iter().find(|line| line.contains(" info ended "));
        facts(line.unwrap_or_else(|| panic!("no summary in:\n{}", self.lines.join("\n"))))
    }

    /// Resident memory, bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// CPU time used so far.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks: u64 = fields
            .split(' ')
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Server {
    /// The `closed` lines that have come since the last one asked for.
    pub(crate) fn closed_so_far(&mut self) -> Vec<Closed> {
        let lines: Vec<String> = self.log.try_iter().collect();
        self.lines.extend(lines.iter().cloned());
        let closed = lines
            .into_iter()
            .filter(|line| line.contains(" info closed "));
        let facts_of = |line: String| Closed {
            facts: facts(&line),
            line,
        };
        closed.map(facts_of).collect()
    }

    /// Stops all of its threads (SIGSTOP), until [`Self::resume`].
    pub(crate) fn suspend(&self) {
        self.signal(rustix::process::Signal::STOP);
        let tasks = format!("/proc/{}/task", self.pid());
        until("all threads stopped", || {
            let mut tasks = std::fs::read_dir(&tasks).unwrap();
            tasks.all(|task| {
                let stat = std::fs::read_to_string(task.unwrap().path().join("stat"));
                stat.is_ok_and(|stat| stat.contains(") T "))
            })
        });
    }

    pub(crate) fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// Whether the process has not ended yet.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Server {
    /// How often its threads have waited for something so far (`voluntary_ctxt_switches`, proc(5)).
    pub(crate) fn wakes(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let of_each = tasks.map(|task| {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.unwrap().trim().parse::<u64>().unwrap()
        });
        of_each.sum()
    }
}

impl Drop for Server {
    /// A keeper's server would go on without it.
    fn drop(&mut self) {
        let left = match self.child.try_wait() {
            Ok(None) => children(self.pid()),
            _ => Vec::new(),
        };
        let _ = self.child.kill();
        for child in left {
            // It may have ended.
            let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// The child processes of a process with one thread.
pub(crate) fn children(of: u32) -> Vec<rustix::process::Pid> {
    let children = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace();
    children
        .filter_map(|one| rustix::process::Pid::from_raw(one.parse().unwrap()))
        .collect()
}

/// A `closed` line.
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) facts: HashMap<String, String>,
    pub(crate) line: String,
}

impl Closed {
    /// The value of `key`, empty if the line has none.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.facts.get(key).map_or("", String::as_str)
    }

    pub(crate) fn reason(&self) -> &str {
        self.get("reason")
    }

    /// It ended for `reason`, by the error `errno`.
    #[track_caller]
    pub(crate) fn assert_error(&self, reason: &str, errno: &str) {
        assert_eq!(
            (self.reason(), self.get("errno")),
            (reason, errno),
            "{}",
            self.line
        );
    }

    pub(crate) fn age(&self) -> Duration {
        Duration::from_secs_f64(self.get("age").parse().unwrap())
    }
}

/// The `key=value` pairs of a line.
pub(crate) fn facts(line: &str) -> HashMap<String, String> {
    line.split_ascii_whitespace()
        .filter_map(|word| word.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// How long a takeover may take on a busy machine until it is given up: five freezes come too late, and before each it is
/// waited for five seconds for changes to become fewer.
const TAKEOVER: Duration = Duration::from_secs(120);

/// How often a takeover is tried that a busy machine made too slow: the server serves on each time, as it should.
const TRIES: u32 = 20;

/// Whether a takeover failed because this machine was too busy for the time it may take, and for nothing else.
fn is_too_slow(why: &str) -> bool {
    why.contains(" within 50 ms")
}

impl Server {
    /// Has `command`, which replaces this server, take over from it: the new server, which has said `said` lines on
    /// stdout.
    #[track_caller]
    pub(crate) fn replaced_by(&mut self, said: usize, command: impl Fn() -> Command) -> Self {
        for _ in 0..TRIES {
            let mut command = command();
            command.stdin(Stdio::null()).stdout(Stdio::piped());
            let mut next = Self::launch(command);
            if next.has_said_something() {
                next.until_listening(said);
                return next;
            }
            let ended = next.wait();
            let why = self.log_line("what became of the takeover", |line| {
                line.contains(" warn takeover ")
            });
            assert!(
                ended.code() == Some(1) && is_too_slow(&why),
                "{ended}: {why}\nthe new one's words:\n{}",
                next.lines.join("\n")
            );
        }
        panic!("too slow {TRIES} times");
    }

    /// Waits for the first bytes on stdout, or for its end.
    pub(crate) fn has_said_something(&mut self) -> bool {
        match self.stdout.recv_timeout(TAKEOVER) {
            Ok(bytes) => {
                self.printed.extend(bytes);
                true
            }
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => {
                self.lines.extend(self.log.try_iter());
                let log = self.lines.join("\n");
                panic!("neither a word on stdout nor its end; stderr: {log}")
            }
        }
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
        open.unwrap().count()
    }

    /// As [`descriptors`](Self::descriptors), once it stays the same: while a server starts, some come and go.
    pub(crate) fn descriptors_at_rest(&self) -> usize {
        let (mut open, mut same) = (self.descriptors(), 0);
        until("its descriptors stay the same", || {
            let before = std::mem::replace(&mut open, self.descriptors());
            same = if before == open { same + 1 } else { 0 };
            same == 40
        });
        open
    }
}

/// What `restart`, run anew each time, answers; tried again as long as the machine was too busy.
#[track_caller]
pub(crate) fn restarted(restart: impl Fn() -> Command) -> (i32, String, String) {
    for _ in 0..TRIES {
        let answered = output(restart());
        if answered.0 == 0 || !is_too_slow(&answered.2) {
            return answered;
        }
    }
    panic!("too slow {TRIES} times");
}

/// A process that is nobody's child here; killed when dropped.
pub(crate) struct Orphan(std::os::fd::OwnedFd);

impl Orphan {
    pub(crate) fn new(pid: u32) -> Self {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let flags = rustix::process::PidfdFlags::empty();
        Self(rustix::process::pidfd_open(pid, flags).unwrap())
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let _ = rustix::process::pidfd_send_signal(&self.0, signal);
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        matches!(poll(&mut polled, Some(&Timespec::default())), Ok(1))
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::KILL);
    }
}

/// Runs a command that is to end by itself: its exit code, stdout and stderr.
pub(crate) fn output(mut command: Command) -> (i32, String, String) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (stdout, stderr) = (
        chunks(child.stdout.take().unwrap()),
        lines(child.stderr.take().unwrap()),
    );
    let status = wait_for(&mut child, GUARD);
    let stdout: Vec<u8> = stdout.into_iter().flatten().collect();
    let stderr: Vec<String> = stderr.into_iter().collect();
    let stderr = stderr.join("\n");
    let Some(code) = status.code() else {
        panic!("{command:?} was ended: {status}: {stderr}");
    };
    (code, String::from_utf8(stdout).unwrap(), stderr)
}

/// The address of a `listening on` line.
pub(crate) fn listening(line: &str) -> SocketAddr {
    let address = line.strip_prefix("listening on ");
    assert!(address.is_some(), "not the line of a listener: {line}");
    address.unwrap().parse().unwrap()
}

/// A process that ends with its test.
pub(crate) struct Guarded(pub(crate) Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn wait_for(child: &mut Child, bound: Duration) -> ExitStatus {
    let end = now() + bound;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if now() > end {
            let _ = child.kill();
            panic!("process {} did not end in time", child.id());
        }
        pass(Duration::from_millis(5));
    }
}

pub(super) fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { return };
            // Of the host, whatever else runs on it, and not of the process under test.
            let of_the_host = line.contains("the kernel is short of memory for TCP");
            if !of_the_host && sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

pub(super) fn chunks(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}
