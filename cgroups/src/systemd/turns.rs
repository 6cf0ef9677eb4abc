//! How many may ask systemd at once. Each connection is told of every unit that changes, and process 1 serves them
//! one after the other: more at once take longer for all.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Instant,
};

const AT_ONCE: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: Mutex<usize>,
    given_back: Condvar,
}

/// Somebody's turn, until it is dropped.
pub(super) struct Turn<'a>(Option<&'a Turns>);

impl Turns {
    /// Waits for a turn. After the deadline it is everybody's, and fails by itself.
    pub(super) fn take(&self, deadline: Instant) -> Turn<'_> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.given_back.wait_timeout_while(taken, left, |taken| *taken >= AT_ONCE);
        let (mut taken, late) = waited.unwrap_or_else(PoisonError::into_inner);
        if late.timed_out() {
            return Turn(None);
        }
        *taken += 1;
        Turn(Some(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(turns) = self.0 {
            *turns.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            turns.given_back.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nobody_waits_longer_than_it_wants_to() {
        let turns = Turns::default();
        let soon = || Instant::now() + Duration::from_secs(60);
        let all: Vec<Turn<'_>> = (0..AT_ONCE).map(|_| turns.take(soon())).collect();
        assert!(turns.take(Instant::now() + Duration::from_millis(20)).0.is_none());
        drop(all);
        assert!(turns.take(soon()).0.is_some());
    }
}
