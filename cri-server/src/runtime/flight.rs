//! Verbs under way, by the object they work on. Whoever asks for the same again joins.
//!
//! A verb runs in a task of its own: a caller that goes away abandons the wait, never the work.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
};

use futures::FutureExt;
use tokio::sync::watch;

use crate::error::{Error, Result};

/// What those who wait for a verb are told when it has panicked.
const ABORTED: &str = "the work was aborted by an internal error, which is in the daemon's log; try again";

/// The verbs of one kind that are under way.
#[derive(Debug, Clone)]
pub(super) struct Flights<K, T> {
    under_way: Arc<Mutex<HashMap<K, Landed<T>>>>,
}

/// Tells when a verb has ended, and how.
pub(super) type Landed<T> = watch::Receiver<Option<Result<T>>>;

/// Does work to its end, whether its caller stays or goes away.
pub(super) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await.unwrap_or_else(|_| Err(Error::Precondition(ABORTED.to_owned())))
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self { under_way: Arc::default() }
    }
}

impl<K, T> Flights<K, T>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// The result of the work on `key`: of the one under way, or of `work`, which is then begun.
    pub(super) async fn join<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut done = self.take_off(key, work);
        match done.wait_for(Option::is_some).await {
            Ok(result) => result.clone().expect("waited for"),
            Err(_) => Err(Error::Precondition(ABORTED.to_owned())),
        }
    }

    /// Begins `work` on `key`, unless some is under way; when this returns, whoever asks for the same joins it.
    /// Nobody need wait for the result.
    pub(super) fn take_off<F>(&self, key: K, work: impl FnOnce() -> F) -> Landed<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut under_way = self.lock();
        if let Some(done) = under_way.get(&key) {
            return done.clone();
        }
        let done = self.begin(key.clone(), work());
        under_way.insert(key, done.clone());
        done
    }

    fn begin<F>(&self, key: K, work: F) -> Landed<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (tell, done) = watch::channel(None);
        let landing = Landing { flights: self.clone(), key };
        tokio::spawn(async move {
            let result = work.await;
            // Off the list before it is told: who asks after the answer gets new work.
            drop(landing);
            tell.send_replace(Some(result));
        });
        done
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, Landed<T>>> {
        self.under_way.lock().expect("no code panics while it holds the flights")
    }
}

/// The result of `work`; an error when it panics, so that its caller can undo what it had begun.
pub(super) async fn guarded<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let caught = AssertUnwindSafe(work).catch_unwind().await;
    caught.unwrap_or_else(|_| Err(Error::Precondition(ABORTED.to_owned())))
}

/// Takes the work off the list when it has ended, even by a panic.
struct Landing<K: Eq + Hash + Clone + Send + 'static, T: Clone + Send + Sync + 'static> {
    flights: Flights<K, T>,
    key: K,
}

impl<K: Eq + Hash + Clone + Send + 'static, T: Clone + Send + Sync + 'static> Drop for Landing<K, T> {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_repeated_call_joins_the_one_under_way() {
        let flights: Flights<u8, usize> = Flights::default();
        let begun = Arc::new(AtomicUsize::new(0));
        let (release, released) = oneshot::channel::<()>();
        let count = begun.clone();
        let first = flights.join(1, || async move {
            released.await.unwrap();
            Ok(count.fetch_add(1, Ordering::SeqCst))
        });
        let second = flights.join(1, || async { panic!("joined, not begun") });
        let both = async { tokio::join!(first, second) };
        let (answers, ()) = tokio::join!(both, async { release.send(()).unwrap() });
        assert_eq!((answers.0.unwrap(), answers.1.unwrap()), (0, 0));
        assert!(flights.lock().is_empty());
    }

    #[tokio::test]
    async fn work_goes_on_when_nobody_waits_any_more() {
        let flights: Flights<u8, ()> = Flights::default();
        let (tell, told) = oneshot::channel();
        let (release, released) = oneshot::channel::<()>();
        {
            let call = flights.join(1, || async move {
                released.await.unwrap();
                tell.send(()).unwrap();
                Ok(())
            });
            tokio::pin!(call);
            assert!(futures::poll!(call.as_mut()).is_pending());
        }
        release.send(()).unwrap();
        told.await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_an_error_for_those_who_wait() {
        let flights: Flights<u8, ()> = Flights::default();
        assert!(flights.join(1, || async { panic!("on purpose") }).await.is_err());
        assert!(flights.join(1, || async { Ok(()) }).await.is_ok());
    }
}
