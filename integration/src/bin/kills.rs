//! `podhold-kills`: kills the daemon thousands of times, at random steps of random verbs, and judges what is
//! there when it is back. The short form of this is the test `kill_points`.

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use podhold_integration::{
    kills::{self, Dice, Moment, Table, Verb},
    rig::Rig,
    steps::Step,
};
use tokio::sync::Mutex;

/// One kill in so many comes at a random time, not at a step.
const BY_TIME: u64 = 5;

/// The latest random time, in milliseconds: longer than any verb takes.
const LATEST: u64 = 400;

/// How many runs a rig serves before another takes its place.
const FRESH: usize = 250;

#[derive(Parser)]
#[command(
    about = "Kills the daemon at random steps of random verbs, and judges what is there when it is back"
)]
struct Arguments {
    /// How many kills
    #[arg(long, default_value_t = 2000)]
    count: usize,
    /// How many daemons at the same time
    #[arg(long, default_value_t = 2)]
    rigs: usize,
    /// Begin with this seed, to choose the same kills as before
    #[arg(long)]
    seed: Option<u64>,
    /// Only verbs whose name contains this
    #[arg(long, default_value = "")]
    verb: String,
    /// Try each step once, in order, rather than random ones
    #[arg(long)]
    steps: bool,
    /// Print the steps of the verbs and end
    #[arg(long)]
    list: bool,
}

struct Shared {
    dice: Dice,
    table: Table,
    left: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let verbs: Vec<Verb> =
        Verb::ALL.into_iter().filter(|verb| verb.to_string().contains(&arguments.verb)).collect();
    let mut rig = Rig::start().await;
    let mut table = Table::default();
    let mut known = Vec::new();
    for verb in verbs {
        let verdict = kills::run(&mut rig, verb, &Moment::Answered).await;
        table.add(verb, &Moment::Answered, &verdict);
        eprintln!("{verb}: {} steps", verdict.steps.len());
        if arguments.list {
            verdict.steps.iter().for_each(|step| println!("{verb}: {} #{}", step.name, step.occurrence));
        }
        known.push((verb, verdict.steps));
    }
    rig.finish().await;
    if arguments.list {
        return ExitCode::SUCCESS;
    }
    let dice = Dice::new(arguments.seed);
    println!("seed {}", dice.seed);
    let planned: Vec<(Verb, Moment)> = if arguments.steps { every(&known) } else { Vec::new() };
    let left = if arguments.steps { planned.len() } else { arguments.count };
    let shared = Arc::new(Mutex::new(Shared { dice, table, left }));
    let (known, planned) = (Arc::new(known), Arc::new(planned));
    let workers = (0..arguments.rigs)
        .map(|_| tokio::spawn(work(Arc::clone(&shared), Arc::clone(&known), Arc::clone(&planned))));
    let ended = futures::future::join_all(workers).await;
    let broken = ended.iter().filter(|end| end.is_err()).count();
    let shared = shared.lock().await;
    println!("{}\n{}", shared.table, shared.table.by_verb());
    println!("{} kills, {} faults, {broken} rigs broken", shared.table.runs(), shared.table.faults.len());
    shared.table.faults.iter().for_each(|fault| println!("FAULT: {fault}"));
    if shared.table.faults.is_empty() && broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn every(known: &[(Verb, Vec<Step>)]) -> Vec<(Verb, Moment)> {
    let moments = |(verb, steps): &(Verb, Vec<Step>)| {
        let verb = *verb;
        kills::chosen(steps, usize::MAX).into_iter().map(move |step| (verb, Moment::Before(step)))
    };
    known.iter().flat_map(moments).collect()
}

/// Serves kills until none is left.
async fn work(
    shared: Arc<Mutex<Shared>>,
    known: Arc<Vec<(Verb, Vec<Step>)>>,
    planned: Arc<Vec<(Verb, Moment)>>,
) {
    loop {
        let mut rig = Rig::start().await;
        let mut left_before = Vec::new();
        for _ in 0..FRESH {
            let Some((verb, moment)) = next(&mut *shared.lock().await, &known, &planned) else {
                finish(rig, &left_before).await;
                return;
            };
            let mut verdict = kills::run(&mut rig, verb, &moment).await;
            // What an earlier run has left is that run's.
            let all = verdict.leaks.clone();
            verdict.leaks.retain(|leak| !left_before.contains(leak));
            left_before = all;
            for what in verdict.faults.iter().chain(&verdict.leaks) {
                eprintln!("FAULT: {verb}, killed {moment:?}: {what}");
            }
            shared.lock().await.table.add(verb, &moment, &verdict);
        }
        finish(rig, &left_before).await;
    }
}

/// A rig in which something was left cannot be compared any more; it goes as it is.
async fn finish(rig: Rig, left: &[String]) {
    if left.is_empty() {
        rig.finish().await;
    }
}

fn next(
    shared: &mut Shared,
    known: &[(Verb, Vec<Step>)],
    planned: &[(Verb, Moment)],
) -> Option<(Verb, Moment)> {
    shared.left = shared.left.checked_sub(1)?;
    if shared.left % 100 == 0 {
        eprintln!("{} to go, {} faults", shared.left, shared.table.faults.len());
    }
    if !planned.is_empty() {
        return Some(planned[planned.len() - 1 - shared.left].clone());
    }
    let (verb, steps) = shared.dice.one(known);
    let by_time = steps.is_empty() || shared.dice.below(BY_TIME) == 0;
    let moment = match by_time {
        true => Moment::At(Duration::from_millis(shared.dice.below(LATEST))),
        false => Moment::Before(shared.dice.one(steps).clone()),
    };
    Some((*verb, moment))
}
