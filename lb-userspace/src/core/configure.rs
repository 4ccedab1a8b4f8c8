//! Who is a backend of what: the configuration file and the operator's layer over it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::abi::Port;

use super::{
    Admin, Core, Notice, Now, OperatorLayer, Override,
    agent_word::AgentWord,
    election::RoleState,
    health::Health,
    service::{Leave, Member, Probes, Service, ServiceRef, probes},
    suspicion,
};
use crate::config::{self, Config};

/// One service's part of the operator's layer.
pub(super) type ServiceLayer = BTreeMap<SocketAddr, Override>;

/// A backend as file and operator want it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub address: SocketAddr,
    pub weight: u16,
    pub tier: u8,
    pub admin: Admin,
    /// The time of its drain is over.
    pub drained: bool,
    pub check_address: Option<SocketAddr>,
    pub max_connections: Option<u32>,
    pub overridden: Option<Override>,
}

/// The backends of a service in file order, then those that the operator added, by address. The file
/// says what exists and in which tier; the operator says what was decided about it.
pub(super) fn wanted(service: &config::Service, layer: Option<&ServiceLayer>) -> Vec<Wanted> {
    let nothing = ServiceLayer::new();
    let layer = layer.unwrap_or(&nothing);
    let merge = |backend: &config::Backend| {
        let overridden = layer.get(&backend.address).cloned();
        let decided = overridden.clone().unwrap_or_default();
        (!decided.removed).then(|| Wanted {
            address: backend.address,
            weight: decided.weight.unwrap_or(backend.weight),
            tier: backend.tier,
            admin: decided.admin.unwrap_or_default(),
            drained: decided.drain_over,
            check_address: backend.check_address,
            max_connections: backend.max_connections,
            overridden,
        })
    };
    let mut wanted: Vec<Wanted> = service.backends.iter().filter_map(merge).collect();
    let in_file: BTreeSet<SocketAddr> = service.backends.iter().map(|backend| backend.address).collect();
    for (&address, decided) in layer.iter().filter(|(address, _)| !in_file.contains(address)) {
        if let Some(tier) = decided.added_tier {
            let backend = config::Backend { address, weight: 1, tier, check_address: None, max_connections: None };
            wanted.extend(merge(&backend));
        }
    }
    wanted
}

impl Core {
    /// Takes over a configuration: only services that it changes are touched.
    pub(super) fn configure(&mut self, config: Arc<Config>, now: Now) {
        self.replace_config(Arc::clone(&config));
        for service in &config.services {
            let known = self.services.get(&ServiceRef::of(service)).filter(|known| known.leaving.is_none());
            if known.and_then(|known| known.config.as_ref()) != Some(service) {
                self.configure_service(service, now);
            }
        }
    }

    /// Takes over an operator's layer: only services that it changes are touched.
    pub(super) fn operate(&mut self, layer: OperatorLayer, now: Now) {
        let old = std::mem::replace(&mut self.layer, layer);
        let names: BTreeSet<&String> = old.services.keys().chain(self.layer.services.keys()).collect();
        let changed = names.into_iter().filter(|name| old.services.get(*name) != self.layer.services.get(*name));
        for name in changed.cloned().collect::<Vec<String>>() {
            let config = self.names.get(&name).and_then(|me| self.services.get(me)?.config.clone());
            match config {
                Some(config) => self.configure_service(&config, now),
                None if old.services.contains_key(&name) => {}
                None => {
                    let text = "an operator decided something about this service, but it is not configured";
                    self.tell(&name, None, text.to_owned());
                }
            }
        }
    }

    fn replace_config(&mut self, config: Arc<Config>) {
        if config.limits != self.config.limits {
            self.tell("", None, "`limits` changed: they take effect when the maps are made anew".to_owned());
        }
        if config.maglev_table_size != self.config.maglev_table_size {
            self.dirty.extend(self.services.keys());
        }
        self.ledger.set_ports(&config.source_ports);
        self.names = config.services.iter().map(|service| (service.name.clone(), ServiceRef::of(service))).collect();
        self.keys = self.names.values().map(|&me| (me.key, me)).collect();
        self.config = config;
        for (me, service) in &self.services {
            // Whether a leaving service keeps its key depends on who is configured.
            if service.leaving.is_some() {
                self.dirty.insert(*me);
            }
        }
        let gone: Vec<ServiceRef> = self
            .services
            .iter()
            .filter(|(me, service)| service.leaving.is_none() && self.keys.get(&me.key) != Some(me))
            .map(|(me, _)| *me)
            .collect();
        gone.into_iter().for_each(|me| self.remove_service(me));
    }

