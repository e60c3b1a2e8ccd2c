//! Scripted apps: each does one thing, often a wrong one, and counts what it saw.
//!
//! They run in the test's own process. Every counter is read after a wait for a condition.

pub mod bare;
pub mod h1;
pub mod h2c;
pub mod tcp;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use tokio::net::TcpListener;

use crate::http1::Head;
use crate::wait;

/// What an app saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Connections whose first byte the app read.
    pub first_bytes: AtomicUsize,
    /// Requests whose head the app read.
    pub requests: AtomicUsize,
    /// Requests that reached the app's sockets when it died, unread.
    pub unread: AtomicUsize,
    /// Requests that the client gave up and the app noticed.
    pub cancelled: AtomicUsize,
    heads: Mutex<Vec<Head>>,
}

impl Seen {
    /// The number of requests whose head was read.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// All heads in order of arrival.
    #[must_use]
    pub fn heads(&self) -> Vec<Head> {
        self.heads.lock().map(|h| h.clone()).unwrap_or_default()
    }

    /// Waits for the `n`th request.
    ///
    /// # Errors
    /// After the usual deadline.
    pub async fn wait_requests(&self, n: usize) -> Result<()> {
        wait::until(&format!("the app saw {n} requests"), || async { self.requests() >= n }).await
    }

    /// Waits for the `n`th cancelled request.
    ///
    /// # Errors
    /// After the usual deadline.
    pub async fn wait_cancelled(&self, n: usize) -> Result<()> {
        wait::until(&format!("the app saw {n} cancelled requests"), || async {
            self.cancelled.load(Ordering::SeqCst) >= n
        })
        .await
    }

    fn note(&self, head: &Head) {
        self.requests.fetch_add(1, Ordering::SeqCst);
        if let Ok(mut heads) = self.heads.lock() {
            heads.push(head.clone());
        }
    }

    fn note_cancelled(&self) {
        self.cancelled.fetch_add(1, Ordering::SeqCst);
    }
}

/// A listener on any free port; it stays ours, so the OS may choose.
async fn listen() -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}
