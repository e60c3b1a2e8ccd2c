//! Requests that go on while a test does something to the mesh; one that fails fails the test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Result, ensure};

use crate::client::Client;
use crate::wait;

/// Eight clients on keep-alive connections.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    passed: Arc<AtomicUsize>,
    tasks: tokio::task::JoinSet<Result<()>>,
}

impl Load {
    /// Starts asking `addr`.
    #[must_use]
    pub fn on(addr: SocketAddr) -> Self {
        let (stop, passed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (stop, passed) = (Arc::clone(&stop), Arc::clone(&passed));
            tasks.spawn(async move {
                let mut client = Client::connect(addr).await?;
                while !stop.load(Ordering::SeqCst) {
                    // Another path each time: what is balanced by it goes everywhere.
                    let n = passed.load(Ordering::SeqCst);
                    let request = format!("GET /load/{n} HTTP/1.1\r\nHost: h\r\n\r\n");
                    let answer = client.exchange(&request).await?;
                    ensure!(answer.status() == 200 && answer.body.complete, "{answer:?}");
                    passed.fetch_add(1, Ordering::SeqCst);
                    let closes = |v: &str| v.eq_ignore_ascii_case("close");
                    if answer.head.field("connection").is_some_and(closes) {
                        client = Client::connect(addr).await?;
                    }
                }
                Ok(())
            });
        }
        Self { stop, passed, tasks }
    }

    /// Waits for `more` answers.
    ///
    /// # Errors
    /// When they do not come.
    pub async fn wait(&self, more: usize) -> Result<()> {
        let goal = self.passed.load(Ordering::SeqCst) + more;
        wait::until("the load goes on", || async {
            self.passed.load(Ordering::SeqCst) >= goal || self.tasks.is_empty()
        })
        .await
    }

    /// True when every client has ended, which none does by itself unless a request failed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Stops, and tells how many answers came.
    ///
    /// # Errors
    /// The first request that failed.
    pub async fn end(mut self) -> Result<usize> {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(done) = self.tasks.join_next().await {
            done??;
        }
        Ok(self.passed.load(Ordering::SeqCst))
    }
}
