//! One bidirectional stream that comes back by itself: with back-off and jitter, for ever.
//!
//! Used by discovery and by the session. What to say after each start is the caller's matter; requests
//! of a stream that broke are dropped with it. Knows no message.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

/// Bound on starting a stream.
const OPEN: Duration = Duration::from_secs(10);
/// Messages handed over to the transport and not sent yet.
const QUEUE: usize = 16;
/// Messages waiting behind them; while there are more, nothing is read from the peer.
const PENDING: usize = 1024;

/// A stream being started.
pub(crate) type Opening<Down> = Pin<Box<dyn Future<Output = Result<Response<Streaming<Down>>, Status>> + Send>>;

/// A stream that restarts.
pub(crate) struct Link<Up, Down> {
    open: Box<dyn Fn(ReceiverStream<Up>) -> Opening<Down> + Send + Sync>,
    stage: Stage<Up, Down>,
    pending: VecDeque<Up>,
    backoff: ExponentialBackoff,
}

enum Stage<Up, Down> {
    Pausing(Pin<Box<tokio::time::Sleep>>),
    Opening(mpsc::Sender<Up>, Opening<Down>),
    Open(mpsc::Sender<Up>, Box<Streaming<Down>>),
}

/// What happened to a link.
pub(crate) enum Event<Down> {
    /// A stream begins; what is sent now is its first message.
    Start,
    /// The peer took the stream.
    Open,
    /// A message of the peer.
    Message(Down),
    /// The stream ended, and why.
    End(String),
}

impl<Up, Down> Link<Up, Down> {
    /// A link that starts at once.
    pub(crate) fn new(open: impl Fn(ReceiverStream<Up>) -> Opening<Down> + Send + Sync + 'static) -> Self {
        Self {
            open: Box::new(open),
            stage: Stage::Pausing(Box::pin(tokio::time::sleep(Duration::ZERO))),
            pending: VecDeque::new(),
            backoff: backoff(),
        }
    }

    /// Queues messages on the present stream.
    pub(crate) fn send(&mut self, messages: impl IntoIterator<Item = Up>) {
        self.pending.extend(messages);
    }

    /// Waits for the next event and sends what is queued meanwhile.
    ///
    /// # Cancel safety
    /// Safe: all progress is kept in `self`.
    pub(crate) async fn next(&mut self) -> Event<Down> {
        loop {
            match &mut self.stage {
                Stage::Pausing(sleep) => {
                    sleep.as_mut().await;
                    let (tx, rx) = mpsc::channel(QUEUE);
                    self.pending.clear();
                    self.stage = Stage::Opening(tx, (self.open)(ReceiverStream::new(rx)));
                    return Event::Start;
                }
                Stage::Opening(tx, opening) => {
                    let tx = tx.clone();
                    tokio::select! {
                        biased;
                        opened = opening => match opened {
                            Ok(response) => {
                                self.stage = Stage::Open(tx, Box::new(response.into_inner()));
                                return Event::Open;
                            }
                            Err(status) => return self.end(&status),
                        },
                        // A server may answer only after the first message.
                        () = flush(&tx, &mut self.pending) => {}
                    }
                }
                Stage::Open(tx, stream) => {
                    let reading = self.pending.len() < PENDING;
                    tokio::select! {
                        biased;
                        message = stream.message(), if reading => match message {
                            Ok(Some(message)) => {
                                self.backoff = backoff();
                                return Event::Message(message);
                            }
                            Ok(None) => return self.end(&Status::unavailable("the control plane closed the stream")),
                            Err(status) => return self.end(&status),
                        },
                        () = flush(tx, &mut self.pending) => {}
                    }
                }
            }
        }
    }

    fn end(&mut self, why: &Status) -> Event<Down> {
        let pause = self.backoff.next().unwrap_or(MOST);
        self.stage = Stage::Pausing(Box::pin(tokio::time::sleep(pause)));
        self.pending.clear();
        Event::End(describe(why))
    }
}

/// Hands over one message; waits for ever when there is none.
async fn flush<Up>(tx: &mpsc::Sender<Up>, pending: &mut VecDeque<Up>) {
    if pending.is_empty() {
        return std::future::pending().await;
    }
    match tx.reserve().await {
        Ok(permit) => {
            if let Some(message) = pending.pop_front() {
                permit.send(message);
            }
        }
        // The stream ended; reading says why.
        Err(_) => std::future::pending().await,
    }
}

/// Bounds the start of a stream.
pub(crate) async fn bounded<T>(opening: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(OPEN, opening).await {
        Ok(result) => result,
        Err(_) => Err(Status::deadline_exceeded(format!("no answer in {} s", OPEN.as_secs()))),
    }
}

/// Joins the causes, of which the transport shows only the outermost and some twice.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    if text.is_empty() {
        status.code().to_string()
    } else {
        text
    }
}

const LEAST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(3);

fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(LEAST)
        .with_max_delay(MOST)
        .with_jitter()
        .without_max_times()
        .build()
}
