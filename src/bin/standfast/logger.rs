//! The log: `env_logger` decides what is logged, `line.rs` how it looks, `rate.rs` how much of it, and the thread of
//! `sink.rs` writes it.
//!
//! A stderr that blocks never holds up a worker: the queue is bounded, and lines beyond it are dropped and counted.

mod line;
mod rate;
mod sink;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use env_logger::{Builder, Target};
use log::kv::Value;
use log::{Level, LevelFilter, Record};
use rustix::event::PollFlags;
use signal_hook::consts::SIGUSR1;
use standfast::memory::{Memory, WaitingKind};
use standfast::process::{Allowance, threads};
use standfast::{AcceptRate, CloseReason, Summary};

use crate::Failure;
use crate::args::LogFormat;
use crate::blocking;
use crate::logger::line::Style;
use crate::logger::rate::{Limited, Rates};
use crate::logger::sink::{Item, Shared, Sink};

/// Lines that may wait to be written, and bytes.
const QUEUE: usize = 8192;
const BYTES: usize = 4 << 20;

/// Where they count.
static MEMORY: OnceLock<Memory> = OnceLock::new();

/// How long the end of the program waits for what is left to be written.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is logged, how, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings<'a> {
    pub(crate) format: LogFormat,
    /// Where `RUST_LOG` says nothing else.
    pub(crate) level: LevelFilter,
    /// Else it goes to stderr.
    pub(crate) file: Option<&'a Path>,
    /// Of ends of connections, for each reason.
    pub(crate) rate: Option<AcceptRate>,
}

impl Settings<'_> {
    /// Plain text on stderr.
    pub(crate) fn plain(level: LevelFilter) -> Self {
        Self {
            format: LogFormat::Text,
            level,
            file: None,
            rate: None,
        }
    }
}

/// What the flags `-v` and `-q` mean.
pub(crate) fn level(verbose: u8, quiet: bool) -> LevelFilter {
    match (quiet, verbose) {
        (true, _) => LevelFilter::Warn,
        (_, 0) => LevelFilter::Info,
        (_, 1) => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    }
}

/// The running log.
#[derive(Debug)]
pub(crate) struct Log {
    queue: SyncSender<Item>,
    to_file: bool,
}

/// Whether plain lines say when.
static STAMPED: AtomicBool = AtomicBool::new(false);

/// From now on every plain line says when it was written, as log lines do.
pub(crate) fn stamp() {
    STAMPED.store(true, Ordering::Relaxed);
}

/// stderr has taken nothing for as long as anybody waits for it.
static STUCK: AtomicBool = AtomicBool::new(false);

/// One plain line on stderr. A stderr that takes nothing is waited for within bounds, once.
pub(crate) fn say(line: &str) {
    say_as(Level::Info, line);
}

/// The same for what ends the program.
pub(crate) fn fail(line: &str) {
    say_as(Level::Error, line);
}

/// The same in a process that has one thread, and shall have no other.
pub(crate) fn fail_here(line: &str) {
    say_at_once(&plain(Level::Error, line));
}

fn plain(level: Level, line: &str) -> Arc<str> {
    let stamp = STAMPED.load(Ordering::Relaxed);
    let stamp = stamp.then(|| format!("{} ", line::time()));
    let stamp = stamp.unwrap_or_default();
    let priority = match line::stderr_is_journal() {
        true => line::priority(level),
        false => "",
    };
    format!("{priority}standfast: {stamp}{line}\n").into()
}

fn say_as(level: Level, line: &str) {
    if STUCK.load(Ordering::Relaxed) {
        return;
    }
    let line = plain(level, line);
    let (done, is_done) = mpsc::channel();
    let writing = threads::start("last-words", {
        let line = Arc::clone(&line);
        move || {
            write_line(line.as_bytes());
            // Nobody may wait any more.
            let _ = done.send(());
        }
    });
    match writing {
        Ok(_) => await_stderr(&is_done),
        // No thread is to be had, which may be just what is to be said.
        Err(_) => say_at_once(&line),
    }
}

/// On this thread, if stderr has room within the same bound: a pipe that is ready takes a line this short (pipe(7)).
fn say_at_once(line: &str) {
    match blocking::wait(&io::stderr(), PollFlags::OUT, PATIENCE) {
        Ok(true) => write_line(line.as_bytes()),
        Ok(false) | Err(_) => STUCK.store(true, Ordering::Relaxed),
    }
}

