//! What a busy machine adds to a time: a test that says how soon something came leaves that out.

use std::time::{Duration, Instant};

use super::now;

/// When something began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began {
    at: Instant,
    contended: Duration,
}

impl Began {
    pub(crate) fn now() -> Self {
        Self {
            at: now(),
            contended: contended(),
        }
    }

    /// The time since, without that in which somebody on this machine waited for a processor: it was not the program that
    /// was slow then, or nobody can tell.
    pub(crate) fn unhindered(&self) -> Duration {
        self.at.elapsed().saturating_sub(self.hindered())
    }

    /// The time in which somebody did.
    pub(crate) fn hindered(&self) -> Duration {
        contended().saturating_sub(self.contended)
    }
}

/// For how long somebody has waited for a processor (PSI, Documentation/accounting/psi.rst). Nothing where the kernel does
/// not tell.
fn contended() -> Duration {
    let told = std::fs::read_to_string("/proc/pressure/cpu").unwrap_or_default();
    let total = told.lines().find_map(|line| {
        let (_, total) = line.strip_prefix("some ")?.split_once("total=")?;
        total.parse().ok()
    });
    Duration::from_micros(total.unwrap_or_default())
}
