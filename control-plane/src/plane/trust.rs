//! What everybody trusts: pushed when it changes, and who runs with it.

use std::collections::BTreeSet;

use outrigger_proto::features;
use outrigger_proto::model::{EndpointName, ResourceType, TrustBundle};

use super::Plane;
use crate::identity::Fleet;
use crate::push::table::Entry;
use crate::registry::{Refusal, Registry};

/// Why an endpoint was withdrawn.
const REVOKED: &str = "its identity was revoked";

impl Plane {
    /// Pushes what is trusted now, and takes the endpoints away of those that are no longer let in.
    pub fn tell_trust(&self) {
        let bundle = self.authority.bundle();
        self.hub.lock().put(
            ResourceType::TrustBundle,
            TrustBundle::NAME,
            Entry::trust(&bundle.into()),
        );
        let (now, barred) = (self.now(), |name: &EndpointName| self.authority.bars(name));
        let expelled = |registry: &mut Registry| Ok::<_, Refusal>(registry.expel(now, barred, REVOKED));
        // Nothing refuses this.
        let _done = self.decide(expelled).is_err();
    }

    /// Version of the trust that is pushed now.
    fn trust_version(&self) -> Option<String> {
        let hub = self.hub.lock();
        let entry = hub.table().get(ResourceType::TrustBundle, TrustBundle::NAME);
        entry.map(|entry| entry.version.clone())
    }
}

impl Fleet for Plane {
    /// Everybody with a live lease or an open session, but for those who have no identity.
    fn lagging(&self) -> BTreeSet<String> {
        let version = self.trust_version();
        let mut names: BTreeSet<EndpointName> = {
            let registry = self.registry();
            let live = registry.leases().filter(|lease| !lease.lapsed);
            live.map(|lease| lease.endpoint.name.clone()).collect()
        };
        let sidecars = self.sidecars.lock();
        let open = sidecars.iter().filter(|(_, sidecar)| sidecar.session.is_some());
        names.extend(open.map(|(name, _)| name.clone()));
        let key = (ResourceType::TrustBundle.url().to_owned(), TrustBundle::NAME.to_owned());
        let lags = |name: &EndpointName| match sidecars.get(name) {
            // Its lease was restored, and it has not been heard of since.
            None => true,
            Some(sidecar) => {
                let has = sidecar.applied.get(&key).map(|status| &status.applied);
                sidecar.hello.features.iter().any(|feature| feature == features::MTLS) && has != version.as_ref()
            }
        };
        names
            .iter()
            .filter(|name| lags(name))
            .map(ToString::to_string)
            .collect()
    }
}
