//! An embedder's client: links that dial, lose their server in every way there is, and come back.

/// Tests that need a process, or namespaces, of their own.
mod apart;
/// Names and addresses, attempts that fail, retries.
mod dialling;
/// How a connected link ends: by its server, by the network, by its owner.
mod ends;
/// Many turns: input and output that take their time, silence, instants, wakes, links by the thousand.
mod turns;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use standfast::client::{Caller, Client, End, Link, LinkId, Links, Next, Wake};
use standfast::dial::{Backoff, Dial, DialError, DialErrorKind};
use standfast::{CloseReason, Error};

use crate::support::clients::{Stream, until_acknowledged};
use crate::support::{GUARD, now, pass};

/// What a link's owner was told.
#[derive(Debug)]
enum Told {
    Connected,
    Input(Vec<u8>),
    Silent(Duration),
    HalfClosed,
    Ended(Over),
    Failed(DialErrorKind, String),
    Retrying(u32, Duration),
    GaveUp(u32),
}

/// An [`End`], kept.
#[derive(Debug)]
struct Over {
    reason: CloseReason,
    errno: Option<i32>,
    noticed: Duration,
    age: Duration,
    read: u64,
    written: u64,
    unacknowledged: u64,
}

/// What a client may tell before its test listens.
const MOST_UNHEARD: usize = 100_000;

