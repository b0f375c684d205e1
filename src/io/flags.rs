//! Yes and no, eight to a byte: there is a connection's worth of them for every client.

use std::fmt;
use std::marker::PhantomData;

/// What can be in a set: an enum of at most eight values.
pub(crate) trait Flag: Copy {
    /// Which of the eight, from 0 on.
    fn place(self) -> u8;
}

/// Those of the values of `T` that hold.
pub(crate) struct Flags<T>(u8, PhantomData<T>);

impl<T: Flag> Flags<T> {
    #[inline]
    pub(crate) fn has(&self, flag: T) -> bool {
        self.0 & (1 << flag.place()) != 0
    }

    /// Whether none holds, or that one alone.
    #[cfg(control)]
    #[inline]
    pub(crate) fn is_empty_but(&self, flag: T) -> bool {
        self.0 & !(1 << flag.place()) == 0
    }

    /// Puts it there if it `holds`, and else leaves it.
    #[inline]
    pub(crate) fn add(&mut self, flag: T, holds: bool) {
        self.0 |= u8::from(holds) << flag.place();
    }

    /// Answers whether it held before.
    #[inline]
    pub(crate) fn put(&mut self, flag: T, holds: bool) -> bool {
        let before = self.has(flag);
        self.0 = self.0 & !(1 << flag.place()) | u8::from(holds) << flag.place();
        before
    }
}

impl<T> Default for Flags<T> {
    fn default() -> Self {
        Self(0, PhantomData)
    }
}

impl<T> fmt::Debug for Flags<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010b}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    enum Side {
        Left,
        Right = 7,
    }

    impl Flag for Side {
        fn place(self) -> u8 {
            self as u8
        }
    }

    #[test]
    fn a_flag_is_put_and_taken_off_and_the_others_stay() {
        let mut flags = Flags::default();
        assert!(!flags.put(Side::Left, true));
        assert!(!flags.put(Side::Right, true));
        assert!(flags.put(Side::Left, false), "it was there");
        assert!(!flags.has(Side::Left) && flags.has(Side::Right));
        assert_eq!(format!("{flags:?}"), "0b10000000");
        assert_eq!(size_of_val(&flags), 1);
    }
}
