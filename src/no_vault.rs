//! What stands for a worker's vault where there is none.

use std::any::Any;

use crate::connection::Connection;
use crate::io::Io;
use crate::service::AnyService;
use crate::time::deadline::Moment;

/// Nobody keeps anything.
#[derive(Debug)]
pub(crate) enum Vault {}

impl Vault {
    pub(crate) fn begin(&self, _: usize, _: &Io) {
        match *self {}
    }

    pub(crate) fn settle(&mut self, _: usize, _: &Connection, _: &AnyService, _: Moment) {
        match *self {}
    }

    pub(crate) fn comes(&mut self, _: Box<dyn Any + Send>) {
        match *self {}
    }

    pub(crate) fn has(&self, _: usize) -> bool {
        match *self {}
    }

    pub(crate) fn let_go(&mut self, _: Moment) {
        match *self {}
    }

    pub(crate) fn due(&self) -> Moment {
        match *self {}
    }

    pub(crate) fn forget(&mut self, _: usize) {
        match *self {}
    }
}
