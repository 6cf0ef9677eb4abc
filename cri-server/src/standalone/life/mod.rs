//! The life of a pod without a kubelet: [`order`] decides, [`member`] carries out over the runtime's verbs.
//!
//! | file | what it decides or does |
//! |---|---|
//! | `plan`, `action` | what the manifest says, checked |
//! | `order` | what begins and ends when: a pure state machine |
//! | `restart`, `deadline` | policies, back-off, grace: pure |
//! | `member` | one run of one container |
//! | `probe`, `hook` | questions put to a container |
//! | `outcome` | exit code, last words |

mod action;
mod deadline;
mod hook;
mod member;
mod order;
mod outcome;
mod plan;
mod probe;
mod restart;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use podhold_sandbox::PodId;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

pub use self::plan::Policy;
pub(super) use self::{
    member::RunEnd,
    order::Why,
    outcome::{Outcome, Report, UNREAD, end_of_log},
    plan::{Plan, Role},
};
use self::{
    member::{Event, Run, Shared},
    order::{Command, Order, Phase},
    restart::End,
};
use super::{
    request::{ContainerRequest, PodFacts, Requests},
    terminal::Screen,
};
use crate::{error::Error, runtime::Runtime, state::Pod};

/// A pod that was run, whose containers are to live.
pub(super) struct Life {
    pub(super) runtime: Arc<Runtime>,
    pub(super) pod: PodId,
    pub(super) plan: Plan,
    pub(super) requests: Arc<Requests>,
    /// What the requests wait for.
    pub(super) facts: PodFacts,
    pub(super) screen: Arc<Screen>,
    /// The wait before the second restart of a container, and half of that before the third.
    pub(super) backoff: Option<Duration>,
}

/// One life under way.
struct Living {
    shared: Arc<Shared>,
    order: Order,
    reports: Vec<Report>,
    /// By which each run that is under way hears that it is to end.
    stops: Vec<watch::Sender<Option<Instant>>>,
    error: Option<Error>,
}

impl Life {
    /// Lives it to its end. The first word of `told` ends it with grace, the second at once.
    pub(super) async fn live(self, told: &mut mpsc::UnboundedReceiver<Why>) -> Outcome {
        let begun = (SystemTime::now(), Instant::now());
        let (tell, mut events) = mpsc::unbounded_channel();
        let mut living = self.begin(tell);
        let store = self.runtime.store();
        let down = |pod: Option<&Pod>| pod.is_none_or(|pod| !pod.phase.is_up()).then_some(());
        let pod_down = store.wait_pod(&self.pod, down);
        tokio::pin!(pod_down);
        let deadline = self.plan.deadline.map(|time| begun.1 + time);
        let why = loop {
            if let Some(why) = living.go_on() {
                break why;
            }
            let ending = living.order.is_ending();
            let (wakes, now) = (living.order.wakes(), Instant::now());
            tokio::select! {
                Some(event) = events.recv() => living.take(event),
                Some(why) = told.recv() => living.told(why),
                () = sleep_until(wakes.unwrap_or(now)), if wakes.is_some() => {}
                () = sleep_until(deadline.unwrap_or(now)), if deadline.is_some() && !ending => {
                    living.end(Why::Deadline);
                }
                () = &mut pod_down, if !ending => living.end(Why::Stopped),
            }
        };
        Outcome {
            why,
            containers: living.reports,
            started: Some(begun.0),
            finished: SystemTime::now(),
            error: living.error,
        }
    }

    fn begin(&self, events: mpsc::UnboundedSender<Event>) -> Living {
        let pod = self.runtime.store().pod(&self.pod);
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let address = pod.and_then(|pod| pod.ips.first().copied()).filter(|_| !self.plan.host_network);
        let requests = self.requests.init.iter().chain(&self.requests.apps);
        let report = |(member, request): (&plan::Member, &ContainerRequest)| Report {
            name: member.name.clone(),
            role: member.role,
            image: request.config.image.clone().unwrap_or_default().image,
            restarts: 0,
            oom: 0,
            last: None,
        };
        Living {
            order: Order::new(&self.plan, self.backoff.unwrap_or(restart::FIRST)),
            reports: self.plan.members.iter().zip(requests).map(report).collect(),
            stops: self.plan.members.iter().map(|_| watch::Sender::new(None)).collect(),
            error: None,
            shared: Arc::new(Shared {
                runtime: Arc::clone(&self.runtime),
                pod: self.pod.clone(),
                address: address.unwrap_or(local),
                plan: self.plan.clone(),
                requests: Arc::clone(&self.requests),
                facts: self.facts.clone(),
                logs: self.requests.pod.log_directory.clone().into(),
                screen: Arc::clone(&self.screen),
                events,
            }),
        }
    }
}

