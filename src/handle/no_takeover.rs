//! What stands for a server's part in takeovers where there are none.

use std::time::Duration;

use super::Shared;
use crate::io::stats::Summary;

#[derive(Default)]
pub(crate) struct Part;

impl Part {
    pub(super) fn counted_for(&self) -> Duration {
        Duration::ZERO
    }

    pub(super) fn go_on(&self, _: usize, _: &mut Summary) {}
}

/// Nobody calls.
#[derive(Debug)]
pub(crate) enum Call {}

impl Shared {
    pub(crate) fn was_given(&self) -> bool {
        false
    }
}
