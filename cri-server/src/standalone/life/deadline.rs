//! How long the containers of a pod have to end, all of them together. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// What a container has at least to end, however long others took before it; what a kubelet gives.
pub(super) const LEAST: Duration = Duration::from_secs(2);

/// The grace of a pod, which begins once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grace {
    whole: Duration,
    deadline: Option<Instant>,
    cut: bool,
}

impl Grace {
    pub(super) fn new(whole: Duration) -> Self {
        Self { whole, deadline: None, cut: false }
    }

    /// The pod begins to end.
    pub(super) fn begin(&mut self, now: Instant) {
        self.deadline.get_or_insert(now + self.whole);
    }

    /// It is over, however much of it was left.
    pub(super) fn cut(&mut self, now: Instant) {
        self.deadline = Some(self.deadline.map_or(now, |deadline| deadline.min(now)));
        self.cut = true;
    }

    /// When a container is killed that is asked to end now.
    pub(super) fn deadline(&self, now: Instant) -> Instant {
        let deadline = self.deadline.unwrap_or(now + self.whole);
        if self.cut { deadline } else { deadline.max(now + LEAST) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_to_end_has_two_seconds_unless_somebody_is_in_a_hurry() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut grace = Grace::new(Duration::from_secs(10));
        grace.begin(begin);
        grace.begin(at(5));
        assert_eq!([grace.deadline(begin), grace.deadline(at(9))], [at(10), at(11)]);
        grace.cut(at(9));
        assert_eq!(grace.deadline(at(9)), at(9));
    }
}
