//! One service into the tables. Idempotent: publishing what is published changes nothing.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::{
    abi::{AddressRoles, Granularity, HashedBy, Mode, Protocol, QuicKey, ServiceInfo, ServiceValue},
    flow::seconds,
};

use super::{
    Notice, Now,
    index::Indexes,
    ledger::Ledger,
    service::{Leave, Member, Place, Probes, Service, ServiceRef, Shape},
    suspicion,
    tracked::{Hash, Tracked},
    tunnel::Tunnel,
};
use crate::config;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// Something it wants was not to be had; worth trying again when something is handed back.
    Starved,
    /// It has left: forget it.
    Over,
}

/// What publishing works on.
pub(super) struct Round<'a> {
    pub ledger: &'a mut Ledger,
    pub indexes: &'a mut Indexes,
    pub notices: &'a mut Vec<Notice>,
    pub now: Now,
    /// Slots of a table of `maglev` or `source-hash`.
    pub maglev_table: u32,
}

impl Round<'_> {
    /// Brings the tables up to what the service should be. `keeps_key`: packets to its address find
    /// this service, and no other one.
    pub(super) fn publish(&mut self, me: ServiceRef, service: &mut Service, keeps_key: bool) -> Outcome {
        let mut placed = true;
        if service.leaving.is_none() && !service.holds_address {
            let problem = self.place_service(me, service).err();
            placed = problem.is_none();
            self.tell_problem(service.name().to_owned(), None, &mut service.problem, problem);
        }
        let Some(id) = service.id else {
            if service.leaving.is_none() {
                return Outcome::Starved;
            }
            service.members.iter_mut().for_each(|member| self.indexes.set_probes(me, member, Probes::default()));
            return Outcome::Over;
        };
        self.publish_info(me, service, id);
        self.publish_members(me, service, id);
        self.lift_suspicions(service);
        let mut starved = !placed || service.members.iter().any(|member| member.problem.is_some());
        if keeps_key && placed {
            starved |= !self.publish_table(me, service, id);
        } else {
            self.withdraw(me, service, id);
        }
        if service.leaving.is_some_and(|leave| leave.over()) && service.members.is_empty() {
            self.withdraw(me, service, id);
            self.ledger.clear_service_info(id);
            return Outcome::Over;
        }
        if starved { Outcome::Starved } else { Outcome::Done }
    }

    /// An id, where it has none yet, and the role of the address.
    fn place_service(&mut self, me: ServiceRef, service: &mut Service) -> Result<(), String> {
        if !self.ledger.roles.fits(me.key.address) {
            return Err(limit("addresses", self.ledger.roles.limit(), "addresses"));
        }
        let id = service.id.or_else(|| self.ledger.service_ids.take());
        let id = id.ok_or_else(|| limit("services", self.ledger.service_ids.limit(), "services"))?;
        service.id = Some(id);
        service.holds_address = true;
        self.ledger.hold_roles(me.key.address, me.own_roles());
        Ok(())
    }

    /// What flows find of their service. One that is leaving keeps the timeouts it had.
    fn publish_info(&mut self, me: ServiceRef, service: &Service, id: u32) {
        if service.leaving.is_some() {
            return;
        }
        let mut info = constants(me, service);
        if let Some(config) = &service.config {
            info.timeouts = config.timeouts;
        }
        info.parked_until = service.frozen.map_or(0, |frozen| frozen.tick);
        self.ledger.set_service_info(id, info);
    }

    /// When it is known which backends can be reached.
    fn lift_suspicions(&mut self, service: &mut Service) {
        for address in suspicion::lift(service) {
            let text = "in turn again while suspected: too few others are".to_owned();
            let service = service.name().to_owned();
            self.notices.push(Notice { service, backend: Some(address), text });
        }
    }

    /// Takes the service's key, table and role of the address off the tables.
    fn withdraw(&mut self, me: ServiceRef, service: &mut Service, id: u32) {
        self.ledger.delete_service(&me.key, id);
        if let Some(table) = service.table.take() {
            self.ledger.retire_table(table);
        }
        if std::mem::take(&mut service.holds_address) {
            self.ledger.release_roles(me.key.address, me.own_roles());
        }
        service.tracked = None;
        service.made = None;
        service.active_tier = None;
    }

    /// Leftovers of the maps have no name, and nothing to tell.
    pub(super) fn tell(&mut self, service: &str, member: Option<&Member>, text: String) {
        if service.is_empty() {
            return;
        }
        self.notices.push(Notice { service: service.to_owned(), backend: member.map(|m| m.address), text });
    }

    pub(super) fn tell_problem(
        &mut self,
        service: String,
        backend: Option<SocketAddr>,
        known: &mut Option<String>,
        problem: Option<String>,
    ) {
        let text = match (&*known, &problem) {
            (old, new) if old == new => return,
            (Some(old), None) => format!("no longer: {old}"),
            (_, new) => new.clone().unwrap_or_default(),
        };
        *known = problem;
        self.notices.push(Notice { service, backend, text });
    }
}

