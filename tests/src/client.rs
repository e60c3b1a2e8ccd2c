//! A raw HTTP/1 client: sends the bytes it is told and shows the answer as it came.

use std::net::{Shutdown, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::http1::{self, Body, Head, Io};
use crate::wait::soon;

/// One connection.
#[derive(Debug)]
pub struct Client {
    io: Io,
}

/// An answer: interim heads, the final head, the body.
#[derive(Debug, Clone)]
pub struct Answer {
    /// 1xx heads before the final one.
    pub interim: Vec<Head>,
    /// The final head.
    pub head: Head,
    /// The body and how it ended.
    pub body: Body,
}

impl Answer {
    /// The status number; 0 when there is none.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.head.word(1).parse().unwrap_or(0)
    }

    /// Why the mesh answered itself, when it did.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.head.field("outrigger-reason")
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body.bytes).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body.bytes).with_context(|| format!("not JSON: {}", self.text()))
    }
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(addr: SocketAddr) -> Result<Self> {
        let stream = soon("connecting", async { Ok(TcpStream::connect(addr).await?) })
            .await
            .with_context(|| format!("connecting to {addr}"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            io: BufReader::new(stream),
        })
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The connection's.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        soon("sending", async { Ok(self.io.write_all(bytes.as_ref()).await?) }).await
    }

    /// Reads the next head, 1xx or final.
    ///
    /// # Errors
    /// The connection's, and its end.
    pub async fn head(&mut self) -> Result<Head> {
        soon("an answer's head", async {
            http1::read_head(&mut self.io)
                .await?
                .context("the connection ended before an answer")
        })
        .await
    }

    /// Reads a whole answer to a request of method `to`.
    ///
    /// # Errors
    /// The connection's, and its end before a final head.
    pub async fn answer(&mut self, to: &str) -> Result<Answer> {
        let mut interim = Vec::new();
        loop {
            let head = self.head().await?;
            if head.word(1).starts_with('1') && head.word(1) != "101" {
                interim.push(head);
                continue;
            }
            let body = if head.word(1) == "101" || (to == "CONNECT" && head.word(1).starts_with('2')) {
                Body::default()
            } else {
                self.body(&head, to).await?
            };
            return Ok(Answer { interim, head, body });
        }
    }

    /// Reads the body of an answer whose head was read.
    ///
    /// # Errors
    /// The connection's.
    pub async fn body(&mut self, head: &Head, to: &str) -> Result<Body> {
        soon("an answer's body", async {
            Ok(http1::read_answer_body(&mut self.io, head, to).await?)
        })
        .await
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// The connection's.
    pub async fn exchange(&mut self, request: &str) -> Result<Answer> {
        self.send(request).await?;
        let method = request.split(' ').next().unwrap_or_default();
        self.answer(method).await
    }

    /// Reads exactly `length` bytes of what follows an upgrade.
    ///
    /// # Errors
    /// The connection's, and an early end.
    pub async fn bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        soon("bytes", async {
            let mut bytes = vec![0; length];
            self.io.read_exact(&mut bytes).await?;
            Ok(bytes)
        })
        .await
    }

    /// Reads to the end of the connection; a reset counts as the end.
    ///
    /// # Errors
    /// When the connection stays open.
    pub async fn rest(&mut self) -> Result<Vec<u8>> {
        soon("the connection's end", async {
            let mut bytes = Vec::new();
            match self.io.read_to_end(&mut bytes).await {
                Ok(_) => Ok(bytes),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(bytes),
                Err(e) => Err(e.into()),
            }
        })
        .await
    }

    /// Reads to the end, and tells a clean one from a reset.
    ///
    /// # Errors
    /// What broke the stream.
    pub async fn end(&mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.io.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }

    /// [`rest`](Self::rest) with a deadline of its own.
    ///
    /// # Errors
    /// When the connection stays open; the error shows what came.
    pub async fn rest_within(&mut self, deadline: std::time::Duration) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let reading = async {
            loop {
                match self.io.read_buf(&mut bytes).await {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
                    Err(e) => return Err(e),
                }
            }
        };
        match tokio::time::timeout(deadline, reading).await {
            Ok(result) => result?,
            Err(_) => anyhow::bail!("the connection stays open after {:?}", String::from_utf8_lossy(&bytes)),
        }
        Ok(bytes)
    }

    /// Reads some bytes, at most `limit`.
    ///
    /// # Errors
    /// The connection's.
    pub async fn some(&mut self, limit: usize) -> Result<Vec<u8>> {
        soon("some bytes", async {
            let mut bytes = vec![0; limit];
            let read = self.io.read(&mut bytes).await?;
            bytes.truncate(read);
            Ok(bytes)
        })
        .await
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// The connection's.
    pub async fn end_writing(&mut self) -> Result<()> {
        Ok(self.io.get_mut().shutdown().await?)
    }

    /// Ends the connection with a reset instead of a clean close.
    ///
    /// # Errors
    /// The OS's.
    pub fn reset(self) -> Result<()> {
        reset(self.io.into_inner())
    }

    /// Closes both directions cleanly.
    ///
    /// # Errors
    /// The OS's.
    pub fn close(self) -> Result<()> {
        let stream = self.io.into_inner().into_std()?;
        stream.shutdown(Shutdown::Both).or_else(|e| match e.kind() {
            std::io::ErrorKind::NotConnected => Ok(()),
            _ => Err(e),
        })?;
        Ok(())
    }
}

/// Ends a connection so that the peer sees a reset.
///
/// # Errors
/// The OS's.
pub fn reset(stream: TcpStream) -> Result<()> {
    let stream = stream.into_std()?;
    socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// One request on a connection of its own.
///
/// # Errors
/// The connection's.
pub async fn once(addr: SocketAddr, request: &str) -> Result<Answer> {
    Client::connect(addr).await?.exchange(request).await
}

/// `GET path` on a connection of its own.
///
/// # Errors
/// The connection's.
pub async fn get(addr: SocketAddr, path: &str) -> Result<Answer> {
    once(
        addr,
        &format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"),
    )
    .await
}

/// `GET path` whose answer must be a 200.
///
/// # Errors
/// The connection's, or another status.
pub async fn get_ok(addr: SocketAddr, path: &str) -> Result<Answer> {
    let answer = get(addr, path).await?;
    ensure!(
        answer.status() == 200,
        "{} {} instead of 200: {}",
        answer.head.line,
        answer.reason().unwrap_or_default(),
        answer.text()
    );
    Ok(answer)
}
