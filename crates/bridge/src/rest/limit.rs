//! How many calls a key may make.

use std::{
    num::NonZeroU32,
    sync::Mutex,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::response::Response;
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::{StateInformationMiddleware, StateSnapshot},
    state::keyed::HashMapStateStore,
};
use http::HeaderValue;
use muster_domain::credential::Secret;
use sha2::{Digest, Sha256};

/// Keys remembered at most. Anybody can make up secrets with a valid checksum, so the map must not
/// grow with what is sent; beyond this many, new and old keys share one allowance until it shrinks.
const MAX_KEYS: usize = 100_000;

/// Shortest time between two looks for keys to forget: each walks over the whole map.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The key that all share when the map is full.
const OVERFLOW: Key = [0; 32];

/// SHA-256 of partner and secret: no secret stays in memory for longer than its call.
type Key = [u8; 32];

/// What a key has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    limit: u32,
    remaining: u32,
    /// When the whole limit is free again, in seconds since 1970.
    reset: u64,
}

impl Standing {
    fn new(limit: u32, remaining: u32, full_again: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let reset = now.unwrap_or_default() + full_again;
        Self {
            limit,
            remaining,
            reset: reset.as_secs() + u64::from(reset.subsec_nanos() > 0),
        }
    }

    /// Puts it on an answer that does not carry one already.
    pub(super) fn put_on(self, response: &mut Response) {
        let headers = response.headers_mut();
        let values = [
            ("x-ratelimit-limit", HeaderValue::from(self.limit)),
            ("x-ratelimit-remaining", HeaderValue::from(self.remaining)),
            ("x-ratelimit-reset", HeaderValue::from(self.reset)),
        ];
        for (name, value) in values {
            headers.entry(name).or_insert(value);
        }
    }
}

/// The allowances of all keys.
pub(super) struct Limits {
    limiter: RateLimiter<Key, HashMapStateStore<Key>, DefaultClock, StateInformationMiddleware>,
    per_hour: NonZeroU32,
    swept: Mutex<Instant>,
}

impl Limits {
    pub(super) fn new(per_hour: NonZeroU32) -> Self {
        let limiter = RateLimiter::hashmap(Quota::per_hour(per_hour));
        Self {
            limiter: limiter.with_middleware(),
            per_hour,
            swept: Mutex::new(Instant::now()),
        }
    }

    /// What somebody has left who presented no key.
    pub(super) fn untouched(&self) -> Standing {
        let limit = self.per_hour.get();
        Standing::new(limit, limit, Duration::ZERO)
    }

    /// Counts a call; the error says how long to wait for the next.
    pub(super) fn count(&self, partner: &str, secret: &Secret) -> (Standing, Result<(), Duration>) {
        let key = if self.has_room() {
            let mut hash = Sha256::new();
            // A slug has no NUL, so no two pairs look alike.
            hash.update(partner);
            hash.update([0]);
            hash.update(secret.expose());
            hash.finalize().into()
        } else {
            OVERFLOW
        };
        match self.limiter.check_key(&key) {
            Ok(snapshot) => (self.standing(&snapshot), Ok(())),
            Err(not_until) => {
                let wait = not_until.wait_time_from(self.limiter.clock().now());
                let hour = Duration::from_secs(3600);
                let standing = Standing::new(self.per_hour.get(), 0, hour);
                (standing, Err(wait))
            }
        }
    }

    fn standing(&self, snapshot: &StateSnapshot) -> Standing {
        let limit = self.per_hour.get();
        let remaining = snapshot.remaining_burst_capacity();
        let used = limit.saturating_sub(remaining);
        let full_again = snapshot.quota().replenish_interval() * used;
        Standing::new(limit, remaining, full_again)
    }

    /// Whether the map may grow; forgets keys that have their whole allowance again if it is full.
    fn has_room(&self) -> bool {
        if self.limiter.len() < MAX_KEYS {
            return true;
        }
        let mut swept = self.swept.lock().expect("no panic while it is held");
        if swept.elapsed() >= SWEEP_INTERVAL {
            *swept = Instant::now();
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
        self.limiter.len() < MAX_KEYS
    }
}

#[cfg(test)]
mod tests {
    use muster_domain::credential::Kind;

    use super::*;

    fn secret() -> Secret {
        Secret::generate(Kind::DataImportKey).unwrap()
    }

    #[test]
    fn a_key_is_stopped_and_another_is_not() {
        let limits = Limits::new(NonZeroU32::new(3).unwrap());
        let (mine, other) = (secret(), secret());
        for left in [2, 1, 0] {
            let (standing, allowed) = limits.count("tinyclues", &mine);
            assert_eq!((standing.limit, standing.remaining), (3, left));
            assert!(allowed.is_ok());
        }
        let (standing, allowed) = limits.count("tinyclues", &mine);
        assert_eq!(standing.remaining, 0);
        let wait = allowed.unwrap_err();
        assert!((1_000..=1_200).contains(&wait.as_secs()), "{wait:?}");
        assert!(limits.count("tinyclues", &other).1.is_ok());
        assert!(limits.count("amplitude", &mine).1.is_ok());
    }

    #[test]
    fn made_up_secrets_do_not_grow_the_map() {
        let limits = Limits::new(NonZeroU32::new(10).unwrap());
        for n in 0..MAX_KEYS {
            let mut key = OVERFLOW;
            key[..8].copy_from_slice(&(n as u64 + 1).to_be_bytes());
            assert!(limits.limiter.check_key(&key).is_ok());
        }
        for _ in 0..20 {
            let _ = limits.count("tinyclues", &secret());
        }
        assert_eq!(limits.limiter.len(), MAX_KEYS + 1);
    }
}
