//! `podhold-soak`: storms and long runs in their long form, with a table for a document.

use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use podhold_integration::{
    rig,
    soak::{cycles, storm},
};

#[derive(Parser)]
#[command(about = "Storms of clients and long runs of pods, against the daemon as built")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Many clients that do anything to the same pods, while the daemon is killed again and again
    Storm {
        /// How long in all
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// How many clients
        #[arg(long, default_value_t = 64)]
        clients: u64,
        /// What the clients' choices begin with; by default another one each time
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Pods from their beginning to nothing, many thousand times
    Cycles {
        /// How many pods
        #[arg(long, default_value_t = 20_000)]
        count: u64,
        /// How many of them before the first look
        #[arg(long, default_value_t = 500)]
        warm_up: u64,
        /// How many at once
        #[arg(long, default_value_t = 8)]
        at_once: u64,
        /// One in so many has a network of its own
        #[arg(long, default_value_t = 20)]
        bridge_every: u64,
        /// How much more memory the daemon may use at the end, in KiB
        #[arg(long, default_value_t = 12 << 10)]
        tolerance: u64,
    },
}

#[tokio::main]
async fn main() {
    run(Arguments::parse().verb).await;
}

async fn run(verb: Verb) {
    let mut rig = rig!();
    let begun = Instant::now();
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
            println!("\n{}", storm::run(&mut rig, plan).await);
        }
        Verb::Cycles { count, warm_up, at_once, bridge_every, tolerance } => {
            let plan = cycles::Plan { cycles: count, warm_up, at_once, bridge_every, looks: 20, tolerance };
            let table = cycles::run(&rig, plan).await;
            println!("\n{table}");
        }
    }
    rig.finish().await;
    println!("nothing left behind; {} s", begun.elapsed().as_secs());
}
