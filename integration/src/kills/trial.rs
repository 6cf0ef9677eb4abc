//! Many runs with one rig, in order.

use std::collections::HashSet;

use super::{Dice, Moment, Orphans, Table, Verb, chosen, run};
use crate::rig::Rig;

/// Kills the daemon at the steps of each verb: at every name once, further ones as far as `most` allows, and
/// a few times at random; answers what came of it.
///
/// # Panics
/// When a daemon does not come back.
pub async fn trial(rig: &mut Rig, verbs: &[Verb], most: usize) -> Table {
    let mut table = Table::default();
    let mut dice = Dice::new(None);
    for verb in verbs {
        let first = run(rig, *verb, &Moment::Answered, Orphans::Awaited).await;
        table.add(*verb, &Moment::Answered, &first);
        let mut moments: Vec<Moment> = chosen(&first.steps, most).into_iter().map(Moment::Before).collect();
        // Between the steps, at the daemon's own pace.
        moments.extend((0..2).map(|_| Moment::At(std::time::Duration::from_millis(dice.below(100)))));
        let mut left = HashSet::new();
        for moment in moments {
            let mut verdict = run(rig, *verb, &moment, Orphans::Awaited).await;
            verdict.leaks.retain(|leak| left.insert(leak.clone()));
            table.add(*verb, &moment, &verdict);
        }
    }
    table
}
