//! What the connections of a service have in common, on its way: in parts that change no more while the old process
//! serves, and the rest in the freeze.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::handle::takeover::{Common, Formed};
use crate::wire::baton::{Baton, Failure, Fate, lost};
use crate::wire::record::{LONGEST_COMMON, Message, PIECE};

/// How far it has gone.
pub(crate) struct Ahead<'a> {
    services: Vec<(Going<'a>, u64)>,
    part: Option<Part<'a>>,
}

/// A service that has listeners whose connections go.
#[derive(Clone)]
struct Going<'a> {
    common: &'a Common,
    listeners: Arc<[u16]>,
}

/// The part that is being sent.
struct Part<'a> {
    of: Going<'a>,
    formed: Formed,
    sent: usize,
}

impl<'a> Ahead<'a> {
    pub(crate) fn of(services: &'a [Common], baton: &Baton) -> Self {
        let going = services.iter().map(|common| {
            let listeners = common.listeners.iter().copied();
            let listeners = listeners.filter(|it| baton.fate(*it) == Fate::Goes);
            let listeners = listeners.collect();
            (Going { common, listeners }, 0)
        });
        Self {
            services: going.filter(|(it, _)| !it.listeners.is_empty()).collect(),
            part: None,
        }
    }

    /// Sends what there is room for of the parts that may go ahead; only of the one that is under way, unless `more` are
    /// to follow. Answers whether that was all, for now.
    ///
    /// # Errors
    /// In words, what a service made of it; or the new process is gone.
    pub(crate) fn advance(&mut self, baton: &Baton, more: bool) -> Result<bool, String> {
        while let Some(part) = self.next_part(more)? {
            if !baton.has_room_ahead() {
                return Ok(false);
            }
            let (schema, bytes) = &part.formed;
            match send_piece(baton, &part.of, true, (*schema, bytes), part.sent, None) {
                Ok(end) if end == bytes.len() => self.part = None,
                Ok(end) => part.sent = end,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(lost(&error)),
            }
        }
        Ok(true)
    }

    /// The part that is being sent, or else, if there are to be `more`, the next one of a service that has one.
    fn next_part(&mut self, more: bool) -> Result<Option<&mut Part<'a>>, String> {
        let mut services = self.services.iter_mut();
        while more
            && self.part.is_none()
            && let Some((of, ahead)) = services.next()
        {
            if let Some((formed, then)) = (of.common.ahead)(*ahead)? {
                *ahead = then;
                self.part = Some(Part {
                    of: of.clone(),
                    formed,
                    sent: 0,
                });
            }
        }
        Ok(self.part.as_mut())
    }

    /// The freeze: sends the rest. Nobody changes that any more.
    ///
    /// # Errors
    /// As [`advance`](Self::advance); or it is too large, or takes too long.
    pub(crate) fn send_rest(&self, baton: &Baton, until: Instant) -> Result<(), Failure> {
        for (of, ahead) in &self.services {
            let Some((schema, bytes)) = (of.common.rest)(*ahead)? else {
                continue;
            };
            if bytes.len() > LONGEST_COMMON {
                return Err(Failure::Over(format!(
                    "what the connections have in common is too large to change hands: {} bytes",
                    bytes.len()
                )));
            }
            let mut sent = None;
            while sent != Some(bytes.len()) {
                let from = sent.unwrap_or(0);
                let end = send_piece(baton, of, false, (schema, &bytes), from, Some(until))?;
                sent = Some(end);
            }
        }
        Ok(())
    }
}

/// Sends the next piece of `bytes`, those before `from` having been sent. Answers where it ends.
fn send_piece(
    baton: &Baton,
    of: &Going<'_>,
    ahead: bool,
    (schema, bytes): (u16, &[u8]),
    from: usize,
    until: Option<Instant>,
) -> io::Result<usize> {
    let rest = bytes.get(from..).unwrap_or_default();
    let (piece, left) = rest.split_at(rest.len().min(PIECE));
    let message = Message::Common {
        listeners: of.listeners.to_vec(),
        ahead,
        schema,
        bytes: piece.to_vec(),
        left: left.len() as u64,
    };
    baton.pass(&message, &[], until)?;
    Ok(from + piece.len())
}