    fn remove_service(&mut self, me: ServiceRef) {
        let Some(mut service) = self.services.remove(&me) else { return };
        service.leaving = Some(Leave::at(self.ledger.next_generation()));
        self.ledger.touch();
        for member in service.members.iter_mut().filter(|member| member.leaving.is_none()) {
            self.member_leaves(me, member);
        }
        service.problem = None;
        self.tell(service.name(), None, "removed".to_owned());
        self.dirty.insert(me);
        self.services.insert(me, service);
    }

    fn configure_service(&mut self, config: &config::Service, now: Now) {
        let me = ServiceRef::of(config);
        let mut service = self.services.remove(&me).unwrap_or_else(Service::new);
        service.leaving = None;
        service.config = Some(config.clone());
        let (mut known, mut leaving) = by_address(std::mem::take(&mut service.members));
        for wanted in wanted(config, self.layer.services.get(&config.name)) {
            let mut member = match known.remove(&wanted.address) {
                Some(member) => member,
                None => Member::new(wanted.address, Health::unknown("no result yet", now)),
            };
            self.configure_member(me, config, &mut member, wanted, now);
            service.members.push(member);
        }
        for mut member in known.into_values() {
            if member.leaving.is_none() {
                let text = format!("removed: takes no new flows, {} live", member.live_flows);
                self.tell(&config.name, Some(member.address), text);
                self.member_leaves(me, &mut member);
            }
            leaving.push(member);
        }
        for mut member in leaving {
            if member.admin != Admin::Maintenance {
                let probes = probes(member.address, member.check_address, config);
                self.indexes.set_probes(me, &mut member, probes);
            }
            service.members.push(member);
        }
        self.elections.insert(me);
        self.dirty.insert(me);
        self.services.insert(me, service);
    }

    fn configure_member(
        &mut self,
        me: ServiceRef,
        config: &config::Service,
        member: &mut Member,
        wanted: Wanted,
        now: Now,
    ) {
        if member.configured {
            for text in changes(member, &wanted) {
                self.tell(&config.name, Some(member.address), text);
            }
        } else {
            let text = format!("added: tier {}, weight {}, {}", wanted.tier, wanted.weight, word(wanted.admin));
            self.tell(&config.name, Some(member.address), text);
            self.member_joins(me, member);
        }
        suspicion::forget(member);
        let paused = member.admin == Admin::Maintenance;
        member.weight = wanted.weight;
        member.tier = wanted.tier;
        member.admin = wanted.admin;
        member.drained = wanted.drained;
        member.overridden = wanted.overridden;
        member.check_address = wanted.check_address;
        member.max_flows = wanted.max_connections.unwrap_or(0);
        if member.admin == Admin::Maintenance {
            if !paused {
                member.health.pause("maintenance: not probed", now);
                let _ = member.role.forget("maintenance: not probed");
            }
            self.indexes.set_probes(me, member, Probes::default());
            return;
        }
        let probes = probes(member.address, member.check_address, config);
        if probes.health.is_none() {
            member.health.not_checked(now);
        } else if probes.health != member.probes.health {
            member.health.restart_count();
        }
        if probes.agent.is_none() {
            member.agent = AgentWord::default();
        }
        if config.role.is_none() {
            member.role = RoleState::default();
        }
        self.indexes.set_probes(me, member, probes);
    }

    fn member_joins(&mut self, me: ServiceRef, member: &mut Member) {
        member.configured = true;
        member.leaving = None;
        if !me.needs_source() {
            return;
        }
        self.indexes.hosts.add(&member.address.ip(), me);
        if me.full_nat()
            && member.port() == Port::ANY
            && self.ledger.pools.begin_any_port((member.ip(), me.key.protocol))
        {
            self.dirty.extend(self.indexes.hosts.concerned(&member.address.ip()));
        }
    }

    fn member_leaves(&mut self, me: ServiceRef, member: &mut Member) {
        member.configured = false;
        member.leaving = Some(Leave::at(self.ledger.next_generation()));
        member.problem = None;
        self.ledger.touch();
        if !me.needs_source() {
            return;
        }
        self.indexes.hosts.remove(&member.address.ip(), me);
        if me.full_nat() && member.port() == Port::ANY {
            self.ledger.pools.end_any_port((member.ip(), me.key.protocol));
        }
    }

    fn tell(&mut self, service: &str, backend: Option<SocketAddr>, text: String) {
        self.notices.push(Notice { service: service.to_owned(), backend, text });
    }
}

