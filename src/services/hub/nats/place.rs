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

/// A place in a stream: behind it nothing has been taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    /// Which stream: one that is made anew under the same name was made at another time.
    pub(super) made: u64,
    /// The number of the last message that was.
    pub(super) sequence: u64,
}

/// Bits of a name that are its generation.
const GENERATIONS: u32 = 8;

impl Origin {
    /// The first of a family, of a number drawn at random.
    pub(super) fn first_of(drawn: u64) -> Self {
        Self::of(drawn >> GENERATIONS, 0)
    }

    pub(super) fn of(family: u64, generation: u64) -> Self {
        Self((family << GENERATIONS).wrapping_add(generation))
    }

    /// Its family and its generation.
    pub(super) fn parts(self) -> (u64, u64) {
        let generation = self.0 & ((1 << GENERATIONS) - 1);
        (self.0 >> GENERATIONS, generation)
    }

    /// What a hub goes by that goes on after a crash; `None`: it has to find something else.
    pub(super) fn next(self) -> Option<Self> {
        let (family, generation) = self.parts();
        let next = Self::of(family, generation + 1);
        (family != 0 && next.is_kin_of(self)).then_some(next)
    }

    /// Whether these are one hub, before and after a crash.
    pub(super) fn is_kin_of(self, other: Self) -> bool {
        self.0 >> GENERATIONS == other.0 >> GENERATIONS
    }
}

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
    fn a_hub_has_another_name_after_a_crash_and_is_known_by_it() {
        let first = Origin::first_of(0xab12);
        assert_eq!(first, Origin(0xab00));
        let second = first.next().unwrap();
        assert!(second != first && second.is_kin_of(first));
        assert_eq!(Origin::of(second.parts().0, second.parts().1), second);
        assert!(!second.is_kin_of(Origin(0xac01)));
        assert_eq!(Origin(0xabff).next(), None);
        assert_eq!(Origin::of(0, 0).next(), None, "nobody has noted one");
    }

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
