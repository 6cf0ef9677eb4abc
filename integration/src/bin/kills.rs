//! `podhold-kills`: kills the daemon thousands of times, at random steps of random verbs, and judges what is
//! there when it is back. The short form of this is the test `kill_points`.

use std::{
    collections::VecDeque,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use clap::Parser;
use podhold_integration::{
    kills::{self, Dice, Kill, Moment, Table, Verb},
    rig::Rig,
    steps::Step,
};

/// One kill in so many comes at a random time, not at a step.
const BY_TIME: u64 = 5;

/// The latest random time, in milliseconds: longer than any verb takes.
const LATEST: u64 = 400;

/// One successor in so many is killed too.
const AGAIN: u64 = 4;

/// How many runs a rig serves before another takes its place.
const FRESH: usize = 250;

#[derive(Parser, Clone)]
#[command(
    name = "podhold-kills",
    about = "Kills the daemon at random steps of random verbs, and judges what is there when it is back"
)]
struct Arguments {
    /// How many kills
    #[arg(long, default_value = "2000", value_parser = positive)]
    count: usize,
    /// How many daemons at the same time
    #[arg(long, default_value = "2", value_parser = positive)]
    rigs: usize,
    /// Begin with this seed, to choose the same kills as before
    #[arg(long)]
    seed: Option<u64>,
    /// Stop after so many minutes, however many kills there were
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: Option<u64>,
    /// Only verbs whose name contains this
    #[arg(long, default_value = "", value_parser = known)]
    verb: String,
    /// Try the first and the last step of each name once, in order, rather than random ones
    #[arg(long)]
    steps: bool,
    /// Print the steps of the verbs and end; nothing is killed
    #[arg(long, conflicts_with = "steps")]
    list: bool,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("it must be a whole number, and 1 at least".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// A word that is in the name of some verb.
fn known(word: &str) -> Result<String, String> {
    if Verb::ALL.iter().any(|verb| verb.to_string().contains(word)) {
        return Ok(word.to_owned());
    }
    let all: Vec<String> = Verb::ALL.iter().map(ToString::to_string).collect();
    Err(format!("no verb has that in its name; there are:\n  {}", all.join("\n  ")))
}

/// What all workers share.
struct Work {
    arguments: Arguments,
    dice: Dice,
    table: Table,
    /// Verbs whose steps are not known yet.
    unknown: Vec<Verb>,
    known: Vec<(Verb, Vec<Step>)>,
    /// Moments that are tried whatever the dice say.
    planned: VecDeque<Kill>,
    left: usize,
    begun: Instant,
}

type Shared = Arc<Mutex<Work>>;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let unknown: Vec<Verb> =
        Verb::ALL.into_iter().filter(|verb| verb.to_string().contains(&arguments.verb)).collect();
    if arguments.list {
        list(&unknown).await;
        return ExitCode::SUCCESS;
    }
    let dice = Dice::new(arguments.seed);
    println!("seed {}", dice.seed);
    let (rigs, random) = (arguments.rigs, !arguments.steps);
    let left = if random { arguments.count } else { 0 };
    let shared = Arc::new(Mutex::new(Work {
        arguments,
        dice,
        table: Table::default(),
        unknown,
        known: Vec::new(),
        planned: VecDeque::new(),
        left,
        begun: Instant::now(),
    }));
    let workers = (0..rigs).map(|_| tokio::spawn(work(Arc::clone(&shared))));
    let ended = futures::future::join_all(workers).await;
    let broken = ended.iter().filter(|end| end.is_err()).count();
    let work = lock(&shared);
    println!("{}\n{}", work.table, work.table.by_verb());
    println!("{} kills, {} faults, {broken} rigs broken", work.table.runs(), work.table.faults.len());
    work.table.faults.iter().for_each(|fault| println!("FAULT: {fault}"));
    if work.table.faults.is_empty() && broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints the steps of these verbs.
async fn list(verbs: &[Verb]) {
    let mut rig = Rig::start().await;
    for verb in verbs {
        for step in kills::steps(&mut rig, *verb).await {
            println!("{verb}: {} #{}", step.name, step.occurrence);
        }
    }
    rig.finish().await;
}

fn lock(shared: &Shared) -> MutexGuard<'_, Work> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves kills until none is left.
async fn work(shared: Shared) {
    loop {
        let mut rig = Rig::start().await;
        let mut left_before = Vec::new();
        for _ in 0..FRESH {
            let next = lock(&shared).next();
            let Some(kill) = next else { return finish(rig, &left_before).await };
            let mut verdict = kills::run(&mut rig, &kill).await;
            // What an earlier run has left is that run's.
            let all = verdict.leaks.clone();
            verdict.leaks.retain(|leak| !left_before.contains(leak));
            left_before = all;
            for what in verdict.faults.iter().chain(&verdict.leaks) {
                eprintln!("FAULT: {kill}: {what}");
            }
            let mut work = lock(&shared);
            work.table.add(&kill, &verdict);
            if kill.moment == Moment::Answered {
                work.learn(kill.verb, verdict.steps);
            }
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

impl Work {
    fn learn(&mut self, verb: Verb, steps: Vec<Step>) {
        eprintln!("{verb}: {} steps", steps.len());
        if self.arguments.steps {
            let chosen = kills::chosen(&steps, usize::MAX);
            self.planned.extend(chosen.into_iter().map(|step| Kill::new(verb, Moment::Before(step))));
        }
        self.known.push((verb, steps));
    }

    fn next(&mut self) -> Option<Kill> {
        let minutes = self.begun.elapsed().as_secs() / 60;
        if self.arguments.minutes.is_some_and(|most| minutes >= most) {
            return None;
        }
        self.choose()
    }

    fn choose(&mut self) -> Option<Kill> {
        if let Some(verb) = self.unknown.pop() {
            return Some(Kill::new(verb, Moment::Answered));
        }
        if let Some(planned) = self.planned.pop_front() {
            return Some(planned);
        }
        if self.known.is_empty() {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        if self.left.is_multiple_of(50) {
            eprintln!("{} to go, {} faults", self.left, self.table.faults.len());
        }
        let (verb, steps) = self.dice.one(&self.known);
        let by_time = steps.is_empty() || self.dice.below(BY_TIME) == 0;
        let moment = match by_time {
            true => Moment::At(Duration::from_millis(self.dice.below(LATEST))),
            false => Moment::Before(self.dice.one(steps).clone()),
        };
        let again = self.dice.below(AGAIN) == 0;
        let again = again.then(|| Duration::from_millis(self.dice.below(LATEST)));
        Some(Kill { again, ..Kill::new(*verb, moment) })
    }
}
