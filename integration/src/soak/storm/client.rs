//! One of the many clients: chooses a verb and an object, calls, sometimes goes away before the answer, and
//! lets the ledger judge.

use std::{
    error::Error,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::{RwLock, watch},
    time::timeout,
};
use tonic::{Code, Status};

use super::{
    calls::{self, Orders},
    ledger::{Call, Ledger},
    words::{Outcome, Reply, Slot, What},
};
use crate::{cri::Cri, soak::dice::Dice};

/// How long an answer may take: longer than anything takes on a slow and busy machine.
const ANSWER: Duration = Duration::from_secs(120);

/// One client in so many calls goes away before its answer.
const GOES_AWAY: u64 = 8;

/// What all clients share.
#[derive(Debug)]
pub(super) struct Storm {
    pub ledger: Mutex<Ledger>,
    pub orders: Orders,
    pub socket: PathBuf,
    /// Each call holds it for reading; whoever wants silence takes it for writing.
    pub calling: RwLock<()>,
    /// Whether a daemon answers.
    pub up: watch::Sender<bool>,
    /// The first thing that was wrong; ends the storm.
    pub wrong: watch::Sender<Option<String>>,
}

impl Storm {
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no code panics while it holds the ledger")
    }

    pub(super) fn is_wrong(&self, what: String) {
        self.wrong.send_if_modified(|wrong| {
            let first = wrong.is_none();
            wrong.get_or_insert(what);
            first
        });
    }
}

/// Calls until `end` comes or something is wrong.
pub(super) async fn run(storm: Arc<Storm>, mut dice: Dice, mut end: watch::Receiver<bool>) {
    let Ok(cri) = Cri::connect_within(&storm.socket, ANSWER).await else {
        return storm.is_wrong("a client cannot connect".to_owned());
    };
    let mut next = None;
    while !*end.borrow() && storm.wrong.borrow().is_none() {
        let mut up = storm.up.subscribe();
        tokio::select! {
            _ = up.wait_for(|up| *up) => {}
            _ = end.changed() => break,
        }
        let _calling = storm.calling.read().await;
        let what = match next.take() {
            Some(what) => what,
            None => storm.choose(&mut dice),
        };
        let patience = dice.once_in(GOES_AWAY).then(|| Duration::from_micros(dice.below(40_000)));
        let call = storm.ledger().begin(what);
        let outcome = match patience {
            None => ask(&cri, &storm.orders, &call, ANSWER).await.unwrap_or(Outcome::Silence),
            Some(patience) => ask(&cri, &storm.orders, &call, patience).await.unwrap_or(Outcome::Abandoned),
        };
        let verdict = storm.ledger().end(&call, &outcome);
        if let Err(wrong) = verdict {
            storm.is_wrong(wrong);
        }
        next = storm.what_follows(&mut dice, &call, &outcome);
    }
}

async fn ask(cri: &Cri, orders: &Orders, call: &Call, patience: Duration) -> Option<Outcome> {
    let answer = timeout(patience, calls::carry_out(cri, orders, &call.what)).await.ok()?;
    Some(answer.map_or_else(|status| refusal(&status), Outcome::Reply))
}

/// A refusal of the daemon, or of the connection when the daemon is no more.
fn refusal(status: &Status) -> Outcome {
    let of_connection = status.source().is_some() || status.code() == Code::Unavailable;
    if of_connection {
        Outcome::Cut(status.to_string())
    } else {
        Outcome::Refused(status.code(), status.message().to_owned())
    }
}

impl Storm {
    /// What leads on: a pod that is in the way is removed, a container that was created is started.
    fn what_follows(&self, dice: &mut Dice, call: &Call, outcome: &Outcome) -> Option<What> {
        match (&call.what, outcome) {
            (What::RunPod(_, false), Outcome::Reply(Reply::Id(id))) if dice.once_in(2) => {
                Some(What::Create(id.clone(), calls::one_of(dice), false))
            }
            (What::Create(..), Outcome::Reply(Reply::Id(id))) if dice.once_in(2) => {
                Some(What::Start(id.clone()))
            }
            (What::RunPod(slot, false), Outcome::Refused(..)) if dice.once_in(2) => {
                Some(What::RemovePod(self.ledger().newest_pod(slot)?))
            }
            (What::Create(pod, ..), Outcome::Refused(..)) if dice.once_in(4) => {
                Some(What::Remove(self.ledger().container_of(pod, dice)?))
            }
            _ => None,
        }
    }

    fn choose(&self, dice: &mut Dice) -> What {
        let slot = dice.pick(&self.orders.slots).clone();
        let ledger = self.ledger();
        let Some(pod) = ledger.newest_pod(&slot).filter(|_| !dice.once_in(8)) else {
            return What::RunPod(slot, dice.once_in(12));
        };
        let container = ledger.container_of(&pod, dice);
        let with = |what: fn(String) -> What| container.clone().map(what);
        let chosen = match dice.below(100) {
            0..10 => Some(What::RunPod(slot, dice.once_in(12))),
            10..28 => Some(What::Create(pod.clone(), calls::one_of(dice), dice.once_in(12))),
            28..42 => with(What::Start),
            42..52 => with(What::Exec),
            52..60 => with(What::Status),
            60..66 => container.clone().map(|id| What::Stop(id, i64::from(dice.once_in(3)))),
            66..70 => with(What::Remove),
            70..74 => with(What::Update),
            74..77 => with(What::Reopen),
            77..80 => with(What::Stats),
            80..84 => Some(What::PodStatus(pod.clone())),
            84..87 => Some(What::StopPod(pod.clone())),
            87..89 => Some(What::RemovePod(pod.clone())),
            89..93 => Some(What::ListPods),
            93..97 => Some(What::ListContainers),
            97..99 => Some(What::ListStats),
            _ => self.orders.pulls().then_some(What::Pull),
        };
        chosen.unwrap_or_else(|| What::Create(pod, calls::one_of(dice), false))
    }
}

impl Ledger {
    /// The pod of this name that was learnt last; it may be gone.
    fn newest_pod(&self, slot: &Slot) -> Option<String> {
        let of_slot = self.pods.iter().filter(|(_, facts)| facts.slot.as_ref() == Some(slot));
        of_slot.max_by_key(|(_, facts)| facts.known).map(|(id, _)| id.clone())
    }

    /// One of the pod's containers; it may be gone.
    fn container_of(&self, pod: &str, dice: &mut Dice) -> Option<String> {
        let mut of_pod: Vec<(&String, u64)> = self
            .containers
            .iter()
            .filter(|(_, facts)| facts.pod == pod)
            .map(|(id, facts)| (id, facts.known))
            .collect();
        // The newest ones: the others are gone but for a race.
        of_pod.sort_by_key(|(_, known)| std::cmp::Reverse(*known));
        of_pod.truncate(3);
        (!of_pod.is_empty()).then(|| dice.pick(&of_pod).0.clone())
    }
}
