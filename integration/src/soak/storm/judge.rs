//! Whether an answer may be true: whether some order of the calls that overlap allows it. Pure.

use tonic::Code;

use super::{
    ledger::{Asked, Call, ContainerFacts, Ledger, PodFacts, Tick},
    words::{ContainerSeen, Outcome, PodSeen, Reply, Slot, State, What},
};

type Verdict = Result<(), String>;

/// Wrong, for this reason, if the condition holds.
fn wrong_if(condition: bool, reason: &str) -> Verdict {
    if condition { Err(reason.to_owned()) } else { Ok(()) }
}

/// Certain for a call that was begun then.
fn before(tick: Option<Tick>, begun: Tick) -> bool {
    tick.is_some_and(|tick| tick < begun)
}

/// How a container of this name may have ended.
fn codes(name: &str) -> &'static [i32] {
    match name {
        "ends" => &[3, 137, 128],
        "catches" => &[5, 137, 128],
        _ => &[137, 128],
    }
}

impl Ledger {
    pub(super) fn judge(&self, call: &Call, outcome: &Outcome, now: Tick) -> Verdict {
        match outcome {
            Outcome::Abandoned => Ok(()),
            Outcome::Silence => Err("no answer: a deadlock?".to_owned()),
            Outcome::Cut(_) => wrong_if(!self.killed_between(call.begun, now), "nobody killed the daemon"),
            Outcome::Refused(code, _) => self.judge_refusal(call, *code),
            Outcome::Reply(reply) => self.judge_reply(call, reply),
        }
    }

    fn killed_between(&self, begun: Tick, now: Tick) -> bool {
        self.kills.iter().any(|(from, to)| *from < now && to.is_none_or(|to| to > begun))
    }

    fn judge_reply(&self, call: &Call, reply: &Reply) -> Verdict {
        match (&call.what, reply) {
            (What::RunPod(slot, _), Reply::Id(id)) => self.judge_new_pod(slot, id, call.begun),
            (What::Create(pod, name, _), Reply::Id(id)) => {
                self.judge_new_container(pod, name, id, call.begun)
            }
            (What::Start(id), _) => self.judge_start(id, call.begun),
            (What::Exec(id), Reply::Code(code)) => self.judge_exec(id, *code, call.begun),
            (_, Reply::Pod(seen)) => self.judge_pod(seen, call.begun),
            (_, Reply::Pods(all)) => self.judge_pods(all, call.begun),
            (_, Reply::Container(seen)) => self.judge_container(seen, call.begun),
            (_, Reply::Containers(all)) => self.judge_containers(all, call.begun),
            _ => Ok(()),
        }
    }

    fn judge_new_pod(&self, slot: &Slot, id: &str, begun: Tick) -> Verdict {
        if let Some(pod) = self.pods.get(id) {
            wrong_if(before(pod.stop.done, begun), "this pod was stopped before")?;
            wrong_if(pod.slot.as_ref().is_some_and(|its| its != slot), "this pod has another name")?;
        }
        self.judge_only_pod(slot, id)
    }

    /// Two pods of one name are never there at once.
    fn judge_only_pod(&self, slot: &Slot, id: &str) -> Verdict {
        let twin = self.pods.iter().find(|(other, facts)| {
            *other != id
                && facts.known > 0
                && facts.slot.as_ref() == Some(slot)
                && facts.remove.begun.is_none()
        });
        match twin {
            Some((twin, _)) => Err(format!("pod {twin} has this name and nobody has removed it")),
            None => Ok(()),
        }
    }

    fn judge_new_container(&self, pod: &str, name: &str, id: &str, begun: Tick) -> Verdict {
        let twin = self.containers.iter().find(|(other, facts)| {
            *other != id && facts.pod == pod && facts.name == name && facts.remove.begun.is_none()
        });
        if let Some((twin, _)) = twin
            && self.pods.get(pod).is_none_or(|facts| facts.remove.begun.is_none())
        {
            return Err(format!("container {twin} has this name and nobody has removed it"));
        }
        if let Some(facts) = self.pods.get(pod) {
            wrong_if(before(facts.stop.done, begun), "its pod was stopped before")?;
        }
        if let Some(facts) = self.containers.get(id) {
            wrong_if(before(facts.start.done, begun), "this container was started before")?;
            wrong_if(before(facts.remove.done, begun), "this container was removed before")?;
        }
        Ok(())
    }

    fn judge_start(&self, id: &str, begun: Tick) -> Verdict {
        let Some(facts) = self.containers.get(id) else { return Ok(()) };
        wrong_if(before(facts.over, begun), "it had ended before")?;
        wrong_if(self.pod_over(facts, begun), "its pod was stopped before")
    }

