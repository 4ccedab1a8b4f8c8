//! What a change would do, before it is done: the change is made to a copy of the core, and both are
//! compared. Flows are those of the last walk over the flow table.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::abi::{BackendState, Port, Scheduler, ServiceKey};

use super::{
    Admin, BackendView, Core, HealthState, Input, Now, OperatorLayer, ProbeOutcome, ServiceView,
    service::{Member, ServiceRef},
};
use crate::config::{self, Config};

/// Sources of a packet that nobody sends: the copy only has to know that there is one.
const SOME_SOURCE: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// What a change does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Impact {
    /// Services that something happens to, by name.
    pub services: Vec<ServiceImpact>,
    pub flows: FlowImpact,
}

/// Live flows by what becomes of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowImpact {
    /// Go on as they are.
    pub kept: u64,
    /// Go on, on backends that take no new ones any more.
    pub drained: u64,
    /// Go on with another backend (UDP, policy `rehome`).
    pub rehomed: u64,
    /// Are cut.
    pub reset: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServiceImpact {
    pub name: String,
    pub presence: Presence,
    /// Settings that change, in words: `scheduler round-robin -> maglev`.
    pub changes: Vec<String>,
    pub backends: Vec<BackendImpact>,
    /// Share of the selection slots whose backend changes, 0 to 1, once new backends are up. Where the
    /// table's length changes, half the sum of how much each backend's share does.
    pub moved: f64,
    pub flows: FlowImpact,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BackendImpact {
    pub address: SocketAddr,
    pub presence: Presence,
    pub changes: Vec<String>,
    /// Share of the new flows before and after, 0 to 1.
    pub share: (f64, f64),
    pub flows: FlowImpact,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Added,
    Removed,
    Changed,
    /// Nothing but its share changes.
    Same,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Kept,
    Drained,
    Rehomed,
    Reset,
}

impl FlowImpact {
    fn add(&mut self, fate: Fate, flows: u64) {
        match fate {
            Fate::Kept => self.kept += flows,
            Fate::Drained => self.drained += flows,
            Fate::Rehomed => self.rehomed += flows,
            Fate::Reset => self.reset += flows,
        }
    }
}

impl Impact {
    /// Whether nothing changes.
    pub fn is_nothing(&self) -> bool {
        self.services.is_empty()
    }
}

impl Core {
    /// What `config` and `layer` would make of what is: as soon as new backends have answered.
    pub fn impact(&self, config: Arc<Config>, layer: OperatorLayer, now: Now) -> Impact {
        let mut after = self.clone();
        after.handle_all([Input::Config(config), Input::Operator(layer)], now);
        after.suppose_reachable(now);
        let fates = Fates { before: World::of(self), after: World::of(&after) };
        let (old, new) = (by_name(self.view()), by_name(after.view()));
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let services = names.into_iter().filter_map(|name| {
            let sides = (Side::of(self, name, old.get(name)), Side::of(&after, name, new.get(name)));
            service_impact(name, sides, old.get(name).map(|view| fates.of(view)))
        });
        let mut impact = Impact { services: services.collect(), flows: FlowImpact::default() };
        for (&id, &flows) in &self.ledger.flows.by_backend {
            impact.flows.add(fates.of_backend(id), flows);
        }
        impact
    }

    /// Backends that nothing is known of are up, and have a route. Roles are not supposed: who is the
    /// primary only the backends can say, and until they do they get no new flows.
    fn suppose_reachable(&mut self, now: Now) {
        let unknown: Vec<IpAddr> =
            self.wanted_sources().into_iter().filter(|backend| !self.ledger.sources.contains_key(backend)).collect();
        let inputs: Vec<Input> = unknown
            .into_iter()
            .map(|backend| Input::Source { backend, source: Some(SOME_SOURCE[usize::from(backend.is_ipv6())]) })
            .collect();
        self.handle_all(inputs, now);
        let new: BTreeSet<_> = self
            .services
            .values()
            .flat_map(|service| &service.members)
            .filter(|member| member.configured && member.health.state == HealthState::Unknown)
            .filter_map(|member| member.probes.health.clone())
            .collect();
        let up = |key| Input::Probe { key, outcome: ProbeOutcome::new(true, "supposed", Now::ZERO) };
        self.handle_all(new.into_iter().map(up), now);
    }

    /// A service's selection table, by backend.
    fn slots_of(&self, name: &str) -> Vec<SocketAddr> {
        let Some(service) = self.names.get(name).and_then(|me| self.services.get(me)) else { return Vec::new() };
        let places = service.members.iter().filter_map(|member| Some((member.place.as_ref()?.id, member.address)));
        let addresses: BTreeMap<u32, SocketAddr> = places.collect();
        let slots = service.table.map_or(&[][..], |table| self.ledger.slots(&table));
        slots.iter().filter_map(|slot| addresses.get(&slot.current()).copied()).collect()
    }
}

/// The core, and who holds which element of the map `backends`.
struct World<'a> {
    core: &'a Core,
    members: BTreeMap<u32, (ServiceRef, &'a Member)>,
}

impl<'a> World<'a> {
    fn of(core: &'a Core) -> Self {
        let members = core.services.iter().flat_map(|(me, service)| service.members.iter().map(|member| (*me, member)));
        let members = members.filter_map(|(me, member)| Some((member.place.as_ref()?.id, (me, member)))).collect();
        Self { core, members }
    }

    /// How flows of a backend fare.
    fn condition(&self, id: u32) -> Fate {
        let Some((me, member)) = self.members.get(&id) else { return Fate::Reset };
        let element = self.core.desired().backends.get(&id);
        let live = element.is_some_and(|backend| BackendState::keeps_flows(backend.state));
        if !self.is_found(*me) {
            return Fate::Reset;
        }
        if !live {
            let moves = element.is_some_and(|backend| backend.state == BackendState::Moved as u8);
            // Where nobody takes new flows there is no other backend for them.
            return if moves && self.serves(*me) { Fate::Rehomed } else { Fate::Reset };
        }
        let offered = member.leaving.is_none() && member.elected;
        let takes_new = offered && member.admin == Admin::Ready && member.weight > 0;
        if takes_new { Fate::Kept } else { Fate::Drained }
    }

    /// Whether some backend takes new flows.
    fn serves(&self, me: ServiceRef) -> bool {
        self.core.desired().services.get(&me.key).is_some_and(|service| service.selection_len > 0)
    }

    /// Whether packets to the service's address get as far as the flow table.
    fn is_found(&self, me: ServiceRef) -> bool {
        let services = &self.core.desired().services;
        services.contains_key(&me.key) || services.contains_key(&ServiceKey { port: Port::ANY, ..me.key })
    }
}

/// Both states of the world.
struct Fates<'a> {
    before: World<'a>,
    after: World<'a>,
}

