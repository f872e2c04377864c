//! A loopback TCP proxy that does to connections what a network on a bad day does.
//!
//! A [`Trouble`] befalls one way of a connection: planned beforehand as a [`Fault`], after a number
//! of bytes, or at a moment the test chooses, with [`Proxy::strike`].

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// One way of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// What the client sends.
    ToServer,
    /// What the server sends.
    ToClient,
}

/// What befalls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The connection ends, both ways.
    Cut,
    /// This way ends, the other goes on.
    Halve,
    /// This way carries nothing any more, not even its end, and nobody is told.
    Blackhole,
    /// What comes this way waits for so long, or until the next trouble.
    Delay(Duration),
}

/// A trouble that befalls a connection by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Which way.
    pub way: Way,
    /// Once this way has carried so many bytes.
    pub after_bytes: usize,
    /// What happens.
    pub trouble: Trouble,
}

/// A proxy in front of a server.
pub struct Proxy {
    /// URL to connect to instead of the server's.
    pub url: String,
    shared: Arc<Shared>,
    _running: DropGuard,
}

#[derive(Default)]
struct Shared {
    planned: Mutex<VecDeque<Fault>>,
    open: Mutex<HashMap<usize, Arc<Line>>>,
    accepted: AtomicUsize,
    struck: AtomicUsize,
}

/// What has befallen a connection.
struct Line {
    to_server: watch::Sender<Option<Trouble>>,
    to_client: watch::Sender<Option<Trouble>>,
    cut: CancellationToken,
}

impl Proxy {
    /// Forwards to `http://ADDRESS`. The first connections are cut once the client has sent so many
    /// bytes, one after the other; later ones are left alone.
    pub async fn start(upstream: &str, cut_after_bytes: Vec<usize>) -> Self {
        let cut = |after_bytes| Fault {
            way: Way::ToServer,
            after_bytes,
            trouble: Trouble::Cut,
        };
        Self::with_faults(upstream, cut_after_bytes.into_iter().map(cut)).await
    }

    /// Forwards to `http://ADDRESS`. Each of the first connections has one of these faults, in their
    /// order; later ones have none.
    pub async fn with_faults(upstream: &str, planned: impl IntoIterator<Item = Fault>) -> Self {
        let upstream = upstream.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            planned: Mutex::new(planned.into_iter().collect()),
            ..Shared::default()
        });
        let running = CancellationToken::new();
        let (stop, accepting) = (running.clone(), Arc::clone(&shared));
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (upstream, shared) = (upstream.clone(), Arc::clone(&accepting));
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(&upstream).await {
                        shared.forward(client, server).await;
                    }
                });
            }
        }));
        Self {
            url,
            shared,
            _running: running.drop_guard(),
        }
    }

    /// Brings trouble to every connection that is open now; returns to how many.
    pub fn strike(&self, way: Way, trouble: Trouble) -> usize {
        let open = self.shared.open.lock().unwrap();
        for line in open.values() {
            self.shared.strike(line, way, trouble);
        }
        open.len()
    }

    /// How many troubles befell connections so far.
    pub fn struck(&self) -> usize {
        self.shared.struck.load(Ordering::Relaxed)
    }

    /// How many connections have a side that has not closed its end. A blackhole hides the end of
    /// one side from the other, which must find out by itself.
    pub fn open(&self) -> usize {
        self.shared.open.lock().unwrap().len()
    }
}

impl Shared {
    async fn forward(&self, client: TcpStream, server: TcpStream) {
        let line = Arc::new(Line {
            to_server: watch::Sender::new(None),
            to_client: watch::Sender::new(None),
            cut: CancellationToken::new(),
        });
        let number = self.accepted.fetch_add(1, Ordering::Relaxed);
        self.open.lock().unwrap().insert(number, Arc::clone(&line));
        let planned = self.planned.lock().unwrap().pop_front();
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        // The writing halves stay here: dropping one would tell its peer that this way has ended.
        let (mut to_client, mut to_server) = (to_client, to_server);
        let up = self.carry(&line, Way::ToServer, planned, from_client, &mut to_server);
        let down = self.carry(&line, Way::ToClient, planned, from_server, &mut to_client);
        let both = async { tokio::join!(up, down) };
        line.cut.run_until_cancelled(both).await;
        self.open.lock().unwrap().remove(&number);
    }

    /// Carries one way to its end.
    async fn carry(
        &self,
        line: &Line,
        way: Way,
        planned: Option<Fault>,
        mut from: OwnedReadHalf,
        to: &mut OwnedWriteHalf,
    ) {
        let mut planned = planned.filter(|fault| fault.way == way);
        let mut trouble = line.way(way).subscribe();
        let mut carried = 0;
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let most = match &planned {
                // Stops right where the fault is.
                Some(fault) => buffer.len().min(fault.after_bytes - carried),
                None => buffer.len(),
            };
            if most == 0
                && let Some(fault) = planned.take()
            {
                self.strike(line, way, fault.trouble);
                continue;
            }
            let read = tokio::select! {
                // What has befallen the connection does so before another byte passes.
                biased;
                _ = trouble.changed() => None,
                read = from.read(&mut buffer[..most]) => Some(read.unwrap_or(0)),
            };
            let mut now = *trouble.borrow_and_update();
            while let Some(Trouble::Delay(wait)) = now {
                tokio::select! {
                    biased;
                    _ = trouble.changed() => now = *trouble.borrow_and_update(),
                    () = tokio::time::sleep(wait) => {
                        now = None;
                        line.way(way).send_if_modified(|trouble| {
                            let over = *trouble == Some(Trouble::Delay(wait));
                            if over {
                                *trouble = None;
                            }
                            over
                        });
                    }
                }
            }
            match (now, read) {
                // The cut itself is the line's.
                (Some(Trouble::Cut | Trouble::Halve), _) => break,
                (Some(Trouble::Blackhole), Some(0)) => return,
                (Some(Trouble::Blackhole), _) | (_, None) => {}
                (_, Some(0)) => break,
                (_, Some(read)) => {
                    if to.write_all(&buffer[..read]).await.is_err() {
                        break;
                    }
                    carried += read;
                }
            }
        }
        let _ = to.shutdown().await;
    }

    fn strike(&self, line: &Line, way: Way, trouble: Trouble) {
        self.struck.fetch_add(1, Ordering::Relaxed);
        line.way(way).send_replace(Some(trouble));
        if trouble == Trouble::Cut {
            line.cut.cancel();
        }
    }
}

impl Line {
    fn way(&self, way: Way) -> &watch::Sender<Option<Trouble>> {
        match way {
            Way::ToServer => &self.to_server,
            Way::ToClient => &self.to_client,
        }
    }
}
