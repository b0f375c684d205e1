//! `--heartbeat`: when a line of it is due, and that it never stands inside another. Pure; time comes in as an argument.

use std::time::{Duration, Instant};

/// The heartbeat of one connection.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    every: Duration,
    line: Vec<u8>,
    /// When something was sent last, or the connection began.
    sent: Instant,
    /// The last byte sent was the end of a line, or none was.
    between_lines: bool,
    /// How much of a line of its own is still to be sent; it goes before anything else.
    owed: usize,
}

impl Heartbeat {
    /// The heartbeat of a connection that begins `now`; `line` with its end.
    pub(crate) fn new(every: Duration, line: Vec<u8>, now: Instant) -> Self {
        Self {
            every,
            line,
            sent: now,
            between_lines: true,
            owed: 0,
        }
    }

    /// Bytes were sent, the last of which is `last`.
    pub(crate) fn sent(&mut self, last: u8, now: Instant) {
        self.sent = now;
        self.between_lines = last == b'\n';
    }

    /// What of a line is to be sent `now`: all of it, or the rest of one that was begun. Nothing if there is something
    /// else to send, for that is sign of life enough.
    pub(crate) fn owed(&mut self, is_idle: bool, now: Instant) -> &[u8] {
        if self.owed == 0 && is_idle && self.between_lines && now >= self.due() {
            self.owed = self.line.len();
        }
        &self.line[self.line.len() - self.owed..]
    }

    /// The kernel took `count` bytes of what was owed.
    pub(crate) fn paid(&mut self, count: usize, now: Instant) {
        if count == 0 && self.owed == self.line.len() {
            // Not even begun, because so much else is under way.
            self.owed = 0;
        } else {
            self.owed = self.owed.saturating_sub(count);
        }
        self.sent = now;
    }

    /// When the next line is due, if nothing is sent before.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.between_lines.then(|| self.due())
    }

    fn due(&self) -> Instant {
        self.sent + self.every
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "some moment to count from")]
    fn beating() -> (Heartbeat, Instant) {
        let now = Instant::now();
        let heartbeat = Heartbeat::new(Duration::from_secs(5), b"PING\n".to_vec(), now);
        (heartbeat, now)
    }

    #[test]
    fn it_is_due_when_nothing_was_sent_for_a_while() {
        let (mut beat, begin) = beating();
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(beat.next(), Some(at(5)));
        assert_eq!(beat.owed(true, at(4)), b"");
        beat.sent(b'\n', at(4));
        assert_eq!(beat.owed(true, at(8)), b"");
        assert_eq!(beat.owed(false, at(9)), b"");
        assert_eq!(beat.owed(true, at(9)), b"PING\n");
        beat.paid(5, at(9));
        assert_eq!(beat.owed(true, at(13)), b"");
        assert_eq!(beat.next(), Some(at(14)));
    }

    #[test]
    fn it_never_stands_inside_a_line() {
        let (mut beat, begin) = beating();
        let late = begin + Duration::from_secs(60);
        beat.sent(b'x', begin);
        assert_eq!(beat.next(), None);
        assert_eq!(beat.owed(true, late), b"");
        beat.sent(b'\n', late);
        assert_eq!(beat.next(), Some(late + Duration::from_secs(5)));
    }

    #[test]
    fn one_that_was_begun_is_ended_first_and_one_that_found_no_room_is_not_owed() {
        let (mut beat, begin) = beating();
        let late = begin + Duration::from_secs(60);
        assert_eq!(beat.owed(true, late), b"PING\n");
        beat.paid(2, late);
        assert_eq!(beat.owed(true, late), b"NG\n");
        beat.paid(0, late);
        assert_eq!(beat.owed(false, late), b"NG\n");
        beat.paid(3, late);
        assert_eq!(beat.owed(true, late), b"");
        let later = late + Duration::from_secs(5);
        assert_eq!(beat.owed(true, later), b"PING\n");
        beat.paid(0, later);
        assert_eq!(beat.owed(true, later), b"");
    }
}
