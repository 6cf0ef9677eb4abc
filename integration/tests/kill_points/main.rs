//! The daemon is killed before every step of every verb, and comes back: the object is whole, or as before,
//! or the next call deals with it; nothing is left. The long form is `make kills`.

mod containers;
mod images;
mod pods;

use podhold_integration::kills::{Table, Verb, trial};

/// How many steps of one verb are tried, unless it has more with different names.
const MOST: usize = 16;

async fn kill_at_every_step_of(verbs: &[Verb]) {
    let mut rig = podhold_integration::rig!();
    let table: Table = trial(&mut rig, verbs, MOST).await;
    println!("{table}\n{}", table.by_verb());
    let faults = table.faults.join("\n");
    assert!(faults.is_empty(), "{} kills:\n{faults}", table.runs());
    rig.finish().await;
}
