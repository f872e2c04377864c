//! The public face of a supervised cluster.

use std::future;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;

use crate::launch::Launch;
use crate::layout::Layout;
use crate::stop::{Stop, StopRequest, StopRequests};
use crate::supervisor::{CurrentPid, Supervisor};
use crate::{Config, Error};

/// A running Postgres cluster, restarted when its postmaster dies.
///
/// A thread of its own looks after it, so it is bound to no async runtime. Dropping it
/// stops Postgres at once and waits for that: safe for durable data, but the next start
/// recovers from the log. [`Cluster::stop`] is the orderly way.
#[derive(Debug)]
pub struct Cluster {
    life: Life,
    /// `None` once the end was told.
    ended: Option<oneshot::Receiver<Result<(), Error>>>,
    pid: CurrentPid,
    layout: Arc<Layout>,
}

/// The thread that looks after a cluster; dropping this stops Postgres at once and waits for that,
/// also while it starts: a process that ended first would leave it behind.
#[derive(Debug)]
struct Life {
    /// `None` only while dropping.
    requests: Option<StopRequest>,
    /// `None` only while dropping.
    thread: Option<JoinHandle<()>>,
}

impl Cluster {
    /// Starts Postgres in the directory of `config` and waits until it accepts connections.
    ///
    /// A new cluster is made if there is none; a postmaster that a killed launcher left
    /// behind is replaced. Recovery after a crash may take as long as it makes progress.
    /// Dropping the future stops what was started, and waits for that.
    ///
    /// # Errors
    /// Most of [`Error`]; nothing is left running.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let (requests, stop) = StopRequests::channel();
        let (tell_start, started) = oneshot::channel();
        let (tell_end, ended) = oneshot::channel();
        let pid = CurrentPid::default();
        let its_pid = pid.clone();
        let thread = thread::Builder::new()
            .name("postgres".into())
            .spawn(move || {
                let result = live(config, its_pid, &stop, tell_start);
                // Nobody may be left to hear it.
                let _ = tell_end.send(result);
            })
            .map_err(|cause| Error::Io {
                action: "start a thread".into(),
                cause,
            })?;
        let life = Life {
            requests: Some(requests),
            thread: Some(thread),
        };
        Ok(Self {
            layout: started.await.unwrap_or(Err(Error::Panicked))?,
            life,
            ended: Some(ended),
            pid,
        })
    }

    /// A URL to connect to `database` with, as the superuser `muster`; sqlx and libpq read it.
    ///
    /// It stays valid over restarts. New clusters have a database `postgres`.
    pub fn url(&self, database: &str) -> String {
        self.layout.url(database)
    }

    /// The process id of the postmaster; `None` while it is being restarted or is down for good.
    pub fn postmaster_pid(&self) -> Option<u32> {
        self.pid.get()
    }

    /// Resolves when Postgres is down for good, with the reason and the last lines of its log.
    ///
    /// A postmaster that dies is restarted, with growing pauses, until five starts in a row have
    /// failed for another reason than a full disk. Cancel safe; stays pending after it has resolved once.
    pub async fn failed(&mut self) -> Error {
        if let Some(ended) = &mut self.ended {
            let result = ended.await.unwrap_or(Err(Error::Panicked));
            self.ended = None;
            if let Err(error) = result {
                return error;
            }
        }
        future::pending().await
    }

    /// Stops Postgres in order: clients are disconnected and a checkpoint is written.
    ///
    /// After 30 s, or when the future is dropped, it is stopped at once instead, and 10 s later
    /// killed.
    ///
    /// # Errors
    /// Why it does not end, or why it was down already if [`Cluster::failed`] has not told.
    pub async fn stop(mut self) -> Result<(), Error> {
        let Some(ended) = self.ended.take() else {
            return Ok(());
        };
        if let Some(requests) = &self.life.requests {
            // A supervisor that has ended hears nothing, but has told why.
            let _ = requests.send(Stop::Fast);
        }
        ended.await.unwrap_or(Err(Error::Panicked))
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("{}", Error::Panicked);
        }
    }
}

/// What the thread does. The data directory is released when this returns.
fn live(
    config: Config,
    pid: CurrentPid,
    stop: &StopRequests,
    tell_start: oneshot::Sender<Result<Arc<Layout>, Error>>,
) -> Result<(), Error> {
    let started = Launch::prepare(config, stop).and_then(|launch| {
        let layout = Arc::clone(&launch.layout);
        Ok((Supervisor::start(launch, stop, pid)?, layout))
    });
    // If nobody waits any more, the stop requests have ended as well, which stops it.
    match started {
        Ok((supervisor, layout)) => {
            let _ = tell_start.send(Ok(layout));
            supervisor.run(stop)
        }
        Err(error) => {
            let _ = tell_start.send(Err(error));
            Ok(())
        }
    }
}
