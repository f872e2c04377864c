//! Connections from within the process: the bridge and the console reach the gRPC services so,
//! whatever certificates and addresses the listener has for others.

use std::io;

use tokio::{
    io::DuplexStream,
    sync::mpsc::{self, Receiver, Sender},
};

/// How much either side may write ahead, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;

/// Connects to a listener of this process.
#[derive(Debug, Clone)]
pub struct Dialer(Sender<DuplexStream>);

impl Dialer {
    /// A new connection.
    ///
    /// # Errors
    /// If the listener is not served any more.
    pub async fn connect(&self) -> io::Result<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
        let gone = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
        self.0.send(theirs).await.map_err(gone)?;
        Ok(ours)
    }
}

pub(crate) fn channel() -> (Dialer, Receiver<DuplexStream>) {
    let (sender, receiver) = mpsc::channel(16);
    (Dialer(sender), receiver)
}
