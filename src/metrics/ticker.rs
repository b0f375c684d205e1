//! The thread beside the event loop: it may wait. It asks the workers whether they turn, takes down the counters every few
//! seconds, and has clients cut off whose time is up.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::handle::Handle;
use crate::handle::turning::have_turned;
use crate::handle::wanted::Wanted;
use crate::os::threads;
use crate::time::deadline::Moment;

/// How long a client may be there, from its first word to the last byte of the answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How long a worker may take to say that it turns.
const TURN: Duration = Duration::from_secs(2);

/// How often the counters are taken down, and how many times are remembered: five minutes.
const EVERY: Duration = Duration::from_secs(5);
const SAMPLES: usize = 61;

/// What the event loop and the thread tell one another.
#[derive(Debug, Default)]
pub(super) struct Ticker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The clients, in the order in which they came, and until when each may stay.
    clients: VecDeque<(Moment, u64)>,
    /// How many times it was asked whether the workers turn, up to which of them that is answered, and how.
    asked: u64,
    answered: u64,
    turning: bool,
    /// Dropped, it ends the thread.
    wake: Option<Sender<()>>,
}

impl Ticker {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread: `about` is the server that is told of, `own` the one that tells.
    pub(super) fn start(self: &Arc<Self>, about: &Handle, own: &Handle) -> io::Result<()> {
        let (wake, woken) = mpsc::channel();
        let (ticker, about, own) = (Arc::clone(self), about.clone(), own.clone());
        threads::start("metrics-ticker", move || ticker.run(&about, &own, &woken))?;
        self.state().wake = Some(wake);
        Ok(())
    }

    pub(super) fn stop(&self) {
        self.state().wake = None;
    }

    /// A client is there.
    pub(super) fn came(&self, client: u64, until: Moment) {
        self.state().clients.push_back((until, client));
    }

    pub(super) fn left(&self, client: u64) {
        self.state().clients.retain(|&(_, id)| id != client);
    }

    /// Asks whether the workers turn. The answer is [there](Self::turning) by that number, later.
    pub(super) fn ask(&self) -> u64 {
        let mut state = self.state();
        state.asked += 1;
        let gone = state
            .wake
            .as_ref()
            .is_none_or(|wake| wake.send(()).is_err());
        if gone {
            state.answered = state.asked;
            state.turning = false;
        }
        state.asked
    }

    /// Whether the workers turn, if that is known by now.
    pub(super) fn turning(&self, asked: u64) -> Option<bool> {
        let state = self.state();
        (state.answered >= asked).then_some(state.turning)
    }

    fn run(&self, about: &Handle, own: &Handle, woken: &Receiver<()>) {
        // A worker that hangs is asked once, not every time somebody wants to know.
        let mut pending = None;
        let mut next = Moment::at_start();
        loop {
            let now = own.now();
            if next <= now {
                about.shared.sample(SAMPLES);
                next = now.after(EVERY);
            }
            let until = self.cut_off(own, now).unwrap_or(next).min(next);
            match woken.recv_timeout(until.since(now)) {
                Ok(()) => {
                    while woken.try_recv().is_ok() {}
                    let asked = self.state().asked;
                    let turning = pending.take().unwrap_or_else(|| about.ping());
                    let turns = have_turned(&turning, TURN);
                    pending = (!turns).then_some(turning);
                    let mut state = self.state();
                    (state.answered, state.turning) = (asked, turns);
                    drop(state);
                    own.resume();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Ends those whose time is up, whatever they do; answers when the next one's is.
    fn cut_off(&self, own: &Handle, now: Moment) -> Option<Moment> {
        let mut state = self.state();
        while let Some(&(until, client)) = state.clients.front() {
            if until > now {
                return Some(until);
            }
            state.clients.pop_front();
            // Whether it was there yet nobody needs to know.
            drop(own.kill_if(client, &Wanted::always()));
        }
        None
    }
}
