//! `standfast top`: a running server in a terminal.
//!
//! Keys, signals and the server's answers come from threads of their own, as events. This one has the dashboard
//! (`top/dashboard.rs`), which is what they make of it, and draws it (`top/draw.rs`).

mod asker;
mod columns;
mod dashboard;
mod draw;
mod history;
mod layout;
mod look;
mod table;
mod terminal;
#[cfg(test)]
mod told;
mod view;
mod words;

use std::io;
use std::panic::{self, PanicHookInfo};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use ratatui::termion::event::Key;

use crate::args::top::TopArgs;
use crate::signals::{Meaning, Signal};
use crate::top::asker::{Ask, Told};
use crate::top::dashboard::{Dashboard, Wish};
use crate::top::history::Seen;
use crate::top::look::Look;
use crate::top::terminal::Screen;
use crate::{Failure, ctl, logger, signals};

/// Something happened.
#[derive(Debug)]
enum Event {
    Key(Key),
    Told(Told),
    Signal(Signal),
    /// It hung up.
    NoTerminal,
    /// A thread panicked, without which this cannot go on; in words.
    Panicked(String),
}

/// What the dashboard shows changes by itself, too: a message has stood for long enough, a silence lasts.
const TICK: Duration = Duration::from_secs(1);

/// Shows the server that `args` name, until a key or a signal ends that.
pub(crate) fn run(args: &TopArgs) -> Result<ExitCode, Failure> {
    terminal::check()?;
    let client = ctl::find(&args.server)?;
    let status = client.status();
    let status = status.map_err(|error| ctl::unanswered(&client, &error))?;
    let look = Look::of_environment();
    let (sender, events) = mpsc::channel();
    let signalled = sender.clone();
    signals::obey_on_terminal(move |signal| {
        if signal.meaning == Meaning::EndAtOnce {
            end_at_once("ended at once");
        }
        // Whoever would hear of it has ended.
        let _ = signalled.send(Event::Signal(signal));
    })?;
    let mut screen = Screen::open()?;
    fail_on_panic(sender.clone());
    terminal::listen(sender.clone())?;
    let asker = asker::start(client, args.interval, Seen::of(&status, clock()), sender)?;
    let mut dashboard = Dashboard::new(status, clock(), today());
    let mut listing = true;
    let failed = |error| Failure::failed(format!("cannot draw: {error}"));
    may_panic("main");
    loop {
        screen
            .draw(|frame| draw::draw(frame, &mut dashboard, &look, clock()))
            .map_err(failed)?;
        let mut next = match events.recv_timeout(TICK) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(ExitCode::SUCCESS),
        };
        // All that is there, before it is drawn once.
        while let Some(event) = next {
            match obey(event, &mut dashboard, &mut screen).map_err(failed)? {
                Next::Go => {}
                Next::Ask(ask) => drop(asker.send(ask)),
                Next::End(code) => return Ok(code),
                Next::Fail(words) => return Err(Failure::failed(words)),
            }
            if listing != dashboard.wants_connections() {
                listing = !listing;
                let _ = asker.send(Ask::List(listing));
            }
            next = events.try_recv().ok();
        }
    }
}

/// What follows from an event.
enum Next {
    Go,
    Ask(Ask),
    End(ExitCode),
    Fail(String),
}

fn obey(event: Event, dashboard: &mut Dashboard, screen: &mut Screen) -> io::Result<Next> {
    let now = clock();
    match event {
        Event::Key(key) => match dashboard.press(key, now) {
            None => {}
            Some(Wish::Quit) => return Ok(Next::End(ExitCode::SUCCESS)),
            Some(Wish::Kill(id)) => return Ok(Next::Ask(Ask::Kill(id))),
            Some(Wish::Suspend) => screen.suspend()?,
            Some(Wish::Redraw) => screen.redraw()?,
        },
        Event::Told(told) => {
            dashboard.heard();
            match told {
                Told::Asking => dashboard.asking(now),
                Told::Status(status, serves) => dashboard.told(*status, serves, now, today()),
                Told::Connections(connections) => dashboard.listed(connections),
                Told::Nothing(line) => dashboard.unanswered(line, now),
                Told::Killed(id, outcome) => dashboard.killed(id, outcome, now),
            }
        }
        Event::Signal(signal) => match signal.meaning {
            Meaning::None if signal.name == "SIGCONT" => screen.take_again()?,
            Meaning::None => screen.redraw()?,
            _ => return Ok(Next::End(ExitCode::SUCCESS)),
        },
        Event::NoTerminal => return Ok(Next::End(ExitCode::FAILURE)),
        Event::Panicked(words) => return Ok(Next::Fail(words)),
    }
    Ok(Next::Go)
}

/// The main thread may wait for a terminal that takes nothing, or have panicked.
#[expect(clippy::exit, reason = "nobody is left who could be returned to")]
fn end_at_once(why: &str) {
    terminal::leave();
    logger::fail(why);
    std::process::exit(1);
}

/// Has a panic be a failure like any other, on whichever thread it is: one line, on a terminal that was given back. Without
/// the thread that asks, or the one that hears keys, nothing on the screen would ever change again.
fn fail_on_panic(events: Sender<Event>) {
    let main = thread::current().id();
    panic::set_hook(Box::new(move |what| {
        let words = in_words(what);
        if thread::current().id() == main {
            end_at_once(&words);
        }
        // Whoever would hear of it has ended.
        let _ = events.send(Event::Panicked(words));
    }));
}

fn in_words(what: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let words = what.payload_as_str().unwrap_or("no words");
    let words = words.replace(char::is_control, " ");
    let at = what.location().map(|at| format!(" at {at}"));
    let at = at.unwrap_or_default();
    format!(
        "panicked: {words} (thread {name}{at}): a fault of this program's, please report it; the server serves on"
    )
}

/// Panics if that is the fault for this thread, by the variable `STANDFAST_FAULT` of the feature `faults`: for tests alone.
fn may_panic(thread: &str) {
    let is_wanted = cfg!(feature = "faults")
        && std::env::var("STANDFAST_FAULT").is_ok_and(|fault| fault == format!("panic-{thread}"));
    assert!(!is_wanted, "as STANDFAST_FAULT\nsays");
}

/// Our clock: since some moment.
#[expect(
    clippy::disallowed_methods,
    reason = "the clock of this command is read here and nowhere else"
)]
fn clock() -> Duration {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// The world's clock: seconds since 1970.
fn today() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or(0)
}
