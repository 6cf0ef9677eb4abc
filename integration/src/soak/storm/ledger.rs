//! What is known for certain of every object of a storm, whoever learnt it, in the order of one clock.
//!
//! A call has a tick at which it was begun and one at which its answer had come. Something is certain for a
//! call when it was done before the call was begun; it is possible when it was begun before the call's answer
//! had come. Calls whose clients went away, or whose daemon was killed, may have their effect at any time
//! after their beginning, so they make things possible and never certain. No I/O; `judge` has the rules.

use std::collections::{BTreeMap, HashMap};

use super::words::{ContainerSeen, Outcome, Reply, Slot, State, What};

/// A time on the ledger's own clock.
pub(super) type Tick = u64;

/// First beginning and first success of a verb on an object.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Span {
    pub(super) begun: Option<Tick>,
    pub(super) done: Option<Tick>,
}

impl Span {
    fn begin(&mut self, tick: Tick) {
        self.begun.get_or_insert(tick);
    }

    fn end(&mut self, tick: Tick) {
        self.done.get_or_insert(tick);
    }
}

#[derive(Debug, Default)]
pub(super) struct PodFacts {
    pub slot: Option<Slot>,
    /// The first answer that had it, from when on it must be there.
    pub known: Tick,
    pub stop: Span,
    pub remove: Span,
    pub trail: Vec<String>,
}

#[derive(Debug)]
pub(super) struct ContainerFacts {
    pub pod: String,
    pub name: String,
    pub known: Tick,
    pub start: Span,
    pub stop: Span,
    pub remove: Span,
    /// From when on it certainly does not run any more.
    pub over: Option<Tick>,
    /// When each state was first seen.
    pub seen: BTreeMap<State, Tick>,
    pub ended: Option<(i32, i64)>,
    pub trail: Vec<String>,
}

/// How often a name was asked for in each of its configurations, and how often nobody heard the answer.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Asked {
    pub configurations: [u64; 2],
    pub unheard: u64,
}

/// A call under way.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) begun: Tick,
    /// What was asked for.
    pub what: What,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    clock: Tick,
    pub(super) pods: HashMap<String, PodFacts>,
    pub(super) containers: HashMap<String, ContainerFacts>,
    pub(super) asked_pods: HashMap<Slot, Asked>,
    pub(super) asked_containers: HashMap<(String, String), Asked>,
    /// When daemons were killed, and their successors answered.
    pub(super) kills: Vec<(Tick, Option<Tick>)>,
    /// Answers by verb and outcome.
    pub counts: BTreeMap<(&'static str, String), u64>,
}

impl Ledger {
    fn tick(&mut self) -> Tick {
        self.clock += 1;
        self.clock
    }

    /// A daemon is about to be killed.
    pub(super) fn kill(&mut self) {
        let now = self.tick();
        self.kills.push((now, None));
    }

    /// Its successor answers.
    pub(super) fn up_again(&mut self) {
        let now = self.tick();
        if let Some(last) = self.kills.last_mut() {
            last.1 = Some(now);
        }
    }

    /// How often a daemon was killed.
    pub(super) fn kill_count(&self) -> usize {
        self.kills.len()
    }

    /// Writes down that a call is about to be made.
    pub(super) fn begin(&mut self, what: What) -> Call {
        let begun = self.tick();
        match &what {
            What::RunPod(slot, other) => {
                self.asked_pods.entry(slot.clone()).or_default().configurations[usize::from(*other)] += 1;
            }
            What::Create(pod, name, other) => {
                let asked = self.asked_containers.entry((pod.clone(), (*name).to_owned())).or_default();
                asked.configurations[usize::from(*other)] += 1;
            }
            What::StopPod(id) => self.pod(id).stop.begin(begun),
            What::RemovePod(id) => {
                let pod = self.pod(id);
                pod.stop.begin(begun);
                pod.remove.begin(begun);
            }
            What::Start(id) => self.change(id, |container| container.start.begin(begun)),
            What::Stop(id, _) => self.change(id, |container| container.stop.begin(begun)),
            What::Remove(id) => self.change(id, |container| {
                container.stop.begin(begun);
                container.remove.begin(begun);
            }),
            _ => {}
        }
        Call { begun, what }
    }

    /// Judges how a call ended, then writes down what is certain since.
    ///
    /// # Errors
    /// What is wrong, in words, with what has happened to the object before.
    pub(super) fn end(&mut self, call: &Call, outcome: &Outcome) -> Result<(), String> {
        let now = self.tick();
        let kind = match outcome {
            Outcome::Reply(_) => "OK".to_owned(),
            Outcome::Refused(code, _) => format!("{code:?}"),
            Outcome::Cut(_) => "cut by a kill".to_owned(),
            Outcome::Abandoned => "abandoned".to_owned(),
            Outcome::Silence => "silence".to_owned(),
        };
        *self.counts.entry((call.what.verb(), kind)).or_default() += 1;
        let verdict = self.judge(call, outcome, now);
        self.leave_trail(call, outcome, now);
        match outcome {
            Outcome::Reply(reply) => self.learn(call, reply, now),
            Outcome::Abandoned | Outcome::Cut(_) => self.unheard(call),
            _ => {}
        }
        verdict.map_err(|wrong| {
            let Call { begun, what } = call;
            let named = wrong.split(": ").next().unwrap_or_default();
            let trail = self.trail(call, named).join("\n  ");
            let outcome = match outcome {
                Outcome::Reply(Reply::Pods(_) | Reply::Containers(_)) => "a list".to_owned(),
                other => format!("{other:?}"),
            };
            format!("{what:?} (ticks {begun} to {now}): {outcome}\nis wrong: {wrong}\nbefore:\n  {trail}")
        })
    }

