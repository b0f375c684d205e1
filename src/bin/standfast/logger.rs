//! The log on stderr: `env_logger` decides what is logged, this file how it looks, and a thread of its own writes it.
//!
//! A stderr that blocks never holds up a worker: the queue is bounded, and lines beyond it are dropped and counted.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use env_logger::fmt::Formatter;
use env_logger::{Builder, Target};
use jiff::Timestamp;
use log::kv::{Error as KvError, Key, Value, VisitSource};
use log::{Level, LevelFilter, Record};
use rustix::event::PollFlags;
use serde_json::{Map, Value as Json};
use standfast::memory::{Held, Memory, WaitingKind};
use standfast::process::threads;
use standfast::{CloseReason, Summary};

use crate::Failure;
use crate::args::LogFormat;
use crate::supervisor;

/// Lines that may wait for stderr, and bytes.
const QUEUE: usize = 8192;
const BYTES: usize = 4 << 20;

/// Where they count.
static MEMORY: OnceLock<Memory> = OnceLock::new();

/// How long the end of the program waits for stderr.
const PATIENCE: Duration = Duration::from_secs(2);

/// The running log.
#[derive(Debug)]
pub(crate) struct Log {
    queue: SyncSender<Item>,
}

/// A line, or the wish to know when all before it is out.
enum Item {
    Line(Vec<u8>, Option<Held>),
    Flush(mpsc::Sender<()>),
}

/// Whether plain lines say when.
static STAMPED: AtomicBool = AtomicBool::new(false);

/// From now on every plain line says when it was written, as log lines do.
pub(crate) fn stamp() {
    STAMPED.store(true, Ordering::Relaxed);
}

/// stderr has taken nothing for as long as anybody waits for it.
static STUCK: AtomicBool = AtomicBool::new(false);

