//! One HTTP request; the body goes to standard output as it came.

use std::io::Write as _;

use anyhow::Context as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::Outcome;
use super::line::Line;
use crate::http as client;

/// What is asked.
pub(super) struct Ask<'a> {
    pub(super) line: &'a Line,
    pub(super) host: &'a str,
    pub(super) path: &'a str,
    pub(super) method: Option<Method>,
    pub(super) headers: &'a [(HeaderName, HeaderValue)],
    pub(super) body: Option<String>,
    pub(super) include: bool,
}

/// Sends the request and prints the answer.
pub(super) async fn call(ask: Ask<'_>) -> anyhow::Result<Outcome> {
    let mut headers = HeaderMap::new();
    if ask
        .body
        .as_deref()
        .is_some_and(|body| serde_json::from_str::<serde_json::Value>(body).is_ok())
    {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    for (name, value) in ask.headers {
        headers.insert(name, value.clone());
    }
    let method = ask
        .method
        .unwrap_or(if ask.body.is_some() { Method::POST } else { Method::GET });
    let asked = Outcome::Denied(method.to_string(), ask.path.to_owned());
    let request = client::Ask {
        method,
        headers,
        body: ask.body.unwrap_or_default().into(),
    };
    let stream = ask
        .line
        .open()
        .await
        .with_context(|| format!("cannot reach {}", ask.line.address))?;
    let reply = match ask.line.mesh {
        Some(_) => client::over_h2(stream, ask.host, ask.path, request).await?,
        None => client::over(stream, ask.host, ask.path, request).await?,
    };
    let failed = reply.status.is_client_error() || reply.status.is_server_error();
    let mut err = anstream::stderr();
    // The mesh names its reason when it made the answer itself.
    let reason = reply
        .headers
        .get("outrigger-reason")
        .and_then(|value| value.to_str().ok());
    if ask.include || failed {
        writeln!(
            err,
            "{}{}",
            reply.status,
            reason.map(|reason| format!(" (mesh: {reason})")).unwrap_or_default()
        )?;
    }
    if ask.include {
        for (name, value) in &reply.headers {
            writeln!(err, "{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
        }
    }
    // Not through `output`: a body may be anything, and must come out byte for byte.
    let mut out = std::io::stdout().lock();
    out.write_all(&reply.body)?;
    if std::io::IsTerminal::is_terminal(&out) && !reply.body.ends_with(b"\n") {
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(match (failed, reason) {
        (true, Some(super::DENIED)) => asked,
        (true, _) => Outcome::Failed,
        (false, _) => Outcome::Well,
    })
}