impl Living {
    /// Does what is due now; why the pod has ended, once it has.
    fn go_on(&mut self) -> Option<Why> {
        for command in self.order.next(Instant::now()) {
            match command {
                Command::Begin { member, attempt } => {
                    let stop = watch::Sender::new(None);
                    let shared = Arc::clone(&self.shared);
                    let run = Run { shared, member, attempt, stop: stop.subscribe() };
                    self.stops[member] = stop;
                    self.reports[member].restarts = attempt;
                    tokio::spawn(run.live());
                }
                Command::Stop { member, deadline } => {
                    self.stops[member].send_replace(Some(deadline));
                }
            }
        }
        self.shared.screen.show(&outcome::words(&self.order));
        match self.order.phase {
            Phase::Over(why) => Some(why),
            _ => None,
        }
    }

    /// Somebody wants the pod to end; who says so again is in a hurry.
    fn told(&mut self, why: Why) {
        let unread = self.order.phase == Phase::Ending(Why::Unread) && matches!(why, Why::Signal(_));
        match why {
            _ if unread || !self.order.is_ending() => self.end(why),
            // An interrupt ends the reader in the same pipe too: nobody has said it twice.
            Why::Unread | Why::Broken => {}
            _ => self.order.hurry(Instant::now()),
        }
    }

    fn end(&mut self, why: Why) {
        let text = match why {
            Why::Signal(_) => "told to end; stopping the pod",
            Why::Timeout => "its time is over (--timeout); stopping the pod",
            Why::Deadline => "its time is over (activeDeadlineSeconds); stopping the pod",
            Why::Stopped => "the pod was stopped by somebody else, or has lost its pause process",
            Why::Unread => "nobody reads what it says; stopping the pod",
            Why::GivenUp(_) => "it has failed too often (backoffLimit); stopping the pod",
            Why::Done | Why::Broken => "stopping the pod",
        };
        self.shared.screen.say(text);
        self.order.end(why, Instant::now());
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Started(member) => self.order.started(member),
            Event::Ready(member, ready) => self.order.ready(member, ready),
            Event::Failed(member, error) => {
                self.shared.screen.say(&format!("{}: {error}", self.reports[member].name));
                self.error.get_or_insert(error);
                self.order.end(Why::Broken, Instant::now());
                self.order.ended(member, End { code: 0, unhealthy: true }, Instant::now());
            }
            Event::Ended(member, run) => self.ended(member, *run),
        }
    }

    fn ended(&mut self, member: usize, run: RunEnd) {
        let now = Instant::now();
        let end = End { code: run.ended.code, unhealthy: run.unhealthy.is_some() };
        let again = self.order.ended(member, end, now);
        let report = &mut self.reports[member];
        report.oom += u32::from(run.ended.reason == "OOMKilled");
        let kind = match report.role {
            Role::Init => "init container",
            Role::Sidecar => "sidecar",
            Role::App => "container",
        };
        let (code, reason) = (run.ended.code, &run.ended.reason);
        let late = run.late.then_some(member::LATE);
        let said = Some(run.message.trim_end()).filter(|said| !said.is_empty());
        let more: String = late.into_iter().chain(said).map(|text| format!(": {text}")).collect();
        let text = match again {
            Some(due) => {
                let wait = due.saturating_duration_since(now).as_secs_f64();
                Some(format!("ended with exit code {code} ({reason}){more}; begins again in {wait:.0} s"))
            }
            None if code != 0 => Some(format!("failed with exit code {code} ({reason}){more}")),
            None => None,
        };
        if let Some(text) = text {
            self.shared.screen.say(&format!("{kind} {} {text}", report.name));
        }
        report.last = Some(run);
    }
}
