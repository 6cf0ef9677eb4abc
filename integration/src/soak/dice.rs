//! Numbers that look random and are the same again for the same seed.

/// A row of numbers (SplitMix64). Good enough to choose what a test does next; nothing else.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The row of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A row of its own for one of many that throw at the same time.
    #[must_use]
    pub fn of(seed: u64, player: u64) -> Self {
        Self(seed ^ player.wrapping_add(1).wrapping_mul(0xA076_1D64_78BD_642F))
    }

    /// Any number.
    pub fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `sides`, which is not 0.
    pub fn below(&mut self, sides: u64) -> u64 {
        self.throw() % sides
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these, of which there is one at least.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let count = u64::try_from(all.len()).expect("a slice fits into memory");
        &all[usize::try_from(self.below(count)).expect("below a length")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_throws_the_same_and_players_differ() {
        let row = |mut dice: Dice| (0..4).map(|_| dice.throw()).collect::<Vec<_>>();
        assert_eq!(row(Dice::new(7)), row(Dice::new(7)));
        assert_ne!(row(Dice::of(7, 0)), row(Dice::of(7, 1)));
        let mut dice = Dice::new(1);
        assert!((0..1000).all(|_| dice.below(3) < 3));
    }
}