/// Backends.
impl Round<'_> {
    fn publish_members(&mut self, me: ServiceRef, service: &mut Service, id: u32) {
        let name = service.name().to_owned();
        self.move_to_whole_pools(me, service);
        let tunnels = service.config.as_ref().map(|config| config.tunnel.clone()).unwrap_or_default();
        for member in &mut service.members {
            let tunnel = Tunnel::configured(me, &tunnels, member.address.ip());
            let problem = self
                .refresh_sources(&name, me, member, tunnel)
                .and_then(|()| self.place_member(me, member, tunnel))
                .err();
            let mut known = member.problem.take();
            self.tell_problem(name.clone(), Some(member.address), &mut known, problem);
            member.problem = known;
        }
        let mut left = Vec::new();
        service.members.retain_mut(|member| {
            let gone = member.leaving.is_some_and(|leave| leave.over() || member.place.is_none());
            if gone {
                left.push(member.clone());
            }
            !gone
        });
        for mut member in left {
            self.clear_member(&name, me, &mut member);
        }
        self.publish_entries(service, id);
        self.publish_server_ids(service, id);
    }

    pub(super) fn publish_entries(&mut self, service: &Service, id: u32) {
        let policies = service.flow_policies();
        for member in &service.members {
            if let Some(place) = &member.place {
                self.ledger.set_backend(place.id, member.entry(place, id, member.ending(policies)));
            }
        }
    }

    /// Which connection IDs lead to which backend. A backend that is leaving keeps its own, unless another
    /// has it now.
    fn publish_server_ids(&mut self, service: &mut Service, id: u32) {
        let mut server_ids = BTreeMap::new();
        for member in service.members.iter_mut().rev() {
            let Some(place) = &mut member.place else { continue };
            if let Some(config) = service.config.as_ref().filter(|_| member.leaving.is_none()) {
                place.server_id = config.quic.server_ids.get(&member.address).copied();
            }
            // Configured ones come first in the list, and last here.
            server_ids.extend(place.server_id.map(|server_id| (QuicKey::new(id, server_id), place.id)));
        }
        self.ledger.set_server_ids(id, server_ids);
    }

    /// Backends whose host got one pool for all its endpoints begin anew on that pool; what they
    /// were leaves, with its flows.
    fn move_to_whole_pools(&mut self, me: ServiceRef, service: &mut Service) {
        let mut old = Vec::new();
        for member in service.members.iter_mut().filter(|member| member.leaving.is_none()) {
            let Some(pool) = member.place.as_ref().and_then(|place| place.pool) else { continue };
            let right = self.ledger.pools.find((member.ip(), me.key.protocol), member.port());
            if right.is_none_or(|right| right == pool) || !self.ledger.backend_ids.available() {
                continue;
            }
            let mut leaver = Member { probes: Probes::default(), configured: false, ..member.clone() };
            leaver.leaving = Some(Leave::at(self.ledger.next_generation()));
            self.ledger.touch();
            self.indexes.set_probes(me, &mut leaver, member.probes.clone());
            member.place = None;
            old.push(leaver);
        }
        service.members.append(&mut old);
    }

    /// A place in the maps for a backend that should have one and can have one.
    fn place_member(&mut self, me: ServiceRef, member: &mut Member, tunnel: Tunnel) -> Result<(), String> {
        if member.place.is_some() || member.leaving.is_some() {
            return Ok(());
        }
        let ledger = &mut *self.ledger;
        let source = match ledger.sources.get(&member.address.ip()) {
            Some(Some(source)) if me.needs_source() => Some(tunnel.source.unwrap_or((*source).into())),
            _ if me.needs_source() => return Ok(()),
            _ => None,
        };
        if !ledger.backend_ids.available() {
            return Err(limit("backends", ledger.backend_ids.limit(), "backends"));
        }
        if !Mode::is_one_sided(me.mode) && !ledger.roles.fits(source.unwrap_or(member.ip())) {
            return Err(limit("addresses", ledger.roles.limit(), "addresses"));
        }
        let mut pool = None;
        if me.full_nat() {
            pool = ledger.join_pool((member.ip(), me.key.protocol), member.port());
            pool.ok_or_else(|| limit("port pools", ledger.pools.limit(), "port-pools"))?;
        }
        if let Some(id) = ledger.backend_ids.take() {
            let generation = ledger.backend_generation(id);
            member.place =
                Some(Place { id, generation, source, old_sources: Vec::new(), pool, tunnel, server_id: None });
            member.no_route = false;
        }
        if let Some((address, role)) = member.own_role(me) {
            ledger.hold_roles(address, role);
        }
        Ok(())
    }

    /// Follows the host's source address. In `full-nat` older flows keep theirs, so its role stays
    /// until the backend has no flow left; in a tunnel nothing is answered to it.
    fn refresh_sources(
        &mut self,
        name: &str,
        me: ServiceRef,
        member: &mut Member,
        tunnel: Tunnel,
    ) -> Result<(), String> {
        let Some(place) = member.place.as_mut().filter(|_| me.needs_source()) else { return Ok(()) };
        let role = AddressRoles::SOURCE;
        place.old_sources.retain(|(address, leave)| {
            if leave.over() {
                self.ledger.release_roles(*address, role);
            }
            !leave.over()
        });
        if member.leaving.is_some() {
            return Ok(());
        }
        place.tunnel = tunnel;
        let told = self.ledger.sources.get(&member.address.ip()).copied();
        let no_route = told == Some(None);
        if let Some(Some(source)) = told
            && !me.full_nat()
        {
            place.source = Some(tunnel.source.unwrap_or(source.into()));
        } else if let Some(Some(source)) = told
            && place.source != Some(source.into())
        {
            if !self.ledger.roles.fits(source.into()) {
                return Err(limit("addresses", self.ledger.roles.limit(), "addresses"));
            }
            let old = place.source.replace(source.into());
            self.ledger.hold_roles(source.into(), role);
            place.old_sources.extend(old.map(|old| (old, Leave::at(self.ledger.next_generation()))));
        }
        if std::mem::replace(&mut member.no_route, no_route) != no_route {
            let text = if no_route { "no route to it: new flows go elsewhere" } else { "there is a route to it again" };
            self.tell(name, Some(member), text.to_owned());
        }
        Ok(())
    }

    /// The end of a backend that has left.
    fn clear_member(&mut self, name: &str, me: ServiceRef, member: &mut Member) {
        self.indexes.set_probes(me, member, Probes::default());
        let own_role = member.own_role(me);
        let Some(place) = member.place.take() else { return };
        self.ledger.clear_backend(place.id);
        if let Some((address, role)) = own_role {
            self.ledger.release_roles(address, role);
        }
        for (address, _) in &place.old_sources {
            self.ledger.release_roles(*address, AddressRoles::SOURCE);
        }
        if let Some(pool) = place.pool {
            self.ledger.part_pool((member.ip(), me.key.protocol), pool);
        }
        self.tell(name, Some(member), "its last flow is over: it has left".to_owned());
    }
}

