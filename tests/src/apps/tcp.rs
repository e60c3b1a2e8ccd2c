//! Apps that speak no HTTP: echo, server-first, half-close.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};

use super::{Seen, listen};

/// A running TCP app.
#[derive(Debug)]
pub struct TcpApp {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it saw; `requests` counts connections on which a byte came.
    pub seen: Arc<Seen>,
    task: AbortHandle,
}

impl TcpApp {
    /// Starts an app; `handler` owns each connection.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start<F, Fut>(handler: F) -> Result<Self>
    where
        F: Fn(TcpStream, Arc<Seen>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        let (listener, addr) = listen().await?;
        let seen = Arc::new(Seen::default());
        let counters = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (counters, handler) = (Arc::clone(&counters), handler.clone());
                connections.spawn(async move { drop(handler(stream, counters).await) });
            }
        });
        Ok(Self {
            addr,
            seen,
            task: task.abort_handle(),
        })
    }

    /// Sends back what comes, until the client ends.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn echo() -> Result<Self> {
        Self::start(|mut stream, seen| async move {
            let mut bytes = vec![0; 16 * 1024];
            let mut first = true;
            loop {
                let read = stream.read(&mut bytes).await?;
                if read == 0 {
                    return Ok(());
                }
                if std::mem::take(&mut first) {
                    seen.requests.fetch_add(1, Ordering::SeqCst);
                }
                stream.write_all(&bytes[..read]).await?;
            }
        })
        .await
    }

    /// Speaks first, as SMTP and MySQL do, then echoes one line.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn server_first() -> Result<Self> {
        Self::start(|mut stream, _| async move {
            stream.write_all(b"220 ready\r\n").await?;
            let mut bytes = vec![0; 1024];
            let read = stream.read(&mut bytes).await?;
            stream.write_all(&bytes[..read]).await?;
            Ok(())
        })
        .await
    }

    /// Reads to the client's end of writing, then answers how much it read: works only when a
    /// half-closed connection stays half open.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn count_then_answer() -> Result<Self> {
        Self::start(|mut stream, _| async move {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await?;
            stream.write_all(format!("read {}", bytes.len()).as_bytes()).await?;
            Ok(())
        })
        .await
    }
}

impl Drop for TcpApp {
    fn drop(&mut self) {
        self.task.abort();
    }
}