    fn judge_exec(&self, id: &str, code: i32, begun: Tick) -> Verdict {
        wrong_if(code != 7 && code != 137, "the command ends with 7, or is killed")?;
        let Some(facts) = self.containers.get(id) else { return Ok(()) };
        wrong_if(facts.start.begun.is_none(), "it was never started")?;
        wrong_if(code == 137 && !self.may_end(facts), "nobody has killed the command")?;
        wrong_if(before(facts.over, begun) || self.pod_over(facts, begun), "it had ended before")
    }

    fn judge_pod(&self, seen: &PodSeen, begun: Tick) -> Verdict {
        let Some(facts) = self.pods.get(&seen.id) else { return self.judge_only_pod(&seen.slot, &seen.id) };
        wrong_if(before(facts.remove.done, begun), "the pod was removed before")?;
        if seen.ready {
            wrong_if(before(facts.stop.done, begun), "the pod was stopped before and is Ready")
        } else {
            wrong_if(facts.stop.begun.is_none(), "nobody has stopped the pod and it is NotReady")
        }
    }

    fn judge_pods(&self, all: &[PodSeen], begun: Tick) -> Verdict {
        for (index, seen) in all.iter().enumerate() {
            self.judge_pod(seen, begun).map_err(|wrong| format!("{}: {wrong}", seen.id))?;
            let twin = all[..index].iter().any(|other| other.slot == seen.slot);
            wrong_if(twin, &format!("two pods of the name {:?} in one list", seen.slot))?;
        }
        let missing = self.pods.iter().find(|(id, facts)| {
            facts.known > 0
                && facts.known < begun
                && facts.remove.begun.is_none()
                && all.iter().all(|seen| seen.id != **id)
        });
        missing.map_or(Ok(()), |(id, _)| Err(format!("pod {id} is not in the list and nobody removed it")))
    }

    fn judge_container(&self, seen: &ContainerSeen, begun: Tick) -> Verdict {
        let Some(facts) = self.containers.get(&seen.id) else { return Ok(()) };
        wrong_if(
            before(facts.remove.done, begun) || self.pod_removed(facts, begun),
            "it was removed before",
        )?;
        if let Some(told) = seen.ended {
            let known = facts.ended.unwrap_or(told);
            wrong_if(known != told, &format!("it had ended with {known:?} (code, time)"))?;
            wrong_if(!codes(&facts.name).contains(&told.0), "nothing ends it with this code")?;
        }
        let Some(state) = seen.state else { return Err("its state is not known".to_owned()) };
        let later = facts.seen.iter().find(|(later, tick)| **later > state && **tick < begun);
        if let Some((later, _)) = later {
            return Err(format!("it was {later:?} before"));
        }
        match state {
            State::Created => wrong_if(before(facts.start.done, begun), "it was started before"),
            State::Running => {
                wrong_if(facts.start.begun.is_none(), "nobody has started it")?;
                wrong_if(before(facts.over, begun), "it had ended before")?;
                wrong_if(self.pod_over(facts, begun), "its pod was stopped before")
            }
            State::Exited => {
                wrong_if(facts.start.begun.is_none(), "nobody has started it")?;
                wrong_if(!self.may_end(facts), "nobody has stopped it")
            }
        }
    }

    fn judge_containers(&self, all: &[ContainerSeen], begun: Tick) -> Verdict {
        for (index, seen) in all.iter().enumerate() {
            self.judge_container(seen, begun).map_err(|wrong| format!("{}: {wrong}", seen.id))?;
            let twin = all[..index].iter().any(|other| other.pod == seen.pod && other.name == seen.name);
            wrong_if(twin, &format!("two containers of the name {} in one pod", seen.name))?;
        }
        let missing = self.containers.iter().find(|(id, facts)| {
            facts.known < begun && !self.may_be_gone(facts) && all.iter().all(|seen| seen.id != **id)
        });
        missing.map_or(Ok(()), |(id, _)| Err(format!("container {id} is not in the list; nobody removed it")))
    }

