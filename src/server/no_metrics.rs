//! What stands for the metrics of a server where there are none.

#[cfg(control)]
use std::io;
use std::path::Path;

use super::Server;
#[cfg(control)]
use crate::address::endpoint::Endpoint;
use crate::config::Config;
use crate::error::Error;
#[cfg(control)]
use crate::os::kept::Kept;

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

#[cfg(control)]
pub(super) fn kept(_: &Config, _: &[Endpoint]) -> Lent {}

impl Server {
    #[cfg(control)]
    pub(super) fn kept_beside(&self) -> Vec<io::Result<Kept>> {
        Vec::new()
    }
}

impl Server {
    pub(super) fn open_metrics(&mut self, _: &Config, (): Lent) -> Result<(), Error> {
        Ok(())
    }
}
