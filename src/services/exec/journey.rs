//! A connection's process, as another server goes on watching over it. Whatever comes in is checked before it is believed.
//!
//! Numbers are little-endian: the connection's, then the process's and which signal it was sent; flags: its stderr is
//! watched, it says no more, its client had said so before; and what of its stderr is no whole line yet. Of one that has left
//! its connection to others: its number, whether its client had said before that it was done, and the same.
#![warn(clippy::indexing_slicing)]

use rustix::process::Signal;

use super::{Left, Phase, Process, Running};
use crate::service::Exported;
use crate::services::exec::lines::Lines;
use crate::services::exec::nursery::{Group, Nursery};

/// The form of an exported state, with a process and without; and with one that has left its connection to others.
const STATE: u16 = 1;
const STATE_WITHOUT: u16 = 2;
const STATE_LEFT: u16 = 3;

pub(super) fn export(process: &Process) -> Option<Exported> {
    let mut bytes = process.id.to_le_bytes().to_vec();
    let running = match &process.phase {
        // One that is being started is ours to wait for.
        Phase::Starting(_) => return None,
        // That it has ended is seen by its pidfd there, too.
        Phase::Running(running) | Phase::Ended { running, .. } => running,
        Phase::Left(left) => {
            bytes.extend(left.pid.to_le_bytes());
            bytes.push(u8::from(left.after_client));
            bytes.extend(process.lines.waiting());
            return Some(Exported {
                schema: STATE_LEFT,
                bytes,
            });
        }
        Phase::Over => {
            return Some(Exported {
                schema: STATE_WITHOUT,
                bytes,
            });
        }
    };
    let sent = match running.sent {
        None => 0,
        Some(Signal::KILL) => 2,
        Some(_) => 1,
    };
    bytes.extend(running.group.pid().to_le_bytes());
    let parted = running
        .parted
        .map_or(0, |client_first| 2 | u8::from(client_first) << 2);
    bytes.extend([sent, u8::from(running.logs) | parted]);
    bytes.extend(process.lines.waiting());
    Some(Exported {
        schema: STATE,
        bytes,
    })
}

pub(super) fn import(exported: &Exported, nursery: &Nursery) -> Result<Process, String> {
    const AMISS: &str = "the state of a process that cannot be read";
    let (id, bytes) = exported.bytes.split_first_chunk().ok_or(AMISS)?;
    let id = u64::from_le_bytes(*id);
    let without = |phase| Process {
        id,
        phase,
        ticket: None,
        lines: Lines::default(),
    };
    match exported.schema {
        STATE => {}
        STATE_WITHOUT => return Ok(without(Phase::Over)),
        STATE_LEFT => {
            let (pid, bytes) = bytes.split_first_chunk().ok_or(AMISS)?;
            let (&[after_client], waiting) = bytes.split_first_chunk().ok_or(AMISS)?;
            let left = Left {
                pid: i32::from_le_bytes(*pid),
                after_client: after_client == 1,
            };
            return Ok(Process {
                lines: Lines::from_waiting(waiting),
                ..without(Phase::Left(left))
            });
        }
        schema => {
            return Err(format!(
                "the state of a process in form {schema}, this one reads {STATE} to {STATE_LEFT}"
            ));
        }
    }
    let (pid, bytes) = bytes.split_first_chunk().ok_or(AMISS)?;
    let ([sent, flags], waiting) = bytes.split_first_chunk().ok_or(AMISS)?;
    let running = Running {
        group: Group::numbered(i32::from_le_bytes(*pid)).ok_or(AMISS)?,
        child: None,
        sent: match sent {
            0 => None,
            1 => Some(Signal::TERM),
            2 => Some(Signal::KILL),
            _ => return Err(AMISS.to_owned()),
        },
        logs: flags & 1 != 0,
        parted: (flags & 2 != 0).then_some(flags & 4 != 0),
    };
    Ok(Process {
        id,
        phase: Phase::Running(running),
        ticket: nursery.admit(None),
        lines: Lines::from_waiting(waiting),
    })
}
