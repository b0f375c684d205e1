//! Numbers that look random and are the same in every run: one generator for the tests of library, binary and outside.

/// A stream of them, by its seed (splitmix64: Steele, Lea and Flood, 2014).
#[derive(Debug)]
pub(crate) struct Seeded(u64);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    pub(crate) fn below<N: TryInto<u64> + TryFrom<u64>>(&mut self, limit: N) -> N {
        let below = self.next() % limit.try_into().ok().unwrap();
        N::try_from(below).ok().unwrap()
    }
}
