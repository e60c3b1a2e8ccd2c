//! Shares of rates that instances keep together: from the registrations to the sidecars.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_proto::features;
use outrigger_proto::model::{EndpointName, ServiceName};
use outrigger_proto::wire::agent::down;
use outrigger_proto::wire::mesh::rate_limit::By;

use super::Plane;
use crate::catalog::Catalog;
use crate::sidecars::Command;

impl Plane {
    /// Divides again what is asked for, and tells whose share changed.
    pub fn share_out(&self) {
        let services = self.quotas.lock().services();
        if services.is_empty() {
            return;
        }
        let now = self.now();
        let (registered, unsure) = {
            let registry = self.registry.lock();
            let of = |service: ServiceName| {
                // Others are not given such limits.
                let leases = registry.of(&service);
                let leases = leases.filter(|l| l.endpoint.capabilities.iter().any(|c| c == features::QUOTA));
                let names: BTreeSet<EndpointName> = leases.map(|lease| lease.endpoint.name.clone()).collect();
                (service, names)
            };
            let registered: BTreeMap<_, _> = services.into_iter().map(of).collect();
            (registered, now < registry.hold_until())
        };
        let tells = self.quotas.lock().turn(now, &registered, unsure);
        for tell in tells {
            let commands = {
                let mut sidecars = self.sidecars.lock();
                sidecars.current(&tell.to, tell.session).map(|s| s.commands.clone())
            };
            let command = Command {
                body: down::Body::Shares(tell.shares.clone()),
                reply: None,
            };
            tracing::debug!(to = %tell.to, shares = ?tell.shares.limits, "shares of rate limits");
            // One that does not take it, or is gone, is told what holds then at the next turn.
            if commands.is_none_or(|commands| commands.try_send(command).is_err()) {
                self.quotas.lock().untold(&tell);
            }
        }
    }
}

/// The limits that hold for all instances together: of which service, the name, and whether each key has its own rate.
pub(super) fn limits(catalog: &Catalog) -> impl Iterator<Item = (ServiceName, String, bool)> {
    catalog.iter().flat_map(|(service, entry)| {
        let limits = entry.proxy.resource.rate_limits.iter().filter(|limit| limit.mesh);
        limits.map(|limit| {
            let by_key = matches!(limit.by, Some(By::Caller(_) | By::Header(_)));
            (service.clone(), limit.name.clone(), by_key)
        })
    })
}
