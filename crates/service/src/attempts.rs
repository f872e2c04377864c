//! How often somebody may fail to be who they say they are, before nobody looks any more.
//!
//! Secrets cannot be guessed: this keeps those who try from asking the database all the time. Counted
//! are an address whose secrets are not accepted, and a credential that is used from where it is not
//! allowed or for what it may not do. Whoever was accepted a while ago, from the same address with
//! the same secret, is always looked up: others behind the same address, or in possession of the same
//! secret, cannot keep it out.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_domain::{
    credential::Digest,
    error::{Error, Kind},
    network::Network,
};
use tokio::time::Instant;

use crate::{allowance::Allowance, traffic::Account};

/// How long it is remembered that a secret was accepted from an address.
const MEMORY: Duration = Duration::from_secs(60 * 60);

/// Pairs of secret and address remembered at most.
const MAX_ACCEPTED: usize = 50_000;

/// How many attempts may fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// In a minute, of one address and of one credential.
    pub per_minute: NonZeroU32,
    /// Addresses that are not counted, because many callers share them, such as that of a proxy.
    pub uncounted_from: Vec<Network>,
}

impl Default for Settings {
    fn default() -> Self {
        let loopback = ["127.0.0.0/8", "::1/128"];
        Self {
            per_minute: const { NonZeroU32::new(60).expect("it is not 0") },
            uncounted_from: loopback.map(|text| text.parse().expect("a network")).into(),
        }
    }
}

type Secret = [u8; 32];

/// The failures of this process.
#[derive(Debug)]
pub(crate) struct Attempts {
    uncounted_from: Vec<Network>,
    by_address: Allowance<IpAddr>,
    by_credential: Allowance<Secret>,
    accepted: Mutex<Accepted>,
}

/// What was accepted, when, and on whose account it goes, if on one alone.
type Accepted = HashMap<(Secret, Option<IpAddr>), (Instant, Option<Account>)>;

impl Attempts {
    pub(crate) fn new(settings: &Settings) -> Self {
        let (most, minute) = (settings.per_minute.get().into(), Duration::from_secs(60));
        Self {
            uncounted_from: settings.uncounted_from.clone(),
            by_address: Allowance::new(most, minute),
            by_credential: Allowance::new(most, minute),
            accepted: Mutex::default(),
        }
    }

    /// Whether to look a secret up that comes from an address; if it was accepted a while ago, with
    /// the account it goes on, unless it serves several.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` (`TOO_MANY_FAILED_ATTEMPTS`).
    pub(crate) fn check(
        &self,
        peer: Option<IpAddr>,
        secret: &Digest,
    ) -> Result<Option<Account>, Error> {
        let secret = *secret.as_bytes();
        if let Some((at, account)) = self.accepted().get(&(secret, peer))
            && at.elapsed() < MEMORY
        {
            return Ok(account.clone());
        }
        let address = self.counted(peer).and_then(|of| self.by_address.wait(&of));
        match address.or_else(|| self.by_credential.wait(&secret)) {
            Some(wait) => Err(too_many(wait)),
            None => Ok(None),
        }
    }

    /// Counts a secret that is no credential's, or none any more; also one that is malformed.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` (`TOO_MANY_FAILED_ATTEMPTS`) if there were too many before.
    pub(crate) fn unknown(
        &self,
        peer: Option<IpAddr>,
        secret: Option<&Digest>,
    ) -> Result<(), Error> {
        if let Some(secret) = secret {
            self.accepted().remove(&(*secret.as_bytes(), peer));
        }
        match self.counted(peer) {
            Some(address) => self.by_address.take(&address, 1).map_err(too_many),
            None => Ok(()),
        }
    }

    /// Counts a credential that comes from where it is not allowed.
    pub(crate) fn misplaced(&self, peer: Option<IpAddr>, secret: &Digest) {
        self.misused(secret);
        // Whoever calls is told that it is unknown, either way.
        let _ = self.unknown(peer, Some(secret));
    }

    /// Counts a credential that is used for what it may not do.
    pub(crate) fn misused(&self, secret: &Digest) {
        let _ = self.by_credential.take(secret.as_bytes(), 1);
    }

    /// Remembers that a secret was accepted from an address. A partner's API key, which comes with
    /// the keys of many workspaces, goes on no account.
    pub(crate) fn accepted_from(
        &self,
        peer: Option<IpAddr>,
        secret: &Digest,
        account: Option<Account>,
    ) {
        let mut accepted = self.accepted();
        let (key, now) = ((*secret.as_bytes(), peer), Instant::now());
        if accepted.len() >= MAX_ACCEPTED && !accepted.contains_key(&key) {
            accepted.retain(|_, (at, _)| now - *at < MEMORY);
            if accepted.len() >= MAX_ACCEPTED {
                return;
            }
        }
        accepted.insert(key, (now, account));
    }

