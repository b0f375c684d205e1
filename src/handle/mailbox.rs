//! The way to one worker.

use std::any::Any;
use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};

use mio::Waker;

use crate::handle::ended::Ended;
use crate::handle::listing::Wish;
use crate::handle::takeover::Call;
use crate::handle::wanted::Wanted;
use crate::io::Io;
use crate::time::deadline::{Moment, NearestMoment};

/// What a worker finds in its mailbox.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A connection for it.
    Arrival(Newcomer),
    /// Show some connections.
    List(Wish),
    /// End the connection of this number, if that is still wanted; answers if it is here.
    Kill(u64, Wanted, Sender<bool>),
    /// Say that you turn.
    Ping(Sender<()>),
    /// Do your part in a takeover.
    Takeover(Call),
    /// Touch nothing any more: the process ends, and the next one goes on. Answers whether all is there for that.
    #[cfg(control)]
    Leave(Sender<bool>),
}

/// A connection on its way to a worker.
#[derive(Debug)]
pub(crate) struct Newcomer {
    pub(crate) io: Io,
    /// What its service remembers of it, once it is connected; `None`: it was only accepted.
    pub(crate) state: Option<Box<dyn Any + Send>>,
    /// As long as this lives the former worker's vault has it.
    pub(crate) standing: Option<Box<dyn Any + Send>>,
}

/// The way to one worker.
#[derive(Debug)]
pub(crate) struct Mailbox {
    pub(crate) waker: Arc<Waker>,
    mail: Sender<Mail>,
    /// Connections it has, those on their way to it included.
    pub(crate) open: AtomicUsize,
    /// Of those it has, connections that no service has heard of yet.
    pub(crate) at_door: AtomicUsize,
    /// Those of its connections that ended last.
    pub(crate) ended: Ended,
    /// When services have output for its connections.
    pub(crate) prompted: NearestMoment,
    /// Who looks into it.
    thread: OnceLock<ThreadId>,
}

impl Mailbox {
    pub(crate) fn new(waker: Waker) -> (Self, Receiver<Mail>) {
        let (mail, receiver) = mpsc::channel();
        (
            Self {
                waker: Arc::new(waker),
                mail,
                open: AtomicUsize::new(0),
                at_door: AtomicUsize::new(0),
                ended: Ended::default(),
                prompted: NearestMoment::never(),
                thread: OnceLock::new(),
            },
            receiver,
        )
    }

    /// Gives the worker a connection; it looks when it is woken. Gives it back if the worker is gone.
    pub(crate) fn send(&self, newcomer: Newcomer) -> Result<(), Newcomer> {
        self.mail
            .send(Mail::Arrival(newcomer))
            .map_err(|unsent| match unsent.0 {
                Mail::Arrival(newcomer) => newcomer,
                _ => unreachable!("what could not be sent is what was to be sent"),
            })
    }

    /// Asks the worker for something. One that has ended does not answer.
    pub(crate) fn post(&self, mail: Mail) {
        if self.mail.send(mail).is_ok() {
            self.wake();
        }
    }

    /// The worker's thread is this one.
    pub(crate) fn runs_on_this_thread(&self) {
        // Once, when it begins to run.
        let _ = self.thread.set(thread::current().id());
    }

    /// Services have output for the worker's connections, at `moment` at the latest. It looks at that before it
    /// waits, so only others need to wake it.
    pub(super) fn prompt(&self, moment: Moment) {
        let is_nearer = self.prompted.bring_near(moment);
        if is_nearer && self.thread.get() != Some(&thread::current().id()) {
            self.wake();
        }
    }

    pub(crate) fn wake(&self) {
        // An eventfd whose counter is full is awake already.
        if let Err(error) = self.waker.wake()
            && error.kind() != io::ErrorKind::WouldBlock
        {
            log::error!(error:% = error; "cannot wake a worker");
        }
    }
}
