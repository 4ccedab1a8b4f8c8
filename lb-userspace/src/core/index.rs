//! Which services an input concerns.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    ProbeKey,
    service::{Member, Probes, ServiceRef},
};

/// From a key (a probe, an address) to the services that have backends with it, counted.
#[derive(Clone, Debug)]
pub(super) struct Index<K> {
    services: BTreeMap<K, BTreeMap<ServiceRef, u32>>,
}

impl<K: Ord> Default for Index<K> {
    fn default() -> Self {
        Self { services: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Index<K> {
    /// Another backend of the service has this key. Returns true when nobody had it before.
    pub(super) fn add(&mut self, key: &K, service: ServiceRef) -> bool {
        if let Some(services) = self.services.get_mut(key) {
            *services.entry(service).or_default() += 1;
            return false;
        }
        self.services.insert(key.clone(), BTreeMap::from([(service, 1)]));
        true
    }

    /// One backend less. Returns true when nobody has the key any more.
    pub(super) fn remove(&mut self, key: &K, service: ServiceRef) -> bool {
        let Some(services) = self.services.get_mut(key) else { return false };
        if let Some(count) = services.get_mut(&service) {
            *count -= 1;
            if *count == 0 {
                services.remove(&service);
            }
        }
        services.is_empty() && self.services.remove(key).is_some()
    }

    /// Services that have backends with the key.
    pub(super) fn concerned(&self, key: &K) -> Vec<ServiceRef> {
        self.services.get(key).map(|services| services.keys().copied().collect()).unwrap_or_default()
    }

    /// Every key that somebody has, in order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.services.keys()
    }
}

/// All indexes: over the probes of all backends, and over the addresses of configured `full-nat`
/// backends, whose sources the core must be told.
#[derive(Clone, Debug, Default)]
pub(super) struct Indexes {
    pub probes: Index<ProbeKey>,
    pub hosts: Index<IpAddr>,
    /// Raised whenever the set of probes changes.
    pub probes_revision: u64,
}

impl Indexes {
    /// Changes what is asked about a backend.
    pub(super) fn set_probes(&mut self, service: ServiceRef, member: &mut Member, probes: Probes) {
        let old = std::mem::replace(&mut member.probes, probes);
        let Probes { health, agent } = &member.probes;
        self.replace(service, old.health, health.as_ref());
        self.replace(service, old.agent, agent.as_ref());
    }

    fn replace(&mut self, service: ServiceRef, old: Option<ProbeKey>, new: Option<&ProbeKey>) {
        if old.as_ref() == new {
            return;
        }
        let came = new.is_some_and(|new| self.probes.add(new, service));
        let went = old.is_some_and(|old| self.probes.remove(&old, service));
        self.probes_revision += u64::from(came) + u64::from(went);
    }
}