/// What becomes of the flows of a service.
#[derive(Default)]
struct Old {
    flows: FlowImpact,
    by_backend: BTreeMap<SocketAddr, FlowImpact>,
}

impl Fates<'_> {
    fn of(&self, view: &ServiceView) -> Old {
        let mut old = Old::default();
        for backend in &view.backends {
            let Some(id) = backend.id else { continue };
            let fate = self.of_backend(id);
            old.flows.add(fate, backend.live_flows);
            old.by_backend.entry(backend.address).or_default().add(fate, backend.live_flows);
        }
        old
    }

    /// What the change does to the flows of a backend; what happens to them anyway is not its doing.
    fn of_backend(&self, id: u32) -> Fate {
        let (before, after) = (self.before.condition(id), self.after.condition(id));
        if after > before { after } else { Fate::Kept }
    }
}

fn by_name(views: Vec<ServiceView>) -> BTreeMap<String, ServiceView> {
    views.into_iter().map(|view| (view.config.name.clone(), view)).collect()
}

/// A service before or after; `view` is `None` where there is none.
struct Side<'a> {
    view: Option<&'a ServiceView>,
    slots: Vec<SocketAddr>,
    /// Share of the selection slots by backend.
    shares: BTreeMap<SocketAddr, f64>,
}

impl<'a> Side<'a> {
    fn of(core: &Core, name: &str, view: Option<&'a ServiceView>) -> Self {
        let slots = core.slots_of(name);
        let mut shares: BTreeMap<SocketAddr, f64> = BTreeMap::new();
        for address in &slots {
            *shares.entry(*address).or_default() += 1.0 / slots.len() as f64;
        }
        Self { view, slots, shares }
    }

    fn backends(&self) -> BTreeMap<SocketAddr, &'a BackendView> {
        let backends = self.view.into_iter().flat_map(|view| &view.backends).filter(|backend| !backend.leaving);
        backends.map(|backend| (backend.address, backend)).collect()
    }

    fn share(&self, address: &SocketAddr) -> f64 {
        self.shares.get(address).copied().unwrap_or(0.0)
    }

    /// What the file says of it.
    fn written(&self, address: &SocketAddr) -> Option<&'a config::Backend> {
        let backends = self.view.map_or(&[][..], |view| &view.config.backends);
        backends.iter().find(|backend| backend.address == *address)
    }

    fn hashed(&self) -> bool {
        self.view.is_some_and(|view| matches!(view.config.scheduler, Scheduler::Maglev | Scheduler::SourceHash))
    }
}

