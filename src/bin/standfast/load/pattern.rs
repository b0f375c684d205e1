//! The bytes that are sent: a stream in which any eight aligned bytes say whose they are and where they stand.
//!
//! Pure. What an echo makes of them is for `verify.rs` to judge.

/// Multiplying by an odd number is a bijection of 64-bit words; by this one, neighbours look nothing alike.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// What undoes it.
const INVERSE: u64 = inverse(FACTOR);

/// Words of a stream: 8 TiB.
const WORDS: u64 = 1 << 40;

/// Bytes in a word.
const WORD: usize = 8;

/// By Newton's method: each round doubles the bits that are right.
const fn inverse(factor: u64) -> u64 {
    let mut guess = factor;
    let mut round = 0;
    while round < 6 {
        guess = guess.wrapping_mul(2_u64.wrapping_sub(factor.wrapping_mul(guess)));
        round += 1;
    }
    guess
}

/// One connection's stream: its word number `i` is `base + i * FACTOR`, little endian, so a word costs one addition. The
/// base is as good as random: that a word of one stream is found in another has a chance of 2^-24 at the very worst.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pattern {
    base: u64,
}

impl Pattern {
    /// The stream of that number.
    pub(super) const fn new(stream: u32) -> Self {
        // Each bit of the number decides over each of the base.
        let mut base = (stream as u64).wrapping_add(FACTOR);
        base = (base ^ (base >> 31)).wrapping_mul(INVERSE);
        base = (base ^ (base >> 29)).wrapping_mul(FACTOR);
        Self {
            base: base ^ (base >> 32),
        }
    }

    const fn word(self, number: u64) -> u64 {
        self.base.wrapping_add(number.wrapping_mul(FACTOR))
    }

    /// The byte at `position`.
    pub(super) const fn byte(self, position: u64) -> u8 {
        let word = self.word(position / WORD as u64);
        (word >> (8 * (position % WORD as u64))).to_le_bytes()[0]
    }

    /// Where these eight bytes start in the stream; nothing if they are no word of it.
    pub(super) fn find(self, bytes: [u8; WORD]) -> Option<u64> {
        let word = u64::from_le_bytes(bytes);
        let number = word.wrapping_sub(self.base).wrapping_mul(INVERSE);
        (number < WORDS).then(|| number * WORD as u64)
    }

    /// Fills `out` with the stream from `position` on.
    pub(super) fn write(self, position: u64, out: &mut [u8]) {
        let (head, body, mut word) = self.aligned(position, out.len());
        let (first, rest) = out.split_at_mut(head);
        for (byte, at) in first.iter_mut().zip(position..) {
            *byte = self.byte(at);
        }
        let whole = (rest.len() / WORD * WORD) as u64;
        let (words, last) = rest.as_chunks_mut::<WORD>();
        for bytes in words {
            *bytes = word.to_le_bytes();
            word = word.wrapping_add(FACTOR);
        }
        for (byte, at) in last.iter_mut().zip(body + whole..) {
            *byte = self.byte(at);
        }
    }

    /// How many of these bytes, from the first on, are the stream from `position` on.
    pub(super) fn matching(self, position: u64, bytes: &[u8]) -> usize {
        /// Words compared at a go.
        const BLOCK: usize = 8;
        let (head, body, mut word) = self.aligned(position, bytes.len());
        let (first, rest) = bytes.split_at(head);
        if let Some(good) = self.differing(position, first) {
            return good;
        }
        let mut same = head;
        let (words, _) = rest.as_chunks::<WORD>();
        for block in words.chunks_exact(BLOCK) {
            let mut difference = 0;
            let mut expected = word;
            for bytes in block {
                difference |= u64::from_le_bytes(*bytes) ^ expected;
                expected = expected.wrapping_add(FACTOR);
            }
            if difference != 0 {
                break;
            }
            word = expected;
            same += BLOCK * WORD;
        }
        for bytes in &words[(same - head) / WORD..] {
            if u64::from_le_bytes(*bytes) != word {
                break;
            }
            word = word.wrapping_add(FACTOR);
            same += WORD;
        }
        let at = body + (same - head) as u64;
        let last = &bytes[same..];
        self.differing(at, &last[..last.len().min(WORD)])
            .map_or(bytes.len(), |good| same + good)
    }

    /// The first of a few bytes that is not the stream's from `position` on.
    fn differing(self, position: u64, bytes: &[u8]) -> Option<usize> {
        let mut expected = bytes.iter().zip(position..);
        expected.position(|(byte, at)| *byte != self.byte(at))
    }

    /// Bytes up to the next word's start, at most `length`; where that is; and that word.
    fn aligned(self, position: u64, length: usize) -> (usize, u64, u64) {
        let number = position.div_ceil(WORD as u64);
        let head = usize::try_from(number * WORD as u64 - position);
        let head = head.unwrap_or(usize::MAX).min(length);
        (head, position + head as u64, self.word(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(pattern: Pattern, position: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        pattern.write(position, &mut bytes);
        bytes
    }

    #[test]
    fn a_piece_is_the_same_however_it_is_cut() {
        let pattern = Pattern::new(77);
        let whole = piece(pattern, 0, 400);
        for from in 0..40 {
            for length in 0..100 {
                let expected = &whole[from..from + length];
                assert_eq!(piece(pattern, from as u64, length), expected);
                let single: Vec<u8> = (from..from + length)
                    .map(|at| pattern.byte(at as u64))
                    .collect();
                assert_eq!(single, expected);
                assert_eq!(pattern.matching(from as u64, expected), length);
            }
        }
    }

    #[test]
    fn the_first_wrong_byte_is_found_wherever_it_is() {
        let pattern = Pattern::new(0);
        for position in [0, 1, 7, 8, 1003] {
            for length in [1, 7, 8, 9, 63, 64, 65, 200] {
                for wrong in 0..length {
                    let mut bytes = piece(pattern, position, length);
                    bytes[wrong] ^= 1;
                    assert_eq!(
                        pattern.matching(position, &bytes),
                        wrong,
                        "{position} {length}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_word_says_where_it_stands_and_no_other_eight_bytes_do() {
        for stream in [0, 1, 77, u32::MAX] {
            let pattern = Pattern::new(stream);
            let bytes = piece(pattern, 0, 4096);
            for from in 0..4096 - WORD {
                let found = pattern.find(bytes[from..from + WORD].try_into().unwrap());
                let expected = from.is_multiple_of(WORD).then_some(from as u64);
                // Bytes of two words may happen to be a word, but not one that was sent.
                assert_eq!(
                    found.filter(|&at| at < 1 << 20),
                    expected,
                    "{stream} {from}"
                );
            }
        }
    }

    #[test]
    fn streams_have_nothing_in_common() {
        let one = piece(Pattern::new(1), 0, 80_000);
        for stream in (2..300).chain([u32::MAX]) {
            let pattern = Pattern::new(stream);
            let other = piece(pattern, 0, 80_000);
            let alike = one.iter().zip(&other).filter(|(a, b)| a == b).count();
            // By chance one of 256; where the bases have a byte in common, one of 8 and a few.
            assert!(alike < 80_000 / 4, "{stream}: {alike} bytes");
            let words = one.as_chunks().0.iter();
            assert_eq!(words.filter_map(|word| pattern.find(*word)).count(), 0);
        }
    }

    #[test]
    fn far_positions_are_found_too() {
        let pattern = Pattern::new(u32::MAX);
        let far = (WORDS - 5) * WORD as u64;
        let bytes = piece(pattern, far, WORD);
        assert_eq!(pattern.find(bytes.try_into().unwrap()), Some(far));
    }
}