/// Splits backends into one for each address (the configured one, else the one that came last) and
/// the others, which are on their way out for good.
fn by_address(members: Vec<Member>) -> (BTreeMap<SocketAddr, Member>, Vec<Member>) {
    let mut known: BTreeMap<SocketAddr, Member> = BTreeMap::new();
    let mut others = Vec::new();
    for member in members {
        match known.get_mut(&member.address) {
            Some(first) if first.configured => others.push(member),
            Some(first) => others.push(std::mem::replace(first, member)),
            None => _ = known.insert(member.address, member),
        }
    }
    (known, others)
}

/// What an operator or the file changed about a backend, in words.
fn changes(member: &Member, wanted: &Wanted) -> Vec<String> {
    let by = wanted.overridden.as_ref().and_then(Override::shown).map(|mark| format!(" (by {})", mark.by));
    let by = by.unwrap_or_default();
    let mut texts = Vec::new();
    if member.admin != wanted.admin {
        texts.push(format!("admin {} -> {}{by}", word(member.admin), word(wanted.admin)));
    }
    if wanted.drained && !member.drained {
        texts.push(format!("the time of its drain is over, {} flows left", member.live_flows));
    }
    if member.weight != wanted.weight {
        texts.push(format!("weight {} -> {}{by}", member.weight, wanted.weight));
    }
    if member.tier != wanted.tier {
        texts.push(format!("tier {} -> {}", member.tier, wanted.tier));
    }
    texts
}

pub(super) fn word(admin: Admin) -> &'static str {
    match admin {
        Admin::Ready => "ready",
        Admin::Drain => "drain",
        Admin::Maintenance => "maintenance",
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        abi::{Granularity, Mode, Protocol, Scheduler},
        flow::State,
    };

    use super::*;

    fn service() -> config::Service {
        let backend = |address: &str, weight, tier| config::Backend {
            address: address.parse().unwrap(),
            weight,
            tier,
            check_address: None,
            max_connections: None,
        };
        config::Service {
            name: "web".to_owned(),
            listen: "203.0.113.1:80".parse().unwrap(),
            protocol: Protocol::Tcp,
            mode: Mode::Nat,
            scheduler: Scheduler::RoundRobin,
            granularity: Granularity::Flow,
            tunnel: config::Tunnel::default(),
            mss_clamp: config::MssClamp::Off,
            clients: config::Clients::default(),
            health: config::Health { check: config::Check::Tcp, ..config::Health::default() },
            timeouts: State::TIMEOUTS,
            passive: config::Passive::default(),
            quic: config::Quic::default(),
            role: None,
            failover: config::Failover::of(Protocol::Tcp, None),
            backends: vec![backend("10.0.0.2:80", 3, 0), backend("10.0.0.1:80", 1, 1)],
        }
    }

    fn layer(overrides: &[(&str, Override)]) -> ServiceLayer {
        overrides.iter().map(|(address, decided)| (address.parse().unwrap(), decided.clone())).collect()
    }

    #[test]
    fn without_a_layer_the_file_is_wanted_in_its_order() {
        let wanted = wanted(&service(), None);
        let seen: Vec<_> = wanted.iter().map(|w| (w.address.to_string(), w.weight, w.tier, w.admin)).collect();
        assert_eq!(
            seen,
            [("10.0.0.2:80".to_owned(), 3, 0, Admin::Ready), ("10.0.0.1:80".to_owned(), 1, 1, Admin::Ready)]
        );
    }

    #[test]
    fn the_operator_adds_removes_and_decides() {
        let layer = layer(&[
            ("10.0.0.2:80", Override { removed: true, ..Override::default() }),
            ("10.0.0.1:80", Override { admin: Some(Admin::Drain), weight: Some(9), ..Override::default() }),
            ("10.0.0.7:80", Override { added_tier: Some(2), weight: Some(5), ..Override::default() }),
            ("10.0.0.8:80", Override { admin: Some(Admin::Drain), ..Override::default() }),
        ]);
        let seen: Vec<_> = wanted(&service(), Some(&layer))
            .iter()
            .map(|w| (w.address.to_string(), w.weight, w.tier, w.admin, w.overridden.is_some()))
            .collect();
        let drained = ("10.0.0.1:80".to_owned(), 9, 1, Admin::Drain, true);
        assert_eq!(seen, [drained, ("10.0.0.7:80".to_owned(), 5, 2, Admin::Ready, true)]);
    }

    #[test]
    fn the_file_takes_over_a_backend_that_the_operator_had_added() {
        let layer = layer(&[("10.0.0.2:80", Override { added_tier: Some(7), ..Override::default() })]);
        let wanted = wanted(&service(), Some(&layer));
        assert_eq!((wanted.len(), wanted[0].tier, wanted[0].weight), (2, 0, 3));
    }
}
