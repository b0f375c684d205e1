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

use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
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
            end_at_once();
        }
        // Whoever would hear of it has ended.
        let _ = signalled.send(Event::Signal(signal));
    })?;
    let mut screen = Screen::open()?;
    terminal::listen(sender.clone())?;
    let asker = asker::start(client, args.interval, Seen::of(&status, clock()), sender)?;
    let mut dashboard = Dashboard::new(status, clock(), today());
    let mut listing = true;
    let failed = |error| Failure::failed(format!("cannot draw: {error}"));
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
}

fn obey(event: Event, dashboard: &mut Dashboard, screen: &mut Screen) -> std::io::Result<Next> {
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
    }
    Ok(Next::Go)
}

/// The main thread may wait for a terminal that takes nothing.
#[expect(clippy::exit, reason = "nobody is left who could be returned to")]
fn end_at_once() {
    terminal::leave();
    logger::say("ended at once");
    std::process::exit(1);
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
