//! Many clients at once that do anything to the same few pods, while the daemon is killed again and again.
//!
//! Every answer is judged by the [`ledger`]; from time to time all are silent and the daemon is compared with
//! the kernel. In the end everything is removed and must be gone.

mod calls;
mod client;
mod judge;
mod ledger;
mod words;

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    sync::{RwLock, watch},
    task::JoinSet,
    time::{sleep_until, timeout},
};

use self::{calls::Orders, client::Storm, ledger::Ledger};
use super::{
    dice::Dice,
    truth,
    usage::{Table, Things, Usage},
};
use crate::{daemon::Daemon, rig::Rig};

/// How long removing everything may take.
const CLEAN_UP: Duration = Duration::from_secs(300);

/// How a storm is.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The clients.
    pub clients: u64,
    /// Names of pods, each with two attempts.
    pub names: usize,
    /// How long the part with kills takes.
    pub kills_for: Duration,
    /// The daemon is killed after this time at most, and a quarter of it at least.
    pub kill_within: Duration,
    /// How long the part without kills takes, in which the daemon's own use is compared.
    pub calm_for: Duration,
    /// How much memory, in KiB, the daemon may use more at the end than early in that part.
    pub tolerance: u64,
    /// What the dice begin with.
    pub seed: u64,
}

/// What there was in a storm.
#[derive(Debug)]
pub struct Report {
    ledger: Ledger,
    silences: usize,
    table: Table,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "| verb | answer | calls |\n|---|---|---|")?;
        for ((verb, answer), count) in &self.ledger.counts {
            writeln!(formatter, "| {verb} | {answer} | {count} |")?;
        }
        let calls: u64 = self.ledger.counts.values().sum();
        let kills = self.ledger.kill_count();
        let silences = self.silences;
        writeln!(formatter, "\n{calls} calls, {kills} kills, {silences} comparisons with the kernel\n")?;
        write!(formatter, "{}", self.table)
    }
}

/// Has the storm pass over the rig.
///
/// # Panics
/// When anything is wrong.
pub async fn run(rig: &mut Rig, plan: Plan) -> Report {
    println!("storm with seed {}", plan.seed);
    patient_plugins(rig).await;
    let mut table = Table::default();
    let storm = Arc::new(Storm {
        ledger: Mutex::default(),
        orders: Orders::new(plan.names, &rig.places.pod_logs()),
        socket: rig.places.socket(),
        calling: RwLock::default(),
        up: watch::Sender::new(true),
        wrong: watch::Sender::new(None),
    });
    let mut silences = with_kills(rig, &storm, plan).await;
    remove_all(rig, &storm).await;
    rig.crash_and_restart().await;
    storm.orders.pull_no_more();
    // A daemon of its own for the comparison.
    table.add("a new daemon", Usage::at_rest(rig).await, Things::of(rig).await);
    without_kills(rig, &storm, plan, plan.calm_for / 3).await;
    remove_all(rig, &storm).await;
    // What a daemon makes once and keeps is there by now.
    let warm = Usage::at_rest(rig).await;
    table.add("early, all removed", warm, Things::of(rig).await);
    without_kills(rig, &storm, plan, plan.calm_for * 2 / 3).await;
    silences += 2;
    remove_all(rig, &storm).await;
    let usage = warm.returns(rig, plan.tolerance).await;
    table.add("at the end, all removed", usage, Things::of(rig).await);
    let ledger = std::mem::take(&mut *storm.ledger());
    Report { ledger, silences, table }
}

/// Network plugins get more time than the machine's other guests may take from them.
async fn patient_plugins(rig: &mut Rig) {
    let path = rig.places.config();
    let text = std::fs::read_to_string(&path).expect("read the configuration");
    let text = text.replace("timeout_seconds = 10", "timeout_seconds = 120");
    std::fs::write(&path, text).expect("write the configuration");
    rig.restart().await;
}

fn clients(storm: &Arc<Storm>, plan: Plan, round: u64) -> (JoinSet<()>, watch::Sender<bool>) {
    let end = watch::Sender::new(false);
    let mut clients = JoinSet::new();
    for number in 0..plan.clients {
        let dice = Dice::of(plan.seed, round * plan.clients + number);
        clients.spawn(client::run(Arc::clone(storm), dice, end.subscribe()));
    }
    (clients, end)
}

