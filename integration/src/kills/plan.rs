//! Which moments are tried. Pure, but for the dice's first throw.

use std::{collections::BTreeMap, time::SystemTime};

use crate::steps::Step;

/// Random numbers, told by their seed.
#[derive(Debug)]
pub struct Dice {
    /// What they began with.
    pub seed: u64,
    state: u64,
}

impl Dice {
    /// Begins with `seed`, or with the time.
    pub fn new(seed: Option<u64>) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seed = seed.unwrap_or(u64::from(now.subsec_nanos()) ^ now.as_secs());
        Self { seed, state: seed }
    }

    /// A number less than `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        // splitmix64
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    /// One of these.
    pub fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let at = self.below(of.len().max(1) as u64);
        &of[usize::try_from(at).unwrap_or(0)]
    }
}

/// Of all steps of a verb those that are tried where there is little time: of each name the first and, as
/// far as `most` allows, the last.
pub fn chosen(steps: &[Step], most: usize) -> Vec<Step> {
    let mut last = BTreeMap::new();
    for step in steps {
        last.insert(step.name.as_str(), step.occurrence);
    }
    let mut found: Vec<Step> = steps.iter().filter(|step| step.occurrence == 0).cloned().collect();
    let further =
        steps.iter().filter(|step| step.occurrence > 0 && last[step.name.as_str()] == step.occurrence);
    let room = most.saturating_sub(found.len());
    found.extend(further.take(room).cloned());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_chosen_however_little_time_there_is() {
        let step = |name: &str, occurrence| Step { name: name.to_owned(), occurrence };
        let all = [step("a", 0), step("b", 0), step("a", 1), step("a", 2), step("c", 0)];
        assert_eq!(chosen(&all, 0), [step("a", 0), step("b", 0), step("c", 0)]);
        assert_eq!(chosen(&all, 9), [step("a", 0), step("b", 0), step("c", 0), step("a", 2)]);
    }
}
