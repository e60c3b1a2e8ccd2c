//! A real toxiproxy: a TCP proxy whose connections are slowed, cut, sliced and swallowed on command.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::World;
use crate::client;
use crate::process::Process;
use crate::tools::tool;
use crate::{ports, wait};

/// A running toxiproxy with one proxy before `upstream`.
#[derive(Debug)]
pub struct Toxiproxy {
    /// Where callers of the app connect.
    pub listen: SocketAddr,
    api: SocketAddr,
    _process: Process,
}

/// Which bytes a toxic is given to.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// What the client sends.
    Requests,
    /// What the app sends.
    Answers,
}

impl Toxiproxy {
    /// Starts one that passes everything on to `upstream`.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn before(world: &World, upstream: SocketAddr) -> Result<Self> {
        let (api, listen) = (ports::free()?, ports::free()?);
        let mut command = tool("toxiproxy")?;
        command.args(["-host", "127.0.0.1", "-port", &api.port().to_string()]);
        let process = world.spawn("toxiproxy", command)?;
        let this = Self {
            listen,
            api,
            _process: process,
        };
        wait::until("toxiproxy is ready", || async {
            client::get(api, "/version").await.is_ok_and(|a| a.status() == 200)
        })
        .await?;
        let proxy = json!({"name": PROXY, "listen": listen, "upstream": upstream, "enabled": true});
        this.ask("POST", "/proxies", &proxy).await?;
        Ok(this)
    }

    /// Adds a toxic named after its kind.
    ///
    /// # Errors
    /// When toxiproxy refuses it.
    pub async fn poison(&self, kind: &str, way: Way, attributes: Value) -> Result<()> {
        let stream = match way {
            Way::Requests => "upstream",
            Way::Answers => "downstream",
        };
        let toxic = json!({"name": kind, "type": kind, "stream": stream, "toxicity": 1.0, "attributes": attributes});
        self.ask("POST", &format!("/proxies/{PROXY}/toxics"), &toxic).await
    }

    /// Removes the toxic of a kind.
    ///
    /// # Errors
    /// When there is none.
    pub async fn cure(&self, kind: &str) -> Result<()> {
        self.ask("DELETE", &format!("/proxies/{PROXY}/toxics/{kind}"), &Value::Null)
            .await
    }

    /// Lets nobody connect any more and ends all connections, or begins again.
    ///
    /// # Errors
    /// When toxiproxy refuses.
    pub async fn enable(&self, enabled: bool) -> Result<()> {
        self.ask("POST", &format!("/proxies/{PROXY}"), &json!({"enabled": enabled}))
            .await
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Result<()> {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.api,
            body.len()
        );
        // A toxic whose pipe is busy is waited for.
        let answer = tokio::time::timeout(Duration::from_secs(60), client::once(self.api, &request)).await??;
        ensure!((200..300).contains(&answer.status()), "{method} {path}: {answer:?}");
        Ok(())
    }
}

const PROXY: &str = "app";
