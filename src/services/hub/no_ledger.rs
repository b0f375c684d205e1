//! What stands for a ledger where nothing outlives the process.

use super::cursor::Cursor;

/// Nobody has one.
#[derive(Debug)]
pub(super) enum Ledger {}

/// What stood before that place of the feed had been sent up to the byte `end` of the output.
#[derive(Debug)]
pub(super) struct Stood {
    pub(super) position: u64,
    pub(super) line: u64,
    pub(super) end: u64,
}

pub(super) const NOWHERE: u32 = u32::MAX;

impl Ledger {
    pub(super) fn set_lost(&self, _: u64) {
        match *self {}
    }

    pub(super) fn enter(&self, _: u64, _: &Stood) -> u32 {
        match *self {}
    }

    pub(super) fn leave(&self, _: u32, _: u64) {
        match *self {}
    }

    pub(super) fn loses(&self, _: u32, _: u64) {
        match *self {}
    }

    pub(super) fn note(&self, _: u32, _: &Cursor, _: u64) {
        match *self {}
    }

    pub(super) fn begins(&self, _: u32, _: &Cursor, _: u64) {
        match *self {}
    }
}
