//! Asks the server, on a thread of its own: however long an answer takes, keys are heard meanwhile.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use standfast::control::Client;
use standfast::inspect::{ConnectionInfo, Status};
use standfast::process::threads;

use crate::top::history::{Seen, Serves};
use crate::top::{Event, clock, may_panic};
use crate::{Failure, ctl};

/// What the server said, or did not.
#[derive(Debug)]
pub(super) enum Told {
    /// It is being asked.
    Asking,
    Status(Box<Status>, Serves),
    Connections(Vec<ConnectionInfo>),
    /// It does not answer; why.
    Nothing(String),
    Killed(u64, Result<(), String>),
}

/// What is asked for beside the status.
#[derive(Debug)]
pub(super) enum Ask {
    /// The connections, or not.
    List(bool),
    Kill(u64),
}

/// A list takes the server some work for each connection, so it is asked for only so often that this is at most one part in
/// so many of the time. As long as the answer takes is the most that the work can have taken of one core: to write it down
/// and to send it is one thread's, and that waits for each worker in turn.
const PART: u32 = 20;

/// A table is not older than that for the sake of its cost: its answer took so long for another reason.
const LIST_MOST: Duration = Duration::from_secs(15);

/// When to ask for what: told how long an answer took.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    status: Duration,
    list: Duration,
}

impl Pace {
    fn new(interval: Duration) -> Self {
        Self {
            interval,
            status: Duration::ZERO,
            list: Duration::ZERO,
        }
    }

    fn status_came(&mut self, now: Duration) {
        self.status = now + self.interval;
    }

    /// A list came, which was asked for at `asked`.
    fn list_came(&mut self, asked: Duration, now: Duration) {
        let took = now.saturating_sub(asked);
        self.list = now + self.interval.max((took * (PART - 1)).min(LIST_MOST));
    }

    /// How long there is nothing to ask.
    fn wait(&self, wants_list: bool, now: Duration) -> Duration {
        let next = if wants_list {
            self.status.min(self.list)
        } else {
            self.status
        };
        next.saturating_sub(now)
    }
}

/// Asks from now on, until nobody hears of it.
pub(super) fn start(
    client: Client,
    interval: Duration,
    seen: Seen,
    events: Sender<Event>,
) -> Result<Sender<Ask>, Failure> {
    let (sender, asks) = mpsc::channel();
    let asker = Asker {
        client,
        events,
        seen,
        wants_list: true,
    };
    threads::start("asker", move || {
        may_panic("asker");
        asker.run(&asks, Pace::new(interval));
    })
    .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
    Ok(sender)
}

struct Asker {
    client: Client,
    events: Sender<Event>,
    seen: Seen,
    wants_list: bool,
}

impl Asker {
    fn run(mut self, asks: &Receiver<Ask>, mut pace: Pace) {
        loop {
            let told = match asks.recv_timeout(pace.wait(self.wants_list, clock())) {
                Ok(Ask::List(wanted)) => {
                    self.wants_list = wanted;
                    continue;
                }
                Ok(Ask::Kill(id)) => {
                    self.say(Told::Asking);
                    let outcome = self.kill(id);
                    // What came of it is to be seen at once.
                    pace.status = Duration::ZERO;
                    pace.list = Duration::ZERO;
                    Told::Killed(id, outcome)
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.say(Told::Asking);
                    let asked = clock();
                    if pace.status <= asked {
                        let told = self.status(asked);
                        pace.status_came(clock());
                        told
                    } else {
                        let told = self.client.connections();
                        // What a server that stood still did not answer cost it nothing.
                        let asked = if told.is_ok() { asked } else { clock() };
                        pace.list_came(asked, clock());
                        told.map_or_else(|error| self.nothing(&error), Told::Connections)
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.say(told);
        }
    }

    /// Once nobody hears it any more, nobody asks either.
    fn say(&self, told: Told) {
        let _ = self.events.send(Event::Told(told));
    }

    fn status(&mut self, asked: Duration) -> Told {
        match self.client.status() {
            Ok(status) => {
                let serves = self.seen.serves(&status, asked);
                self.seen = Seen::of(&status, clock());
                Told::Status(Box::new(status), serves)
            }
            Err(error) => self.nothing(&error),
        }
    }

    fn nothing(&self, error: &io::Error) -> Told {
        Told::Nothing(ctl::unanswered(&self.client, error).line)
    }

    /// Another server has others under the same numbers.
    fn kill(&self, id: u64) -> Result<(), String> {
        let in_words = |error: io::Error| ctl::unanswered(&self.client, &error).line;
        let asked = clock();
        let status = self.client.status().map_err(in_words)?;
        if self.seen.serves(&status, asked) == Serves::Other {
            return Err("another server, started afresh, has come in between".to_owned());
        }
        self.client.kill(id).map_err(in_words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_asked_for_so_often_that_it_takes_a_twentieth_of_the_time_at_most() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(second);
        let now = Duration::from_secs(100);
        assert_eq!(pace.wait(true, now), Duration::ZERO);
        pace.status_came(now);
        // Quick: as often as the status.
        pace.list_came(now, now + second / 100);
        assert_eq!(pace.wait(true, now), second);
        assert_eq!(pace.list, now + second + second / 100);
        // Slow: it took half a second of ten.
        pace.list_came(now, now + second / 2);
        assert_eq!(pace.list, now + second * 10);
        pace.status_came(now + second * 20);
        assert_eq!(pace.wait(true, now), second * 10);
        assert_eq!(pace.wait(false, now), second * 21);
    }
}
