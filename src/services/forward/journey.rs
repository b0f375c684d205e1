//! What goes along to a process that takes over: whose turn it is, and which upstreams count as down. Whatever comes in
//! is checked before it is believed.
//!
//! Numbers are little-endian. In common: the turn; of each upstream that counts as down the length of its address, the
//! address, for how long it has been down and for how long it is yet left alone, in microseconds. Of a connection: the
//! turn it was given.
#![warn(clippy::indexing_slicing)]

use std::time::Duration;

/// An upstream that counts as down, as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gone {
    pub(super) address: String,
    pub(super) down_for: Duration,
    pub(super) left: Duration,
}

pub(super) fn pack(turn: u64, gone: &[Gone]) -> Vec<u8> {
    let mut bytes = turn.to_le_bytes().to_vec();
    for one in gone {
        bytes.extend((one.address.len() as u64).to_le_bytes());
        bytes.extend(one.address.as_bytes());
        for time in [one.down_for, one.left] {
            let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            bytes.extend(micros.to_le_bytes());
        }
    }
    bytes
}

/// `None`: bytes that are nothing of the kind.
pub(super) fn unpack(mut bytes: &[u8]) -> Option<(u64, Vec<Gone>)> {
    let turn = number(&mut bytes)?;
    let mut gone = Vec::new();
    while !bytes.is_empty() {
        let length = usize::try_from(number(&mut bytes)?).ok()?;
        let (address, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        gone.push(Gone {
            address: String::from_utf8(address.to_vec()).ok()?,
            down_for: Duration::from_micros(number(&mut bytes)?),
            left: Duration::from_micros(number(&mut bytes)?),
        });
    }
    Some((turn, gone))
}

/// The number that `bytes` begin with; they go on behind it.
pub(super) fn number(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*number))
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test that indexes wrongly fails")]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_read_and_nothing_shorter_or_longer() {
        let gone = |address: &str| Gone {
            address: address.to_owned(),
            down_for: Duration::from_millis(1500),
            left: Duration::from_micros(7),
        };
        let gone = [gone("db1:5432"), gone("unix:/run/x")];
        let bytes = pack(41, &gone);
        assert_eq!(unpack(&bytes), Some((41, gone.to_vec())));
        for length in 0..bytes.len() {
            let whole = [8, pack(41, &gone[..1]).len()].contains(&length);
            assert_eq!(unpack(&bytes[..length]).is_some(), whole, "{length}");
        }
        assert_eq!(unpack(&[&bytes[..], &[0]].concat()), None);
        let mut endless = pack(41, &[]);
        endless.extend([0xff; 8]);
        assert_eq!(unpack(&endless), None);
    }
}
