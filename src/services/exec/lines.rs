//! A process's stderr, as lines of the log: no more of them than a log is for. What is left out is counted in one line.

use std::fmt::Write;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use crate::time::deadline::Moment;

/// The longest line; what is longer goes in pieces.
const LONGEST: usize = 1024;

/// The time that a [`Budget`] is for.
const SECOND: Duration = Duration::from_secs(1);

/// How much may be read and logged in one go, or in a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) lines: usize,
    pub(super) bytes: usize,
}

/// Of one process in a second.
const OF_ONE: Budget = Budget {
    lines: 500,
    bytes: 64 * 1024,
};

/// And of all.
const OF_ALL: Budget = Budget {
    lines: 2000,
    bytes: 256 * 1024,
};

/// How much of a process's stderr is read and logged in a turn.
pub(super) const STDERR_TURN: Budget = Budget {
    lines: 32,
    bytes: 4 * 1024,
};

/// And how much of what it has left when it has ended.
pub(super) const STDERR_REST: Budget = Budget {
    lines: usize::MAX,
    bytes: 256 * 1024,
};

/// What was logged in this second.
#[derive(Debug)]
pub(super) struct Spent {
    since: Moment,
    sum: Budget,
}

impl Default for Spent {
    fn default() -> Self {
        Self {
            since: Moment::at_start(),
            sum: Budget { lines: 0, bytes: 0 },
        }
    }
}

impl Spent {
    /// Whether there is room in `budget` for a line of `bytes`. Behind one that has none, nothing has in this second.
    fn has_room(&mut self, budget: Budget, bytes: usize, now: Moment) -> bool {
        if now.since(self.since) >= SECOND {
            *self = Self {
                since: now,
                ..Self::default()
            };
        }
        let room = self.sum.lines < budget.lines && self.sum.bytes + bytes <= budget.bytes;
        if !room {
            self.sum.lines = budget.lines;
        }
        room
    }

    /// Whether there is no room for any line in what is left of this second.
    fn is_full(&self, budget: Budget, now: Moment) -> bool {
        self.sum.lines >= budget.lines && now.since(self.since) < SECOND
    }

    fn add(&mut self, bytes: usize) {
        self.sum.lines += 1;
        self.sum.bytes += bytes;
    }
}

/// The lines under way.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// What was read and is no line yet, or had no room in the last turn.
    waiting: Vec<u8>,
    spent: Spent,
    left_out: LeftOut,
}

#[derive(Debug, Default)]
struct LeftOut {
    lines: u64,
    bytes: u64,
}

impl Lines {
    /// What was under way in another process.
    pub(super) fn from_waiting(waiting: &[u8]) -> Self {
        Self {
            waiting: waiting.to_vec(),
            ..Self::default()
        }
    }

    pub(super) fn waiting(&self) -> &[u8] {
        &self.waiting
    }

    /// Reads and logs what `stderr` has, within `turn` and what is left of this second. Answers whether there may be
    /// more. `all`: what is spent by all processes.
    pub(super) fn read(
        &mut self,
        stderr: BorrowedFd<'_>,
        mut turn: Budget,
        (now, all): (Moment, &Mutex<Spent>),
        id: u64,
    ) -> bool {
        let mut buffer = [0; 4096];
        loop {
            self.log(&mut turn.lines, (now, all), &mut |said| said.log(id));
            if turn.lines == 0 || turn.bytes == 0 {
                return true;
            }
            match rustix::io::read(stderr, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => return false,
                Ok(count) => {
                    self.waiting.extend_from_slice(&buffer[..count]);
                    turn.bytes = turn.bytes.saturating_sub(count);
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    log::debug!(id, error:% = std::io::Error::from(error); "cannot read the stderr of a process");
                    return false;
                }
            }
        }
    }

    /// No more comes: what has no line end is a line, too.
    pub(super) fn end(&mut self, (now, all): (Moment, &Mutex<Spent>), id: u64) {
        if !self.waiting.is_empty() && !self.waiting.ends_with(b"\n") {
            self.waiting.push(b'\n');
        }
        let mut lines = usize::MAX;
        self.log(&mut lines, (now, all), &mut |said| said.log(id));
        self.tell_left_out(&mut |said| said.log(id));
    }

