//! A process's stderr, as lines of the log.

use std::fmt::Write;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

/// The longest line; what is longer goes in pieces.
const LONGEST: usize = 1024;

/// The line under way.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// What was under way in another process.
    pub(super) fn from_partial(partial: &[u8]) -> Self {
        Self {
            partial: partial[..partial.len().min(LONGEST)].to_vec(),
        }
    }

    pub(super) fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// Reads at most about `budget` bytes of what `stderr` has, and logs the lines. Answers whether there may be more.
    pub(super) fn read(&mut self, stderr: BorrowedFd<'_>, mut budget: usize, id: u64) -> bool {
        let mut buffer = [0; 4096];
        while budget > 0 {
            match rustix::io::read(stderr, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => return false,
                Ok(count) => {
                    self.take(&buffer[..count], &mut |line| say(id, line));
                    budget = budget.saturating_sub(count);
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    log::debug!(id, error:% = std::io::Error::from(error); "cannot read the stderr of a process");
                    return false;
                }
            }
        }
        true
    }

    /// No more comes: what has no line end is a line, too.
    pub(super) fn end(&mut self, id: u64) {
        if !self.partial.is_empty() {
            say(id, &std::mem::take(&mut self.partial));
        }
    }

    fn take(&mut self, bytes: &[u8], say: &mut impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, whole) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            for text in text.chunks(LONGEST) {
                if self.partial.len() + text.len() > LONGEST {
                    say(&std::mem::take(&mut self.partial));
                }
                self.partial.extend_from_slice(text);
            }
            if whole {
                say(&std::mem::take(&mut self.partial));
            }
        }
    }
}

fn say(id: u64, line: &[u8]) {
    log::info!(id, line = shown(line).as_str(); "stderr");
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

    fn lines(pieces: &[&[u8]]) -> (Vec<String>, Vec<u8>) {
        let mut lines = Lines::default();
        let mut said = Vec::new();
        for piece in pieces {
            lines.take(piece, &mut |line| said.push(shown(line)));
        }
        (said, lines.partial)
    }

    #[test]
    fn lines_come_out_however_they_come_in() {
        let (said, partial) = lines(&[b"on", b"e\ntwo\r\n\nth", b"ree"]);
        assert_eq!(said, ["one", "two", ""]);
        assert_eq!(partial, b"three");
    }

    #[test]
    fn a_long_line_comes_in_pieces_and_nothing_of_it_is_lost() {
        let long = vec![b'x'; 10 * LONGEST + 7];
        let (said, partial) = lines(&[&long, b"\nnext\n"]);
        assert!(said.iter().all(|line| line.len() <= LONGEST));
        assert_eq!(said.concat().len(), long.len() + "next".len());
        assert!(partial.is_empty());
    }

    #[test]
    fn a_line_does_nothing_to_a_terminal() {
        assert_eq!(shown(b"\x1b[2Jgone\x07"), "\\u{1b}[2Jgone\\u{7}");
        assert_eq!(shown(b"a\tb\xff"), "a\tb\u{fffd}");
    }
}
