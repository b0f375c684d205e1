//! What of a connection's bytes goes next.

use crate::wire::record::Piece;

/// What is to be sent of `bytes` (in two pieces, the first at position `start`), if everything before `sent` was:
/// at most `room`. And the position behind it.
pub(super) fn piece(
    (start, front, back): (u64, &[u8], &[u8]),
    sent: u64,
    room: usize,
) -> (Piece, u64) {
    let at = sent.max(start);
    let skip = usize::try_from(at - start).unwrap_or(usize::MAX);
    let back = back
        .get(skip.saturating_sub(front.len())..)
        .unwrap_or_default();
    let front = front.get(skip..).unwrap_or_default();
    let front = &front[..front.len().min(room)];
    let bytes = [front, &back[..back.len().min(room - front.len())]].concat();
    let end = at + bytes.len() as u64;
    (Piece { at, bytes }, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_begins_where_the_last_one_ended() {
        let bytes = (100, &b"abc"[..], &b"def"[..]);
        for (sent, room, at, expected) in [
            (0, 9, 100, "abcdef"),
            (0, 2, 100, "ab"),
            (0, 4, 100, "abcd"),
            (102, 9, 102, "cdef"),
            (103, 9, 103, "def"),
            (104, 1, 104, "e"),
            (106, 9, 106, ""),
            (100, 0, 100, ""),
        ] {
            let (piece, end) = piece(bytes, sent, room);
            assert_eq!((piece.at, &piece.bytes[..]), (at, expected.as_bytes()));
            assert_eq!(end, at + expected.len() as u64);
        }
    }
}
