//! Many runs with one rig, in order.

use std::{collections::HashSet, time::Duration};

use super::{Dice, Kill, Moment, Table, Verb, chosen, run};
use crate::rig::Rig;

/// The longest life of a successor that dies too, in milliseconds: it is back by then.
const LATEST: u64 = 200;

/// The environment variable that the dice begin with.
const SEED: &str = "PODHOLD_SEED";

fn seed() -> Option<u64> {
    let text = std::env::var(SEED).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{SEED}={text} is not a number")))
}

/// Kills the daemon at the steps of each verb: at every name once, further ones as far as `most` allows, and
/// a few times at random, as the dice have it; answers what came of it.
///
/// # Panics
/// When a daemon does not come back.
pub async fn trial(rig: &mut Rig, verbs: &[Verb], most: usize) -> Table {
    let mut table = Table::default();
    let mut dice = Dice::new(seed());
    println!("seed {}; to try the same again: {SEED}={}", dice.seed, dice.seed);
    for verb in verbs {
        let answered = Kill::new(*verb, Moment::Answered);
        let first = run(rig, &answered).await;
        table.add(&answered, &first);
        let mut moments: Vec<Moment> = chosen(&first.steps, most).into_iter().map(Moment::Before).collect();
        // Between the steps, at the daemon's own pace.
        moments.extend((0..2).map(|_| Moment::At(Duration::from_millis(dice.below(100)))));
        let mut left = HashSet::new();
        for (number, moment) in moments.into_iter().enumerate() {
            let mut kill = Kill::new(*verb, moment);
            // Now and then the successor dies as well.
            kill.again = (number % 4 == 3).then(|| Duration::from_millis(dice.below(LATEST)));
            let mut verdict = run(rig, &kill).await;
            verdict.leaks.retain(|leak| left.insert(leak.clone()));
            table.add(&kill, &verdict);
        }
    }
    table
}
