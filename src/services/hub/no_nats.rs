//! In place of `nats/`, without the feature of that name: a hub is alone.

use std::sync::Arc;
use std::time::Duration;

use crate::handle::Handle;
use crate::inspect::NatsInfo;
#[cfg(control)]
use crate::os::journal::{Journal, Notes, Record};
use crate::services::hub::block::Block;

/// What a server before this one has left of that: nothing.
#[cfg(control)]
#[derive(Debug)]
pub(super) struct Remains;

#[cfg(control)]
impl Remains {
    pub(super) fn of(_: &Journal, _: &[(Record, Vec<u8>)]) -> Self {
        Self
    }
}

/// The way to other hubs: there is none.
#[derive(Debug, Default)]
pub(super) struct Beyond(());

#[expect(clippy::unused_self, reason = "where there is a way it is used")]
impl Beyond {
    #[cfg(control)]
    pub(super) fn go_on(&self, _: Notes, _: Option<Remains>) {}

    pub(super) fn start(&self, _: &Handle, _: impl FnMut(&[u8], u64) -> bool) {}

    pub(super) fn make_way(&self) {}

    pub(super) fn pass_on(&self, _: impl FnMut(&[u8], u64) -> bool) {}

    pub(super) fn is_waiting(&self) -> bool {
        false
    }

    pub(super) fn notice(&self) {}

    pub(super) fn blocks_behind(&self, _: u64, _: usize) -> Option<Vec<Arc<Block>>> {
        None
    }

    pub(super) fn hold(&self) {}

    pub(super) fn pack(&self, _: impl FnMut(&[u8], u64) -> bool) -> Option<Vec<u8>> {
        None
    }

    pub(super) fn unpack(&self, _: Option<&[u8]>) -> Result<(), String> {
        Ok(())
    }

    pub(super) fn stop(&self, _: Duration) -> bool {
        true
    }

    pub(super) fn info(&self) -> Option<NatsInfo> {
        None
    }
}
