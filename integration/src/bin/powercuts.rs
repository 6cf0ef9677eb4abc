//! `podhold-powercuts`: cuts the power of a disk at random moments of pulls and removals, and judges what a
//! daemon makes of what is left. The short form of this is the test `power_cuts`.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::{Parser, Subcommand};
use podhold_integration::{
    kills::Dice,
    power::{device, judge, stage::Stage, table, unsynced},
};

#[derive(Parser)]
#[command(about = "Cuts the power of a disk at random moments, and judges what is left on it")]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// How many cuts
    #[arg(long, default_value_t = 200)]
    count: usize,
    /// How many recorded lives of a daemon they are made from
    #[arg(long, default_value_t = 5)]
    lives: usize,
    /// Begin with this seed
    #[arg(long)]
    seed: Option<u64>,
    /// Options of the file system, one life after another
    #[arg(long, default_values = ["noatime,commit=1", "noatime,commit=1,data=writeback"])]
    mount: Vec<String>,
    /// Take this system call from the daemon, to see what is lost then
    #[arg(long)]
    without: Vec<String>,
}

#[derive(Subcommand)]
enum Part {
    /// Serve the disk in a file as another file, and record what is done to it
    #[command(hide = true)]
    Device { disk: PathBuf, record: PathBuf, place: PathBuf },
    /// Run a program in which system calls do nothing
    #[command(hide = true)]
    Without {
        #[arg(long)]
        call: Vec<String>,
        words: Vec<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let failed = match &arguments.part {
        Some(Part::Device { disk, record, place }) => match device::serve(disk, record, place) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => error,
        },
        Some(Part::Without { call, words }) => unsynced::become_program(words, call),
        None => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            return runtime.expect("start threads").block_on(run(&arguments));
        }
    };
    eprintln!("podhold-powercuts: {failed}");
    ExitCode::FAILURE
}

async fn run(arguments: &Arguments) -> ExitCode {
    let (mut dice, begun) = (Dice::new(arguments.seed), Instant::now());
    println!("seed {}", dice.seed);
    let mut stage = Stage::start().await;
    let truth = judge::truth(&mut stage).await;
    let mut table = table::Table::default();
    for number in 0..arguments.lives {
        let options = &arguments.mount[number % arguments.mount.len()];
        let life = stage.live(options, &arguments.without, &mut dice).await;
        let (events, flushes) = (life.recording.events.len(), life.recording.flushes());
        println!("life {number} ({options}): {} writes, {flushes} flushes", events - flushes);
        let cuts =
            arguments.count * (number + 1) / arguments.lives - arguments.count * number / arguments.lives;
        for _ in 0..cuts {
            let moment = usize::try_from(dice.below(events as u64 + 1)).unwrap_or(0);
            let disk = life.recording.cut(moment, &mut dice);
            let verdict = judge::judge(&mut stage, &disk, options, (&life.steps, moment), &truth).await;
            let verb = table::verb_at(&life.steps, moment);
            let words = format!("life {number}, cut at {moment} in {verb}");
            verdict.faults().for_each(|fault| eprintln!("FAULT: {words}: {fault}"));
            table.add(verb, &words, &verdict);
        }
    }
    stage.stop().await;
    println!("{table}");
    println!("{} cuts, {} faults, {:?}", table.cuts(), table.faults.len(), begun.elapsed());
    if table.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
