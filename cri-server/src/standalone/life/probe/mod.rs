//! Startup, liveness and readiness probes: when they are asked, and what their answers amount to.
//!
//! What the answers amount to is a pure count ([`Tally`]); how one is got is in a file for each kind.

mod exec;
mod grpc;
mod http;
mod tcp;

use std::{net::IpAddr, sync::Arc, time::Duration};

use podhold_sandbox::ContainerId;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::{action::Action, plan::Probe};
use crate::runtime::Runtime;

pub(super) use self::http::get;

/// The container that is asked.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) runtime: Arc<Runtime>,
    pub(super) container: ContainerId,
    /// Its pod's address, seen from this host.
    pub(super) address: IpAddr,
    /// When the container was started.
    pub(super) since: Instant,
}

/// Why a probe was not answered well, in words.
pub(super) type Failed = String;

impl Target {
    /// Does a probe's or a hook's action once, without a limit on its time.
    pub(super) async fn act(&self, action: &Action) -> Result<(), Failed> {
        match action {
            Action::Exec(command) => exec::run(self, command, None).await,
            Action::Http(page) => http::ask(page, self.address).await,
            Action::Tcp { host, port } => tcp::connect(host.as_deref(), self.address, *port).await,
            Action::Grpc { port, service } => grpc::check(self.address, *port, service).await,
            Action::Sleep(time) => {
                tokio::time::sleep(*time).await;
                Ok(())
            }
        }
    }

    async fn ask(&self, probe: &Probe) -> Result<(), Failed> {
        let limit = probe.timeout;
        let asked = match &probe.action {
            // The command is killed when its time is over.
            Action::Exec(command) => return exec::run(self, command, Some(limit)).await,
            action => timeout(limit, self.act(action)).await,
        };
        asked.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
    }

    /// Asks again and again; `judge` is told of each verdict and says whether to go on.
    pub(super) async fn watch(&self, probe: &Probe, mut judge: impl FnMut(Verdict) -> bool) {
        let mut tally = Tally::new(probe.successes, probe.failures);
        let mut ticks = interval_at(first(self.since, Instant::now(), probe.delay), probe.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(verdict) = tally.take(self.ask(probe).await)
                && !judge(verdict)
            {
                return;
            }
        }
    }
}

/// When a probe is asked first: the delay counts from the start of the container, however long its hook and its
/// startup probe have taken.
fn first(since: Instant, now: Instant, delay: Duration) -> Instant {
    (since + delay).max(now)
}

/// What the answers to a probe amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Enough good answers in a row.
    Good,
    /// Enough bad ones; the last one's reason.
    Bad(Failed),
}

/// Counts answers in a row.
#[derive(Debug)]
pub(super) struct Tally {
    successes: u32,
    failures: u32,
    /// How many of which kind there were last.
    run: (bool, u32),
}

impl Tally {
    pub(super) fn new(successes: u32, failures: u32) -> Self {
        Self { successes, failures, run: (false, 0) }
    }

    /// One more answer; a verdict as soon as, and as long as, there are enough in a row.
    pub(super) fn take(&mut self, answer: Result<(), Failed>) -> Option<Verdict> {
        let good = answer.is_ok();
        let count = if self.run.0 == good { self.run.1.saturating_add(1) } else { 1 };
        self.run = (good, count);
        let enough = if good { self.successes } else { self.failures };
        (count >= enough).then(|| answer.map_or_else(Verdict::Bad, |()| Verdict::Good))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_of_a_probe_counts_from_the_start_of_the_container() {
        let since = Instant::now();
        let at = |seconds| since + Duration::from_secs(seconds);
        for (now, want) in [(0, 10), (4, 10), (25, 25)] {
            assert_eq!(first(since, at(now), Duration::from_secs(10)), at(want), "{now}");
        }
    }

    #[test]
    fn a_verdict_takes_as_many_answers_in_a_row_as_its_threshold() {
        let mut tally = Tally::new(2, 3);
        let mut seen = String::new();
        for answer in "bbgbbbbggb".chars() {
            let answer = if answer == 'g' { Ok(()) } else { Err("bad".to_owned()) };
            seen.push(match tally.take(answer) {
                None => '-',
                Some(Verdict::Good) => 'G',
                Some(Verdict::Bad(_)) => 'B',
            });
        }
        assert_eq!(seen, "-----BB-G-");
    }
}
