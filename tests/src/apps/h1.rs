//! HTTP/1 apps written on bare sockets, so that what they report is what came.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::{Seen, listen};
use crate::client::reset;
use crate::http1::{Head, Io, read_head, read_request_body};
use crate::wait;

/// A running HTTP/1 app.
#[derive(Debug)]
pub struct H1App {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it saw.
    pub seen: Arc<Seen>,
    task: AbortHandle,
    dying: watch::Sender<bool>,
}

/// One request: its head was read, its body was not.
#[derive(Debug)]
pub struct Request {
    /// The head.
    pub head: Head,
    /// The connection.
    pub io: Io,
    /// The app's counters.
    pub seen: Arc<Seen>,
}

impl H1App {
    /// Starts an app whose `handler` answers one request and gives the connection back, or not.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start<F, Fut>(handler: F) -> Result<Self>
    where
        F: Fn(Request) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<Io>>> + Send + 'static,
    {
        let (listener, addr) = listen().await?;
        let seen = Arc::new(Seen::default());
        let (dying, watching) = watch::channel(false);
        let task = tokio::spawn(run(listener, Arc::clone(&seen), watching, handler));
        Ok(Self {
            addr,
            seen,
            task: task.abort_handle(),
            dying,
        })
    }

    /// Ends the app and all its connections at once, as a kill does. What reached its sockets, until the
    /// other end knew, is counted as unread: nobody outside can tell that from read.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn die(&self) -> Result<()> {
        self.dying.send_replace(true);
        wait::until("the app is dead", || async { self.task.is_finished() }).await
    }

    /// An app that reports every request as JSON; see [`echo`].
    ///
    /// # Errors
    /// When no port is free.
    pub async fn echo() -> Result<Self> {
        Self::start(echo).await
    }

    /// An app that reads a request and never answers, but notices when the client gives up.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn silent() -> Result<Self> {
        Self::start(silent).await
    }
}

