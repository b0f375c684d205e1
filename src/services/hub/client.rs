//! What a hub remembers of each client.

use super::cursor::Cursor;
use super::journey::Reader;
use super::ledger::NOWHERE;

/// What a hub remembers of a client.
#[derive(Debug)]
pub struct HubClient {
    pub(super) place: Place,
    /// It leaves once it has got what lies before that; `u64::MAX`: before wherever the feed ends.
    pub(super) until: Option<u64>,
    /// Lines it has lost.
    pub(super) lost: u64,
    /// How much of the input that is left was found to have no line end.
    pub(super) searched: usize,
    /// Whether it is a source, once that was asked.
    pub(super) speaks: Option<bool>,
    /// It sent a line that was too long.
    pub(super) cut: bool,
    /// Its place in the ledger, if there is one.
    pub(super) entry: u32,
}

#[derive(Debug)]
pub(super) enum Place {
    Here(Cursor),
    /// In its feed: position, and number of the line.
    Predecessor(u64, u64),
    /// It has got all that it gets.
    Over,
}

impl HubClient {
    pub(super) fn at(place: Place) -> Self {
        Self {
            place,
            until: None,
            lost: 0,
            searched: 0,
            speaks: None,
            cut: false,
            entry: NOWHERE,
        }
    }

    /// For a process that takes over.
    pub(super) fn reader(&self) -> Reader {
        let (position, line) = match &self.place {
            Place::Here(cursor) => (cursor.position(), cursor.line()),
            Place::Predecessor(position, line) => (*position, *line),
            Place::Over => (0, 0),
        };
        Reader {
            position,
            line,
            lost: self.lost,
            cut: self.cut,
            leaving: self.until.is_some(),
            over: matches!(self.place, Place::Over),
        }
    }

    /// As it was in another process.
    pub(super) fn of(reader: Reader) -> Self {
        let place = match reader.over {
            true => Place::Over,
            false => Place::Predecessor(reader.position, reader.line),
        };
        Self {
            until: reader.leaving.then_some(u64::MAX),
            lost: reader.lost,
            cut: reader.cut,
            ..Self::at(place)
        }
    }
}