/// What a test has done in a turn of its client.
type Task = Box<dyn FnOnce(&mut Links<'_>) + Send>;

/// What a test does with input.
type Hearing = Box<dyn FnMut(&mut Link<'_>, &[u8]) + Send>;

/// An owner that tells its test everything, and does what that says.
struct Script {
    told: SyncSender<(LinkId, Told)>,
    /// Done before what is asked for later; one a turn.
    first: VecDeque<Task>,
    asked: Receiver<Task>,
    /// What becomes of a link that ended or failed.
    next: Next,
    /// It goes on to send after the server's FIN.
    goes_on: bool,
    /// How many silences are borne.
    patience: u32,
    connected: Box<dyn FnMut(&mut Link<'_>) + Send>,
    /// Instead of telling it.
    input: Option<Hearing>,
    writable: Box<dyn FnMut(&mut Link<'_>) + Send>,
}

impl Script {
    fn first(&mut self, task: impl FnOnce(&mut Links<'_>) + Send + 'static) {
        self.first.push_back(Box::new(task));
    }

    fn tell(&self, id: LinkId, told: Told) {
        // The test may have ended.
        let _ = self.told.send((id, told));
    }
}

impl Caller for Script {
    fn connected(&mut self, link: &mut Link<'_>) {
        self.tell(link.id(), Told::Connected);
        (self.connected)(link);
    }

    fn input(&mut self, link: &mut Link<'_>, bytes: &[u8]) {
        match &mut self.input {
            Some(input) => input(link, bytes),
            None => self.tell(link.id(), Told::Input(bytes.to_vec())),
        }
    }

    fn writable(&mut self, link: &mut Link<'_>) {
        (self.writable)(link);
    }

    fn silent(&mut self, link: &mut Link<'_>, silence: Duration) -> bool {
        self.tell(link.id(), Told::Silent(silence));
        let gives_up = self.patience == 0;
        self.patience = self.patience.saturating_sub(1);
        gives_up
    }

    fn half_closed(&mut self, link: &mut Link<'_>) -> bool {
        if self.goes_on {
            self.tell(link.id(), Told::HalfClosed);
        }
        self.goes_on
    }

    fn ended(&mut self, id: LinkId, end: &End) -> Next {
        let over = Over {
            reason: end.reason,
            errno: end.error.as_ref().and_then(std::io::Error::raw_os_error),
            noticed: end.noticed,
            age: end.age,
            read: end.read,
            written: end.written,
            unacknowledged: end.unacknowledged,
        };
        self.tell(id, Told::Ended(over));
        self.next
    }

    fn failed(&mut self, id: LinkId, error: &DialError) -> Next {
        self.tell(id, Told::Failed(error.kind(), error.to_string()));
        self.next
    }

    fn retrying(&mut self, id: LinkId, attempt: u32, wait: Duration) {
        self.tell(id, Told::Retrying(attempt, wait));
    }

    fn gave_up(&mut self, id: LinkId, retries: u32) {
        self.tell(id, Told::GaveUp(retries));
    }

    fn turn(&mut self, links: &mut Links<'_>) -> Option<Instant> {
        let task = self.first.pop_front();
        let task = task.or_else(|| self.asked.try_recv().ok())?;
        task(links);
        Some(links.now())
    }
}

/// A client that does not run yet, what it tells, and where tasks for it go.
fn prepared(
    dial: Dial,
    script: impl FnOnce(&mut Script),
) -> (Client<Script>, Receiver<(LinkId, Told)>, Sender<Task>) {
    let (tell, told) = mpsc::sync_channel(MOST_UNHEARD);
    let (asks, asked) = mpsc::channel();
    let mut wanted = Script {
        told: tell,
        first: VecDeque::new(),
        asked,
        next: Next::Drop,
        goes_on: false,
        patience: 0,
        connected: Box::new(|_| {}),
        input: None,
        writable: Box::new(|_| {}),
    };
    script(&mut wanted);
    (Client::new(dial, wanted).unwrap(), told, asks)
}

/// A client on a thread of its own; ended when dropped.
struct Running {
    told: Receiver<(LinkId, Told)>,
    asks: Sender<Task>,
    wake: Wake,
    running: Option<JoinHandle<Result<Script, Error>>>,
}

impl Running {
    /// With one link.
    fn start(dial: Dial, script: impl FnOnce(&mut Script)) -> Self {
        Self::idle(dial, |wanted| {
            wanted.first(|links| {
                links.open();
            });
            script(wanted);
        })
    }

    /// Without a link.
    fn idle(dial: Dial, script: impl FnOnce(&mut Script)) -> Self {
        let (client, told, asks) = prepared(dial, script);
        Self {
            told,
            asks,
            wake: client.wake(),
            running: Some(thread::spawn(|| client.run())),
        }
    }

    /// Has `task` done in a turn; its answer.
    fn ask<T: Send + 'static>(&self, task: impl FnOnce(&mut Links<'_>) -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        let task = Box::new(move |links: &mut Links<'_>| answer.send(task(links)).unwrap());
        self.asks.send(task).unwrap();
        self.wake.wake();
        answered.recv_timeout(GUARD).unwrap()
    }

    /// Does `task` with link `id`, which is connected.
    fn with<T: Send + 'static>(
        &self,
        id: LinkId,
        task: impl FnOnce(&mut Link<'_>) -> T + Send + 'static,
    ) -> T {
        self.ask(move |links| task(&mut links.link(id).unwrap()))
    }

    /// What the owner is told next.
    #[track_caller]
    fn told(&self) -> (LinkId, Told) {
        self.told.recv_timeout(GUARD).unwrap()
    }

    /// The same, of the only link.
    #[track_caller]
    fn hears(&self) -> Told {
        self.told().1
    }

    #[track_caller]
    fn connects(&self) {
        let told = self.hears();
        assert!(matches!(told, Told::Connected), "{told:?}");
    }

    #[track_caller]
    fn ends(&self) -> Over {
        match self.hears() {
            Told::Ended(over) => over,
            told => panic!("{told:?}"),
        }
    }

    #[track_caller]
    fn fails(&self) -> (DialErrorKind, String) {
        match self.hears() {
            Told::Failed(kind, text) => (kind, text),
            told => panic!("{told:?}"),
        }
    }

    /// As many bytes as `wanted` has, which have to be those.
    #[track_caller]
    fn reads(&self, wanted: &[u8]) {
        let mut came = Vec::new();
        while came.len() < wanted.len() {
            match self.hears() {
                Told::Input(bytes) => came.extend(bytes),
                told => panic!("{told:?} after {came:?}"),
            }
        }
        assert_eq!(came, wanted);
    }

    /// Ends it, and waits until it has.
    fn end(mut self) {
        self.stop().unwrap();
    }

    fn stop(&mut self) -> Result<(), Error> {
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        let _ = self
            .asks
            .send(Box::new(|links: &mut Links<'_>| links.end()));
        self.wake.wake();
        while !running.is_finished() {
            // It may wait for room to tell something.
            while self.told.try_recv().is_ok() {}
            pass(Duration::from_millis(1));
        }
        running.join().unwrap().map(|_| ())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A client that does not end must not keep the test from telling why.
        if !thread::panicking() {
            self.stop().unwrap();
        }
    }
}

/// A server that does what the test says.
struct Server(TcpListener);

impl Server {
    fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn dial(&self) -> Dial {
        dial(&self.address().to_string())
    }

    /// The next connection, with a hang guard.
    #[track_caller]
    fn accept(&self) -> TcpStream {
        self.0.set_nonblocking(true).unwrap();
        let end = now() + GUARD;
        loop {
            match self.0.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(GUARD)).unwrap();
                    stream.set_write_timeout(Some(GUARD)).unwrap();
                    return stream;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            assert!(now() < end, "nobody connects");
            pass(Duration::from_millis(1));
        }
    }
}

/// By default, but with a backoff of milliseconds.
fn dial(address: &str) -> Dial {
    Dial {
        backoff: Backoff {
            least: Duration::from_millis(1),
            most: Duration::from_millis(8),
        },
        ..Dial::new(address.parse().unwrap())
    }
}

/// Connects to `server`, and looks at the connection only when `what` has been done with its other end. That is kept
/// open by the answer.
fn looks_late(
    script: &mut Script,
    server: Server,
    what: impl FnOnce(&mut TcpStream) + Send + 'static,
) -> Receiver<TcpStream> {
    let (keep, kept) = mpsc::channel();
    script.first(move |_| {
        let mut peer = server.accept();
        what(&mut peer);
        until_acknowledged(&peer);
        keep.send(peer).unwrap();
    });
    kept
}

/// Does nothing.
#[derive(Debug)]
struct Quiet;

impl Caller for Quiet {
    fn connected(&mut self, _: &mut Link<'_>) {}

    fn input(&mut self, _: &mut Link<'_>, _: &[u8]) {}

    fn ended(&mut self, _: LinkId, _: &End) -> Next {
        Next::Drop
    }

    fn failed(&mut self, _: LinkId, _: &DialError) -> Next {
        Next::Drop
    }

    fn turn(&mut self, _: &mut Links<'_>) -> Option<Instant> {
        None
    }
}

/// Sends on the link whatever the kernel takes of the stream; answers how much that is.
fn fill(link: &mut Link<'_>) -> u64 {
    let mut stream = Stream::default();
    loop {
        match link.send(&stream.peek(65536)) {
            0 => return stream.at,
            count => stream.skip(count),
        }
    }
}

/// A place for a Unix socket that no other test has.
fn unix_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("standfast-client-{}-{name}", std::process::id()))
}
