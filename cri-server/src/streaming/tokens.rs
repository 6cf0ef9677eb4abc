//! URLs that are good for one use within a minute.
//!
//! Invariant: a token has 128 random bits, is forgotten when it is taken, and is never logged. What it stands
//! for is held no longer than it is good, and all of that is bounded in number and in bytes.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustix::{
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};
use tokio::{sync::Notify, time::sleep_until};

type Token = [u8; 16];

/// Why no token was given out.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    /// So many are outstanding.
    #[error("{0} streaming URLs wait to be used; use them or let them expire")]
    TooMany(usize),
    /// What outstanding ones ask for is so much.
    #[error(
        "what streaming URLs that wait to be used ask for takes more than {0} bytes; use them or let them expire"
    )]
    TooLarge(usize),
    /// The kernel gives no random bits.
    #[error("no random bits for a streaming URL")]
    Random(#[source] Errno),
}

/// What outstanding tokens stand for.
pub(super) struct Tokens<T> {
    life: Duration,
    most: usize,
    most_bytes: usize,
    table: Mutex<Table<T>>,
    given: Notify,
}

struct Table<T> {
    known: HashMap<Token, Entry<T>>,
    /// Of all that are known.
    bytes: usize,
    /// In the order they expire; taken ones remain until then.
    order: VecDeque<(Instant, Token)>,
}

struct Entry<T> {
    item: T,
    bytes: usize,
}

impl<T> Tokens<T> {
    /// Tokens that live so long, so many at a time, for items that take so many bytes together.
    pub(super) fn new(life: Duration, most: usize, most_bytes: usize) -> Self {
        let table = Mutex::new(Table { known: HashMap::new(), bytes: 0, order: VecDeque::new() });
        Self { life, most, most_bytes, table, given: Notify::new() }
    }

    /// A new token in URL characters, for an item that takes so many bytes of memory.
    pub(super) fn give(&self, item: T, bytes: usize) -> Result<String, TokenError> {
        let mut token = Token::default();
        let filled = getrandom(&mut token, GetRandomFlags::empty()).map_err(TokenError::Random)?;
        debug_assert_eq!(filled, token.len(), "up to 256 bytes come at once (getrandom(2))");
        let now = Instant::now();
        let mut table = self.table();
        table.expire(now);
        if table.known.len() >= self.most {
            return Err(TokenError::TooMany(self.most));
        }
        if table.bytes.saturating_add(bytes) > self.most_bytes {
            return Err(TokenError::TooLarge(self.most_bytes));
        }
        let end = now + self.life;
        table.bytes += bytes;
        table.known.insert(token, Entry { item, bytes });
        table.order.push_back((end, token));
        drop(table);
        self.given.notify_one();
        Ok(URL_SAFE_NO_PAD.encode(token))
    }

    /// What a token stands for, once, if `fits` it; `None` when it is unknown, used or expired.
    pub(super) fn take(&self, text: &str, fits: impl FnOnce(&T) -> bool) -> Option<T> {
        let mut token = Token::default();
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut token).ok()?;
        if length != token.len() {
            return None;
        }
        let now = Instant::now();
        let mut table = self.table();
        table.expire(now);
        if !fits(&table.known.get(&token)?.item) {
            return None;
        }
        table.remove(&token)
    }

    /// Forgets tokens as they expire, for ever.
    pub(super) async fn sweep(&self) -> Infallible {
        loop {
            let next = self.table().order.front().map(|(end, _)| *end);
            match next {
                Some(end) => sleep_until(end.into()).await,
                None => self.given.notified().await,
            }
            self.table().expire(Instant::now());
        }
    }

    fn table(&self) -> MutexGuard<'_, Table<T>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Table<T> {
    fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(end, _)| *end <= now) {
            if let Some((_, token)) = self.order.pop_front() {
                self.remove(&token);
            }
        }
        if self.order.is_empty() {
            // As many as there were at the worst of times are not kept room for.
            (self.known, self.order) = Default::default();
        }
    }

    fn remove(&mut self, token: &Token) -> Option<T> {
        let entry = self.known.remove(token)?;
        self.bytes -= entry.bytes;
        Some(entry.item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_serve_once_in_time_and_are_bounded() {
        let tokens = Tokens::new(Duration::from_secs(60), 2, 100);
        let first = tokens.give(1, 0).unwrap();
        let second = tokens.give(2, 0).unwrap();
        assert_ne!(first, second);
        assert_eq!(first.len(), 22);
        assert!(matches!(tokens.give(3, 0), Err(TokenError::TooMany(2))));
        assert_eq!(tokens.take(&first, |item| *item == 2), None, "of another kind");
        assert_eq!(tokens.take(&first, |_| true), Some(1));
        assert_eq!(tokens.take(&first, |_| true), None);
        for wrong in ["", "x", &"A".repeat(22), &"A".repeat(4000), "?", &format!("{second}=")] {
            assert_eq!(tokens.take(wrong, |_| true), None);
        }
        assert!(tokens.give(3, 0).is_ok());

        let brief = Tokens::new(Duration::ZERO, 1, 100);
        let late = brief.give((), 0).unwrap();
        assert_eq!(brief.take(&late, |()| true), None);
        assert!(brief.give((), 0).is_ok());
    }

    #[test]
    fn what_tokens_stand_for_is_bounded_in_bytes() {
        let tokens = Tokens::new(Duration::from_secs(60), 10, 100);
        let large = tokens.give((), 60).unwrap();
        assert!(matches!(tokens.give((), 41), Err(TokenError::TooLarge(100))));
        assert!(matches!(tokens.give((), usize::MAX), Err(TokenError::TooLarge(100))));
        tokens.give((), 40).unwrap();
        tokens.take(&large, |()| true).unwrap();
        tokens.give((), 60).unwrap();
        assert!(tokens.give((), 1).is_err());
    }

    #[tokio::test]
    async fn what_expires_is_dropped_though_nobody_asks() {
        use std::sync::Arc;

        let tokens = Arc::new(Tokens::new(Duration::from_millis(20), 10, 100));
        let sweeping = tokio::spawn({
            let tokens = tokens.clone();
            async move { tokens.sweep().await }
        });
        let item = Arc::new(());
        for _ in 0..3 {
            tokens.give(item.clone(), 100).unwrap();
            let dropped = async {
                while Arc::strong_count(&item) > 1 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(5), dropped).await.expect("dropped");
        }
        sweeping.abort();
    }
}
