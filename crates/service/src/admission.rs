//! Whether a caller is still admitted, for calls that last.
//!
//! A task beside the call looks the credential up again and again, on the connections that are kept
//! for that. What a stream gives away it gives only while the last look that said yes is recent
//! ([`Admission::confirmed`]): so it falls silent in time also when the database cannot be asked.
//! Ending the stream can then wait a little longer ([`Admission::ended`]), which spares callers a
//! database that only restarts.

use std::time::Duration;

use muster_domain::error::{Error, Kind};
use muster_storage::Store;
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, timeout_at},
};

use crate::{Caller, caller::credential_invalid};

/// Pause between two looks: an open stream ends within a second of a revocation.
const CHECK: Duration = Duration::from_millis(300);

/// How old the look that allows an answer may be; the rest of the second is for the answer's way.
const FRESH: Duration = Duration::from_millis(750);

/// A call whose credential could not be looked up for so long is refused or, if it is open, ended.
pub(crate) const GIVE_UP: Duration = Duration::from_secs(5);

/// A caller whose credential is watched until this is dropped.
#[derive(Debug)]
pub struct Admission {
    state: watch::Receiver<State>,
    watching: AbortHandle,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// A look that began at this moment found the credential accepted.
    Confirmed(Instant),
    /// It is accepted no more.
    Refused,
    /// Nobody knows, and that for too long.
    Unconfirmed,
}

impl Admission {
    /// Begins to watch a caller who was admitted.
    pub fn watch(store: Store, caller: Caller) -> Self {
        let (tell, state) = watch::channel(State::Confirmed(caller.admitted_at));
        let watching = tokio::spawn(watch(store, caller, tell)).abort_handle();
        Self { state, watching }
    }

    /// Waits until the credential is known to have been accepted less than a second ago.
    ///
    /// # Errors
    /// As [`Admission::ended`].
    pub async fn confirmed(&self) -> Result<(), Error> {
        self.reach(|state| match state {
            State::Confirmed(at) => at.elapsed() < FRESH,
            State::Refused | State::Unconfirmed => false,
        })
        .await
    }

    /// Resolves when the call must end: `UNAUTHENTICATED` (`CREDENTIAL_INVALID`) once the
    /// credential is accepted no more, `UNAVAILABLE` (`DATABASE_UNAVAILABLE`) once that could not be
    /// found out for too long.
    pub async fn ended(&self) -> Error {
        match self.reach(|_| false).await {
            Err(error) => error,
            Ok(()) => unreachable!("nothing is good enough"),
        }
    }

    async fn reach(&self, enough: impl Fn(State) -> bool) -> Result<(), Error> {
        let mut state = self.state.clone();
        loop {
            match *state.borrow_and_update() {
                State::Refused => return Err(credential_invalid()),
                State::Unconfirmed => return Err(unconfirmed()),
                confirmed if enough(confirmed) => return Ok(()),
                State::Confirmed(_) => {}
            }
            if state.changed().await.is_err() {
                // The task has told its last word, or has died without one.
                match *state.borrow() {
                    State::Refused => return Err(credential_invalid()),
                    State::Unconfirmed | State::Confirmed(_) => return Err(unconfirmed()),
                }
            }
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// Looks the credential up until that is for nothing.
async fn watch(store: Store, caller: Caller, tell: watch::Sender<State>) {
    let mut failing_since = None;
    loop {
        sleep(CHECK).await;
        let began = Instant::now();
        // Counted from a look, not from the last answer: a process that was frozen gets a look.
        let patience = failing_since.unwrap_or(began) + GIVE_UP;
        let state = match timeout_at(patience, caller.check_active(&store)).await {
            Ok(Ok(())) => {
                failing_since = None;
                State::Confirmed(began)
            }
            Ok(Err(error)) if error.kind == Kind::Unauthenticated => State::Refused,
            Ok(Err(_)) if Instant::now() < patience => {
                failing_since.get_or_insert(began);
                continue;
            }
            Ok(Err(_)) | Err(_) => State::Unconfirmed,
        };
        tell.send_replace(state);
        if !matches!(state, State::Confirmed(_)) {
            return;
        }
    }
}

/// That the credential could not be looked up.
pub(crate) fn unconfirmed() -> Error {
    Error::new(
        Kind::Unavailable,
        "DATABASE_UNAVAILABLE",
        "the database is out of reach, so the credential could not be confirmed",
    )
    .retry_after(Duration::from_secs(1))
}