/// Answers how often the daemon was compared with the kernel.
async fn with_kills(rig: &mut Rig, storm: &Arc<Storm>, plan: Plan) -> usize {
    let (clients, end) = clients(storm, plan, 0);
    let mut dice = Dice::of(plan.seed, u64::MAX - 1);
    let until = Instant::now() + plan.kills_for;
    let mut silences = 0;
    while Instant::now() < until && storm.wrong.borrow().is_none() {
        let least = plan.kill_within / 4;
        let more = u64::try_from((plan.kill_within - least).as_millis()).expect("not for ever");
        let next = Instant::now() + least + Duration::from_millis(dice.below(more.max(1)));
        let mut wrong = storm.wrong.subscribe();
        tokio::select! {
            () = sleep_until(next.into()) => {}
            _ = wrong.changed() => break,
        }
        storm.ledger().kill();
        storm.up.send_replace(false);
        rig.daemon.kill(&rig.machine).await.unwrap_or_else(|error| panic!("{error}"));
        let again = Daemon::start(&rig.machine, &rig.places).await;
        rig.daemon = again.unwrap_or_else(|error| panic!("{error}"));
        storm.ledger().up_again();
        if dice.once_in(3) {
            silence(rig, storm).await;
            silences += 1;
        }
        storm.up.send_replace(true);
    }
    finish(rig, storm, clients, end).await;
    silences + 1
}

async fn without_kills(rig: &Rig, storm: &Arc<Storm>, plan: Plan, time: Duration) {
    let round = u64::try_from(time.as_millis()).unwrap_or(1);
    let (clients, end) = clients(storm, plan, round);
    let mut wrong = storm.wrong.subscribe();
    let _over = timeout(time, wrong.changed()).await;
    finish(rig, storm, clients, end).await;
}

async fn finish(rig: &Rig, storm: &Storm, mut clients: JoinSet<()>, end: watch::Sender<bool>) {
    end.send_replace(true);
    storm.up.send_replace(true);
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client ends");
    }
    silence(rig, storm).await;
    if let Some(wrong) = storm.wrong.borrow().clone() {
        panic!("{wrong}\nthe daemons said:\n{}", said_of(rig, &wrong));
    }
}

/// What the daemons have said of the objects that are named.
fn said_of(rig: &Rig, wrong: &str) -> String {
    let words = wrong.split(|c: char| !c.is_ascii_alphanumeric());
    let ids: Vec<&str> = words.filter(|word| word.len() == 64).collect();
    let log = crate::daemon::log(&rig.places);
    let lines = log.lines().filter(|line| ids.iter().any(|id| line.contains(id)));
    lines.take(100).collect::<Vec<_>>().join("\n")
}

/// Compares the daemon with the kernel while no client calls.
async fn silence(rig: &Rig, storm: &Storm) {
    let _nobody = storm.calling.write().await;
    if let Err(difference) = truth::holds(rig).await {
        storm.is_wrong(difference);
    }
}

/// Removes every pod, as a kubelet does in the end.
async fn remove_all(rig: &Rig, storm: &Storm) {
    let removal = async {
        // What abandoned calls are still making comes into the list later.
        loop {
            let pods = calls::pods(rig.cri()).await.unwrap_or_else(|status| panic!("list: {status}"));
            let calls = pods.iter().map(|pod| async {
                let call = storm.ledger().begin(words::What::RemovePod(pod.id.clone()));
                let answer = rig.cri().remove_pod(&pod.id).await;
                answer.unwrap_or_else(|status| panic!("remove {}: {status}", pod.id));
                let outcome = words::Outcome::Reply(words::Reply::Done);
                storm.ledger().end(&call, &outcome).unwrap_or_else(|wrong| panic!("{wrong}"));
            });
            futures::future::join_all(calls).await;
            if pods.is_empty() && rig.leaks().await.is_empty() {
                return;
            }
        }
    };
    if timeout(CLEAN_UP, removal).await.is_err() {
        let leaks: Vec<String> = rig.leaks().await.iter().map(ToString::to_string).collect();
        panic!("not gone within {CLEAN_UP:?}:\n{}", leaks.join("\n"));
    }
}
