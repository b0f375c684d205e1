//! A server starts its own successor, and hears what becomes of it.

use std::thread;
use std::time::Duration;

use super::{Desk, SIGN_OF_LIFE, lock};
use crate::inspect::Takeover;
use crate::os::successor::Successor;
use crate::wire::line::{Line, now};
use crate::wire::question::Answer;

/// How long a successor may take from its start to its end or to the takeover.
const SUCCESSOR: Duration = Duration::from_secs(20);

/// How often it is looked what has become of a successor.
const GLANCE: Duration = Duration::from_millis(10);

impl Desk {
    /// Starts a successor, and waits for what comes of it. Whoever asked hears that it takes its time.
    pub(super) fn restart(&self, line: &Line) -> Result<Takeover, String> {
        let shared = &self.handle.shared;
        self.object(std::process::id())?;
        lock(&self.refusal).take();
        let successor = shared.lifecycle.successor(self.file.path());
        let successor = successor.map_err(|error| format!("cannot start a successor: {error}"))?;
        let pid = successor.pid;
        log::info!(pid; "successor started");
        let until = now() + SUCCESSOR;
        let mut sign = now() + SIGN_OF_LIFE;
        loop {
            if let Some(takeover) = shared.takeover.gave.get() {
                return Ok(takeover.clone());
            }
            let ended = successor.has_ended();
            let ended = ended.map_err(|error| format!("cannot watch the successor: {error}"))?;
            let is_late = now() >= until;
            let is_given_up = line.is_hung_up().unwrap_or(true);
            // Where there is none, somebody is just taking over: what comes of that will be known.
            let is_over = ended || is_late || is_given_up;
            if let Some(_claim) = is_over.then(|| self.claim()).flatten() {
                if ended {
                    return Err(self.why_it_failed(&successor));
                }
                successor.kill();
                if is_given_up {
                    log::warn!(pid; "not restarted: who asked for it has given up, the successor was ended");
                    return Err("given up".to_owned());
                }
                return Err(format!(
                    "the successor (pid {pid}) did not take over within {} s, and was ended",
                    SUCCESSOR.as_secs()
                ));
            }
            if now() >= sign {
                // Who has given up is noticed in the next round.
                let _ = line.send(&Answer::Wait);
                sign = now() + SIGN_OF_LIFE;
            }
            thread::park_timeout(GLANCE);
        }
    }

    fn why_it_failed(&self, successor: &Successor) -> String {
        let pid = successor.pid;
        let why = lock(&self.refusal).take().or_else(|| successor.words());
        match why {
            Some(why) => format!("{why}; the successor (pid {pid}) has ended"),
            None => format!("the successor (pid {pid}) has ended; its own words are in the log"),
        }
    }
}