/// One plain line on stderr, for what ends the program. A stderr that takes nothing is waited for within bounds, once.
pub(crate) fn say(line: &str) {
    if STUCK.load(Ordering::Relaxed) {
        return;
    }
    let stamp = STAMPED.load(Ordering::Relaxed);
    let stamp = stamp.then(|| format!("{:.3} ", Timestamp::now()));
    let stamp = stamp.unwrap_or_default();
    let line: Arc<str> = format!("standfast: {stamp}{line}\n").into();
    let (done, is_done) = mpsc::channel();
    let writing = threads::start("last-words", {
        let line = Arc::clone(&line);
        move || {
            write_line(&mut io::stderr(), line.as_bytes());
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
    let mut stderr = io::stderr();
    match supervisor::wait(&stderr, PollFlags::OUT, PATIENCE) {
        Ok(true) => write_line(&mut stderr, line.as_bytes()),
        Ok(false) | Err(_) => STUCK.store(true, Ordering::Relaxed),
    }
}

fn await_stderr(is_done: &Receiver<()>) {
    if is_done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
        STUCK.store(true, Ordering::Relaxed);
    }
}

/// Lines that wait count in `memory` from here on.
pub(crate) fn count_in(memory: Memory) {
    // Once: a process has one server.
    let _ = MEMORY.set(memory);
}

/// Starts the log: `info`, or what the flags or `RUST_LOG` say.
pub(crate) fn start(format: LogFormat, verbose: u8, quiet: bool) -> Result<Log, Failure> {
    let level = match (quiet, verbose) {
        (true, _) => LevelFilter::Warn,
        (_, 0) => LevelFilter::Info,
        (_, 1) => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let (queue, items) = mpsc::sync_channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let pipe = Pipe {
        queue: queue.clone(),
        dropped: Arc::clone(&dropped),
    };
    let mut builder = Builder::new();
    // Who sets RUST_LOG means just that.
    match std::env::var("RUST_LOG") {
        Ok(filters) if !filters.is_empty() => builder.parse_filters(&filters),
        _ => builder.filter_module("standfast", level),
    };
    builder
        .target(Target::Pipe(Box::new(pipe)))
        .format(move |out, record| match format {
            LogFormat::Text => text(out, record),
            LogFormat::Json => json(out, record),
            LogFormat::Logfmt => logfmt(out, record),
        })
        .try_init()
        .map_err(|error| Failure::failed(format!("cannot start the log: {error}")))?;
    threads::start("log", move || write_out(&items, &dropped))
        .map_err(|error| Failure::failed(format!("cannot start the log: {error}")))?;
    panic::set_hook(Box::new(panicked));
    Ok(Log { queue })
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
    /// Waits, within bounds, until everything logged so far is out.
    fn finish(&self) {
        let (done, is_done) = mpsc::channel();
        // The queue may be full for the same reason that would keep us waiting here.
        if self.queue.try_send(Item::Flush(done)).is_ok() {
            await_stderr(&is_done);
        }
    }
}

impl Drop for Log {
    /// What was logged comes before the line that ends the program.
    fn drop(&mut self) {
        self.finish();
    }
}

/// The end of the log that takes lines; `env_logger` writes each as one piece.
struct Pipe {
    queue: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
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
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_out(items: &Receiver<Item>, dropped: &AtomicU64) {
    let mut stderr = io::stderr();
    loop {
        let item = match items.recv_timeout(Duration::from_secs(3600)) {
            Ok(item) => item,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        match item {
            Item::Line(line, _held) => write_line(&mut stderr, &line),
            Item::Flush(done) => drop(done.send(())),
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let line = format!("standfast: {lost} log lines dropped, stderr was too slow\n");
            write_line(&mut stderr, line.as_bytes());
        }
    }
}

/// Writes a line; nobody is left to tell if stderr is closed. One that somebody made non-blocking is waited for.
fn write_line(stderr: &mut io::Stderr, mut line: &[u8]) {
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

/// One line of facts at the server's end.
pub(crate) fn summary(summary: &Summary) {
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

fn level(record: &Record<'_>) -> &'static str {
    match record.level() {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

fn text(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let time = out.timestamp_millis();
    write!(out, "{time} {} {}", level(record), record.args())?;
    pairs(out, record)
}

fn logfmt(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let time = out.timestamp_millis();
    write!(
        out,
        "time={time} level={} msg={}",
        level(record),
        quoted(&record.args().to_string())
    )?;
    pairs(out, record)
}

/// ` key=value` for each fact, and the line's end.
fn pairs(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    struct Pairs<'a>(&'a mut Formatter);
    impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), KvError> {
            if is_none(&value) {
                return Ok(());
            }
            write!(self.0, " {key}={}", quoted(&value.to_string())).map_err(KvError::from)
        }
    }
    record
        .key_values()
        .visit(&mut Pairs(out))
        .map_err(io::Error::other)?;
    writeln!(out)
}

fn json(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    struct Facts<'a>(&'a mut Map<String, Json>);
    impl<'kvs> VisitSource<'kvs> for Facts<'_> {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), KvError> {
            if is_none(&value) {
                return Ok(());
            }
            let json = if let Some(number) = value.to_u64() {
                number.into()
            } else if let Some(number) = value.to_f64() {
                number.into()
            } else {
                value.to_string().into()
            };
            self.0.insert(key.to_string(), json);
            Ok(())
        }
    }
    let mut object = Map::new();
    object.insert("time".to_owned(), out.timestamp_millis().to_string().into());
    object.insert("level".to_owned(), level(record).into());
    object.insert("message".to_owned(), record.args().to_string().into());
    record
        .key_values()
        .visit(&mut Facts(&mut object))
        .map_err(io::Error::other)?;
    writeln!(out, "{}", Json::Object(object))
}

/// A fact that is not there: an `Option` without a value.
fn is_none(value: &Value<'_>) -> bool {
    value.to_borrowed_str().is_none() && value.to_u64().is_none() && value.to_string() == "None"
}

/// A value as logfmt has it: in quotes if it would not stand alone.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '=';
    if !value.is_empty() && value.chars().all(plain) {
        value.to_owned()
    } else {
        Json::from(value).to_string()
    }
}
