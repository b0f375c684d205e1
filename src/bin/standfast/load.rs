//! `standfast load`: connections to an echo server, messages on them, and what came back.
//!
//! The command line as meant is `load/plan.rs`; each worker is a thread with a client of its own (`load/caller.rs`). This
//! file starts them, tells them when to send and when to stop, and says what it came to.

mod board;
mod caller;
mod chart;
mod control;
mod course;
mod drops;
mod expect;
mod page;
mod pattern;
mod plan;
mod progress;
mod report;
#[cfg(control)]
mod restarts;
mod schedule;
mod slot;
mod tally;
mod verify;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value as Json;
use standfast::client::{Client, Wake};
use standfast::dial::Dial;
use standfast::process::threads;

use crate::Failure;
use crate::args::LoadArgs;
use crate::args::dial_tls::{INSECURE, is_insecure};
use crate::load::board::Board;
use crate::load::caller::Worker;
use crate::load::control::Control;
use crate::load::course::Course;
use crate::load::expect::Expectation;
use crate::load::page::Page;
use crate::load::plan::{Mode, Plan};
use crate::load::progress::Progress;
use crate::load::report::Report;
use crate::load::tally::{Latencies, Tally};
use crate::signals::Meaning;
use crate::{logger, signals, stdout};

/// What the main thread is told.
#[derive(Debug)]
enum News {
    /// A worker's connections are up, or have had their time; so many have been made.
    Settled {
        connects: u64,
    },
    /// The first attempt to connect that failed.
    Trouble(String),
    /// One side does not believe the other's certificate, and will not the next time: it is the end.
    Refused,
    /// The process stood still for so long.
    StoodStill(Duration),
    /// The server is another process now.
    Restarted(String),
    /// A worker is done.
    Done,
    Signal {
        again: bool,
    },
}

/// After the end of a second, or of a part of it, until the workers have put up its figures.
const POSTED: u64 = 30_000_000;
const SECOND: u64 = 1_000_000_000;

