//! The listener a connection came through, as a worker knows it.

use std::sync::Arc;

use crate::address::endpoint::Endpoint;
use crate::connection::Serving;
use crate::inspect::{ConnectionInfo, DeadlineKind, NextDeadline};
use crate::io::door::Door;
use crate::io::stats::Stats;
use crate::io::{Far, Io, Terms, Turn};
use crate::listen::settings::Settings;
use crate::liveness::close::CloseReason;
use crate::os::sys;
use crate::time::deadline::Moment;

/// The listener a connection came through, as a worker knows it.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) address: Endpoint,
    pub(crate) settings: Arc<Settings>,
    /// Its connections may have several paths.
    pub(crate) multipath: bool,
    /// This worker's counters.
    pub(crate) stats: Arc<Stats>,
    /// What holds for the far sides of its connections.
    pub(crate) terms: Arc<Terms>,
}

impl Origin {
    /// What holds for its connections now; nobody is judged by time.
    #[inline]
    pub(crate) fn turn(&self, now: Moment) -> Turn<'_> {
        Turn {
            now,
            known: Moment::at_start(),
            limits: &self.settings.limits,
            stats: &self.stats,
            memory: &self.terms.memory,
        }
    }

    /// Whether its clients have TLS.
    #[inline]
    pub(crate) fn has_tls(&self) -> bool {
        self.settings.tls.is_some()
    }

    /// What its connections are served with now; what they and their far sides send is read into the buffers.
    #[inline]
    pub(crate) fn serving<'a>(
        &'a self,
        now: Moment,
        (buffer, far_buffer): (&'a mut [u8], &'a mut [u8]),
    ) -> Serving<'a> {
        Serving {
            service: &*self.settings.service,
            turn: self.turn(now),
            tls: self.settings.tls.as_ref(),
            buffer,
            far_buffer,
        }
    }

    /// One of its connections, for the table.
    pub(crate) fn show(&self, io: &Io, now: Moment) -> ConnectionInfo {
        let fd = io.descriptor();
        let (read, written, last_in) = io.counted(now);
        let until = |kind, at: Moment| {
            (at != Moment::NEVER).then(|| NextDeadline {
                kind,
                due_in: at.since(now),
            })
        };
        let (far_waiting, far_held, far_stalls) = match io.far() {
            Some(Far::Up(up)) => (
                up.io.waiting_output(),
                up.io.held(),
                up.io.stalls(&up.terms.limits),
            ),
            _ => (0, 0, None),
        };
        let stalls = [io.stalls(&self.settings.limits), far_stalls];
        let stalls = stalls.into_iter().flatten().min_by_key(|(at, _)| *at);
        let stalls = stalls.and_then(|(at, reason)| match reason {
            CloseReason::HalfCloseTimeout => until(DeadlineKind::HalfClose, at),
            _ => until(DeadlineKind::Output, at),
        });
        let door = io.door().and_then(|door| match door {
            Door::Header(at) => until(DeadlineKind::ProxyHeader, at),
            Door::Turn(at) => until(DeadlineKind::Turn, at),
            Door::Handshake(at) => until(DeadlineKind::TlsHandshake, at),
            Door::Unheard | Door::Anew => None,
        });
        let deadlines = [
            door,
            until(DeadlineKind::Linger, io.linger().unwrap_or(Moment::NEVER)),
            stalls,
            until(DeadlineKind::Read, io.read_deadline(&self.turn(now))),
            until(DeadlineKind::Age, io.age_deadline(&self.turn(now))),
        ];
        ConnectionInfo {
            id: io.id(),
            peer: io.peer(),
            via: io.via(),
            behind: None,
            listener: self.address.clone(),
            service: self.settings.service.name().to_owned(),
            age: now.since(io.opened()),
            idle: now.since(last_in),
            read,
            written,
            waiting: io.waiting_output() + far_waiting,
            held: io.held() + far_held,
            unacknowledged: sys::unacknowledged(fd).ok(),
            round_trip: io.tcp_info().ok().map(|info| info.round_trip),
            next_deadline: deadlines
                .into_iter()
                .flatten()
                .min_by_key(|deadline| deadline.due_in),
            upstream: io.upstream(),
            tls: io.tls_info(),
            upstream_tls: io.far_io().and_then(Io::tls_info),
        }
    }
}
