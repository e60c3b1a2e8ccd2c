//! What time alone does to registrations: leases lapse, alarms rise and settle.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use outrigger_proto::model::{EndpointName, ServiceName};

use super::{Change, Lease, Millis, Registry, Removal, Set, Stale, Terms};

/// Lease times for which an instance that left is remembered, so that its late messages change nothing.
const REMEMBERED: u64 = 40;

impl Registry {
    /// Lets time pass: call it several times a lease.
    pub fn tick(&mut self, now: Millis) -> Vec<Change> {
        let mut changes = Vec::new();
        if now < self.hold_until {
            return changes;
        }
        for (service, set) in &mut self.sets {
            set.expire(now, self.terms, service, &mut changes);
        }
        self.sets
            .retain(|_, set| !(set.leases.is_empty() && set.recent.is_empty()));
        let (sets, horizon) = (&self.sets, REMEMBERED * self.terms.lease);
        self.seen.retain(|name, seen| {
            seen.at + horizon > now || sets.get(&name.service).is_some_and(|s| s.leases.contains_key(name))
        });
        changes
    }

    /// Ends the alarm of `service` once no more than half of its leases are lapsed. The others get
    /// one more lease time: they lapsed under a fault that is only now over.
    pub(super) fn settle(&mut self, now: Millis, service: &ServiceName, changes: &mut Vec<Change>) {
        let Some(set) = self.sets.get_mut(service) else { return };
        let Some(stale) = &mut set.stale else { return };
        stale.lapsed = set.leases.values().filter(|l| l.lapsed).count();
        stale.of = set.leases.values().filter(|l| l.served()).count();
        if stale.lapsed * 2 > stale.of {
            return;
        }
        set.stale = None;
        for lease in set.leases.values_mut().filter(|l| l.lapsed) {
            lease.lapsed = false;
            lease.expires = now + self.terms.lease;
        }
        changes.push(Change::Fresh(service.clone()));
    }
}

impl Set {
    fn expire(&mut self, now: Millis, terms: Terms, service: &ServiceName, changes: &mut Vec<Change>) {
        self.recent.retain(|_, (lapsed_at, _)| *lapsed_at + terms.lease >= now);
        // An app that is unwell is not served, so its lease counts for nothing below.
        self.leases.retain(|name, lease| {
            let forgotten = !lease.served() && lease.expires <= now;
            if forgotten {
                changes.push(Change::Remove(name.clone(), Removal::Lapsed));
            }
            !forgotten
        });
        let newly = |l: &Lease| l.served() && !l.lapsed && l.expires <= now;
        let lapsing = self.leases.values().filter(|l| newly(l)).count();
        if lapsing == 0 {
            return;
        }
        let served = self.leases.values().filter(|l| l.served()).count();
        if let Some(stale) = &mut self.stale {
            stale.lapsed += lapsing;
            stale.of = served;
            self.keep(now);
            return;
        }
        let (lapsed, of) = (lapsing + self.recent.len(), served + self.recent.len());
        if lapsed * 2 <= of {
            // At least as many live leases remain as lapse here, so the set does not become empty.
            let (gone, stay): (BTreeMap<EndpointName, Lease>, BTreeMap<_, _>) =
                mem::take(&mut self.leases).into_iter().partition(|(_, l)| newly(l));
            self.leases = stay;
            for (name, lease) in gone {
                changes.push(Change::Remove(name.clone(), Removal::Lapsed));
                self.recent.insert(name, (lease.expires, lease));
            }
            return;
        }
        // The last set includes those whose removal was only the first sign of the same fault.
        for (name, (_, lease)) in mem::take(&mut self.recent) {
            changes.push(Change::Serve(Arc::clone(&lease.endpoint)));
            self.leases.insert(name, lease);
        }
        self.keep(now);
        let stale = Stale { since: now, lapsed, of };
        self.stale = Some(stale);
        changes.push(Change::Stale(service.clone(), stale));
    }

    fn keep(&mut self, now: Millis) {
        for lease in self.leases.values_mut().filter(|l| l.served() && l.expires <= now) {
            lease.lapsed = true;
        }
    }
}