    /// Logs at most so many `lines` of what waits.
    fn log(
        &mut self,
        lines: &mut usize,
        (now, all): (Moment, &Mutex<Spent>),
        say: &mut impl FnMut(Said<'_>),
    ) {
        let waiting = std::mem::take(&mut self.waiting);
        let mut from = 0;
        if self.spent.is_full(OF_ONE, now) {
            from = self.leave_out(&waiting);
        }
        while *lines > 0
            && let Some((text, length)) = first(&waiting[from..])
        {
            from += length;
            let room = self.spent.has_room(OF_ONE, text.len(), now) && {
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                let room = all.has_room(OF_ALL, text.len(), now);
                if room {
                    all.add(text.len());
                }
                room
            };
            if room {
                self.spent.add(text.len());
                *lines -= 1;
                self.tell_left_out(say);
                say(Said::Line(text));
            } else {
                self.left_out.lines += 1;
                self.left_out.bytes += length as u64;
            }
        }
        if from < waiting.len() {
            self.waiting = waiting;
            self.waiting.drain(..from);
        }
    }

    /// Leaves out all lines of `waiting`, at one go. Answers how much of it that is.
    fn leave_out(&mut self, waiting: &[u8]) -> usize {
        let end = waiting.iter().rposition(|&byte| byte == b'\n');
        let length = end.map_or(0, |end| end + 1);
        let lines = waiting[..length].iter().filter(|&&byte| byte == b'\n');
        self.left_out.lines += lines.count() as u64;
        self.left_out.bytes += length as u64;
        length
    }

    fn tell_left_out(&mut self, say: &mut impl FnMut(Said<'_>)) {
        if self.left_out.lines > 0 {
            say(Said::LeftOut(std::mem::take(&mut self.left_out)));
        }
    }
}

/// The first line of `bytes`, or a piece of it if that is long, and how much of them it is with its end.
fn first(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes
        .iter()
        .take(LONGEST + 1)
        .position(|&byte| byte == b'\n');
    match end {
        Some(end) => Some((&bytes[..end], end + 1)),
        None if bytes.len() > LONGEST => Some((&bytes[..LONGEST], LONGEST)),
        None => None,
    }
}

/// What goes to the log.
#[derive(Debug)]
enum Said<'a> {
    Line(&'a [u8]),
    LeftOut(LeftOut),
}

impl Said<'_> {
    fn log(self, id: u64) {
        match self {
            Self::Line(line) => log::info!(id, line = shown(line).as_str(); "stderr"),
            Self::LeftOut(LeftOut { lines, bytes }) => {
                log::info!(id, lines, bytes; "stderr left out");
            }
        }
    }
}

/// A line as text that does nothing to a terminal, for a client may have had a hand in it.
fn shown(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut text = String::new();
    for letter in String::from_utf8_lossy(line).chars() {
        if letter.is_control() && letter != '\t' {
            // Writing into a string cannot fail.
            let _ = write!(text, "{}", letter.escape_default());
        } else {
            text.push(letter);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::at(Duration::from_millis(1_000_000 + millis))
    }

    /// What comes of `bytes` at that time, with `all` spent by all.
    fn said(lines: &mut Lines, bytes: &[u8], now: Moment, all: &Mutex<Spent>) -> Vec<String> {
        let mut said = Vec::new();
        lines.waiting.extend_from_slice(bytes);
        lines.log(&mut usize::MAX.clone(), (now, all), &mut |one| {
            said.push(match one {
                Said::Line(line) => shown(line),
                Said::LeftOut(LeftOut { lines, bytes }) => format!("-{lines}/{bytes}"),
            });
        });
        said
    }

    #[test]
    fn lines_come_out_however_they_come_in() {
        let (mut lines, all) = (Lines::default(), Mutex::default());
        let pieces: [&[u8]; 4] = [b"on", b"e\ntwo\r\n\nth", b"ree", b"\nfo"];
        let all_said: Vec<_> = pieces
            .map(|piece| said(&mut lines, piece, at(0), &all))
            .concat();
        assert_eq!(all_said, ["one", "two", "", "three"]);
        assert_eq!(lines.waiting(), b"fo");
    }

    #[test]
    fn a_long_line_comes_in_pieces_and_nothing_of_it_is_lost() {
        let (mut lines, all) = (Lines::default(), Mutex::default());
        let long = vec![b'x'; 10 * LONGEST + 7];
        let all_said = said(&mut lines, &[&long, &b"\nnext\n"[..]].concat(), at(0), &all);
        assert_eq!(all_said.len(), 12);
        assert_eq!(all_said.concat().len(), long.len() + "next".len());
        assert!(lines.waiting().is_empty());
        let exact = [&long[..LONGEST], b"\n"].concat();
        assert_eq!(said(&mut lines, &exact, at(0), &all).len(), 1);
    }

    #[test]
    fn what_is_more_than_a_second_s_share_is_left_out_and_counted_in_one_line() {
        let (mut lines, all) = (Lines::default(), Mutex::default());
        let flood = vec![b'\n'; 100_000];
        assert_eq!(said(&mut lines, &flood, at(0), &all).len(), OF_ONE.lines);
        assert!(said(&mut lines, b"lost\n", at(999), &all).is_empty());
        let left = 100_000 - OF_ONE.lines + 1;
        let bytes = left - 1 + "lost\n".len();
        assert_eq!(
            said(&mut lines, b"again\n", at(1000), &all),
            [format!("-{left}/{bytes}"), "again".to_owned()]
        );
        // Bytes count as lines do.
        let long = [&[b'x'; LONGEST][..], b"\n"].concat().repeat(100);
        let bound = OF_ONE.bytes / LONGEST;
        assert_eq!(said(&mut lines, &long, at(2000), &all).len(), bound);
        assert_eq!(lines.left_out.lines, 100 - bound as u64);
    }

    #[test]
    fn many_processes_share_what_is_for_all() {
        let all = Mutex::default();
        let flood = vec![b'\n'; 10_000];
        let of_one = || said(&mut Lines::default(), &flood, at(0), &all).len();
        let logged: usize = (0..20).map(|_| of_one()).sum();
        assert_eq!(logged, OF_ALL.lines);
    }

    #[test]
    fn a_turn_logs_no_more_than_its_own_share_and_keeps_the_rest_for_the_next() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let (mut lines, all) = (Lines::default(), Mutex::default());
        let turn = Budget {
            lines: 32,
            bytes: 16 * 1024,
        };
        std::io::Write::write_all(&mut writer, &[b'\n'; 100]).unwrap();
        drop(writer);
        let stderr = std::os::fd::AsFd::as_fd(&reader);
        let mut read = || lines.read(stderr, turn, (at(0), &all), 1);
        assert_eq!([read(), read(), read(), read()], [true, true, true, false]);
        assert_eq!(all.lock().unwrap().sum.lines, 100);
    }

    #[test]
    fn a_line_does_nothing_to_a_terminal() {
        assert_eq!(shown(b"\x1b[2Jgone\x07"), "\\u{1b}[2Jgone\\u{7}");
        assert_eq!(shown(b"a\tb\xff"), "a\tb\u{fffd}");
    }
}
