//! The socket by which `ps` and `restart` ask the supervisor: one JSON line in, one JSON line out.
//!
//! It lies in `run/`, which only this user may enter, and goes with it. A socket's path may have 107 bytes only, so it
//! is reached through an open handle on its folder, however deep that lies.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::fleet::Fleet;
use super::rolling::{self, RestartError, Wanted};
use super::state::Layout;
use super::workload::Row;
use crate::plane::address::short;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// What runs.
    Ps,
    /// Replace what is wanted.
    Restart(Wanted),
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// To [`Ask::Ps`].
    Rows(Vec<Row>),
    /// To [`Ask::Restart`], any number of times: what was done.
    Step(String),
    /// To [`Ask::Restart`], at its end: the instances that run now in the place of those restarted.
    Restarted(Vec<String>),
    /// It was not understood or is not possible.
    Error(String),
}

const LARGEST_ASK: u64 = 64 * 1024;
/// Steps that wait to be told.
const STEPS: usize = 16;
/// How long somebody may take to read a line.
const PATIENCE: Duration = Duration::from_secs(1);

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
        Ok(Ask::Restart(wanted)) => restart(fleet, &wanted, &mut write).await,
        Err(error) => Answer::Error(error.to_string()),
    };
    say(&mut write, &answer).await
}

/// Tells the steps as they are done; goes on when nobody listens any more.
async fn restart(fleet: &Fleet, wanted: &Wanted, write: &mut OwnedWriteHalf) -> Answer {
    let (progress, mut steps) = mpsc::channel(STEPS);
    let work = async {
        let done = tokio::select! {
            done = rolling::restart(fleet, wanted, &progress) => done,
            () = fleet.stopping() => Err(RestartError::Stopping),
        };
        drop(progress);
        done
    };
    let tell = async {
        while let Some(step) = steps.recv().await {
            say(write, &Answer::Step(step)).await.ok();
        }
    };
    match tokio::join!(work, tell).0 {
        Ok(now) => Answer::Restarted(now),
        Err(error) => Answer::Error(error.to_string()),
    }
}

async fn say(write: &mut OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    // A client that stands still must not hold up a restart.
    tokio::time::timeout(PATIENCE, write.write_all(&text)).await?
}

/// Asks the supervisor of `layout`; `step` is told what comes before the answer.
pub(crate) async fn ask(layout: &Layout, ask: &Ask, step: impl Fn(&str)) -> io::Result<Answer> {
    let (_folder, path) = short(&layout.socket())?;
    let (read, mut write) = UnixStream::connect(path).await?.into_split();
    let mut text = serde_json::to_vec(ask)?;
    text.push(b'\n');
    write.write_all(&text).await?;
    let mut reader = BufReader::new(read);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        match serde_json::from_str(&line)? {
            Answer::Step(text) => step(&text),
            answer => return Ok(answer),
        }
    }
}
