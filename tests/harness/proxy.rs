//! A loopback TCP proxy that cuts connections: a network on a bad day.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A proxy in front of a server.
pub struct Proxy {
    /// URL to connect to instead of the server's.
    pub url: String,
    budgets: Arc<std::sync::Mutex<Vec<usize>>>,
    cuts: Arc<AtomicUsize>,
    _running: DropGuard,
}

impl Proxy {
    /// Forwards to `http://ADDRESS`. The first connections are cut once the client has sent so many
    /// bytes, one after the other; later ones are left alone.
    pub async fn start(upstream: &str, mut cut_after_bytes: Vec<usize>) -> Self {
        cut_after_bytes.reverse();
        let upstream = upstream.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let running = CancellationToken::new();
        let budgets = Arc::new(std::sync::Mutex::new(cut_after_bytes));
        let cuts = Arc::new(AtomicUsize::new(0));
        let (stop, shared, counted) = (running.clone(), Arc::clone(&budgets), Arc::clone(&cuts));
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Ok((client, _)) = listener.accept().await {
                let budget = shared.lock().unwrap().pop();
                let (upstream, cuts) = (upstream.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(&upstream).await else {
                        return;
                    };
                    if forward(client, server, budget).await {
                        cuts.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }));
        Self {
            url,
            budgets,
            cuts,
            _running: running.drop_guard(),
        }
    }

    /// How many connections were cut.
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }

    /// How many connections are still to be cut.
    pub fn cuts_left(&self) -> usize {
        self.budgets.lock().unwrap().len()
    }
}

/// Forwards both ways; returns whether the connection was cut because its budget was spent.
async fn forward(mut client: TcpStream, mut server: TcpStream, budget: Option<usize>) -> bool {
    let Some(mut left) = budget else {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        return false;
    };
    let (mut client_in, mut client_out) = client.split();
    let (mut server_in, mut server_out) = server.split();
    let up = async {
        let mut buffer = vec![0; 16 * 1024];
        while left > 0 {
            let Ok(read @ 1..) = client_in.read(&mut buffer).await else {
                return false;
            };
            let sent = read.min(left);
            if server_out.write_all(&buffer[..sent]).await.is_err() {
                return false;
            }
            left -= sent;
        }
        true
    };
    let down = async {
        let _ = tokio::io::copy(&mut server_in, &mut client_out).await;
        false
    };
    tokio::select! {
        cut = up => cut,
        cut = down => cut,
    }
}
