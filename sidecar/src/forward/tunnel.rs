//! Upgraded connections: once granted, both ends are opaque bytes.

use http::Request;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::copy;
use crate::exchange::Exchange;

/// The client's and the upstream's end.
pub type Ends = (OnUpgrade, OnUpgrade);

/// The client's end of an upgrade request; none for any other request.
#[must_use]
pub fn client_end(request: &mut Request<Incoming>) -> Option<OnUpgrade> {
    let asks = request.headers().contains_key(http::header::UPGRADE) || request.method() == http::Method::CONNECT;
    asks.then(|| hyper::upgrade::on(request))
}

/// Joins two upgrades when both have happened, and tells `exchange` how it ended.
pub fn join(client: OnUpgrade, upstream: OnUpgrade, mut exchange: Box<Exchange>) {
    tokio::spawn(async move {
        let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) else {
            exchange.broken();
            return;
        };
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        let result = tokio::select! {
            (_, result) = copy::both(&mut client, &mut upstream) => result,
            () = std::future::poll_fn(|cx| exchange.poll_cut(cx)) => return exchange.cut(),
        };
        match result {
            Ok(()) => exchange.ended(None),
            Err(_) => exchange.broken(),
        }
    });
}
