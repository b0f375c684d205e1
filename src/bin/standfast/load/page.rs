//! `--html`: a run as one page that needs nothing but itself.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::Failure;
use crate::load::chart::{Hint, Mark, Scale, Series, Shape, Time, chart};
use crate::load::course::{Course, Step};
use crate::load::plan::Mode;
use crate::load::report::{Milliseconds, Report};

const STYLE: &str = include_str!("page.css");

/// Nothing is loaded, nothing runs.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// Where it goes: what cannot be written there is told before the run.
#[derive(Debug)]
pub(super) struct Page {
    path: PathBuf,
    /// What is there already.
    file: Option<File>,
}

impl Page {
    /// What is in the file stays there until there is something else; and where there is none, none is left by a run that
    /// fails before its end, or is killed.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        // A FIFO that nobody reads is not waited for: ENXIO (open(2)).
        let there = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path);
        let file = match there {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // By a link that leads nowhere yet it is made where that leads.
                let made = File::create(path).and_then(|_| fs::canonicalize(path));
                made.and_then(fs::remove_file).map(|()| None)
            }
            there => there.and_then(|file| {
                rustix::io::ioctl_fionbio(&file, false)?;
                Ok(Some(file))
            }),
        };
        Ok(Self {
            path: path.to_owned(),
            file: file.map_err(|error| cannot_write(path, &error))?,
        })
    }

    pub(super) fn write(self, report: &Report<'_>, course: &Course) -> Result<(), Failure> {
        let page = page(report, course).into_string();
        let written = self
            .file
            .map_or_else(|| File::create(&self.path), emptied)
            .and_then(|mut file| file.write_all(page.as_bytes()));
        written.map_err(|error| cannot_write(&self.path, &error))
    }
}

fn emptied(file: File) -> io::Result<File> {
    if file.metadata().is_ok_and(|about| about.is_file()) {
        file.set_len(0)?;
    }
    Ok(file)
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot write the page {}: {error}", path.display()))
}

fn page(report: &Report<'_>, course: &Course) -> Markup {
    let title = format!("standfast load {}", report.target);
    let stamp = Timestamp::now().strftime("%F %T UTC");
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                p { (report.plan) }
                (charts(report, course))
                @if !course.restarts.is_empty() {
                    ul {
                        @for restart in &course.restarts {
                            li { span class="mark" { (format!("{:.1} s", restart.at)) } " " (restart.what) }
                        }
                    }
                }
                pre { (report.table()) }
                footer { "standfast " (env!("CARGO_PKG_VERSION")) ", " (stamp) }
            }
        }
    }
}

fn charts(report: &Report<'_>, course: &Course) -> Markup {
    let steps = &*course.steps;
    let time = Time(course.seconds());
    let marks: Vec<Mark<'_>> = course
        .restarts
        .iter()
        .map(|restart| Mark {
            at: restart.at,
            words: &restart.what,
        })
        .collect();
    let line = |name, class, figure: &dyn Fn(&Step) -> Option<f64>| Series {
        name,
        class,
        shape: Shape::Line(steps.iter().map(|step| (step.to, figure(step))).collect()),
    };
    let hints = |words: &dyn Fn(&Step) -> String| -> Vec<Hint> {
        let hint = |step: &Step| Hint {
            from: step.from,
            to: step.to,
            words: format!("{:.1} s: {}", step.to, words(step)),
        };
        steps.iter().map(hint).collect()
    };
    let latency = [
        line("max", "most", &|step| step.most),
        line("p99", "p99", &|step| step.p99),
        line("p50", "p50", &|step| step.p50),
    ];
    let latencies = steps
        .iter()
        .flat_map(|step| [step.p50, step.p99, step.most])
        .flatten();
    let rate = |step: &Step| step.a_second(step.echoed);
    let troubled = steps.iter().filter(|step| step.ended + step.failed > 0);
    let troubles = |step: &Step| (step.ended + step.failed) as f64;
    let bars = troubled.map(|step| (step.from, step.to, troubles(step)));
    html! {
        @if report.plan.mode != Mode::Idle {
            (chart("Latency, ms", time, Scale::powers(latencies), &latency, &marks, &hints(&in_words)))
            (chart(
                "Messages a second", time, Scale::linear(steps.iter().map(rate)),
                &[line("echoed", "flow", &|step| Some(rate(step)))], &marks,
                &hints(&|step| format!("{:.0} a second", rate(step))),
            ))
        }
        (chart(
            "Connections", time, Scale::linear(steps.iter().map(|step| (step.up as f64).max(troubles(step)))),
            &[
                line("up", "flow", &|step| Some(step.up as f64)),
                Series { name: "lost, or failed to connect", class: "bad", shape: Shape::Bars(bars.collect()) },
            ],
            &marks,
            &hints(&|step| format!(
                "{} up, {} made, {} lost, {} failed to connect", step.up, step.connects, step.ended, step.failed
            )),
        ))
    }
}

/// The latency of a step.
fn in_words(step: &Step) -> String {
    match (step.p50, step.p99, step.most) {
        (Some(p50), Some(p99), Some(most)) => {
            let [p50, p99, most] = [p50, p99, most].map(Milliseconds);
            format!("p50 {p50}, p99 {p99}, max {most}")
        }
        _ => "nothing came back".to_owned(),
    }
}
