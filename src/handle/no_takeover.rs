//! What stands for a server's part in takeovers where there are none.

use std::time::Duration;

use super::Shared;
use crate::inspect::{EndedInfo, Takeover};
use crate::io::stats::Summary;
use crate::time::deadline::Moment;

#[derive(Default)]
pub(crate) struct Succession;

impl Succession {
    pub(crate) fn set_partner(&self, _: Option<u32>) {}

    pub(super) fn partner(&self) -> Option<u32> {
        None
    }

    pub(super) fn took(&self) -> Option<u32> {
        None
    }

    pub(super) fn last(&self) -> Option<&Takeover> {
        None
    }

    pub(super) fn counted_for(&self) -> Duration {
        Duration::ZERO
    }

    pub(crate) fn keeper(&self) -> Option<u32> {
        None
    }

    pub(super) fn crashes(&self) -> Option<u64> {
        None
    }

    pub(super) fn go_on(&self, _: usize, _: &mut Summary) {}

    pub(super) fn ended_before(&self, _: Moment) -> std::iter::Empty<EndedInfo> {
        std::iter::empty()
    }
}

/// Nobody calls.
#[derive(Debug)]
pub(crate) enum Call {}

impl Shared {
    pub(crate) fn was_given(&self) -> bool {
        false
    }
}
