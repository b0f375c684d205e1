//! How a connection goes on whose service is given again what it had not come to an end with.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;

use super::{Beside, Finding, Found, account, end};
use crate::service::Survive;
use crate::vault::slot::Slot;
use crate::wire::record::{AT_DOOR, AtDoor, Piece};

impl Finding {
    /// Its record comes first, if it has one: of the output, what had been noted by then and has not left; and the input that
    /// had not been used by then.
    ///
    /// # Errors
    /// Why that cannot be said.
    pub(super) fn given_again(
        &mut self,
        slot: &Slot,
        step: Option<(u64, u64)>,
        beside: Beside,
        (found, survive): (&mut Found, Survive),
    ) -> Result<(), &'static str> {
        let record = &mut found.arrival.record;
        let at_door = match (slot.chain, survive) {
            // It had not got so far as to have one.
            (0, Survive::State) => Some(AtDoor::Unheard),
            (0, _) => Some(AtDoor::Anew),
            // By now its service may be of another mind.
            (_, Survive::Fresh | Survive::Journal) if record.state_schema != AT_DOOR => {
                Some(AtDoor::Anew)
            }
            _ => None,
        };
        if let Some(at_door) = at_door {
            (record.state_schema, record.state) = (AT_DOOR, at_door.encode());
        }
        // Whoever has it may have it block or not, and it is theirs until it is noted that it was taken back.
        found.is_given_away = record.given_away || blocks(&found.socket);
        if found.is_given_away && !record.given_away {
            return Err("its socket had just been given away");
        }
        let [(mut output_at, mut output), _] = beside.outputs;
        if output.is_empty() {
            output_at = record.written;
        }
        // Behind that may stand what was written since.
        let noted = record.output_end().checked_sub(output_at);
        let noted = noted.and_then(|noted| usize::try_from(noted).ok());
        output.truncate(noted.ok_or("its record is not in order")?);
        let (used, mut input) = (record.read, beside.input);
        if let Some((begun, _)) = step.filter(|_| !found.is_given_away) {
            let account = account(&found.socket, false)
                .ok_or("it was just being served, and the system keeps no account of it")?;
            (record.read, record.written) = (account.read, account.written);
            if account.fin_sent && !record.fin_sent {
                // Why, nobody has noted; as a rule the client had sent its own.
                record.fin_sent = true;
                end(record);
            }
            let place = |at: u64| usize::try_from(at.checked_sub(begun)?).ok();
            let places = place(used).zip(place(record.read));
            let bytes = places.and_then(|(from, to)| self.buffer.bytes().get(from..to));
            input.extend_from_slice(bytes.ok_or("some of its bytes are not there")?);
        }
        if record.ended || record.finishing.is_some() || record.given_away {
            // Nobody wants it any more.
            input.clear();
        }
        let gone = record.written.checked_sub(output_at);
        let gone = gone.and_then(|gone| usize::try_from(gone).ok());
        let rest = gone.and_then(|gone| output.get(gone..));
        // How much more that was its service knows.
        let rest = rest.or_else(|| (survive == Survive::Journal).then_some(&[]));
        let rest = rest.ok_or("more was sent than had been noted")?;
        record.output = rest.len() as u64;
        record.input = input.len() as u64;
        record.input_at = record.read.saturating_sub(record.input);
        found.output = Piece {
            at: record.written,
            bytes: rest.to_vec(),
        };
        found.input = Piece {
            at: record.input_at,
            bytes: input,
        };
        Ok(())
    }
}

/// Whether a socket blocks, as one does that was just given away.
fn blocks(socket: &OwnedFd) -> bool {
    rustix::fs::fcntl_getfl(socket).is_ok_and(|flags| !flags.contains(OFlags::NONBLOCK))
}
