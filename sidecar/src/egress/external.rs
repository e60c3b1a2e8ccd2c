//! The world outside the mesh: permission, addresses, connections.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::Authority;
use http::{Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::connect::{self, Route, Security, Upstream, Wire};
use crate::exchange::Exchange;
use crate::forward::body::Body;
use crate::forward::replay::Source;
use crate::forward::translate::Plan;
use crate::policy::external as policy;
use crate::policy::retry::Failure;
use crate::reason::Reason;
use crate::respond::chain;
use crate::shared::Shared;

const CONNECT: Duration = Duration::from_secs(5);
/// Hosts whose connections one worker keeps.
const MOST_HOSTS: usize = 256;

type Refusal = (Reason, String);

#[derive(Debug)]
pub(super) struct External {
    shared: Arc<Shared>,
    upstreams: Mutex<HashMap<SocketAddr, Arc<Upstream>>>,
}

impl External {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            upstreams: Mutex::new(HashMap::new()),
        }
    }

    pub(super) fn prune(&self, now: Instant, idle: Duration) {
        self.upstreams.lock().retain(|_, u| {
            u.prune(now, idle);
            Arc::strong_count(u) > 1 || u.has_connections()
        });
    }

    /// A connection for CONNECT.
    pub(super) async fn connect(&self, authority: &Authority) -> Result<TcpStream, Refusal> {
        let port = authority
            .port_u16()
            .ok_or((Reason::BadRequest, "CONNECT needs a port".to_owned()))?;
        let address = self.address(authority.host(), port).await?;
        connect::dial(address, CONNECT)
            .await
            .map_err(|e| (Reason::ConnectFailed, chain(&e)))
    }

    /// Sends one request.
    pub(super) async fn send(
        &self,
        request: Request<Incoming>,
        authority: &Authority,
        exchange: &mut Exchange,
    ) -> Result<Response<Body>, Refusal> {
        if request.uri().scheme_str() != Some("http") {
            return Err((
                Reason::BadRequest,
                "only http:// is proxied; use CONNECT for anything else".into(),
            ));
        }
        let address = self
            .address(authority.host(), authority.port_u16().unwrap_or(80))
            .await?;
        let upstream = self.upstream(address);
        let (mut parts, body) = request.into_parts();
        let plan = Plan::read(&mut parts, false).map_err(|e| (Reason::BadRequest, e.as_str().into()))?;
        // RFC 9112 §3.2.2: a proxy takes the authority of the target, not the Host that came along.
        parts.headers.remove(http::header::HOST);
        let source = (!http_body::Body::is_end_stream(&body)).then(|| Source::new(body, &parts.extensions));
        let body = source
            .as_ref()
            .and_then(Source::take)
            .map_or_else(Body::empty, Body::replay);
        let mut request = Request::from_parts(parts, body);
        plan.dress(&mut request, Wire::Http1, authority);
        exchange.tried();
        match upstream.send(&mut Some(request)).await {
            Ok((mut response, lease)) => {
                plan.receive(&mut response, Wire::Http1);
                exchange.answered(response.status(), response.headers(), lease);
                Ok(response.map(Body::incoming))
            }
            Err(error) => {
                let reason = if error.failure == Failure::NeverSent {
                    Reason::ConnectFailed
                } else {
                    Reason::UpstreamReset
                };
                Err((reason, chain(&*error.source)))
            }
        }
    }

    fn upstream(&self, address: SocketAddr) -> Arc<Upstream> {
        let mut all = self.upstreams.lock();
        if all.len() >= MOST_HOSTS && !all.contains_key(&address) {
            all.clear();
        }
        let age = self.shared.directory.proxy().limits.max_connection_age;
        all.entry(address)
            .or_insert_with(|| {
                let route = Route {
                    address,
                    wire: Wire::Http1,
                    security: Security::Plain,
                    weight: 1,
                    connect_timeout: CONNECT,
                    max_age: age,
                    keep: true,
                };
                Arc::new(Upstream::new(route, self.shared.clone()))
            })
            .clone()
    }

    /// The first address that may be reached. What was checked is what is dialled.
    async fn address(&self, host: &str, port: u16) -> Result<SocketAddr, Refusal> {
        let denied = |d: policy::Denied| match d {
            policy::Denied::Policy => (Reason::ExternalDenied, format!("{host} is not in `external`")),
            policy::Denied::LinkLocal => (
                Reason::ExternalDenied,
                format!("{host} is a link-local address; these serve credentials"),
            ),
        };
        policy::host(&self.shared.directory.proxy().external, host).map_err(denied)?;
        let bare = host.trim_matches(['[', ']']);
        let found = match bare.parse() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => connect::resolve(&format!("{host}:{port}"), CONNECT)
                .await
                .map_err(|e| {
                    // A name without a dot that nobody knows was meant for the mesh.
                    let reason = if host.contains('.') {
                        Reason::ConnectFailed
                    } else {
                        Reason::UnknownService
                    };
                    (reason, format!("{host}: neither a mesh service nor a host: {e}"))
                })?,
        };
        let mut refused = (Reason::ConnectFailed, format!("{host} has no address"));
        for address in found {
            match policy::address(address.ip()) {
                Err(d) => refused = denied(d),
                Ok(()) if self.shared.own_listeners.contains(&address) => {
                    refused = (Reason::Loop, format!("{address} is this sidecar itself"));
                }
                Ok(()) => return Ok(address),
            }
        }
        Err(refused)
    }
}
