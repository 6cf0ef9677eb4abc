//! Whether and when a container that has ended is started again, as a kubelet decides it. Pure; who asks brings
//! the time.

use std::time::Duration;

use tokio::time::Instant;

use super::plan::{Policy, Role};

/// The wait before the second restart; the first comes at once.
pub(super) const FIRST: Duration = Duration::from_secs(10);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(300);

/// How a container's run ended, as far as policies care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) code: i32,
    /// It was killed for a probe or a hook: it has failed whatever its code says.
    pub(super) unhealthy: bool,
}

impl End {
    /// Whether it has failed.
    pub(super) fn is_failure(self) -> bool {
        self.code != 0 || self.unhealthy
    }
}

/// Whether a container is started again.
pub(super) fn again(role: Role, policy: Policy, end: End) -> bool {
    match (role, policy) {
        (Role::Sidecar, _) => true,
        (_, Policy::Never) => false,
        // An init container that has succeeded is done, whatever the policy.
        (Role::Init, Policy::Always | Policy::OnFailure) => end.code != 0,
        (Role::App, Policy::OnFailure) => end.is_failure(),
        (Role::App, Policy::Always) => true,
    }
}

/// How long one container waits before it is started again.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    first: Duration,
    /// The next wait, and when the container was last started after one.
    last: Option<(Duration, Instant)>,
}

impl Backoff {
    /// Waits double from `first` to five minutes.
    pub(super) fn new(first: Duration) -> Self {
        Self { first, last: None }
    }

    fn longest(&self) -> Duration {
        LONGEST.max(self.first)
    }

    /// When a container that ended at `ended` is started again.
    pub(super) fn due(&self, ended: Instant) -> Instant {
        match self.last {
            // Ten good minutes are a new beginning.
            Some((wait, since)) if ended.duration_since(since) <= 2 * self.longest() => ended + wait,
            _ => ended,
        }
    }

    /// Takes note that it is started again.
    pub(super) fn started(&mut self, ended: Instant, now: Instant) {
        let wait = match self.last {
            Some((wait, since)) if ended.duration_since(since) <= 2 * self.longest() => {
                (2 * wait).min(self.longest())
            }
            _ => self.first,
        };
        self.last = Some((wait, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_decide_as_kubernetes_says() {
        let end = |code| End { code, unhealthy: false };
        let killed = End { code: 0, unhealthy: true };
        for (role, policy, end, expected) in [
            (Role::App, Policy::Always, end(0), true),
            (Role::App, Policy::Always, end(1), true),
            (Role::App, Policy::OnFailure, end(0), false),
            (Role::App, Policy::OnFailure, end(1), true),
            (Role::App, Policy::OnFailure, killed, true),
            (Role::App, Policy::Never, end(1), false),
            (Role::App, Policy::Never, killed, false),
            (Role::Init, Policy::Always, end(0), false),
            (Role::Init, Policy::Always, end(1), true),
            (Role::Init, Policy::OnFailure, end(1), true),
            (Role::Init, Policy::Never, end(1), false),
            (Role::Sidecar, Policy::Always, end(0), true),
            (Role::Sidecar, Policy::Always, end(1), true),
        ] {
            assert_eq!(again(role, policy, end), expected, "{role:?} {policy:?} {end:?}");
        }
    }

    #[test]
    fn waits_double_up_to_five_minutes_and_begin_anew_after_ten_good_ones() {
        let mut backoff = Backoff::new(FIRST);
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..8 {
            let due = backoff.due(now);
            waits.push((due - now).as_secs());
            backoff.started(now, due);
            now = due + Duration::from_secs(1);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        now += Duration::from_secs(600);
        assert_eq!(backoff.due(now), now);
        backoff.started(now, now);
        assert_eq!(backoff.due(now), now + FIRST);
    }
}
