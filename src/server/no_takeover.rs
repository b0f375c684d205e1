//! What stands for a server's part in takeovers, and for its control socket, where there are none.

use std::io;
use std::time::Duration;

use super::Server;
use super::metrics::Lent;
use crate::config::Config;
use crate::error::Error;
use crate::handle::Shared;
use crate::io::stats::Summary;
use crate::listen::accept::Acceptor;
use crate::listen::listener::Listener;

/// A server that takes over from none, and gives to none.
#[derive(Debug)]
pub(super) struct Part;

impl Part {
    pub(super) fn of(_: &[Listener], _: &Config) -> io::Result<Self> {
        Ok(Self)
    }
}

/// Nothing is ever taken over.
pub(super) enum Taken {}

pub(super) fn export_common(_: &Shared, _: &[Listener]) {}

/// Nobody keeps anything.
pub(super) fn keep_in(_: &Config, _: &mut Acceptor, _: &Shared) {}

impl Server {
    pub(super) fn keep(&mut self) {}

    pub(super) fn give_journals(&mut self) {}

    pub(super) fn keep_connections(&mut self, _: &Config, _: usize) {}

    pub(super) fn seal(&mut self) {}

    pub(super) fn in_place(config: &Config) -> Result<(Self, Lent), Error> {
        Ok((Self::open(config)?, Lent::default()))
    }

    pub(super) fn open_control(&mut self, _: &Config) -> Result<(), Error> {
        Ok(())
    }

    pub(super) fn take(&mut self) -> Result<Option<Taken>, Error> {
        Ok(None)
    }

    pub(super) fn succeed(&mut self, taken: Taken) {
        match taken {}
    }

    pub(super) fn end_those_behind(&self, _: Duration) -> bool {
        let Part = self.takeover;
        true
    }

    pub(super) fn say_given(&self, _: &mut Summary) {
        let Part = self.takeover;
    }
}
