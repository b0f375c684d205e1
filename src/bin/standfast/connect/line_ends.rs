//! `-C`: LF becomes CR LF on the way to the server. Pure; chunks may be cut anywhere.

/// Puts a CR before each LF that has none.
#[derive(Debug, Default)]
pub(crate) struct LineEnds {
    /// The last byte was a CR.
    after_cr: bool,
}

impl LineEnds {
    /// Replaces what is in `out` by `bytes` with their line ends as they are to be sent.
    pub(crate) fn convert(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        out.clear();
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            match line {
                [text @ .., b'\n'] => {
                    let has_cr = text.last().map_or(self.after_cr, |&last| last == b'\r');
                    out.extend_from_slice(text);
                    out.extend_from_slice(if has_cr { b"\n" } else { b"\r\n" });
                    self.after_cr = false;
                }
                text => {
                    out.extend_from_slice(text);
                    self.after_cr = text.ends_with(b"\r");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_feed_gets_one_carriage_return_however_it_is_cut() {
        let (given, wanted): (&[u8], &[u8]) = (
            b"a\nb\r\n\n\r\nc\r\rd\r\r\n\ne\r",
            b"a\r\nb\r\n\r\n\r\nc\r\rd\r\r\n\r\ne\r",
        );
        for size in 1..=given.len() {
            for first in 0..size.min(given.len()) {
                let (head, tail) = given.split_at(first);
                let mut ends = LineEnds::default();
                let (mut converted, mut out) = (Vec::new(), vec![b'x']);
                for chunk in [head].into_iter().chain(tail.chunks(size)) {
                    ends.convert(chunk, &mut out);
                    converted.extend_from_slice(&out);
                }
                assert_eq!(converted, wanted, "cut at {first}, then every {size}");
            }
        }
    }
}
