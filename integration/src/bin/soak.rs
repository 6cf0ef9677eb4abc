//! `podhold-soak`: storms and long runs in their long form, with a table for a document.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use podhold_integration::{
    require,
    rig::Rig,
    soak::{cycles, storm},
};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(
    name = "podhold-soak",
    about = "Storms of clients and long runs of pods, against the daemon as built"
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Many clients that do anything to the same pods, while the daemon is killed again and again
    Storm {
        /// How long in all
        #[arg(long, default_value_t = 10, value_parser = from_one())]
        minutes: u64,
        /// How many clients
        #[arg(long, default_value_t = 64, value_parser = from_one())]
        clients: u64,
        /// What the clients' choices begin with; by default another one each time
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Pods from their beginning to nothing, many thousand times
    Cycles {
        /// How many pods
        #[arg(long, default_value_t = 20_000, value_parser = from_one())]
        count: u64,
        /// How many of them before the first look
        #[arg(long, default_value_t = 500, value_parser = from_one())]
        warm_up: u64,
        /// How many at once
        #[arg(long, default_value_t = 8, value_parser = from_one())]
        at_once: u64,
        /// One in so many has a network of its own
        #[arg(long, default_value_t = 20, value_parser = from_one())]
        bridge_every: u64,
        /// How much more memory the daemon may use at the end, in KiB
        #[arg(long, default_value_t = 12 << 10)]
        tolerance: u64,
    },
}

fn from_one() -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(1..)
}

/// Told to end, it leaves nothing behind; its exit code is then that of the signal.
#[tokio::main]
async fn main() -> ExitCode {
    let verb = Arguments::parse().verb;
    if let Verb::Cycles { count, warm_up, .. } = &verb
        && count < warm_up
    {
        let words = format!("--warm-up {warm_up} must not be more than --count {count}");
        Arguments::command().error(ErrorKind::ValueValidation, words).exit();
    }
    if let Some(reason) = require!(@ root) {
        eprintln!("podhold-soak: {reason}");
        return ExitCode::FAILURE;
    }
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be handled");
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be handled");
    let mut told = std::pin::pin!(async {
        tokio::select! {
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
        }
    });
    let begun = Instant::now();
    // What was begun and is not awaited ends with its machine.
    let mut rig = tokio::select! {
        rig = Rig::start() => rig,
        code = &mut told => return ExitCode::from(code),
    };
    let told = tokio::select! {
        () = run(&mut rig, verb) => None,
        code = &mut told => Some(code),
    };
    if let Some(code) = told {
        eprintln!("podhold-soak: told to end");
        rig.give_up().await;
        return ExitCode::from(code);
    }
    rig.finish().await;
    println!("nothing left behind; {} s", begun.elapsed().as_secs());
    ExitCode::SUCCESS
}

async fn run(rig: &mut Rig, verb: Verb) {
    match verb {
        Verb::Storm { minutes, clients, seed } => {
            let time = Duration::from_secs(60 * minutes);
            let plan = storm::Plan {
                clients,
                names: 8,
                kills_for: time * 3 / 4,
                kill_within: Duration::from_secs(5),
                calm_for: time / 4,
                tolerance: 12 << 10,
                seed: seed.unwrap_or_else(|| std::process::id().into()),
            };
            println!("\n{}", storm::run(rig, plan).await);
        }
        Verb::Cycles { count, warm_up, at_once, bridge_every, tolerance } => {
            let plan = cycles::Plan { cycles: count, warm_up, at_once, bridge_every, looks: 20, tolerance };
            let table = cycles::run(rig, plan).await;
            println!("\n{table}");
        }
    }
}
