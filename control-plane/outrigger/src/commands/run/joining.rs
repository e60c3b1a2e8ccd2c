//! How the sidecar of `run` joins: by a token that was given, by what it kept, or by one that the control plane's socket
//! on this machine gives out.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::Method;
use outrigger_proto::model::{JoinToken, ServiceName};
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::plane::address::Address;
use crate::plane::{Plane, Target};
use crate::supervise::admin;

/// With what it joins.
#[derive(Debug)]
pub(super) enum Joining {
    /// A token, as text.
    Token(JoinToken),
    /// A file that holds one.
    File(PathBuf),
    /// The certificate that it kept.
    Kept,
    /// A token made for this run; ended with it.
    Made(JoinToken, Plane),
}

impl Joining {
    /// Finds out. `address` is the control plane's, `host:port`.
    ///
    /// # Errors
    /// When there is nothing to join with.
    pub(super) async fn find(args: &super::RunArgs, service: &ServiceName, address: &str) -> anyhow::Result<Self> {
        if let Some(text) = &args.token {
            let token = text
                .parse::<JoinToken>()
                .map_err(|error| Failure::Usage(format!("--token: {}", error.reason)))?;
            return Ok(Self::Token(token));
        }
        if let Some(file) = &args.token_file {
            return Ok(Self::File(std::path::absolute(file)?));
        }
        if args
            .state_dir
            .as_ref()
            .is_some_and(|folder| folder.join("identity/chain.pem").exists())
        {
            return Ok(Self::Kept);
        }
        Self::make(args, service, address).await.with_context(|| {
            format!(
                "no token to join with; give --token-file FILE with what `outrigger token create --service {service}` \
                 prints where the control plane runs"
            )
        })
    }

    /// Asks the socket of the control plane at `address` if that is on this machine.
    async fn make(args: &super::RunArgs, service: &ServiceName, address: &str) -> anyhow::Result<Self> {
        let host = address
            .rsplit_once(':')
            .map_or(address, |(host, _)| host)
            .trim_matches(['[', ']']);
        let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        anyhow::ensure!(here, "{address} is another machine");
        let plane = target(args).plane()?;
        // Any number of uses: without a state folder each start of the sidecar is a first one.
        let question = json!({
            "namespace": service.namespace(), "service": service.service(), "uses": 0, "ttl_s": LIFE_SECONDS,
        });
        let answer = plane.send("/v1/tokens", &question).await?;
        let text = answer.get("token").and_then(Value::as_str).unwrap_or_default();
        let token = text.parse::<JoinToken>().context("the control plane gave no token")?;
        Ok(Self::Made(token, plane))
    }

    /// `identity` of the bootstrap document.
    pub(super) fn identity(&self, state_dir: Option<&Path>) -> Value {
        let persist = state_dir.is_some();
        match self {
            Self::Token(token) | Self::Made(token, _) => json!({"token": token.to_string(), "persist": persist}),
            Self::File(file) => json!({"token_file": file, "persist": persist}),
            Self::Kept => json!({"persist": persist}),
        }
    }

    /// Ends what was made for this run.
    pub(super) async fn end(&self) {
        if let Self::Made(token, plane) = self {
            // It runs out by itself when the control plane has gone first.
            plane.delete(&format!("/v1/tokens/{}", token.id)).await.ok();
        }
    }
}

/// Tells a person what keeps the sidecar behind `admin` from joining or from staying joined, each thing once. Never
/// returns.
pub(super) async fn tell(admin: SocketAddr) {
    let (mut told, mut pause) = (String::new(), SOON);
    loop {
        tokio::time::sleep(pause).await;
        // A sidecar that does not answer is being started again.
        let Ok((_, body)) = admin::request(admin, Method::GET, "/health", Bytes::new()).await else {
            continue;
        };
        let health: Value = serde_json::from_slice(&body).unwrap_or_default();
        let text = |key: &str| health.pointer(key).and_then(Value::as_str).unwrap_or_default();
        let (state, warning) = (text("/identity/state"), text("/identity/warning"));
        if state == "valid" {
            pause = LATER;
        }
        if !warning.is_empty() && warning != told {
            told = warning.to_owned();
            let what = if state == "joining" {
                "has not joined yet"
            } else {
                "may not stay joined"
            };
            // Without standard error there is nobody to tell.
            writeln!(anstream::stderr(), "outrigger: the sidecar {what}: {warning}").ok();
        }
    }
}

/// Where sidecars reach the control plane: `host:port` as given, else of the running `up`, else the default.
///
/// # Errors
/// When what is given is a socket: sidecars speak TLS only.
pub(super) fn control_plane(args: &super::RunArgs) -> Result<String, Failure> {
    if let Some(given) = &args.control_plane {
        return tls_address(given);
    }
    let up = target(args).up();
    let address = up.as_ref().and_then(|up| up.get("control_plane")?.as_str());
    Ok(address
        .map_or(DEFAULT, |url| url.split_once("://").map_or(url, |(_, address)| address))
        .to_owned())
}

/// The control plane on this machine.
fn target(args: &super::RunArgs) -> Target {
    Target {
        dir: args.dir.clone(),
        ..Target::default()
    }
}

fn tls_address(given: &str) -> Result<String, Failure> {
    match Address::parse(given).map_err(Failure::Usage)? {
        Address::Tls(authority) => Ok(authority),
        Address::Socket(_) => Err(Failure::Usage(format!(
            "`{given}` is a socket, and sidecars reach the control plane by TLS: give https://HOST:PORT"
        ))),
    }
}

/// The instance's name: kept beside its certificate, so that what is renewed is what was issued.
///
/// # Errors
/// When the folder cannot be used.
pub(super) fn instance(state_dir: Option<&Path>, fresh: String) -> anyhow::Result<String> {
    let Some(folder) = state_dir else { return Ok(fresh) };
    let file = folder.join("instance");
    if let Ok(kept) = std::fs::read_to_string(&file) {
        return Ok(kept.trim().to_owned());
    }
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    std::fs::write(&file, &fresh).with_context(|| file.display().to_string())?;
    Ok(fresh)
}

/// How often is looked at a sidecar that joins, and at one that has joined.
const SOON: Duration = Duration::from_millis(200);
const LATER: Duration = Duration::from_secs(5);
const DEFAULT: &str = "127.0.0.1:7070";
const LIFE_SECONDS: u64 = 30 * 24 * 3600;

#[cfg(test)]
mod tests {
    use super::{instance, tls_address};

    #[test]
    fn sidecars_reach_the_control_plane_by_tls() {
        assert_eq!(tls_address("https://10.0.0.1:7070/").unwrap(), "10.0.0.1:7070");
        assert_eq!(tls_address("mesh.example:7070").unwrap(), "mesh.example:7070");
        for wrong in ["unix:/run/x.sock", "http://127.0.0.1:7070"] {
            assert!(tls_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_instance_keeps_its_name_with_its_state() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        assert_eq!(instance(Some(&state), "a-1".to_owned()).unwrap(), "a-1");
        assert_eq!(instance(Some(&state), "a-2".to_owned()).unwrap(), "a-1");
        assert_eq!(instance(None, "a-2".to_owned()).unwrap(), "a-2");
    }
}
