//! Replaces instances one after the other, without losing a request: another one runs beside the old until callers have
//! heard of it; only then does the old one leave.
//!
//! Starting, healthy, known → the old one withdrawn → callers say that they know → their connections are told to go →
//! what is in flight is answered → the app is ended. An instance whose app has a fixed port cannot run twice and is
//! replaced in place, in the same order without the first half. One that never becomes healthy changes nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::admin;
use super::fleet::{DEGRADED, Fleet};
use super::keep::Want;
use super::plan::{Again, Origin};
use super::workload::{Row, Workload};
use crate::plane::Plane;

/// How long callers may take to say that they know.
const KNOWN: Duration = Duration::from_secs(5);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(25);

/// What to replace, and how.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// A service or an instance; all when absent.
    pub(crate) service: Option<String>,
    /// How long an instance may take to become healthy.
    pub(crate) patience: Duration,
    /// Stop before starting, for apps of which only one can run at a time.
    pub(crate) in_place: bool,
}

/// Why a restart ended early; what was not reached yet runs on as it was.
#[derive(Debug, Error)]
pub(crate) enum RestartError {
    /// Nothing has that name.
    #[error("no service or instance {wanted}; there are: {all}")]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// What runs.
        all: String,
    },
    /// Somebody else is at it.
    #[error("another restart is under way")]
    Busy,
    /// The mesh is going down.
    #[error("the mesh stops")]
    Stopping,
    /// The new instance could not even be planned.
    #[error("{instance} goes on; no other can be started beside it: {why}")]
    Plan {
        /// The old one.
        instance: String,
        /// Why.
        why: String,
    },
    /// The new instance did not become healthy.
    #[error("{new} did not become healthy within {}: {why}; {rest}{lines}", humantime::format_duration(*.patience))]
    Unhealthy {
        /// The new one.
        new: String,
        /// How long it was given.
        patience: Duration,
        /// How it stands.
        why: String,
        /// What goes on.
        rest: String,
        /// Its last lines.
        lines: String,
    },
}

/// Restarts what is `wanted`, service after service and instance after instance, and tells `progress` each step.
/// Names what runs now.
///
/// # Cancel safety
/// An instance that was added stays in the fleet, and is stopped with it.
pub(crate) async fn restart(
    fleet: &Fleet,
    wanted: &Wanted,
    progress: &mpsc::Sender<String>,
) -> Result<Vec<String>, RestartError> {
    let _one = fleet.restarting.try_lock().map_err(|_| RestartError::Busy)?;
    let all = fleet.workloads();
    let chosen = |one: &&Arc<Workload>| {
        let (name, service) = (&one.instance.name, &one.instance.service);
        wanted
            .service
            .as_ref()
            .is_none_or(|wanted| wanted == service || wanted == name)
    };
    let olds: Vec<_> = all.iter().filter(chosen).cloned().collect();
    if olds.is_empty() {
        let all: Vec<&str> = all.iter().map(|one| one.instance.name.as_str()).collect();
        return Err(RestartError::Unknown {
            wanted: wanted.service.clone().unwrap_or_default(),
            all: all.join(", "),
        });
    }
    let rolling = Rolling {
        fleet,
        wanted,
        progress,
    };
    let mut now = Vec::new();
    for old in olds {
        now.push(rolling.replace(&old).await?);
    }
    Ok(now)
}

struct Rolling<'a> {
    fleet: &'a Fleet,
    wanted: &'a Wanted,
    progress: &'a mpsc::Sender<String>,
}

