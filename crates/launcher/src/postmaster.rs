//! One postmaster process, whose parent we are.

use std::io;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::Error;
use crate::leftovers::signal;
use crate::stop::{Stop, StopRequests};

const POLL: Duration = Duration::from_millis(10);

/// A running postmaster; dropping it stops it at once.
#[derive(Debug)]
pub(crate) struct Postmaster {
    child: Child,
    /// Where in the log its lines begin, in bytes.
    pub(crate) log_start: u64,
}

impl Postmaster {
    pub(crate) fn new(child: Child, log_start: u64) -> Self {
        Self { child, log_start }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has. This reaps it: a zombie would hold the lock file.
    pub(crate) fn exit_status(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child.try_wait().map_err(cannot_wait)
    }

    /// Ends it, more and more firmly, and reaps it. While it ends in order, a request to stop at
    /// once is heard.
    pub(crate) fn stop(
        &mut self,
        stop: Stop,
        requests: Option<&StopRequests>,
    ) -> Result<(), Error> {
        for &(step, bound) in stop.steps() {
            if self.exit_status()?.is_some() {
                return Ok(());
            }
            // Not reaped yet, so the number is still its own.
            signal(self.pid(), step);
            let hurry = requests.filter(|_| step == Signal::SIGINT);
            if self.wait(bound, hurry)? {
                return Ok(());
            }
            tracing::warn!(pid = self.pid(), signal = %step, "the postmaster did not end in time");
        }
        Err(cannot_wait(io::Error::from(io::ErrorKind::TimedOut)))
    }

    fn wait(&mut self, bound: Duration, hurry: Option<&StopRequests>) -> Result<bool, Error> {
        let deadline = Instant::now() + bound;
        while self.exit_status()?.is_none() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            match hurry {
                Some(requests) if requests.wait(POLL) == Some(Stop::Immediate) => return Ok(false),
                Some(_) => {}
                None => thread::sleep(POLL),
            }
        }
        Ok(true)
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        if let Err(error) = self.stop(Stop::Immediate, None) {
            tracing::error!(%error, pid = self.pid(), "the postmaster stays behind");
        }
    }
}

fn cannot_wait(cause: io::Error) -> Error {
    Error::Io {
        action: "wait for the postmaster to end".into(),
        cause,
    }
}
