//! What a connection's slot says of it, and what of that stays the same, as words.

use crate::address::endpoint::{PackedPeer, Peer};

const WORD: usize = 8;

/// A connection's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) read: u64,
    pub(super) written: u64,
    /// When the last byte came, on the server's own clock.
    pub(super) last_in: u64,
    pub(super) chain: u32,
    pub(super) id: u64,
    pub(super) opened: u64,
    /// So many bytes were read that are no part of what the service gets.
    pub(super) skew: u64,
    pub(super) peer: Peer,
    pub(super) listener: u16,
}

/// What of it stays the same, as words.
pub(super) fn fixed(slot: &Slot) -> [u64; 5] {
    let mut bytes = [0; 24];
    match PackedPeer::from(slot.peer) {
        PackedPeer::V4(address) => {
            bytes[0] = 4;
            bytes[2..4].copy_from_slice(&address.port().to_le_bytes());
            bytes[8..12].copy_from_slice(&address.ip().octets());
        }
        PackedPeer::V6 { ip, port, scope } => {
            bytes[0] = 6;
            bytes[2..4].copy_from_slice(&port.to_le_bytes());
            bytes[4..8].copy_from_slice(&scope.to_le_bytes());
            bytes[8..24].copy_from_slice(&ip);
        }
        PackedPeer::Unix(process) => {
            bytes[0] = 1;
            let process = process.map_or(0, |process| process.get());
            bytes[4..8].copy_from_slice(&process.to_le_bytes());
        }
        // Who it is, not who said so: that is asked of the socket.
        PackedPeer::Introduced(_) => {}
    }
    let (words, _) = bytes.as_chunks::<WORD>();
    let word = |at: usize| u64::from_le_bytes(words[at]);
    [slot.opened, slot.skew, word(0), word(1), word(2)]
}

/// Who the last three of those say it is.
pub(super) fn peer(words: [u64; 3]) -> Option<Peer> {
    let [first, one, other] = words.map(u64::to_le_bytes);
    let [kind, _, p0, p1, s0, s1, s2, s3] = first;
    let (port, number) = (
        u16::from_le_bytes([p0, p1]),
        u32::from_le_bytes([s0, s1, s2, s3]),
    );
    match kind {
        4 => {
            let [a, b, c, d, ..] = one;
            Some(Peer::Tcp(([a, b, c, d], port).into()))
        }
        6 => {
            let mut ip = [0; 16];
            ip[..8].copy_from_slice(&one);
            ip[8..].copy_from_slice(&other);
            let address = std::net::SocketAddrV6::new(ip.into(), port, 0, number);
            Some(Peer::Tcp(address.into()))
        }
        1 => Some(Peer::Unix(std::num::NonZeroU32::new(number))),
        _ => None,
    }
}