    /// What an address is counted as; `None` if it is not.
    fn counted(&self, peer: Option<IpAddr>) -> Option<IpAddr> {
        let peer = peer?;
        let uncounted = self.uncounted_from.iter().any(|of| of.contains(peer));
        (!uncounted).then(|| household(peer))
    }

    fn accepted(&self) -> MutexGuard<'_, Accepted> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The addresses that one customer of a network has: of IPv6 usually 2⁶⁴.
fn household(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let network = address.to_bits() >> 64 << 64;
            Ipv6Addr::from_bits(network).into()
        }
    }
}

fn too_many(wait: Duration) -> Error {
    Error::new(
        Kind::ResourceExhausted,
        "TOO_MANY_FAILED_ATTEMPTS",
        "too many credentials were refused; wait before the next try",
    )
    .retry_after(wait)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const GUESSER: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    const ELSEWHERE: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)));

    fn attempts() -> Attempts {
        Attempts::new(&Settings {
            per_minute: NonZeroU32::new(3).unwrap(),
            ..Settings::default()
        })
    }

    fn account() -> Account {
        Account::of_token(uuid::Uuid::nil())
    }

    fn digest(of: u8) -> Digest {
        Digest::from([of; 32])
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_fails_too_often_is_not_looked_up_for_a_while() {
        let attempts = attempts();
        for guess in 0..3 {
            attempts.check(GUESSER, &digest(guess)).unwrap();
            attempts.unknown(GUESSER, Some(&digest(guess))).unwrap();
        }
        let refused = attempts.check(GUESSER, &digest(9)).unwrap_err();
        assert_eq!(refused.reason, "TOO_MANY_FAILED_ATTEMPTS");
        assert_eq!(refused.retry_after, Some(Duration::from_secs(20)));
        // Malformed ones are told so, too.
        assert!(attempts.unknown(GUESSER, None).is_err());
        attempts.check(ELSEWHERE, &digest(9)).unwrap();
        tokio::time::advance(Duration::from_secs(20)).await;
        attempts.check(GUESSER, &digest(9)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_accepted_is_not_held_up_by_a_guesser_at_the_same_address() {
        let attempts = attempts();
        attempts.accepted_from(GUESSER, &digest(1), Some(account()));
        for guess in 100..110 {
            let _ = attempts.unknown(GUESSER, Some(&digest(guess)));
        }
        assert!(attempts.check(GUESSER, &digest(2)).is_err());
        attempts.check(GUESSER, &digest(1)).unwrap();
        // Until it is refused itself.
        let _ = attempts.unknown(GUESSER, Some(&digest(1)));
        assert!(attempts.check(GUESSER, &digest(1)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stolen_credential_is_stopped_and_its_owner_is_not() {
        let attempts = attempts();
        attempts.accepted_from(ELSEWHERE, &digest(1), Some(account()));
        for last in 0..3 {
            let thief = Some(IpAddr::from([198, 51, 100, last]));
            attempts.check(thief, &digest(1)).unwrap();
            attempts.misplaced(thief, &digest(1));
        }
        assert!(attempts.check(GUESSER, &digest(1)).is_err());
        attempts.check(ELSEWHERE, &digest(1)).unwrap();
    }

    #[tokio::test]
    async fn proxies_and_the_process_itself_are_not_counted() {
        let attempts = attempts();
        for peer in [None, Some(IpAddr::from([127, 0, 0, 1]))] {
            for guess in 0..10 {
                attempts.unknown(peer, Some(&digest(guess))).unwrap();
            }
            attempts.check(peer, &digest(9)).unwrap();
        }
    }

    #[test]
    fn a_household_of_ipv6_counts_as_one_address() {
        let of = |text: &str| household(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[tokio::test]
    async fn memory_of_who_was_accepted_is_bounded() {
        let attempts = attempts();
        for n in 0..MAX_ACCEPTED + 100 {
            let mut secret = [0; 32];
            secret[..8].copy_from_slice(&n.to_be_bytes());
            attempts.accepted_from(None, &Digest::from(secret), Some(account()));
        }
        assert_eq!(attempts.accepted().len(), MAX_ACCEPTED);
    }
}
