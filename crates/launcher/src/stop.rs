//! How a running cluster is asked to stop.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use nix::sys::signal::Signal;

/// How the postmaster is to end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stop {
    /// Clients are disconnected and a checkpoint is written.
    Fast,
    /// At once; the next start recovers from the write-ahead log.
    Immediate,
}

impl Stop {
    /// Signals to send in turn, and how long to wait for each to work.
    pub(crate) fn steps(self) -> &'static [(Signal, Duration)] {
        const FAST: &[(Signal, Duration)] = &[
            (Signal::SIGINT, Duration::from_secs(30)),
            (Signal::SIGQUIT, Duration::from_secs(10)),
            (Signal::SIGKILL, Duration::from_secs(10)),
        ];
        match self {
            Stop::Fast => FAST,
            Stop::Immediate => &FAST[1..],
        }
    }
}

/// The asking end; dropping it asks for an immediate stop.
pub(crate) type StopRequest = Sender<Stop>;

/// The asked end. Whoever must wait for something waits here, so that a request
/// is never left unheard.
pub(crate) struct StopRequests(Receiver<Stop>);

impl StopRequests {
    pub(crate) fn channel() -> (StopRequest, Self) {
        let (sender, receiver) = channel();
        (sender, Self(receiver))
    }

    /// Waits for a request, for at most `duration`.
    pub(crate) fn wait(&self, duration: Duration) -> Option<Stop> {
        match self.0.recv_timeout(duration) {
            Ok(stop) => Some(stop),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Stop::Immediate),
        }
    }
}
