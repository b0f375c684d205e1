//! The progress line: each second what has been reached, on stderr. On a terminal it is rewritten in place.

use std::io::{self, IsTerminal as _, Write as _};

use crate::Failure;
use crate::load::plan::{Mode, Plan};
use crate::load::report::Milliseconds;
use crate::load::tally::{Latencies, Tally};
use crate::load::{SECOND, seconds};
use crate::logger;

#[derive(Debug)]
pub(super) struct Progress {
    mode: Mode,
    connections: usize,
    is_terminal: bool,
    is_quiet: bool,
    /// Something stands on the terminal's line.
    is_open: bool,
    before: Tally,
    /// When that was said, and in which second.
    shown: u64,
    second: (bool, u64),
    /// Since then.
    latencies: Latencies,
}

impl Progress {
    pub(super) fn new(plan: &Plan, is_quiet: bool) -> Result<Self, Failure> {
        Ok(Self {
            mode: plan.mode,
            connections: plan.connections,
            is_terminal: io::stderr().is_terminal(),
            is_quiet,
            is_open: false,
            before: Tally::default(),
            shown: 0,
            second: (false, 0),
            latencies: Latencies::new()?,
        })
    }

    /// What the workers have put up: all they had counted at `at`, and their latencies since the last time. It is shown
    /// once in each second, which count from `start` on when sending has begun.
    pub(super) fn show(&mut self, at: u64, tally: &Tally, latencies: &Latencies, start: u64) {
        self.latencies.add(latencies);
        let second = second(at, start);
        if second.1 == 0 || second == self.second {
            return;
        }
        self.second = second;
        let elapsed = (start < at).then(|| seconds(at - start));
        let line = self.line(tally, elapsed, seconds(at - self.shown.max(start.min(at))));
        (self.before, self.shown) = (*tally, at);
        self.latencies.clear();
        if self.is_quiet {
            return;
        }
        if self.is_terminal {
            // Nobody to be told if it fails.
            let _ = write!(io::stderr(), "\r\x1b[K{line}");
            self.is_open = true;
        } else {
            logger::say(&line);
        }
    }

    fn line(&self, tally: &Tally, elapsed: Option<f64>, seconds: f64) -> String {
        let when = elapsed.map_or_else(|| "connecting".to_owned(), |time| format!("{time:.0} s"));
        let mut line = format!("{when}: {} of {} up", tally.up, self.connections);
        if self.mode != Mode::Idle && elapsed.is_some() {
            let echoed = tally.echoed.saturating_sub(self.before.echoed) as f64;
            line += &format!(", {:.0} messages/s", echoed / seconds);
            if let Some(ms) = self.latencies.quantile_ms(0.99) {
                line += &format!(", p99 {}", Milliseconds(ms));
            }
        }
        let faults = &tally.faults;
        let wrong = faults.lost + faults.duplicated + faults.reordered + faults.corrupted;
        line += &format!(
            ", {} reconnects, {} errors",
            tally.reconnects,
            tally.failed.all() + tally.all_ended()
        );
        if wrong > 0 {
            line += &format!(", {wrong} bytes wrong");
        }
        line
    }

    /// Ends the line on the terminal.
    pub(super) fn close(&mut self) {
        if std::mem::take(&mut self.is_open) {
            let _ = writeln!(io::stderr());
        }
    }
}

/// Whether it was being sent by then, and in which second of that, or of the time before.
fn second(at: u64, start: u64) -> (bool, u64) {
    if start < at {
        (true, (at - start) / SECOND)
    } else {
        (false, at / SECOND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_count_anew_when_sending_begins() {
        let start = SECOND * 3 / 2;
        for (at, expected) in [
            (SECOND / 5, (false, 0)),
            (SECOND + 1, (false, 1)),
            (start, (false, 1)),
            (start + SECOND / 5, (true, 0)),
            // A late one, and a punctual one behind it, are two.
            (start + SECOND * 19 / 10, (true, 1)),
            (start + SECOND * 2, (true, 2)),
        ] {
            assert_eq!(second(at, start), expected, "{at}");
        }
        assert_eq!(second(5 * SECOND, u64::MAX), (false, 5));
    }
}
