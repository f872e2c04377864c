//! The way from a process to its database, and what breaks on it.

use std::{path::PathBuf, sync::Arc};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
};

use crate::node::Deployment;

/// What happens to the way from the ingest server to its database around the revocation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    /// Nothing; the revocation alone has to be seen.
    None,
    /// Postgres ends all its connections.
    Terminated,
    /// The network ends all its connections.
    Cut,
    /// The network swallows everything.
    Swallowed,
    /// Its backends are stopped.
    Frozen,
}

/// The way from a process to the database, which can be broken.
pub(super) struct Link {
    /// The database, by this way.
    pub(super) url: String,
    control: Arc<watch::Sender<Way>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Way {
    /// Nothing gets through.
    swallows: bool,
    /// Connections of earlier generations are cut.
    generation: u32,
}

/// Names the role by which backends of the link are told from others.
const ROLE: &str = "linked";

impl Link {
    pub(super) async fn start(muster: &mut Deployment) -> Self {
        let mut connection = muster.store.connection().await.unwrap();
        muster_testbed::execute(
            &mut connection,
            "DO $$ BEGIN CREATE ROLE linked SUPERUSER LOGIN; EXCEPTION WHEN duplicate_object THEN END $$",
        )
        .await;
        let url = reqwest::Url::parse(&muster.database_url).unwrap();
        let host = url.query_pairs().find(|(name, _)| name == "host").unwrap();
        let socket = PathBuf::from(host.1.as_ref()).join(".s.PGSQL.5432");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (control, way) = watch::channel(Way {
            swallows: false,
            generation: 0,
        });
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&socket).await else {
                    continue;
                };
                tokio::spawn(forward(client, server, way.clone()));
            }
        });
        Self {
            url: format!(
                "postgres://{ROLE}@127.0.0.1:{port}{}?sslmode=disable",
                url.path()
            ),
            control: Arc::new(control),
        }
    }

    /// Breaks it; returns the processes that were stopped.
    pub(super) async fn inject(&self, fault: Fault, muster: &Deployment) -> Vec<i32> {
        let mut connection = muster.store.connection().await.unwrap();
        match fault {
            Fault::None => {}
            Fault::Terminated => {
                let query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                             WHERE usename = 'linked' AND datname = current_database()";
                let ended = muster_testbed::number(&mut connection, query).await;
                assert_ne!(ended, 0, "there was a connection to end");
            }
            Fault::Cut => self.control.send_modify(|way| way.generation += 1),
            Fault::Swallowed => self.control.send_modify(|way| way.swallows = true),
            Fault::Frozen => {
                let pids: Vec<i32> = sqlx::query_scalar(
                    "SELECT pid FROM pg_stat_activity
                     WHERE usename = 'linked' AND datname = current_database()",
                )
                .fetch_all(&mut *connection)
                .await
                .unwrap();
                assert!(!pids.is_empty(), "there was a connection to freeze");
                // One that publishes holds the credential, and a revocation waits for it.
                signal(&pids, Signal::SIGSTOP);
                return pids;
            }
        }
        Vec::new()
    }

    pub(super) fn mend(&self, stopped: Vec<i32>) {
        signal(&stopped, Signal::SIGCONT);
        self.control.send_modify(|way| way.swallows = false);
    }
}

fn signal(pids: &[i32], signal: Signal) {
    for pid in pids {
        // It may have ended.
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}

/// Forwards both ways for as long as the way allows.
async fn forward(mut client: TcpStream, mut server: UnixStream, way: watch::Receiver<Way>) {
    let generation = way.borrow().generation;
    let (client_in, client_out) = client.split();
    let (server_in, server_out) = server.split();
    let mut cutting = way.clone();
    let cut = async {
        let _ = cutting.wait_for(|way| way.generation != generation).await;
    };
    tokio::select! {
        () = copy(client_in, server_out, way.clone()) => {}
        () = copy(server_in, client_out, way.clone()) => {}
        () = cut => {}
    }
}

async fn copy(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    mut way: watch::Receiver<Way>,
) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        if way.wait_for(|way| !way.swallows).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
