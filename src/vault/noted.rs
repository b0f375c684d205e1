//! What stands in a connection's record, and whether that still says how it stands.

use serde::{Deserialize, Serialize};

use crate::io::end::Carried;
use crate::io::{Far, Io};
use crate::liveness::reap::Progress;
use crate::time::deadline::Moment;
use crate::wire::record::{Arrival, Record};

/// A connection's record.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Noted {
    /// When that was, on the server's own clock: its times count from there.
    pub(super) at: u64,
    /// It was not read then: the time since it was last is not its silence.
    pub(super) stopped: bool,
    /// By how much its output, written or waiting, was longer than what was read of its far side; and the other way round.
    pub(super) ahead: i64,
    pub(super) far_ahead: i64,
    pub(super) arrival: Arrival,
    /// What its service had left of its input.
    #[serde(with = "serde_bytes")]
    pub(super) input: Vec<u8>,
}

impl Noted {
    pub(super) fn of(io: &Io, now: Moment, record: Record) -> Self {
        let end = |io: &Io| io.written + io.waiting_output() as u64;
        let (ahead, far_ahead) = io.far_io().map_or((0, 0), |far| {
            let ahead = end(io).wrapping_sub(far.read).cast_signed();
            (ahead, end(far).wrapping_sub(io.read).cast_signed())
        });
        let (_, front, back) = io.input();
        Self {
            input: [front, back].concat(),
            at: now.number(),
            stopped: io.is_stopped(),
            ahead,
            far_ahead,
            arrival: Arrival::of(io, now, record),
        }
    }
}

/// After so many microseconds, which nobody has looked at it.
pub(super) fn pass(record: &mut Record, micros: u64) {
    for left in [&mut record.look_at, &mut record.linger, &mut record.alarm] {
        *left = left.map(|left| left.saturating_sub(micros));
    }
    if let Some((_, ago)) = &mut record.progress {
        *ago = ago.saturating_add(micros);
    }
}

/// How a connection stands that has nothing waiting: all that its record says of it but for what its slot says, and for what
/// comes by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stance {
    near: Side,
    far: Option<Side>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Side {
    end: Carried,
    progress: Option<Progress>,
}

impl Stance {
    /// `None`: something waits, or there is more to say of it.
    pub(super) fn of(io: &Io) -> Option<Self> {
        let far = match io.far() {
            None => None,
            Some(Far::Up(up)) => Some(Side::of(&up.io)?),
            Some(_) => return None,
        };
        let near = Side::of(io).filter(|_| io.watches().is_none())?;
        Some(Self { near, far })
    }
}

impl Side {
    fn of(io: &Io) -> Option<Self> {
        let waits = io.waiting_output() > 0 || io.keeps_input() || io.is_stopped();
        (!waits && io.is_carriable()).then(|| Self {
            end: io.carried(),
            progress: io.pending.as_deref().and_then(|pending| pending.progress),
        })
    }
}
