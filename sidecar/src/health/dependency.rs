//! One look at something that the app needs: a file, a socket or a URL.

use std::time::{Duration, Instant};

use http::Uri;
use outrigger_proto::model::{Dependency, DependencyCheck};
use tokio::net::TcpStream;

use super::app::Check;
use super::probe;

/// Looks once.
pub(super) async fn check(dependency: &Dependency, limit: Duration) -> Check {
    let looked = async {
        match &dependency.check {
            DependencyCheck::File(path) => file(path).await,
            DependencyCheck::Tcp(address) => TcpStream::connect(address.as_str())
                .await
                .map(drop)
                .map_err(|e| probe::refused(address, &e)),
            DependencyCheck::Http(url) => http(url).await,
        }
    };
    let result = probe::within(limit, looked).await;
    Check {
        name: dependency.name.clone(),
        ok: result.is_ok(),
        reason: result.err().unwrap_or_default(),
        at: Instant::now(),
    }
}

async fn file(path: &str) -> Result<(), String> {
    tokio::fs::File::open(path)
        .await
        .map(drop)
        .map_err(|e| format!("cannot read {path}: {e}"))
}

async fn http(url: &str) -> Result<(), String> {
    let uri: Uri = url.parse().map_err(|e| format!("`{url}` is not a URL: {e}"))?;
    let Some(authority) = uri.authority().filter(|_| uri.scheme_str() == Some("http")) else {
        return Err(format!(
            "`{url}` cannot be checked: only http:// is understood; use tcp: host:port"
        ));
    };
    let target = (
        authority.host().trim_matches(['[', ']']),
        authority.port_u16().unwrap_or(80),
    );
    let mut last = format!("{} has no address", authority.host());
    let found = tokio::net::lookup_host(target)
        .await
        .map_err(|e| format!("cannot resolve {}: {e}", authority.host()))?;
    for address in found {
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        match probe::http1(address, authority.as_str(), path).await {
            Ok(()) => return Ok(()),
            Err(reason) => last = reason,
        }
    }
    Err(last)
}
