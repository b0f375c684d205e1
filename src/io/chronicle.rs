//! What happens seldom in a server's life, counted over takeovers: accepts that failed, and the takeovers themselves.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::inspect::{FREEZE_BOUNDS, Takeovers};
use crate::inspect::{PastTakeover, Takeover};
use crate::liveness::close::Errno;

/// How many takeovers are told of one by one.
const RECENT: usize = 10;

/// What is counted seldom.
#[derive(Debug, Default)]
pub(crate) struct Chronicle {
    paused: AtomicBool,
    told: Mutex<Told>,
}

/// As it goes over to the next process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(control, derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Told {
    /// By the number of the error.
    accept_errors: BTreeMap<i32, u64>,
    takeovers: Takeovers,
}

impl Chronicle {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn accept_failed(&self, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        *self.told().accept_errors.entry(errno).or_default() += 1;
    }

    /// Accepting is not, or no more, paused for a lack of the system's.
    pub(crate) fn accepts(&self, accepts: bool) {
        if self.paused.load(Ordering::Relaxed) == accepts {
            self.paused.store(!accepts, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Accepts that failed, by the name of the error.
    pub(crate) fn accept_errors(&self) -> Vec<(String, u64)> {
        let told = self.told();
        let errors = told.accept_errors.iter();
        errors
            .map(|(errno, count)| (Errno(*errno).to_string(), *count))
            .collect()
    }

    pub(crate) fn takeovers(&self) -> Takeovers {
        let mut takeovers = self.told().takeovers.clone();
        takeovers.frozen_within.resize(FREEZE_BOUNDS.len(), 0);
        takeovers
    }
}

impl Chronicle {
    /// A process asked to take over, and may not.
    pub(crate) fn refused(&self) {
        self.told().takeovers.refused += 1;
    }

    /// A takeover came to nothing.
    pub(crate) fn failed(&self) {
        self.told().takeovers.failed += 1;
    }

    /// This process has taken over.
    pub(crate) fn took_over(&self, takeover: &Takeover) {
        let mut told = self.told();
        let takeovers = &mut told.takeovers;
        takeovers.completed += 1;
        takeovers.frozen += takeover.frozen;
        takeovers.frozen_within.resize(FREEZE_BOUNDS.len(), 0);
        let within = takeovers.frozen_within.iter_mut().zip(FREEZE_BOUNDS);
        for (count, bound) in within {
            *count += u64::from(takeover.frozen.as_secs_f64() <= bound);
        }
        if takeovers.recent.len() >= RECENT {
            takeovers.recent.remove(0);
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        takeovers.recent.push(PastTakeover {
            at: since.map_or(0, |since| since.as_secs()),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            connections: takeover.connections,
            staying: takeover.staying,
            frozen: takeover.frozen,
        });
    }

    pub(crate) fn tell(&self) -> Told {
        self.told().clone()
    }

    /// Goes on where another process ended.
    pub(crate) fn go_on(&self, before: Told) {
        // Nothing has happened here yet.
        *self.told() = before;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::inspect::Role;

    #[test]
    fn takeovers_are_counted_over_processes_and_the_last_ones_told_of() {
        let mut before = Told::default();
        for nth in 0..12_u32 {
            let chronicle = Chronicle::default();
            chronicle.go_on(before);
            chronicle.failed();
            chronicle.accept_failed(&io::Error::from_raw_os_error(libc::EMFILE));
            chronicle.took_over(&Takeover {
                role: Role::Took,
                pid: 7,
                connections: nth.into(),
                staying: 0,
                frozen: Duration::from_millis(2),
            });
            before = chronicle.tell();
        }
        let chronicle = Chronicle::default();
        chronicle.go_on(before);
        let takeovers = chronicle.takeovers();
        assert_eq!((takeovers.completed, takeovers.failed), (12, 12));
        assert_eq!(takeovers.frozen, Duration::from_millis(24));
        // Bounds of 0.5 and 1 ms have none, the next one all.
        assert_eq!(takeovers.frozen_within[..3], [0, 0, 12]);
        let recent = takeovers.recent.iter().map(|one| one.connections);
        assert_eq!(recent.collect::<Vec<_>>(), (2..12).collect::<Vec<_>>());
        assert_eq!(chronicle.accept_errors(), [("EMFILE".to_owned(), 12)]);
    }
}