/// `None`: nothing happens to it.
fn service_impact(name: &str, (before, after): (Side<'_>, Side<'_>), old: Option<Old>) -> Option<ServiceImpact> {
    let changes = match (before.view, after.view) {
        (Some(old), Some(new)) => settings(&old.config, &new.config),
        _ => Vec::new(),
    };
    let presence = match (before.view, after.view) {
        (None, _) => Presence::Added,
        (_, None) => Presence::Removed,
        _ if changes.is_empty() => Presence::Same,
        _ => Presence::Changed,
    };
    let (mine, theirs) = (before.backends(), after.backends());
    let addresses: BTreeSet<&SocketAddr> = mine.keys().chain(theirs.keys()).collect();
    let impact = |address: &SocketAddr| {
        let written = (before.written(address), after.written(address));
        let (presence, changes) = compared(mine.get(address).copied(), theirs.get(address).copied(), written);
        let flows = old.as_ref().and_then(|old| old.by_backend.get(address)).copied().unwrap_or_default();
        let share = (before.share(address), after.share(address));
        BackendImpact { address: *address, presence, changes, share, flows }
    };
    let concerned = |backend: &BackendImpact| {
        backend.presence != Presence::Same || (backend.share.0 - backend.share.1).abs() > 1e-9
    };
    let backends: Vec<BackendImpact> = addresses.into_iter().map(impact).filter(concerned).collect();
    let moved = moved(&before, &after);
    if presence == Presence::Same && backends.is_empty() && moved == 0.0 {
        return None;
    }
    let flows = old.map(|old| old.flows).unwrap_or_default();
    Some(ServiceImpact { name: name.to_owned(), presence, changes, backends, moved, flows })
}

/// What differs in the settings of a service, in words.
fn settings(old: &config::Service, new: &config::Service) -> Vec<String> {
    let mut changes = Vec::new();
    let mut tell = |what: &str, old: String, new: String| {
        if old != new {
            changes.push(format!("{what} {old} -> {new}"));
        }
    };
    tell("listen", old.listen.to_string(), new.listen.to_string());
    tell("protocol", old.protocol.name().to_owned(), new.protocol.name().to_owned());
    tell("mode", old.mode.name().to_owned(), new.mode.name().to_owned());
    tell("scheduler", old.scheduler.name().to_owned(), new.scheduler.name().to_owned());
    tell("granularity", old.granularity.name().to_owned(), new.granularity.name().to_owned());
    let role = |service: &config::Service| service.role.as_ref().map_or("none", |policy| policy.role.name()).to_owned();
    tell("role", role(old), role(new));
    if role(old) == role(new) && old.role != new.role {
        changes.push("role policy".to_owned());
    }
    if old.health != new.health {
        changes.push("health check".to_owned());
    }
    // Whatever a later version has: said without details rather than not at all.
    let rest = config::Service { backends: old.backends.clone(), ..new.clone() };
    if changes.is_empty() && rest != *old {
        changes.push("settings".to_owned());
    }
    changes
}

fn compared(
    old: Option<&BackendView>,
    new: Option<&BackendView>,
    written: (Option<&config::Backend>, Option<&config::Backend>),
) -> (Presence, Vec<String>) {
    let (old, new) = match (old, new) {
        (Some(old), Some(new)) => (old, new),
        (None, _) => return (Presence::Added, Vec::new()),
        (_, None) => return (Presence::Removed, Vec::new()),
    };
    let mut changes = Vec::new();
    if old.admin != new.admin {
        changes.push(format!("admin {} -> {}", old.admin, new.admin));
    }
    if old.weight != new.weight {
        changes.push(format!("weight {} -> {}", old.weight, new.weight));
    }
    if old.tier != new.tier {
        changes.push(format!("tier {} -> {}", old.tier, new.tier));
    }
    let mut tell = |what: &str, [old, new]: [String; 2]| {
        if old != new {
            changes.push(format!("{what} {old} -> {new}"));
        }
    };
    let both = [written.0, written.1];
    let checked = |backend: Option<&config::Backend>| backend.and_then(|backend| backend.check_address);
    tell("check address", both.map(|one| checked(one).map_or_else(|| "its own".to_owned(), |at| at.to_string())));
    let most = |backend: Option<&config::Backend>| backend.and_then(|backend| backend.max_connections);
    tell("max connections", both.map(|one| most(one).map_or_else(|| "no limit".to_owned(), |most| most.to_string())));
    (if changes.is_empty() { Presence::Same } else { Presence::Changed }, changes)
}

/// Share of the selection slots whose backend changes.
fn moved(before: &Side<'_>, after: &Side<'_>) -> f64 {
    if before.view.is_none() || after.view.is_none() {
        return 0.0;
    }
    let same_length = before.slots.len() == after.slots.len() && !before.slots.is_empty();
    if before.hashed() && after.hashed() && same_length {
        let others = before.slots.iter().zip(&after.slots).filter(|(old, new)| old != new).count();
        return others as f64 / before.slots.len() as f64;
    }
    // Whoever comes next in turn is nobody's in particular: what counts is how much each gets.
    let addresses: BTreeSet<&SocketAddr> = before.shares.keys().chain(after.shares.keys()).collect();
    let sum: f64 = addresses.into_iter().map(|address| (before.share(address) - after.share(address)).abs()).sum();
    // From or to nothing at all there is only one side of the balance.
    let sides = if before.slots.is_empty() || after.slots.is_empty() { 1.0 } else { 2.0 };
    if sum < 1e-9 { 0.0 } else { sum / sides }
}
