//! What the main thread tells the workers: when to start sending, when to stop. And the clock of a run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One for a run. Times are nanoseconds from when it was made.
#[derive(Debug)]
pub(super) struct Control {
    origin: Instant,
    start: AtomicU64,
    end: AtomicU64,
    cut: AtomicBool,
    /// What the system said when an attempt to connect failed last, and whether a certificate was refused.
    failure: Mutex<(Option<String>, bool)>,
}

impl Control {
    pub(super) fn new() -> Self {
        Self {
            origin: clock(),
            start: AtomicU64::new(u64::MAX),
            end: AtomicU64::new(u64::MAX),
            cut: AtomicBool::new(false),
            failure: Mutex::new((None, false)),
        }
    }

    pub(super) fn now(&self) -> u64 {
        self.nanos(clock())
    }

    pub(super) fn nanos(&self, instant: Instant) -> u64 {
        nanos(instant.duration_since(self.origin))
    }

    pub(super) fn instant(&self, nanos: u64) -> Instant {
        self.origin + Duration::from_nanos(nanos)
    }

    /// When sending starts; in the far future as long as that is not known.
    pub(super) fn start(&self) -> u64 {
        self.start.load(Ordering::Acquire)
    }

    /// When sending ends.
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Whether the end is not to wait for anything.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Starts now, for so long.
    pub(super) fn start_for(&self, duration: Duration) {
        let now = self.now();
        let end = now.saturating_add(nanos(duration));
        self.end.fetch_min(end, Ordering::AcqRel);
        self.start.fetch_min(now, Ordering::AcqRel);
    }

    /// Ends the sending now, whether it has started or not.
    pub(super) fn stop(&self) {
        let now = self.now();
        self.end.fetch_min(now, Ordering::AcqRel);
        self.start.fetch_min(now, Ordering::AcqRel);
    }

    /// Ends everything now.
    pub(super) fn cut(&self) {
        self.stop();
        self.cut.store(true, Ordering::Release);
    }

    /// Remembers why an attempt failed. The first time it answers so, too, and the first time that it is for a certificate,
    /// behind which nothing else is remembered.
    pub(super) fn failed(&self, why: String, is_refused: bool) -> Option<String> {
        let mut failure = self.failure.lock().ok()?;
        let (last, was_refused) = &mut *failure;
        if *was_refused {
            return None;
        }
        *was_refused = is_refused;
        let is_first = last.is_none() || is_refused;
        let first = is_first.then(|| why.clone());
        *last = Some(why);
        first
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failure
            .lock()
            .ok()
            .and_then(|mut failure| failure.0.take())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the clock of a load is read here and nowhere else"
)]
fn clock() -> Instant {
    Instant::now()
}

/// 584 years of them fit.
pub(super) fn nanos(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(duration.subsec_nanos().into())
}
