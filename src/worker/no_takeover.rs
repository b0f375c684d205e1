//! What stands for a worker's part in a takeover where there is none.

use super::Worker;
use crate::handle::takeover::Call;
use crate::io::Io;
use crate::time::deadline::Moment;

/// Nothing is ever given.
#[derive(Debug)]
pub(super) enum Giving {}

impl Giving {
    pub(super) fn arrived(&mut self, _: usize) {
        match *self {}
    }

    pub(super) fn changed(&mut self, _: usize, _: &mut Io) -> bool {
        match *self {}
    }

    pub(super) fn ended(&mut self, _: u64) {
        match *self {}
    }

    pub(super) fn is_holding(&self) -> bool {
        match *self {}
    }

    pub(super) fn is_pressing(&self) -> bool {
        match *self {}
    }
}

/// No connection was taken over.
#[derive(Debug)]
pub(super) struct Unconfigured;

impl Unconfigured {
    pub(super) fn none() -> Self {
        Self
    }

    pub(super) fn due(&self) -> Moment {
        Moment::NEVER
    }
}

impl Worker {
    pub(super) fn take_part(&mut self, call: Call) {
        match call {}
    }

    pub(super) fn hand_over(&mut self) {}

    #[inline]
    pub(super) fn freeze_in_time(&mut self) {}
}