    fn unheard(&mut self, call: &Call) {
        match &call.what {
            What::RunPod(slot, _) => self.asked_pods.entry(slot.clone()).or_default().unheard += 1,
            What::Create(pod, name, _) => {
                let key = (pod.clone(), (*name).to_owned());
                self.asked_containers.entry(key).or_default().unheard += 1;
            }
            _ => {}
        }
    }

    fn learn(&mut self, call: &Call, reply: &Reply, now: Tick) {
        match (&call.what, reply) {
            (What::RunPod(slot, _), Reply::Id(id)) => self.know_pod(id, slot, now),
            (What::Create(pod, name, _), Reply::Id(id)) => self.know_container(id, pod, name, now),
            (What::StopPod(id), _) => self.pod(id).stop.end(now),
            (What::RemovePod(id), _) => {
                let pod = self.pod(id);
                pod.stop.end(now);
                pod.remove.end(now);
            }
            (What::Start(id), _) => self.change(id, |container| container.start.end(now)),
            (What::Stop(id, _), _) => self.change(id, |container| {
                if container.start.done.is_some_and(|started| started < call.begun) {
                    container.over.get_or_insert(now);
                }
            }),
            (What::Remove(id), _) => self.change(id, |container| {
                container.over.get_or_insert(now);
                container.remove.end(now);
            }),
            (_, Reply::Pod(seen)) => self.know_pod(&seen.id, &seen.slot, now),
            (_, Reply::Pods(all)) => all.iter().for_each(|seen| self.know_pod(&seen.id, &seen.slot, now)),
            (_, Reply::Container(seen)) => self.see(seen, now),
            (_, Reply::Containers(all)) => all.iter().for_each(|seen| self.see(seen, now)),
            _ => {}
        }
    }

    fn know_pod(&mut self, id: &str, slot: &Slot, now: Tick) {
        let pod = self.pod(id);
        pod.slot.get_or_insert_with(|| slot.clone());
        if pod.known == 0 {
            pod.known = now;
        }
    }

    fn know_container(&mut self, id: &str, pod: &str, name: &str, now: Tick) {
        self.containers.entry(id.to_owned()).or_insert_with(|| ContainerFacts {
            pod: pod.to_owned(),
            name: name.to_owned(),
            known: now,
            start: Span::default(),
            stop: Span::default(),
            remove: Span::default(),
            over: None,
            seen: BTreeMap::new(),
            ended: None,
            trail: Vec::new(),
        });
    }

    fn see(&mut self, seen: &ContainerSeen, now: Tick) {
        self.know_container(&seen.id, &seen.pod, &seen.name, now);
        self.change(&seen.id, |container| {
            if let Some(state) = seen.state {
                container.seen.entry(state).or_insert(now);
                if state == State::Exited {
                    container.over.get_or_insert(now);
                }
            }
            container.ended = container.ended.or(seen.ended);
        });
    }

    fn pod(&mut self, id: &str) -> &mut PodFacts {
        self.pods.entry(id.to_owned()).or_default()
    }

    fn change(&mut self, id: &str, change: impl FnOnce(&mut ContainerFacts)) {
        if let Some(container) = self.containers.get_mut(id) {
            change(container);
        }
    }

    fn leave_trail(&mut self, call: &Call, outcome: &Outcome, now: Tick) {
        let line = format!("{} to {now}: {:?}: {outcome:?}", call.begun, call.what);
        match &call.what {
            What::RunPod(..) | What::Create(..) => {
                if let Outcome::Reply(Reply::Id(id)) = outcome {
                    let is_pod = matches!(call.what, What::RunPod(..));
                    self.note(id, is_pod, line);
                }
            }
            What::StopPod(id) | What::RemovePod(id) | What::PodStatus(id) => self.note(id, true, line),
            What::Start(id)
            | What::Stop(id, _)
            | What::Remove(id)
            | What::Status(id)
            | What::Exec(id)
            | What::Update(id)
            | What::Reopen(id)
            | What::Stats(id) => self.note(id, false, line),
            _ => {}
        }
    }

    fn note(&mut self, id: &str, is_pod: bool, line: String) {
        const MOST: usize = 60;
        let trail = if is_pod {
            Some(&mut self.pod(id).trail)
        } else {
            self.containers.get_mut(id).map(|container| &mut container.trail)
        };
        if let Some(trail) = trail.filter(|trail| trail.len() < MOST) {
            trail.push(line);
        }
    }

    /// What has happened before to the object of a call, or to the one named, and to its pod.
    fn trail(&self, call: &Call, named: &str) -> Vec<String> {
        let kills = self.kills.iter().rev().take(3).map(|(from, to)| format!("killed {from}, up {to:?}"));
        let id: &str = match &call.what {
            What::StopPod(id) | What::RemovePod(id) | What::PodStatus(id) | What::Create(id, ..) => id,
            What::Start(id) | What::Stop(id, _) | What::Remove(id) | What::Status(id) => id,
            What::Exec(id) | What::Update(id) | What::Reopen(id) | What::Stats(id) => id,
            What::RunPod(slot, _) => {
                let of_slot = self.pods.values().filter(|pod| pod.slot.as_ref() == Some(slot));
                return kills.chain(of_slot.flat_map(|pod| pod.trail.clone())).collect();
            }
            _ => named,
        };
        let container = self.containers.get(id);
        let pod = self.pods.get(container.map_or(id, |container| container.pod.as_str()));
        let lines = container.map(|container| container.trail.clone()).unwrap_or_default();
        kills.chain(lines).chain(pod.map(|pod| pod.trail.clone()).unwrap_or_default()).collect()
    }
}
