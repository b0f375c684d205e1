//! What a connection keeps of its own in less room than usual, for there are many.

use std::fmt;

use crate::time::deadline::Moment;

/// Its number: a million connections a second use up 48 bits in nine years.
#[derive(Clone, Copy)]
pub(super) struct Number([u8; 6]);

/// When it was opened, to a tenth of a millisecond.
#[derive(Clone, Copy)]
pub(super) struct Opened([u8; 6]);

impl Number {
    pub(super) fn new(number: u64) -> Self {
        Self(packed(number))
    }

    #[inline]
    pub(super) fn get(self) -> u64 {
        unpacked(self.0)
    }
}

impl Opened {
    pub(super) fn new(at: Moment) -> Self {
        Self(packed(at.tenths()))
    }

    #[inline]
    pub(super) fn get(self) -> Moment {
        Moment::of_tenths(unpacked(self.0))
    }
}

impl fmt::Debug for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

fn packed(number: u64) -> [u8; 6] {
    let [one, two, three, four, five, six, _, _] = number.to_le_bytes();
    [one, two, three, four, five, six]
}

#[inline]
fn unpacked([one, two, three, four, five, six]: [u8; 6]) -> u64 {
    u64::from_le_bytes([one, two, three, four, five, six, 0, 0])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_number_and_a_moment_come_back_from_less_room() {
        assert_eq!(size_of::<(Number, Opened)>(), 12);
        for number in [0, 1, 0x1234_5678_9abc, (1 << 48) - 1] {
            assert_eq!(Number::new(number).get(), number);
        }
        for wait in [Duration::ZERO, Duration::from_micros(100), Duration::MAX] {
            let exact = Moment::at(wait);
            let kept = Opened::new(exact).get();
            assert!(kept <= exact && exact.since(kept) < Duration::from_micros(100));
        }
        let exact = Moment::at(Duration::from_nanos(1_234_567));
        assert_eq!(
            Opened::new(exact).get(),
            Moment::at(Duration::from_micros(1200))
        );
    }
}
