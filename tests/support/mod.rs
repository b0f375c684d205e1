//! What the tests share: a server that ends with its test, its log, and waiting for things with a bound.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for anything that is not itself about time: a hang guard, far above what is needed.
pub(crate) const GUARD: Duration = Duration::from_secs(30);

/// The binary under test.
pub(crate) fn standfast() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_standfast"));
    command.env_remove("RUST_LOG");
    command
}

/// A running `standfast serve`; killed when dropped.
pub(crate) struct Server {
    child: Child,
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
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = chunks(child.stdout.take().unwrap());
        let log = lines(child.stderr.take().unwrap());
        let mut server = Self {
            child,
            stdout,
            printed: Vec::new(),
            log,
            lines: Vec::new(),
            addresses: Vec::new(),
        };
        for _ in 0..listeners {
            let line = server.stdout_line();
            let address = line
                .strip_prefix("listening on ")
                .expect("the line of a listener");
            server.addresses.push(address.parse().unwrap());
        }
        server
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

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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

/// A connected client, with a hang guard on its reads and writes.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(GUARD)).unwrap();
    client.set_write_timeout(Some(GUARD)).unwrap();
    client
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
    (
        status.code().unwrap(),
        String::from_utf8(stdout).unwrap(),
        stderr.join("\n"),
    )
}

/// Makes a client deaf: what comes from the server is dropped before TCP sees it, so nothing is acknowledged, and the
/// server gets no answer. Needs no privilege (`IP_MINTTL`, ip(7): the server sends with a TTL of 64).
///
/// The client still sends: wait [`settle`] after its last byte, and keep it open.
pub(crate) fn deafen(client: &TcpStream) {
    set_min_ttl(client, 255);
}

/// A deafened client hears again.
pub(crate) fn undeafen(client: &TcpStream) {
    set_min_ttl(client, 0);
}

#[expect(unsafe_code, reason = "no safe crate sets IP_MINTTL")]
fn set_min_ttl(client: &TcpStream, ttl: libc::c_int) {
    use std::os::fd::AsRawFd;
    let (level, option) = if client.local_addr().unwrap().is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MINTTL)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT)
    };
    // SAFETY: the option reads one int from `ttl`, which outlives the call; `client` is borrowed, so open.
    let answer = unsafe {
        libc::setsockopt(
            client.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const ttl).cast(),
            libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap(),
        )
    };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}

/// Waits until delayed acknowledgements are out, as a client must before it turns deaf. Time itself is the event.
pub(crate) fn settle() {
    pass(Duration::from_millis(200));
}

/// Lets time pass where time is what the test is about.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where tests let time pass"
)]
pub(crate) fn pass(time: Duration) {
    thread::sleep(time);
}

/// The clock, for measuring how long something took.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where tests read the clock"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Asks again and again until `done`, within the hang guard.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = now() + GUARD;
    while !done() {
        assert!(now() < end, "{what}: not in time");
        pass(Duration::from_millis(5));
    }
}

fn wait_for(child: &mut Child, bound: Duration) -> ExitStatus {
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

fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            if line.map(|line| sender.send(line).is_err()).unwrap_or(true) {
                return;
            }
        }
    });
    receiver
}

fn chunks(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
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