/// Runs a load to its end. Exit code 0 if it got an echo at all, and everything that was expected holds.
pub(crate) fn run(args: &LoadArgs) -> Result<ExitCode, Failure> {
    let (plan, dial) = Plan::new(args, standfast::process::raise_descriptor_limit())?;
    stdout::check()?;
    let page = args.html.as_deref().map(Page::open).transpose()?;
    let target = dial.address.to_string();
    let expectations = expectations(args, &plan)?;
    let dropped = drops::dropped();
    let control = Arc::new(Control::new());
    let board = Arc::new(Board::new(plan.workers)?);
    let (sender, news) = mpsc::channel();
    let heard = sender.clone();
    signals::obey(move |signal| {
        // Nobody listens any more: it is over anyway.
        let _ = heard.send(News::Signal {
            again: signal.meaning == Meaning::EndAtOnce,
        });
    })?;
    if is_insecure(&dial) {
        logger::say(INSECURE);
    }
    let mut progress = Progress::new(&plan, args.quiet)?;
    let workers = start(&plan, &dial, &control, &board, &sender)?;
    #[cfg(control)]
    if page.is_some() {
        restarts::watch(&dial, sender.clone());
    }
    drop(sender);
    let mut course = Course::default();
    attend(
        &plan,
        &control,
        &board,
        &workers,
        &news,
        &mut progress,
        &mut course,
    )?;
    progress.close();
    course.close();

    let (mut tally, mut tls) = (Tally::default(), None);
    let mut latencies = Latencies::new()?;
    for worker in workers {
        let done = worker.thread.join();
        let done = done.map_err(|_| Failure::failed("a worker panicked"))??;
        tally.merge(&done.tally);
        latencies.add(&done.latencies);
        tls = tls.or(done.tls);
    }
    if tally.connects == 0 {
        let why = control.failure();
        return Err(Failure::failed(why.unwrap_or_else(|| {
            format!("not connected to {target} before it ended")
        })));
    }
    let lasted = control.end().saturating_sub(control.start());
    let report = Report {
        target: &target,
        plan: &plan,
        seconds: Duration::from_nanos(lasted).as_secs_f64(),
        tally: &tally,
        latencies: &latencies,
        tls: tls.as_ref(),
        insecure: is_insecure(&dial),
    };
    if let Some(page) = page {
        page.write(&report, &course)?;
    }
    let figures = report.figures();
    stdout::show(&if args.json {
        format!("{}\n", Json::Object(figures.clone()))
    } else {
        report.table()
    })?;
    let refused = control.failure().filter(|_| tally.failed.certificate > 0);
    let failure = refused.or_else(|| report.failure());
    let mut code = match failure {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    };
    for remark in failure.into_iter().chain(drops::remark(dropped)) {
        logger::say(&remark);
    }
    for expectation in &expectations {
        let figure = &figures[&expectation.name];
        if !expectation.holds(figure.as_f64()) {
            let found = match figure {
                Json::Null => "that is not known".to_owned(),
                figure => format!("it is {figure}"),
            };
            logger::say(&format!("expected {expectation}, but {found}"));
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// What is expected of the figures; there are as many as in any report.
fn expectations(args: &LoadArgs, plan: &Plan) -> Result<Vec<Expectation>, Failure> {
    let nothing = Report {
        target: "",
        plan,
        seconds: 0.0,
        tally: &Tally::default(),
        latencies: &Latencies::new()?,
        tls: None,
        insecure: false,
    };
    let names: Vec<String> = nothing
        .figures()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let read = args
        .expect
        .iter()
        .map(|text| Expectation::read(text, &names));
    read.collect::<Result<_, _>>().map_err(Failure::usage)
}

#[derive(Debug)]
struct Started {
    wake: Wake,
    thread: JoinHandle<Result<Worker, standfast::Error>>,
}

fn start(
    plan: &Plan,
    dial: &Dial,
    control: &Arc<Control>,
    board: &Arc<Board>,
    news: &Sender<News>,
) -> Result<Vec<Started>, Failure> {
    let mut clients = Vec::new();
    for number in 0..plan.workers {
        let (control, board) = (Arc::clone(control), Arc::clone(board));
        let worker = Worker::new(*plan, plan.share(number), control, board, news.clone())?;
        clients.push(Client::new(dial.clone(), worker)?);
    }
    let mut started = Vec::new();
    for client in clients {
        let (wake, news) = (client.wake(), news.clone());
        let thread = threads::start("load", move || {
            let done = client.run();
            // The main thread waits for it.
            let _ = news.send(News::Done);
            done
        })
        .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
        started.push(Started { wake, thread });
    }
    Ok(started)
}

/// Sees the workers through: starts the sending when all are ready, shows how it goes, passes signals on.
fn attend(
    plan: &Plan,
    control: &Control,
    board: &Board,
    workers: &[Started],
    news: &Receiver<News>,
    progress: &mut Progress,
    course: &mut Course,
) -> Result<(), Failure> {
    let (mut unsettled, mut working, mut connected) = (workers.len(), workers.len(), 0);
    let wake = || {
        for worker in workers {
            worker.wake.wake();
        }
    };
    let (mut next, mut looked) = (plan.every + POSTED, 0);
    let mut latencies = Latencies::new()?;
    while working > 0 {
        let now = control.now();
        if now >= next {
            if !control.is_cut()
                && let Some((at, tally)) = board.look(looked, &mut latencies)
            {
                looked = at;
                progress.show(at, &tally, &latencies, control.start());
                course.add(at, &tally, &latencies, control.start());
            }
            next += plan.every * ((now - next) / plan.every + 1);
        }
        match news.recv_timeout(Duration::from_nanos(next.saturating_sub(now))) {
            Ok(News::Settled { connects }) => {
                unsettled -= 1;
                connected += connects;
                if unsettled > 0 {
                    continue;
                }
                if plan.mode != Mode::Churn && connected == 0 {
                    control.cut();
                } else {
                    control.start_for(plan.duration);
                    next = control.start() + POSTED + plan.every;
                }
                wake();
            }
            Ok(News::Trouble(why)) => {
                progress.close();
                logger::say(&format!("{why}; still trying"));
            }
            Ok(News::Refused) => {
                control.cut();
                wake();
            }
            Ok(News::StoodStill(length)) => {
                progress.close();
                let length = length.as_secs_f64();
                logger::say(&format!(
                    "stood still for {length:.1} s: the latencies have that in them"
                ));
            }
            Ok(News::Restarted(what)) => course.restarted(control.now(), control.start(), what),
            Ok(News::Done) => working -= 1,
            Ok(News::Signal { again }) => {
                if again {
                    control.cut();
                } else {
                    control.stop();
                }
                wake();
            }
            Err(RecvTimeoutError::Timeout) => {
                // One that panicked says nothing.
                if workers.iter().all(|worker| worker.thread.is_finished()) {
                    return Ok(());
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(())
}

fn seconds(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64()
}
