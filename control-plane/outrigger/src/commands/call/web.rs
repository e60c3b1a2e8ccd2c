//! One HTTP request; the body goes to standard output as it came.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::http as client;

/// What is asked.
pub(super) struct Ask<'a> {
    pub(super) address: &'a str,
    pub(super) host: &'a str,
    pub(super) path: &'a str,
    pub(super) method: Option<Method>,
    pub(super) headers: &'a [(HeaderName, HeaderValue)],
    pub(super) body: Option<String>,
    pub(super) include: bool,
    pub(super) limit: Duration,
}

/// Sends the request and prints the answer.
pub(super) async fn call(ask: Ask<'_>) -> anyhow::Result<ExitCode> {
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, HeaderValue::from_str(ask.host)?);
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
    let request = client::Ask {
        method,
        headers,
        body: ask.body.unwrap_or_default().into(),
    };
    let reply = client::send(&format!("http://{}{}", ask.address, ask.path), request, ask.limit).await?;
    let failed = reply.status.is_client_error() || reply.status.is_server_error();
    let mut err = anstream::stderr();
    if ask.include || failed {
        // The mesh names its reason when it made the answer itself.
        let reason = reply
            .headers
            .get("outrigger-reason")
            .and_then(|value| value.to_str().ok());
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
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