    fn judge_refusal(&self, call: &Call, code: Code) -> Verdict {
        match (&call.what, code) {
            (What::RunPod(slot, other), Code::AlreadyExists) => {
                let asked = self.asked_pods.get(slot).copied().unwrap_or_default();
                wrong_if(asked.configurations[usize::from(!*other)] == 0, "nobody asked for it otherwise")
            }
            (What::RunPod(slot, _), Code::FailedPrecondition) => {
                let asked = self.asked_pods.get(slot).copied().unwrap_or_default();
                let ending = self.pods.values().any(|pod| {
                    pod.slot.as_ref() == Some(slot)
                        && pod.stop.begun.is_some()
                        && !before(pod.remove.done, call.begun)
                });
                wrong_if(!ending && asked.unheard == 0, "nobody has stopped a pod of this name")
            }
            (What::Create(pod, name, other), code) => self.judge_create_refusal((pod, name), *other, code),
            (What::PodStatus(id), Code::NotFound) => {
                let removed = self.pods.get(id).is_some_and(|pod| pod.remove.begun.is_some());
                wrong_if(!removed, "nobody has removed the pod")
            }
            (
                What::Start(id)
                | What::Status(id)
                | What::Exec(id)
                | What::Update(id)
                | What::Reopen(id)
                | What::Stats(id),
                Code::NotFound,
            ) => wrong_if(!self.facts(id, |facts| self.may_be_gone(facts)), "nobody has removed it"),
            (What::Start(id), Code::FailedPrecondition) => {
                wrong_if(!self.facts(id, |facts| self.may_end(facts)), "nobody has ended it or its pod")
            }
            (What::Exec(id) | What::Reopen(id) | What::Stats(id), Code::FailedPrecondition) => {
                let runs =
                    |facts: &ContainerFacts| before(facts.start.done, call.begun) && !self.may_end(facts);
                wrong_if(self.facts(id, runs), "it runs, and nobody has ended it")
            }
            (What::Update(id), Code::FailedPrecondition) => {
                wrong_if(!self.facts(id, |facts| self.may_end(facts)), "nobody has ended it")
            }
            (_, code) => Err(format!("this verb never answers {code:?}")),
        }
    }

    fn judge_create_refusal(&self, (pod, name): (&str, &str), other: bool, code: Code) -> Verdict {
        let key = (pod.to_owned(), name.to_owned());
        let asked: Asked = self.asked_containers.get(&key).copied().unwrap_or_default();
        let of_pod = |fact: fn(&PodFacts) -> bool| self.pods.get(pod).is_some_and(fact);
        match code {
            Code::NotFound => wrong_if(!of_pod(|pod| pod.remove.begun.is_some()), "nobody removed the pod"),
            Code::AlreadyExists => {
                wrong_if(asked.configurations[usize::from(!other)] == 0, "nobody asked for it otherwise")
            }
            Code::FailedPrecondition => {
                let touched = self.containers.values().any(|facts| {
                    facts.pod == pod
                        && facts.name == name
                        && (facts.start.begun.is_some() || facts.remove.begun.is_some())
                });
                let reason = "nobody has started or removed a container of this name, or stopped its pod";
                wrong_if(!touched && !of_pod(|pod| pod.stop.begun.is_some()), reason)
            }
            code => Err(format!("this verb never answers {code:?}")),
        }
    }

    fn facts(&self, id: &str, ask: impl FnOnce(&ContainerFacts) -> bool) -> bool {
        self.containers.get(id).is_some_and(ask)
    }

    /// Whether something may have ended it, or may end it now.
    fn may_end(&self, facts: &ContainerFacts) -> bool {
        let pod = self.pods.get(&facts.pod).is_some_and(|pod| pod.stop.begun.is_some());
        let itself = facts.name == "ends" && facts.start.begun.is_some();
        facts.stop.begun.is_some() || pod || itself
    }

    fn may_be_gone(&self, facts: &ContainerFacts) -> bool {
        let pod = self.pods.get(&facts.pod).is_some_and(|pod| pod.remove.begun.is_some());
        facts.remove.begun.is_some() || pod
    }

    fn pod_over(&self, facts: &ContainerFacts, begun: Tick) -> bool {
        self.pods.get(&facts.pod).is_some_and(|pod| before(pod.stop.done, begun))
    }

