//! What a message says of itself: which hub says it, and how much that had said before. So whoever hears it knows what it has
//! already, however it was cut, and what it has missed, to the line.

use std::fmt;
use std::str::FromStr;

/// The header with it.
pub(super) const HEADER: &str = "Standfast-Hub";

/// Where a message's bytes stand in all that a hub has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The hub, by a number drawn at random.
    pub(super) origin: Origin,
    /// Bytes before.
    pub(super) byte: u64,
    /// Lines that ended before.
    pub(super) line: u64,
    /// Bytes before that are of the line it begins in.
    pub(super) within: u64,
}

/// A hub, and those that take over from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin(pub(super) u64);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            origin,
            byte,
            line,
            within,
        } = self;
        write!(f, "{origin} {byte} {line} {within}")
    }
}

/// No hub comes so far, and nothing overflows behind it.
const FARTHEST: u64 = 1 << 60;

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split(' ');
        let origin = words.next().filter(|word| word.len() == 16).ok_or(())?;
        let origin = Origin(u64::from_str_radix(origin, 16).map_err(|_| ())?);
        let mut number = || {
            let number = words.next().and_then(|word| word.parse().ok());
            number.filter(|&number| number <= FARTHEST).ok_or(())
        };
        let (byte, line, within) = (number()?, number()?, number()?);
        let is_one = words.next().is_none() && line <= byte && within <= byte;
        is_one.then_some(()).ok_or(())?;
        Ok(Self {
            origin,
            byte,
            line,
            within,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_was_written_and_nothing_else_is() {
        let place = Place {
            origin: Origin(0xab),
            byte: 77,
            line: 5,
            within: 3,
        };
        let text = place.to_string();
        assert_eq!(text, "00000000000000ab 77 5 3");
        assert_eq!(text.parse(), Ok(place));
        for text in [
            "",
            "ab 77 5 3",
            "00000000000000ab 77 5",
            "00000000000000ab 77 5 3 1",
            "00000000000000ab 5 77 3",
            "00000000000000ab 77 5 78",
            "00000000000000ab 18446744073709551615 5 3",
            "00000000000000ab 77 -5 3",
            "+0000000000000ab 77 5 3 ",
        ] {
            assert_eq!(text.parse::<Place>(), Err(()), "{text}");
        }
    }
}
