//! The socket by which `ps` and `restart` ask the supervisor: one JSON line in, one JSON line out.
//!
//! It lies in `run/`, which only this user may enter, and goes with it. A socket's path may have 107 bytes only, so it
//! is reached through an open handle on its folder, however deep that lies.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::fleet::Fleet;
use super::state::Layout;
use super::workload::Row;
use crate::plane::address::short;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// What runs.
    Ps,
    /// Restart a service, an instance or, when absent, all.
    Restart(Option<String>),
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// To [`Ask::Ps`].
    Rows(Vec<Row>),
    /// To [`Ask::Restart`]: the instances that were restarted.
    Restarted(Vec<String>),
    /// It was not understood or is not possible.
    Error(String),
}

const LARGEST_ASK: u64 = 64 * 1024;

/// Answers until dropped.
pub(crate) async fn serve(layout: &Layout, fleet: Arc<Fleet>) -> io::Result<()> {
    let (_folder, path) = short(&layout.socket())?;
    let listener = UnixListener::bind(path)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let fleet = Arc::clone(&fleet);
        // Its owner is the client: the task ends with the connection, and with the program.
        tokio::spawn(async move { converse(stream, &fleet).await });
    }
}

async fn converse(stream: UnixStream, fleet: &Fleet) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(LARGEST_ASK));
    tokio::time::timeout(Duration::from_secs(5), reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Ok(Ask::Ps) => Answer::Rows(fleet.rows().await),
        Ok(Ask::Restart(service)) => match fleet.restart(service.as_deref()).await {
            none if none.is_empty() => Answer::Error(format!("no service {}", service.unwrap_or_default())),
            some => Answer::Restarted(some),
        },
        Err(error) => Answer::Error(error.to_string()),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    write.write_all(&text).await
}

/// Asks the supervisor of `layout`.
pub(crate) async fn ask(layout: &Layout, ask: &Ask) -> io::Result<Answer> {
    let (_folder, path) = short(&layout.socket())?;
    let (read, mut write) = UnixStream::connect(path).await?.into_split();
    let mut text = serde_json::to_vec(ask)?;
    text.push(b'\n');
    write.write_all(&text).await?;
    let mut line = String::new();
    BufReader::new(read).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line)?)
}