    fn pod_removed(&self, facts: &ContainerFacts, begun: Tick) -> bool {
        self.pods.get(&facts.pod).is_some_and(|pod| before(pod.remove.done, begun))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> Slot {
        Slot { name: "one".into(), attempt: 0 }
    }

    fn answer(ledger: &mut Ledger, what: What, reply: Reply) -> Verdict {
        let call = ledger.begin(what);
        ledger.end(&call, &Outcome::Reply(reply))
    }

    /// A pod P with a container C that was created.
    fn with_container() -> Ledger {
        let mut ledger = Ledger::default();
        answer(&mut ledger, What::RunPod(slot(), false), Reply::Id("P".into())).unwrap();
        let create = What::Create("P".into(), "sleeps", false);
        answer(&mut ledger, create, Reply::Id("C".into())).unwrap();
        ledger
    }

    fn seen(state: State) -> Reply {
        let ended = (state == State::Exited).then_some((137, 9));
        let (id, pod, name) = ("C".into(), "P".into(), "sleeps".into());
        Reply::Container(ContainerSeen { id, pod, name, state: Some(state), ended })
    }

    #[test]
    fn a_second_pod_of_the_name_is_wrong_until_somebody_removes_the_first() {
        let mut ledger = with_container();
        let run = || What::RunPod(slot(), false);
        assert!(answer(&mut ledger, run(), Reply::Id("Q".into())).is_err());
        let mut ledger = with_container();
        let _under_way = ledger.begin(What::RemovePod("P".into()));
        answer(&mut ledger, run(), Reply::Id("Q".into())).unwrap();
    }

    #[test]
    fn a_state_is_wrong_that_no_order_of_the_calls_allows() {
        let mut ledger = with_container();
        let status = || What::Status("C".into());
        assert!(answer(&mut ledger, status(), seen(State::Running)).is_err(), "nobody started it");
        let mut ledger = with_container();
        let start = ledger.begin(What::Start("C".into()));
        answer(&mut ledger, status(), seen(State::Created)).unwrap();
        answer(&mut ledger, status(), seen(State::Running)).unwrap();
        assert!(answer(&mut ledger, status(), seen(State::Created)).is_err(), "it was Running before");
        ledger.end(&start, &Outcome::Reply(Reply::Done)).unwrap();
        assert!(answer(&mut ledger, status(), seen(State::Exited)).is_err(), "nobody stopped it");
        answer(&mut ledger, What::Stop("C".into(), 0), Reply::Done).unwrap();
        assert!(answer(&mut ledger, status(), seen(State::Running)).is_err(), "it was stopped");
        answer(&mut ledger, status(), seen(State::Exited)).unwrap();
        assert!(answer(&mut ledger, What::Start("C".into()), Reply::Done).is_err(), "it has ended");
    }

    #[test]
    fn how_it_ended_is_known_even_when_its_removal_was_cut_short() {
        let mut ledger = with_container();
        answer(&mut ledger, What::Start("C".into()), Reply::Done).unwrap();
        answer(&mut ledger, What::Stop("C".into(), 0), Reply::Done).unwrap();
        let _under_way = ledger.begin(What::Remove("C".into()));
        ledger.kill();
        ledger.up_again();
        let told = |code| {
            let (id, pod, name) = ("C".into(), "P".into(), "sleeps".into());
            Reply::Container(ContainerSeen {
                id,
                pod,
                name,
                state: Some(State::Exited),
                ended: Some((code, 9)),
            })
        };
        answer(&mut ledger, What::Status("C".into()), told(137)).unwrap();
        assert!(answer(&mut ledger, What::Status("C".into()), told(255)).is_err());
    }

    #[test]
    fn an_abandoned_call_makes_its_effect_possible_and_never_certain() {
        let mut ledger = with_container();
        let call = ledger.begin(What::Start("C".into()));
        ledger.end(&call, &Outcome::Abandoned).unwrap();
        answer(&mut ledger, What::Status("C".into()), seen(State::Created)).unwrap();
        answer(&mut ledger, What::Status("C".into()), seen(State::Running)).unwrap();
    }

    #[test]
    fn what_nobody_removed_is_in_the_list_and_is_found() {
        let mut ledger = with_container();
        assert!(answer(&mut ledger, What::ListPods, Reply::Pods(Vec::new())).is_err());
        let status = ledger.begin(What::Status("C".into()));
        assert!(ledger.end(&status, &Outcome::Refused(Code::NotFound, String::new())).is_err());
        let _under_way = ledger.begin(What::RemovePod("P".into()));
        let status = ledger.begin(What::Status("C".into()));
        ledger.end(&status, &Outcome::Refused(Code::NotFound, String::new())).unwrap();
        answer(&mut ledger, What::ListPods, Reply::Pods(Vec::new())).unwrap();
    }

    #[test]
    fn a_broken_connection_is_wrong_when_nobody_killed_the_daemon() {
        let mut ledger = with_container();
        let call = ledger.begin(What::ListPods);
        assert!(ledger.end(&call, &Outcome::Cut(String::new())).is_err());
        let call = ledger.begin(What::ListPods);
        ledger.kill();
        ledger.end(&call, &Outcome::Cut(String::new())).unwrap();
        let internal = ledger.begin(What::Start("C".into()));
        assert!(ledger.end(&internal, &Outcome::Refused(Code::Internal, String::new())).is_err());
    }
}
