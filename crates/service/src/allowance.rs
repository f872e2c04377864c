//! How much of something each of many may have in a while.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Keys remembered at most. Beyond this many all that are new share one allowance: a map must not
/// grow with what strangers make up.
const MAX_KEYS: usize = 50_000;

/// Shortest time between two looks for keys to forget: each walks over the whole map.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// An allowance for each key, which comes back evenly: `most` at once, `most` in each `period`.
#[derive(Debug)]
pub(crate) struct Allowance<K> {
    /// How long one unit takes to come back, in nanoseconds.
    unit_nanos: u128,
    period: Duration,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    /// When each has its whole allowance again; `None` is shared by those that found no room.
    whole_at: HashMap<Option<K>, Instant>,
    swept_at: Instant,
}

impl<K: Eq + Hash + Clone> Allowance<K> {
    pub(crate) fn new(most: u64, period: Duration) -> Self {
        Self {
            unit_nanos: period.as_nanos() / u128::from(most.max(1)),
            period,
            taken: Mutex::new(Taken {
                whole_at: HashMap::new(),
                swept_at: Instant::now(),
            }),
        }
    }

    /// Takes some, or says how long to wait for it. Who asks for more than there ever is waits
    /// until it is all there.
    pub(crate) fn take(&self, key: &K, amount: u64) -> Result<(), Duration> {
        let mut taken = self.lock();
        let now = Instant::now();
        let key = taken.place(key, now);
        let owed = taken.owed(&key, now);
        let more = self.worth(amount);
        let over = (owed + more).saturating_sub(self.period);
        if !over.is_zero() {
            return Err(over);
        }
        taken.whole_at.insert(key, now + owed + more);
        Ok(())
    }

    /// How long to wait for one; `None` if it is there.
    pub(crate) fn wait(&self, key: &K) -> Option<Duration> {
        let mut taken = self.lock();
        let now = Instant::now();
        let key = taken.place(key, now);
        let over = (taken.owed(&key, now) + self.worth(1)).saturating_sub(self.period);
        (!over.is_zero()).then_some(over)
    }

    fn worth(&self, amount: u64) -> Duration {
        let nanos = self.unit_nanos.saturating_mul(u128::from(amount));
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        Duration::from_nanos(nanos).min(self.period)
    }

    fn lock(&self) -> MutexGuard<'_, Taken<K>> {
        // What is behind it is complete after every statement.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Clone> Taken<K> {
    /// Where a key is accounted for.
    fn place(&mut self, key: &K, now: Instant) -> Option<K> {
        let key = Some(key.clone());
        if self.whole_at.len() >= MAX_KEYS && !self.whole_at.contains_key(&key) {
            if now - self.swept_at >= SWEEP_INTERVAL {
                self.swept_at = now;
                self.whole_at.retain(|_, whole_at| *whole_at > now);
            }
            if self.whole_at.len() >= MAX_KEYS {
                return None;
            }
        }
        key
    }

    /// What is missing of the whole allowance, in the time it takes to come back.
    fn owed(&self, key: &Option<K>, now: Instant) -> Duration {
        let whole_at = self.whole_at.get(key);
        whole_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_comes_back_evenly_and_to_each_its_own() {
        let allowance = Allowance::new(6, MINUTE);
        for _ in 0..6 {
            assert_eq!(allowance.wait(&"guesser"), None);
            allowance.take(&"guesser", 1).unwrap();
        }
        let wait = allowance.take(&"guesser", 1).unwrap_err();
        assert_eq!(wait, Duration::from_secs(10));
        assert_eq!(allowance.wait(&"guesser"), Some(wait));
        allowance.take(&"other", 6).unwrap();
        tokio::time::advance(wait).await;
        allowance.take(&"guesser", 1).unwrap();
        assert!(allowance.take(&"guesser", 1).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_there_ever_is_needs_the_whole() {
        let allowance = Allowance::new(1_000, MINUTE);
        allowance.take(&(), 1_000_000).unwrap();
        assert_eq!(allowance.take(&(), 1_000_000), Err(MINUTE));
        tokio::time::advance(MINUTE).await;
        allowance.take(&(), 1_000_000).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn memory_does_not_grow_with_what_strangers_make_up() {
        let allowance = Allowance::new(1, MINUTE);
        for stranger in 0..2 * MAX_KEYS {
            let _ = allowance.take(&stranger, 1);
        }
        assert_eq!(allowance.lock().whole_at.len(), MAX_KEYS + 1);
        assert!(allowance.wait(&(3 * MAX_KEYS)).is_some());
        tokio::time::advance(MINUTE).await;
        allowance.take(&(3 * MAX_KEYS), 1).unwrap();
        assert!(allowance.lock().whole_at.len() < MAX_KEYS);
    }
}
