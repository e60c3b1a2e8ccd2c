//! The finding `drops_deadline`: the app gets requests with a deadline and calls others without one.
//!
//! What of a request's time is left is known at every hop only as long as each app passes it on; one that does not
//! makes others work for callers that are gone. Counting is the workers'; here is a look at the sums now and then.

use std::time::{Duration, SystemTime};

use crate::guard::events::{Event, What};
use crate::observe::{Direction, Gauge};
use crate::policy::passing::{Change, Count, Counted, Passing, Window};
use crate::shared::Shared;

/// The finding's name.
const NAME: &str = "drops_deadline";
/// Between two looks. A verdict needs a hundred requests and calls, so nothing is lost by waiting.
const LOOK: Duration = Duration::from_secs(2);

/// The verdict, and of which of the app's starts it is.
#[derive(Debug, Default)]
pub(super) struct Watched {
    passing: Passing,
    start: u64,
}

/// Looks for as long as the sidecar lives.
pub(super) async fn watch(shared: &Shared, watched: &mut Watched) {
    let bootstrap = &shared.bootstrap;
    // Whoever takes no requests, or calls nobody, has nothing to pass on.
    if bootstrap.inbound.is_empty() || (bootstrap.outbound.is_empty() && bootstrap.http_proxy.is_none()) {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(LOOK).await;
        let now = counted(shared);
        let start = shared.app.start();
        if std::mem::replace(&mut watched.start, start) != start {
            watched.passing.restart(now);
        }
        if let Some(change) = watched.passing.look(now) {
            tell(shared, change);
        }
    }
}

fn counted(shared: &Shared) -> Counted {
    let of = |direction| {
        let (bounded, unbounded) = shared.stats.timings(direction);
        Count { bounded, unbounded }
    };
    Counted {
        requests: of(Direction::Inbound),
        calls: of(Direction::Outbound),
    }
}

fn tell(shared: &Shared, change: Change) {
    let (what, window) = match change {
        Change::Drops(window) => (What::DeadlineDropped, window),
        Change::Passes(window) => (What::DeadlinePassedOn, window),
    };
    let cause = cause(window);
    match change {
        Change::Drops(_) => tracing::warn!(service = %shared.name, %cause, "the app drops the deadline; {HELP}"),
        Change::Passes(_) => tracing::info!(service = %shared.name, %cause, "the app passes the deadline on"),
    }
    let drops = what == What::DeadlineDropped;
    shared.stats.set(Gauge::DropsDeadline, drops.into());
    let says = drops.then(|| format!("{cause}; {HELP}"));
    shared.app.find(NAME, says);
    shared.events.push(Event {
        at: SystemTime::now(),
        service: shared.name.clone(),
        endpoint: None,
        what,
        cause,
        next: None,
    });
}

fn cause(window: Window) -> String {
    format!(
        "{} % of its requests bear a deadline, {} % of its calls bear none",
        window.requests_bounded, window.calls_unbounded
    )
}

/// What a person does about it.
const HELP: &str =
    "forward `outrigger-timeout-ms` (gRPC: `grpc-timeout`) of a request, or less, with the calls made for it";