impl Drop for H1App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts until death; connections live in the set and die with it.
async fn run<F, Fut>(listener: TcpListener, seen: Arc<Seen>, dying: watch::Receiver<bool>, handler: F)
where
    F: Fn(Request) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Option<Io>>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut death = dying.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                while connections.try_join_next().is_some() {}
                connections.spawn(serve(stream, Arc::clone(&seen), dying.clone(), handler.clone()));
            }
            _ = death.wait_for(|dead| *dead) => break,
        }
    }
    // The OS takes nobody for us any more; whom it had taken may have sent a request.
    drop(SockRef::from(&listener).attach_filter(&[SockFilter::new(DROP, 0, 0, 0)]));
    while let Ok((stream, _)) = SockRef::from(&listener).accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream.into())
        {
            let seen = Arc::clone(&seen);
            connections.spawn(async move { end(stream, &seen).await });
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// The instruction of a packet filter that takes no byte of anything (`BPF_RET | BPF_K`, linux/filter.h).
const DROP: u16 = 0x06;

/// Ends a connection, and waits until the other end has ended it too: a request that was written before the
/// end was known there is one that nobody can tell from one that was read. Closed with bytes unread, it is reset.
async fn end(mut stream: TcpStream, seen: &Seen) {
    drop(stream.shutdown().await);
    if matches!(
        tokio::time::timeout(wait::SOON, stream.read(&mut [0; 1])).await,
        Ok(Ok(1))
    ) {
        seen.unread.fetch_add(1, Ordering::SeqCst);
    }
}

async fn serve<F, Fut>(stream: TcpStream, seen: Arc<Seen>, mut dying: watch::Receiver<bool>, handler: F)
where
    F: Fn(Request) -> Fut,
    Fut: Future<Output = Result<Option<Io>>>,
{
    let mut io = BufReader::with_capacity(64 * 1024, stream);
    let mut first = true;
    loop {
        // Health probes connect and close: they are no request and no first byte.
        let ready = tokio::select! {
            ready = io.fill_buf() => Some(matches!(ready, Ok(bytes) if !bytes.is_empty())),
            _ = dying.wait_for(|dead| *dead) => None,
        };
        match ready {
            Some(true) => {}
            Some(false) => return,
            None => return end(io.into_inner(), &seen).await,
        }
        if std::mem::take(&mut first) {
            seen.first_bytes.fetch_add(1, Ordering::SeqCst);
        }
        let Ok(Some(head)) = read_head(&mut io).await else {
            return;
        };
        seen.note(&head);
        let request = Request {
            head,
            io,
            seen: Arc::clone(&seen),
        };
        let answered = tokio::select! {
            answered = handler(request) => answered,
            _ = dying.wait_for(|dead| *dead) => return,
        };
        match answered {
            Ok(Some(back)) => io = back,
            _ => return,
        }
    }
}

/// Answers 200 with a JSON report: line, fields, body length, a sum over the body, trailers.
///
/// # Errors
/// The connection's.
pub async fn echo(mut request: Request) -> Result<Option<Io>> {
    if request.head.field("expect").is_some() {
        request.io.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let body = read_request_body(&mut request.io, &request.head).await?;
    let report = json!({
        "line": request.head.line,
        "fields": request.head.fields,
        "body": String::from_utf8_lossy(&body.bytes),
        "length": body.bytes.len(),
        "chunked": body.chunked,
        "complete": body.complete,
        "trailers": body.trailers,
    })
    .to_string();
    let close = request.head.word(2) == "HTTP/1.0" || request.head.field("connection") == Some("close");
    let content = if request.head.word(0) == "HEAD" { "" } else { &report };
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nX-App: echo\r\n{}\r\n{content}",
        report.len(),
        if close { "Connection: close\r\n" } else { "" },
    );
    request.io.write_all(answer.as_bytes()).await?;
    Ok((!close).then_some(request.io))
}

/// Closes the connection, and waits until the other end's system has the news: an end that is still on its way
/// is one that nobody there could look at.
///
/// # Errors
/// When the other end does not acknowledge it.
pub async fn close_and_tell(mut io: Io) -> Result<()> {
    let port = |addr: SocketAddr| format!(":{:04X}", addr.port());
    let (ours, theirs) = (port(io.get_ref().local_addr()?), port(io.get_ref().peer_addr()?));
    io.shutdown().await?;
    wait::until("the end is acknowledged", || async {
        // proc_pid_net(5): number, local address, remote address, state.
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let mut sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        !sockets.any(|s| {
            matches!(s[..], [_, local, remote, FIN_WAIT1, ..] if local.ends_with(&ours) && remote.ends_with(&theirs))
        })
    })
    .await
}

/// An end was sent and is not acknowledged (include/net/tcp_states.h).
const FIN_WAIT1: &str = "04";

/// Never answers; counts a cancel when the connection ends.
///
/// # Errors
/// None.
pub async fn silent(mut request: Request) -> Result<Option<Io>> {
    read_request_body(&mut request.io, &request.head).await?;
    watch_end(&mut request.io).await;
    request.seen.note_cancelled();
    Ok(None)
}

/// Reads until the client is gone.
pub async fn watch_end(io: &mut Io) {
    let mut sink = [0; 4096];
    while matches!(io.read(&mut sink).await, Ok(n) if n > 0) {}
}

/// Answers fixed bytes to every request and keeps the connection.
pub fn fixed(answer: &'static str) -> impl Fn(Request) -> Fixed + Clone + Send + Sync + 'static {
    move |mut request| {
        Box::pin(async move {
            read_request_body(&mut request.io, &request.head).await?;
            request.io.write_all(answer.as_bytes()).await?;
            Ok(Some(request.io))
        })
    }
}

/// The future of [`fixed`] and its kin.
pub type Fixed = std::pin::Pin<Box<dyn Future<Output = Result<Option<Io>>> + Send>>;

/// Reads the whole request, then resets the connection: the work is done, the answer lost.
///
/// # Errors
/// The connection's.
pub async fn execute_then_reset(mut request: Request) -> Result<Option<Io>> {
    read_request_body(&mut request.io, &request.head).await?;
    reset(request.io.into_inner())?;
    Ok(None)
}

/// Sends the start of a body and dies: with `/chunked` without the last chunk, with `/length`
/// short of Content-Length; `/reset` at its end resets instead of closing.
///
/// # Errors
/// The connection's.
pub async fn die_in_body(mut request: Request) -> Result<Option<Io>> {
    read_request_body(&mut request.io, &request.head).await?;
    let target = request.head.word(1).to_owned();
    let start: &[u8] = if target.starts_with("/chunked") {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    } else {
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello"
    };
    request.io.write_all(start).await?;
    request.io.flush().await?;
    if target.ends_with("/reset") {
        reset(request.io.into_inner())?;
    }
    Ok(None)
}

/// `GET /<n>`: n bytes of body with Content-Length; `POST`: reads all and tells how much;
/// a request that says so in `x-wait` is first left unread until the client has sent that many bytes.
///
/// # Errors
/// The connection's.
pub async fn bulk(mut request: Request) -> Result<Option<Io>> {
    let length: u64 = request.head.word(1).trim_start_matches('/').parse().unwrap_or(0);
    if request.head.word(0) == "POST" {
        let total = drain_body(&mut request).await?;
        let text = total.to_string();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        request.io.write_all(answer.as_bytes()).await?;
        return Ok(Some(request.io));
    }
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    request.io.write_all(head.as_bytes()).await?;
    let block = vec![b'x'; 256 * 1024];
    let mut left = length;
    while left > 0 {
        let part = usize::try_from(left.min(block.len() as u64))?;
        request.io.write_all(&block[..part]).await?;
        left -= part as u64;
    }
    Ok(Some(request.io))
}

/// Reads a body of known length, or in chunks, without keeping it.
async fn drain_body(request: &mut Request) -> Result<u64> {
    if let Some(length) = request.head.field("content-length") {
        let length: u64 = length.parse()?;
        let mut left = length;
        while left > 0 {
            let got = request.io.fill_buf().await?.len() as u64;
            anyhow::ensure!(got > 0, "the body ended {left} bytes early");
            let take = got.min(left);
            request.io.consume(usize::try_from(take)?);
            left -= take;
        }
        return Ok(length);
    }
    let body = read_request_body(&mut request.io, &request.head).await?;
    Ok(body.bytes.len() as u64)
}

/// Echoes bytes after a WebSocket-like handshake; refuses another token with 400.
///
/// # Errors
/// The connection's.
pub async fn upgrade_echo(mut request: Request) -> Result<Option<Io>> {
    let token = request.head.field("upgrade").unwrap_or_default().to_owned();
    if token != "websocket" && token != "x-echo" {
        let refusal = "HTTP/1.1 426 Upgrade Required\r\nUpgrade: x-echo\r\nConnection: upgrade\r\nX-Refused: yes\r\nContent-Length: 4\r\n\r\nnope";
        request.io.write_all(refusal.as_bytes()).await?;
        return Ok(Some(request.io));
    }
    let accept = request.head.field("sec-websocket-key").unwrap_or("none").to_owned();
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: {token}\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\nX-App: up\r\n\r\n"
    );
    request.io.write_all(answer.as_bytes()).await?;
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let read = request.io.read(&mut bytes).await?;
        if read == 0 {
            return Ok(None);
        }
        request.io.write_all(&bytes[..read]).await?;
    }
}

/// Answers 413 without reading the body, then closes.
///
/// # Errors
/// The connection's.
pub async fn refuse_early(mut request: Request) -> Result<Option<Io>> {
    let answer = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
    request.io.write_all(answer.as_bytes()).await?;
    request.io.get_mut().shutdown().await?;
    // Whatever was on its way is read and dropped, or the reset could overtake the answer.
    drop(tokio::time::timeout(Duration::from_secs(2), watch_end(&mut request.io)).await);
    Ok(None)
}

/// Two chunks and a trailer field.
///
/// # Errors
/// The connection's.
pub async fn with_trailers(mut request: Request) -> Result<Option<Io>> {
    read_request_body(&mut request.io, &request.head)
        .await
        .context("body")?;
    let answer = "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 42\r\n\r\n";
    request.io.write_all(answer.as_bytes()).await?;
    Ok(Some(request.io))
}
