//! How long something may take, in time in which this process ran. Pure: time comes in as an argument.
//!
//! A process that stood still (stopped, frozen, starved) finds the time over before whomever it waits for, often one of
//! its own threads, could do anything. So the time is waited in pieces, and however long a piece took, it costs no more
//! than that piece.

use std::time::{Duration, Instant};

/// Pieces that it is waited in: what a standstill costs, and what is left of it at least for the others.
const PIECES: u32 = 8;

/// So much time, from when it is first asked on.
///
/// ```
/// # use std::{sync::mpsc, time::Duration};
/// use standfast::process::Allowance;
///
/// let (done, is_done) = mpsc::channel();
/// std::thread::spawn(move || done.send(()));
/// let mut allowance = Allowance::new(Duration::from_secs(2));
/// while let Some(piece) = allowance.piece() {
///     if is_done.recv_timeout(piece) != Err(mpsc::RecvTimeoutError::Timeout) {
///         break;
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    left: Duration,
    piece: Duration,
    asked: Option<Instant>,
}

impl Allowance {
    /// `whole` is all of it.
    #[must_use]
    pub fn new(whole: Duration) -> Self {
        Self {
            left: whole,
            piece: whole / PIECES,
            asked: None,
        }
    }

    /// How long to wait before it is asked again, at most. `None`: it is used up.
    pub fn piece(&mut self) -> Option<Duration> {
        #[expect(
            clippy::disallowed_methods,
            reason = "for threads that block, outside of any loop that has the clock"
        )]
        self.piece_at(Instant::now())
    }

    /// The same for whoever knows what time it is.
    pub fn piece_at(&mut self, now: Instant) -> Option<Duration> {
        let since = now.saturating_duration_since(self.asked.unwrap_or(now));
        self.asked = Some(now);
        self.left = self.left.saturating_sub(since.min(self.piece));
        (!self.left.is_zero()).then(|| self.left.min(self.piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Duration = Duration::from_secs(8);

    #[expect(clippy::disallowed_methods, reason = "where invented time begins")]
    fn start() -> Instant {
        Instant::now()
    }

    /// Asks after each of these times, in milliseconds, and answers how many were granted.
    fn granted(waits: impl IntoIterator<Item = u64>) -> usize {
        let (mut allowance, mut now) = (Allowance::new(WHOLE), start());
        assert!(allowance.piece_at(now).is_some());
        let waits = waits.into_iter().take_while(|millis| {
            now += Duration::from_millis(*millis);
            allowance.piece_at(now).is_some()
        });
        waits.count()
    }

    #[test]
    fn where_nothing_stands_still_it_is_the_time_on_the_clock() {
        assert_eq!(granted([1000; 20]), 7);
        // Whoever is woken before the piece is over pays for what it waited.
        assert_eq!(granted([100; 200]), 79);
        // It was over a bit late.
        assert_eq!(granted([1001; 20]), 7);
    }

    #[test]
    fn a_standstill_costs_one_piece_wherever_it_falls() {
        for nth in 0..7 {
            let mut waits = [1000; 20];
            waits[nth] = 3_600_000;
            assert_eq!(granted(waits), 7, "{nth}");
        }
        assert_eq!(granted([100, 100, 9_000_000, 100]), 4);
    }

    #[test]
    fn one_standstill_after_the_other_does_not_make_it_endless() {
        assert_eq!(granted([60_000; 20]), 7);
    }

    #[test]
    fn it_begins_when_it_is_first_asked() {
        let mut allowance = Allowance::new(WHOLE);
        let late = start() + Duration::from_secs(60);
        assert_eq!(allowance.piece_at(late), Some(WHOLE / PIECES));
    }

    #[test]
    fn the_last_piece_is_what_is_left() {
        let (mut allowance, now) = (Allowance::new(WHOLE), start());
        let at = |millis| now + Duration::from_millis(millis);
        for half in 0..15 {
            assert!(allowance.piece_at(at(500 * half)).is_some());
        }
        assert_eq!(
            allowance.piece_at(at(7400)),
            Some(Duration::from_millis(600))
        );
        assert_eq!(allowance.piece_at(at(8000)), None);
        assert_eq!(allowance.piece_at(at(8001)), None);
    }

    #[test]
    fn none_is_none_and_for_ever_is_for_ever() {
        assert_eq!(Allowance::new(Duration::ZERO).piece_at(start()), None);
        let mut for_ever = Allowance::new(Duration::MAX);
        assert!(for_ever.piece_at(start()).is_some());
        assert!(
            for_ever
                .piece_at(start() + Duration::from_secs(1 << 32))
                .is_some()
        );
    }

    #[test]
    fn a_clock_that_goes_back_costs_nothing() {
        let (mut allowance, now) = (Allowance::new(WHOLE), start() + WHOLE);
        assert!(allowance.piece_at(now).is_some());
        assert!(allowance.piece_at(now - WHOLE / 2).is_some());
        assert_eq!(granted([0; 20]), 20);
    }
}
