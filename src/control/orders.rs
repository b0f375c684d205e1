//! Orders whose givers have not heard yet that they were taken: the end of the server waits for that.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::time::allowance::Allowance;

/// How many there are.
#[derive(Debug, Default)]
pub(super) struct Orders {
    count: Mutex<usize>,
    fewer: Condvar,
}

impl Orders {
    /// Notes one, until what this answers is dropped.
    pub(super) fn note(&self) -> impl Drop {
        struct Noted<'a>(&'a Orders);

        impl Drop for Noted<'_> {
            fn drop(&mut self) {
                *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
                self.0.fewer.notify_all();
            }
        }

        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Noted(self)
    }

    /// Waits until there is none, at most so long.
    pub(super) fn until_none(&self, bound: Duration) {
        let mut bound = Allowance::new(bound);
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0
            && let Some(piece) = bound.piece()
        {
            let waited = self.fewer.wait_timeout(count, piece);
            count = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
