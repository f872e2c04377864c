//! The life of a cluster: started, watched, restarted when it dies, stopped.
//!
//! This is a plain thread, so that a cluster belongs to no async runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::Error;
use crate::launch::Launch;
use crate::postmaster::Postmaster;
use crate::stop::{Stop, StopRequests};

const POLL: Duration = Duration::from_millis(100);

/// Starts that may fail in a row before giving up. One for want of space does not count: room is
/// made while we run.
const MAX_FAILED_STARTS: u32 = 5;

/// The pauses before restarts double from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A postmaster that lived this long was sound: the next pause is the first again.
const SOUND_AFTER: Duration = Duration::from_secs(60);

/// The process id of the postmaster, as others may see it; 0 while there is none.
#[derive(Clone, Debug, Default)]
pub(crate) struct CurrentPid(Arc<AtomicU32>);

impl CurrentPid {
    pub(crate) fn get(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Acquire)).filter(|&pid| pid != 0)
    }

    fn set(&self, pid: Option<u32>) {
        self.0.store(pid.unwrap_or(0), Ordering::Release);
    }
}

/// Keeps a postmaster running until a stop is asked for.
#[derive(Debug)]
pub(crate) struct Supervisor {
    // Dropped in this order: the directory is ours until the postmaster has ended.
    postmaster: Postmaster,
    launch: Launch,
    pid: CurrentPid,
    started: Instant,
    next_pause: Duration,
}

impl Supervisor {
    /// Starts the first postmaster; nothing is tried twice.
    pub(crate) fn start(
        launch: Launch,
        stop: &StopRequests,
        pid: CurrentPid,
    ) -> Result<Self, Error> {
        let postmaster = launch.start(stop)?;
        pid.set(Some(postmaster.pid()));
        Ok(Self {
            postmaster,
            launch,
            pid,
            started: Instant::now(),
            next_pause: FIRST_PAUSE,
        })
    }

    /// Returns once a stop was asked for and the cluster has ended, or with the reason
    /// why the cluster cannot be kept running.
    pub(crate) fn run(mut self, stop: &StopRequests) -> Result<(), Error> {
        loop {
            if let Some(how) = stop.wait(POLL) {
                return self.stop(how, stop);
            }
            let Some(status) = self.postmaster.exit_status()? else {
                continue;
            };
            let error = self.launch.ended(&self.postmaster, status);
            self.pid.set(None);
            match self.restart(error, stop) {
                Err(Error::Stopped) => return Ok(()),
                result => result?,
            }
        }
    }

    fn stop(&mut self, how: Stop, requests: &StopRequests) -> Result<(), Error> {
        self.pid.set(None);
        self.postmaster.stop(how, Some(requests))?;
        // Backends outlive a postmaster that had to be killed.
        self.launch.clear_leftovers()?;
        tracing::info!("PostgreSQL has stopped");
        Ok(())
    }

    /// Replaces a postmaster that died because of `error`.
    fn restart(&mut self, mut error: Error, stop: &StopRequests) -> Result<(), Error> {
        if self.started.elapsed() > SOUND_AFTER {
            self.next_pause = FIRST_PAUSE;
        }
        let mut failed = 0;
        while failed < MAX_FAILED_STARTS {
            let pause = self.next_pause;
            self.next_pause = (2 * pause).min(LONGEST_PAUSE);
            tracing::error!(%error, ?pause, "PostgreSQL is down; restarting it");
            if stop.wait(pause).is_some() {
                return Err(Error::Stopped);
            }
            match self.launch.start(stop) {
                Ok(postmaster) => {
                    self.pid.set(Some(postmaster.pid()));
                    self.postmaster = postmaster;
                    self.started = Instant::now();
                    return Ok(());
                }
                Err(Error::Stopped) => return Err(Error::Stopped),
                Err(next) => {
                    failed += u32::from(!matches!(next, Error::NoSpace { .. }));
                    error = next;
                }
            }
        }
        Err(Error::GaveUp {
            restarts: failed,
            last: Box::new(error),
        })
    }
}
