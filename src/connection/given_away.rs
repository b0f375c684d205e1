//! A connection whose socket was given away, and what a service is told of beside the bytes.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Connection, Serving, Step};
use crate::io::Is;
use crate::io::Turn;
use crate::liveness::close::{CloseReason, Ending};
use crate::liveness::keepalive::RTO_MAX_DEFAULT;
use crate::os::sys;
use crate::service::{Context, Ready, Service};
use crate::time::deadline::Moment;

impl Connection {
    /// A descriptor that the service watches may be read.
    pub(crate) fn watched(&mut self, serving: &mut Serving<'_>) -> Step {
        self.tell(serving, Ready::Watched);
        self.advance(serving)
    }

    /// Tells the service what it waited for.
    pub(crate) fn tell(&mut self, serving: &Serving<'_>, what: Ready) {
        if !self.io.is_decided() && self.io.door().is_none() {
            self.call(serving, |service, state, conn| {
                service.ready(state, conn, what);
            });
        }
    }

    /// The connection has ended: tells the service.
    pub(crate) fn over(&mut self, serving: &Serving<'_>, reason: CloseReason) {
        let Self { io, state } = self;
        if io.door().is_some() {
            return;
        }
        // What it does after that cannot end it again.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let turn = serving.turn;
            serving
                .service
                .over(state, &mut Context { io, turn }, reason);
        }));
    }

    /// The service wanted to go on with what it watches.
    pub(super) fn go_on(&mut self, serving: &Serving<'_>) {
        if self.io.is_again() {
            self.io.set_again(false);
            self.tell(serving, Ready::Watched);
        }
    }

    /// An alarm of the service's, if that is due.
    pub(super) fn ring(&mut self, serving: &Serving<'_>) {
        if self.io.alarm() <= serving.turn.known {
            self.io.set_alarm(Moment::NEVER);
            self.tell(serving, Ready::Alarm);
        }
    }

    /// [`advance`](Connection::advance) for a socket that was given away: an event tells of an error at the most.
    pub(super) fn attend(&mut self, turn: &Turn<'_>) -> Step {
        if self.io.is(Is::ReadOn) || self.io.is(Is::Failing) {
            self.io.stirred(turn);
        }
        self.conclude_given_away(turn)
    }

    /// A deadline of a socket that was given away may have come.
    pub(super) fn expire_given_away(&mut self, serving: &Serving<'_>) -> Step {
        let (io, turn) = (&mut self.io, &serving.turn);
        let known = turn.known;
        if io.lost() <= known {
            let ending = io.last_word(CloseReason::PeerReset, turn);
            io.overrule(ending);
        }
        if io.look_at <= known {
            io.look_from_afar(turn);
        }
        let over = if io.read_deadline(turn) <= known && io.is_silent(turn) {
            Some(CloseReason::ReadTimeout)
        } else if io.age_deadline(turn) <= known {
            Some(CloseReason::MaxAge)
        } else {
            None
        };
        if let Some(reason) = over {
            io.finish_for(reason);
            // What was written is not to be lost to what comes yet, which nobody would read.
            let recalled = self.call(serving, Service::recall);
            self.io.recalled(recalled == Some(true));
        }
        self.conclude_given_away(turn)
    }

    /// What follows from what was seen of a socket that was given away.
    pub(super) fn conclude_given_away(&mut self, turn: &Turn<'_>) -> Step {
        let more = self.io.is_again();
        let io = &mut self.io;
        if let Some(verdict) = io.verdict() {
            return Step::Close(verdict);
        }
        match io.finishing().filter(|_| !io.is_recalled()) {
            // Whoever had it has gone; if there is somebody else, they keep it.
            Some(reason @ (CloseReason::Service | CloseReason::PeerClosed)) => {
                Step::Close(io.last_word(reason, turn))
            }
            Some(reason) => {
                // What was written is the kernel's to deliver, with its usual patience.
                let _ = sys::set_rto_max(io.socket.as_fd(), RTO_MAX_DEFAULT);
                Step::Close(Ending::fin(reason))
            }
            None if more => Step::Again,
            None => Step::Rest,
        }
    }
}