/// The constant part of a service.
fn constants(me: ServiceRef, service: &Service) -> ServiceInfo {
    let timeout = service.client_timeout().map_or(0, |timeout| seconds(timeout.as_secs()));
    let answer_within = service.config.as_ref().map_or(0, answer_within);
    ServiceInfo {
        client_timeout: timeout,
        answer_within,
        ..ServiceInfo::new(me.key.address, me.key.port, me.key.protocol, me.mode)
    }
}

/// Milliseconds within which a flow's first datagram is answered; 0: nobody knows.
fn answer_within(config: &config::Service) -> u32 {
    let within = config.passive.answer_within.filter(|_| config.protocol == Protocol::Udp);
    within.map_or(0, |within| u32::try_from(within.as_millis()).unwrap_or(u32::MAX))
}

/// What packets need to know; the ledger adds the generation.
pub(super) fn value(id: u32, me: ServiceRef, service: &Service) -> ServiceValue {
    let (base, shape) = service.table.map_or((0, Shape::plain(0)), |table| (table.base, table.shape));
    let bits = client_bits(service, shape.hash).or(shape.hash.map(|hash| hash.client_bits));
    let (client_prefix_v4, client_prefix_v6) = bits.unwrap_or((32, 128));
    let mut value = ServiceValue {
        id,
        selection_base: base,
        selection_len: shape.turns,
        stable_len: shape.stable,
        mode: me.mode,
        scheduler: service.scheduler() as u8,
        granularity: service.granularity() as u8,
        client_prefix_v4,
        client_prefix_v6,
        mss: service.config.as_ref().map_or(0, |config| config.mss_clamp.number()),
        quic_server_id: service.config.as_ref().map_or(0, |config| config.quic.server_id_length),
        flags: if service.frozen.is_some() { ServiceValue::PARKED } else { 0 },
        ..ServiceValue::EMPTY
    };
    if let Some(config) = &service.config {
        let tcp = config.protocol == Protocol::Tcp;
        value.retries = if tcp { config.passive.retries } else { 0 };
        let watched = config.passive.enabled && config.protocol != Protocol::Sctp || value.retries != 0;
        value.flags |= if watched { ServiceValue::WATCHED } else { 0 };
        value.flags |= if watched && answer_within(config) != 0 { ServiceValue::ANSWERED } else { 0 };
    }
    if let Some(hash) = shape.hash {
        let stay = service.tracked.as_ref().is_some_and(Tracked::clients_stay);
        value.stable_hash = hash.by as u8;
        value.flags |= ServiceValue::TRACKED;
        value.flags |= if shape.paired { ServiceValue::PAIRED } else { 0 };
        value.flags |= if stay && hash.by == HashedBy::Client { ServiceValue::CLIENTS_STAY } else { 0 };
    }
    value
}

/// Bits of an address that name a client; `None`: the service's own flows do not ask.
pub(super) fn client_bits(service: &Service, hash: Option<Hash>) -> Option<(u8, u8)> {
    let hashed = hash.filter(|hash| hash.by == HashedBy::Client).map(|hash| hash.client_bits);
    let asked = service.granularity() == Granularity::Client;
    hashed.or(asked.then(|| service.client_bits()))
}

pub(super) fn limit(what: &str, limit: u32, setting: &str) -> String {
    format!("not published as configured: all {limit} {what} are taken; raise `limits.{setting}` and restart")
}
