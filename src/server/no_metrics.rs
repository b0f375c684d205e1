//! What stands for the metrics of a server where there are none.

use std::path::Path;

use super::Server;
use crate::config::Config;
use crate::error::Error;

/// There is never one.
pub(super) enum Part {}

/// Nothing is lent.
pub(super) type Lent = ();

pub(super) const RESERVE: usize = 0;

impl Part {
    pub(super) fn start(&mut self) -> Result<(), Error> {
        match *self {}
    }

    pub(super) fn serves(&mut self) {
        match *self {}
    }

    pub(super) fn end(self) {
        match self {}
    }
}

pub(super) fn lent(_: &Config, _: &Path) -> Lent {}

impl Server {
    pub(super) fn open_metrics(&mut self, _: &Config, (): Lent) -> Result<(), Error> {
        Ok(())
    }
}