impl Rolling<'_> {
    async fn replace(&self, old: &Arc<Workload>) -> Result<String, RestartError> {
        match (&self.fleet.again, &old.instance.origin) {
            (Some(again), Some(origin)) if !self.wanted.in_place && again.twice(origin) => {
                self.beside(old, again, origin).await
            }
            _ => self.in_place(old).await,
        }
    }

    /// Another one first.
    async fn beside(&self, old: &Arc<Workload>, again: &Again, origin: &Origin) -> Result<String, RestartError> {
        let name = &old.instance.name;
        let site = &again.site;
        let taken = |name: &str| self.fleet.workloads().iter().any(|one| one.instance.name == name);
        let instance = again.beside(origin, taken).map_err(|error| RestartError::Plan {
            instance: name.clone(),
            why: format!("{error:#}"),
        })?;
        let new = Arc::new(Workload::new(instance, &site.layout, &site.reaper, &site.console));
        if !self.fleet.add(old, Arc::clone(&new)) {
            return Err(RestartError::Stopping);
        }
        let begun = Instant::now();
        self.say(format!("{}: starts beside {name}", new.instance.name)).await;
        new.start().await;
        if let Err(row) = healthy(&new, begun + self.wanted.patience).await {
            let error = self.unhealthy(&new, row, format!("{name} goes on"));
            new.stop_app(Want::Stop).await;
            new.stop_sidecar(Want::Kill).await;
            self.fleet.remove(&new);
            return Err(error);
        }
        self.say(format!("{}: healthy after {}", new.instance.name, since(begun)))
            .await;
        self.known(old, Some(&new.instance.name)).await;
        self.leave(old).await;
        old.stop_app(Want::Stop).await;
        old.stop_sidecar(Want::Stop).await;
        self.fleet.remove(old);
        self.say(format!("{name}: stopped")).await;
        Ok(new.instance.name.clone())
    }

    /// Without another one: callers have to wait or go elsewhere meanwhile.
    async fn in_place(&self, old: &Arc<Workload>) -> Result<String, RestartError> {
        let name = &old.instance.name;
        let why = if self.wanted.in_place {
            "as asked"
        } else {
            "its app has a fixed port"
        };
        self.say(format!("{name}: stops before it starts again, {why}")).await;
        self.leave(old).await;
        old.stop_app(Want::Stop).await;
        old.stop_sidecar(Want::Stop).await;
        self.say(format!("{name}: stopped")).await;
        let begun = Instant::now();
        old.start().await;
        healthy(old, begun + self.wanted.patience)
            .await
            .map_err(|row| self.unhealthy(old, row, "it is started again and again".to_owned()))?;
        self.say(format!("{name}: healthy after {}", since(begun))).await;
        Ok(name.clone())
    }

    /// Takes the old one out of the registry and its callers away from it. It may be dead already: each step goes on
    /// without an answer.
    async fn leave(&self, old: &Workload) {
        let (Some(admin), name) = (old.admin(), &old.instance.name) else {
            return;
        };
        let begun = Instant::now();
        admin::leave(admin, "leaving").await.ok();
        self.say(format!("{name}: withdrawn")).await;
        self.known(old, None).await;
        admin::leave(admin, "closing").await.ok();
        let rest = old.instance.drain.deadline;
        match tokio::time::timeout(rest, quiet(admin)).await {
            Ok(()) => {
                self.say(format!("{name}: drained, {} after it was withdrawn", since(begun)))
                    .await
            }
            Err(_) => {
                let rest = humantime::format_duration(rest);
                self.say(format!("{name}: not drained within {rest}; what is left is cut"))
                    .await;
            }
        }
    }

    /// Waits until every caller that knows `old` knows `new` too or, without one, no caller knows `old` any more.
    async fn known(&self, old: &Workload, new: Option<&str>) {
        let (Some(again), Some(origin)) = (&self.fleet.again, &old.instance.origin) else {
            return;
        };
        let plane = Plane::at_socket(&again.site.layout.plane_socket());
        let endpoint = |instance: &str| format!("{}/{instance}", origin.service);
        let (begun, mut missing) = (Instant::now(), None);
        while begun.elapsed() < KNOWN {
            if let Ok(sidecars) = plane.get("/v1/sidecars").await {
                let left = callers(&sidecars, &endpoint(&old.instance.name));
                let left = match new {
                    Some(new) => &left - &callers(&sidecars, &endpoint(new)),
                    None => left,
                };
                if left.is_empty() {
                    return;
                }
                missing = Some(left);
            }
            tokio::time::sleep(LOOK).await;
        }
        let limit = humantime::format_duration(KNOWN);
        self.say(match missing {
            Some(missing) => {
                let missing: Vec<_> = missing.into_iter().collect();
                format!("not heard of within {limit} at {}; goes on", missing.join(", "))
            }
            None => format!("the control plane did not say within {limit} what callers know; goes on"),
        })
        .await;
    }

    fn unhealthy(&self, new: &Workload, row: Row, rest: String) -> RestartError {
        let why = match row.reason {
            Some(reason) => format!("{}, {}: {reason}", row.state, row.health),
            None => format!("{}, {}", row.state, row.health),
        };
        let lines = new.last_lines();
        RestartError::Unhealthy {
            new: new.instance.name.clone(),
            patience: self.wanted.patience,
            why,
            rest,
            lines: lines.iter().map(|line| format!("\n  {line}")).collect(),
        }
    }

    async fn say(&self, line: String) {
        // Who asked may have gone; a restart that has begun is ended in order all the same.
        self.progress.send(line).await.ok();
    }
}

/// Waits until it serves; else how it stands.
async fn healthy(workload: &Workload, until: Instant) -> Result<(), Row> {
    let lenient = Instant::now() + DEGRADED;
    loop {
        let row = workload.row().await;
        let well = row.health == "ok" || Instant::now() > lenient;
        if row.healthy() && well {
            return Ok(());
        }
        if row.hopeless() || Instant::now() > until {
            return Err(row);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until a closing sidecar has no callers, or is gone.
async fn quiet(admin: SocketAddr) {
    while let Ok(false) = admin::quiet(admin).await {
        tokio::time::sleep(LOOK).await;
    }
}

/// The connected sidecars that run with `endpoint`.
fn callers(sidecars: &Value, endpoint: &str) -> BTreeSet<String> {
    let runs = |sidecar: &&Value| {
        let applied = sidecar["applied"].as_array().into_iter().flatten();
        sidecar["connected"] == true
            && applied
                .into_iter()
                .any(|one| one["type"] == "Endpoint" && one["resource"] == endpoint)
    };
    let all = sidecars.as_array().into_iter().flatten();
    all.filter(runs)
        .filter_map(|sidecar| Some(sidecar["name"].as_str()?.to_owned()))
        .collect()
}

fn since(begun: Instant) -> String {
    format!("{:.1} s", begun.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_caller_is_a_connected_sidecar_that_runs_with_the_endpoint() {
        let endpoint =
            |name: &str| json!([{"type": "Service", "resource": name}, {"type": "Endpoint", "resource": name}]);
        let sidecars = json!([
            {"name": "default/gateway/gateway-1", "connected": true, "applied": endpoint("default/post/post-1")},
            {"name": "default/gateway/gateway-2", "connected": false, "applied": endpoint("default/post/post-1")},
            {"name": "default/user/user-1", "connected": true, "applied": endpoint("default/post/post-10")},
            {"name": "default/blog/blog-1", "connected": true,
             "applied": [{"type": "Service", "resource": "default/post/post-1"}]},
        ]);
        let found: Vec<_> = callers(&sidecars, "default/post/post-1").into_iter().collect();
        assert_eq!(found, ["default/gateway/gateway-1"]);
    }
}