fn await_stderr(is_done: &Receiver<()>) {
    let mut patience = Allowance::new(PATIENCE);
    while let Some(piece) = patience.piece() {
        if is_done.recv_timeout(piece) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
    STUCK.store(true, Ordering::Relaxed);
}

/// Lines that wait count in `memory` from here on.
pub(crate) fn count_in(memory: Memory) {
    // Once: a process has one server.
    let _ = MEMORY.set(memory);
}

/// Starts the log.
///
/// # Errors
/// A file that cannot be opened; no thread to write with.
pub(crate) fn start(settings: &Settings<'_>) -> Result<Log, Failure> {
    let failed =
        |error: &dyn std::fmt::Display| Failure::failed(format!("cannot start the log: {error}"));
    let style = Style {
        format: settings.format,
        for_journal: settings.file.is_none() && line::stderr_is_journal(),
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "a time to count from, before there is a loop"
    )]
    let rates = settings.rate.map(|rate| Rates::new(rate, Instant::now()));
    let rates = rates.map(Arc::new);
    let shared = Arc::new(Shared::default());
    let sink = Sink::new(settings.file, style, Arc::clone(&shared), rates.clone());
    let sink = sink.map_err(|error| {
        let path = settings
            .file
            .unwrap_or_else(|| Path::new("stderr"))
            .display();
        Failure::failed(format!("cannot open the log file {path}: {error}"))
    })?;
    if settings.file.is_some() {
        // From here on it is no reason to end, and not missed before the server hears signals.
        signal_hook::flag::register(SIGUSR1, Arc::clone(&shared.reopens))
            .map_err(|error| failed(&error))?;
    }
    let (queue, items) = mpsc::sync_channel(QUEUE);
    let pipe = Pipe {
        queue: queue.clone(),
        shared,
    };
    let mut builder = Builder::new();
    // Who sets RUST_LOG means just that.
    match std::env::var("RUST_LOG") {
        Ok(filters) if !filters.is_empty() => builder.parse_filters(&filters),
        _ => builder.filter_module("standfast", settings.level),
    };
    builder
        .target(Target::Pipe(Box::new(pipe)))
        .format(move |out, record| style.write(out, record));
    match rates {
        None => builder.try_init(),
        Some(rates) => {
            let log = builder.build();
            log::set_max_level(log.filter());
            let wakes = queue.clone();
            log::set_boxed_logger(Box::new(Limited {
                log,
                rates,
                // A queue that is full keeps the thread awake.
                tell: Box::new(move || drop(wakes.try_send(Item::Wake))),
            }))
        }
    }
    .map_err(|error| failed(&error))?;
    threads::start("log", move || sink.run(&items)).map_err(|error| failed(&error))?;
    panic::set_hook(Box::new(panicked));
    Ok(Log {
        queue,
        to_file: settings.file.is_some(),
    })
}

/// A panic is a line of the log like any other: written right here it would wait for stderr on the thread that
/// panicked, which may be a worker.
fn panicked(info: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let traced = backtrace.status() == BacktraceStatus::Captured;
    let current = thread::current();
    log::error!(
        thread = current.name().unwrap_or("unnamed"),
        at:? = info.location().map(ToString::to_string),
        backtrace:? = traced.then(|| backtrace.to_string());
        "panicked: {}", info.payload_as_str().unwrap_or("no words")
    );
}

impl Log {
    pub(crate) fn is_file(&self) -> bool {
        self.to_file
    }

    /// A way to have the thread that writes look whether a signal wants the file opened anew.
    pub(crate) fn waker(&self) -> impl Fn() + Clone + Send + use<> {
        let queue = self.queue.clone();
        // A queue that is full keeps the thread awake.
        move || drop(queue.try_send(Item::Wake))
    }

    /// One line of facts at the server's end, behind what is to be said of lines that are missing.
    pub(crate) fn summary(&self, of: &Summary) {
        let _ = self.queue.try_send(Item::Account);
        summary(of);
    }

    /// A way to wait, within bounds, until everything logged so far is out.
    pub(crate) fn finisher(&self) -> impl Fn() + Clone + Send + use<> {
        let queue = self.queue.clone();
        move || {
            let (done, is_done) = mpsc::channel();
            // The queue may be full for the same reason that would keep us waiting here.
            if queue.try_send(Item::Flush(done)).is_ok() {
                await_stderr(&is_done);
            }
        }
    }
}

impl Drop for Log {
    /// What was logged comes before the line that ends the program.
    fn drop(&mut self) {
        self.finisher()();
    }
}

/// The end of the log that takes lines; `env_logger` writes each as one piece.
struct Pipe {
    queue: SyncSender<Item>,
    shared: Arc<Shared>,
}

impl Write for Pipe {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let held = MEMORY.get().map(|memory| {
            let mut held = memory.hold(WaitingKind::Log);
            held.set(line.len());
            held
        });
        let fits = MEMORY.get().is_none_or(|memory| {
            memory.held_as(WaitingKind::Log) <= BYTES.min(memory.limit() / 16)
        });
        let item = Item::Line(line.to_vec(), held);
        if !fits || matches!(self.queue.try_send(item), Err(TrySendError::Full(_))) {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a plain line; nobody is left to tell if stderr is closed. One that somebody made non-blocking is waited for.
fn write_line(mut line: &[u8]) {
    let mut stderr = io::stderr();
    while !line.is_empty() {
        match stderr.write(line) {
            Ok(count @ 1..) => line = &line[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::park_timeout(Duration::from_millis(10));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return,
        }
    }
}

fn summary(summary: &Summary) {
    let closed: Vec<(&'static str, u64)> = CloseReason::ALL
        .into_iter()
        .map(|reason| (reason.as_str(), summary.closed(reason)))
        .filter(|&(_, count)| count > 0)
        .collect();
    let numbers = [
        ("accepted", summary.accepted),
        ("closed", summary.closed_in_all()),
        ("read", summary.read),
        ("written", summary.written),
    ];
    let cut = (summary.cut > 0).then_some(("cut", summary.cut));
    let numbers = numbers.into_iter().chain(cut).chain(closed);
    let mut facts: Vec<_> = numbers
        .map(|(name, count)| (name, Value::from(count)))
        .collect();
    if let Some(takeover) = &summary.takeover {
        let name = CloseReason::HandedOff.as_str();
        if !facts.iter().any(|(other, _)| *other == name) {
            facts.push((name, Value::from(0)));
        }
        facts.push(("frozen_ms", Value::from(takeover.frozen_ms())));
    }
    log::logger().log(
        &Record::builder()
            .level(Level::Info)
            .target("standfast")
            .args(format_args!("ended"))
            .key_values(&facts.as_slice())
            .build(),
    );
}
