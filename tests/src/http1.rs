//! HTTP/1 as bytes: heads and bodies exactly as they were sent, for scripted apps and raw clients.
//!
//! It accepts what comes and judges nothing: a test wants to see, not to be protected.

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpStream;

/// A connection with its read buffer.
pub type Io = BufReader<TcpStream>;

/// A request's or an answer's head as it stood on the wire.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// The first line without its end.
    pub line: String,
    /// Fields in order, names in their own letter case, one character a byte.
    pub fields: Vec<(String, String)>,
}

impl Head {
    /// The `n`th word of the first line: method, target, version or version, status.
    #[must_use]
    pub fn word(&self, n: usize) -> &str {
        self.line.split(' ').nth(n).unwrap_or_default()
    }

    /// The first value of a field, its name in any letter case.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// All values of a field.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields
            .iter()
            .filter(move |(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    fn chunked(&self) -> bool {
        self.all("transfer-encoding")
            .any(|v| v.to_ascii_lowercase().contains("chunked"))
    }

    fn length(&self) -> Option<u64> {
        self.field("content-length").and_then(|v| v.parse().ok())
    }
}

/// A body and how it ended.
#[derive(Debug, Clone, Default)]
pub struct Body {
    /// What came.
    pub bytes: Vec<u8>,
    /// Trailer fields of a chunked body.
    pub trailers: Vec<(String, String)>,
    /// True when it ended as its framing says: the last chunk, or all of Content-Length.
    pub complete: bool,
    /// True when it came in chunks.
    pub chunked: bool,
}

/// Reads one head; `None` at a clean end before its first byte.
///
/// # Errors
/// The connection's, and an end in the middle.
pub async fn read_head(io: &mut Io) -> io::Result<Option<Head>> {
    let Some(line) = read_line(io).await? else {
        return Ok(None);
    };
    let fields = read_fields(io).await?;
    Ok(Some(Head { line, fields }))
}

/// Reads a request's body.
///
/// # Errors
/// The connection's, except that an early end gives an incomplete body.
pub async fn read_request_body(io: &mut Io, head: &Head) -> io::Result<Body> {
    if head.chunked() {
        return read_chunked(io).await;
    }
    read_sized(io, head.length().unwrap_or(0)).await
}

/// Reads an answer's body; `to` is the request's method.
///
/// # Errors
/// As for [`read_request_body`].
pub async fn read_answer_body(io: &mut Io, head: &Head, to: &str) -> io::Result<Body> {
    let status = head.word(1);
    if to == "HEAD" || status == "204" || status == "304" || status.starts_with('1') {
        return read_sized(io, 0).await;
    }
    if head.chunked() {
        return read_chunked(io).await;
    }
    if let Some(length) = head.length() {
        return read_sized(io, length).await;
    }
    let mut body = Body::default();
    body.complete = io.read_to_end(&mut body.bytes).await.is_ok();
    Ok(body)
}

async fn read_sized(io: &mut Io, length: u64) -> io::Result<Body> {
    let mut bytes = Vec::new();
    let complete = match io.take(length).read_to_end(&mut bytes).await {
        Ok(_) => bytes.len() as u64 == length,
        Err(_) => false,
    };
    Ok(Body {
        bytes,
        complete,
        ..Body::default()
    })
}

async fn read_chunked(io: &mut Io) -> io::Result<Body> {
    let mut body = Body {
        chunked: true,
        ..Body::default()
    };
    loop {
        let Ok(Some(line)) = read_line(io).await else {
            return Ok(body);
        };
        let size = line.split(';').next().unwrap_or_default().trim();
        let size =
            u64::from_str_radix(size, 16).map_err(|_| io::Error::other(format!("`{line}` is not a chunk size")))?;
        if size == 0 {
            if let Ok(trailers) = read_fields(io).await {
                body.trailers = trailers;
                body.complete = true;
            }
            return Ok(body);
        }
        let before = body.bytes.len() as u64;
        let read = io.take(size).read_to_end(&mut body.bytes).await;
        if read.is_err() || body.bytes.len() as u64 != before + size {
            return Ok(body);
        }
        if !matches!(read_line(io).await, Ok(Some(end)) if end.is_empty()) {
            return Ok(body);
        }
    }
}

async fn read_fields(io: &mut Io) -> io::Result<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        let line = read_line(io)
            .await?
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        if line.is_empty() {
            return Ok(fields);
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        fields.push((name.to_owned(), value.trim().to_owned()));
    }
}

async fn read_line(io: &mut Io) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    io.read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(Some(line.iter().map(|b| char::from(*b)).collect()))
}
