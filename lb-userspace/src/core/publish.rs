//! One service into the tables. Idempotent: publishing what is published changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_common::{
    abi::{
        AddressRoles, BackendState, Granularity, HashedBy, Mode, Protocol, QuicKey, Scheduler, ServiceInfo,
        ServiceValue, Slot,
    },
    flow::seconds,
};

use super::{
    Notice, Now,
    index::Indexes,
    ledger::Ledger,
    maglev::{self, Turn},
    rotation,
    service::{Leave, Made, Member, Place, Probes, Service, ServiceRef, Shape},
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
    fn tell(&mut self, service: &str, member: Option<&Member>, text: String) {
        if service.is_empty() {
            return;
        }
        self.notices.push(Notice { service: service.to_owned(), backend: member.map(|m| m.address), text });
    }

    fn tell_problem(
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

    fn publish_entries(&mut self, service: &Service, id: u32) {
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

/// The selection table and what points to it.
impl Round<'_> {
    /// Returns false when there was no room for the table as wanted.
    fn publish_table(&mut self, me: ServiceRef, service: &mut Service, id: u32) -> bool {
        if !std::mem::replace(&mut service.holds_address, true) {
            self.ledger.hold_roles(me.key.address, me.own_roles());
        }
        let turns = service.turns(self.now);
        let fits = self.turn_table(me, service, turns);
        if service.leaving.is_none() {
            let problem = (!fits).then(|| limit("selection slots", self.ledger.extents.slots(), "selection-slots"));
            let mut known = service.problem.take();
            self.tell_problem(service.name().to_owned(), None, &mut known, problem);
            service.problem = known;
            self.follow_tier(service);
        }
        // How far shares have grown is known now.
        self.publish_entries(service, id);
        self.ledger.set_service(me.key, value(id, me, service));
        fits
    }

    /// Makes the scheduler's table of `turns`. Without room it takes, in this order: each backend once;
    /// the longest part of the old table that names ready backends only.
    fn turn_table(&mut self, me: ServiceRef, service: &mut Service, turns: Vec<Turn>) -> bool {
        let hash = service.tracked_hash(me);
        let made = Made { scheduler: service.scheduler(), hash, turns, maglev_table: self.maglev_table };
        forget_the_dead(service);
        let stale = service.tracked.as_ref().is_some_and(|tracked| tracked.stale);
        if service.table.is_some() && service.made.as_ref() == Some(&made) && !stale {
            return true;
        }
        let wanted = made.slots();
        track(service, &made, &wanted, self.ledger.next_generation());
        let fits = match service.tracked {
            Some(_) => self.place_tracked(service, &made, wanted),
            None => self.place_slots(service, &made, wanted),
        };
        service.made = fits.then_some(made);
        fits
    }

    /// Places the slots of a service whose flows need no entry. Without room the old table stays, with
    /// all that it names: a shorter one would lose where flows are. If nobody is to take new flows, they
    /// are refused all the same.
    fn place_tracked(&mut self, service: &mut Service, made: &Made, wanted: Vec<u32>) -> bool {
        let Some(tracked) = service.tracked.as_mut() else { return false };
        let paired = pairs(tracked, made, &wanted);
        let slots = tracked.slots((!paired).then_some(&wanted));
        let stable = tracked.len() as u32;
        let turns = if paired { stable } else { wanted.len() as u32 };
        let shape = Shape { turns, stable, hash: Some(tracked.hash), paired };
        let current = service.table.as_ref().map_or(&[][..], |table| self.ledger.slots(table));
        let changed = current != slots;
        if changed {
            let Some(new) = self.ledger.place_table(&slots) else {
                // Nobody has flows here that only the table knows of, and nobody gets new ones.
                if wanted.is_empty() && tracked.backends().is_empty() {
                    service.tracked = None;
                    return self.place_slots(service, made, wanted);
                }
                if let Some(table) = service.table.as_mut().filter(|table| table.shape.hash.is_some()) {
                    if wanted.is_empty() {
                        // The old slots say without turns what the new ones would: flows without an entry
                        // are where they were, and get one. So the time of those left behind runs.
                        table.shape = Shape { turns: 0, paired: false, ..table.shape };
                        if tracked.stale {
                            tracked.placed(Some(self.ledger.next_generation()));
                            self.ledger.touch();
                        }
                    }
                    return false;
                }
                service.tracked = None;
                self.place_slots(service, made, wanted);
                return false;
            };
            if let Some(old) = service.table.replace(new) {
                self.ledger.retire_table(old);
            }
        }
        if let Some(table) = &mut service.table {
            table.shape = shape;
        }
        tracked.placed(changed.then(|| self.ledger.next_generation()));
        true
    }

    fn place_slots(&mut self, service: &mut Service, made: &Made, wanted: Vec<u32>) -> bool {
        let once: Vec<Slot> = made.turns.iter().map(|turn| Slot::clean(turn.id)).collect();
        let wanted: Vec<Slot> = wanted.into_iter().map(Slot::clean).collect();
        for slots in [&wanted, &once] {
            let current = service.table.map_or(&[][..], |table| self.ledger.slots(&table));
            if current == slots {
                if let Some(table) = &mut service.table {
                    table.shape = Shape::plain(table.len);
                }
                return *slots == wanted;
            }
            let new = self.ledger.place_table(slots);
            if new.is_none() && !slots.is_empty() {
                continue;
            }
            if let Some(old) = std::mem::replace(&mut service.table, new) {
                self.ledger.retire_table(old);
            }
            return *slots == wanted;
        }
        let Some(table) = service.table else { return false };
        let ready: BTreeSet<u32> = ready(service).map(|(_, place)| place.id).collect();
        let (first, len) =
            longest_run(self.ledger.slots(&table), |slot| slot.is_clean() && ready.contains(&slot.current()));
        if len == 0 {
            service.table = None;
            self.ledger.retire_table(table);
        } else if len < table.len {
            service.table = Some(self.ledger.narrow_table(&table, first, len));
        }
        false
    }

    fn follow_tier(&mut self, service: &mut Service) {
        let slots = service.table.map_or(&[][..], |table| self.ledger.slots(&table));
        let first_slot = slots.first().map(|slot| slot.current());
        let serves = |id: u32| match &service.made {
            Some(made) => made.turns.iter().any(|turn| turn.id == id),
            None => first_slot == Some(id),
        };
        let first = ready(service).filter(|(_, place)| serves(place.id)).map(|(member, _)| member.tier).min();
        let backends = ready(service).filter(|(member, _)| Some(member.tier) == first).count();
        let backends = format!("{backends} {}", if backends == 1 { "backend" } else { "backends" });
        let text = match (service.active_tier, first) {
            (old, new) if old == new => return,
            (None, Some(new)) => format!("tier {new} serves: {backends} ready"),
            (Some(old), Some(new)) if new > old => {
                format!("no backend of tier {old} is ready: tier {new} serves now, {backends} ready")
            }
            (Some(_), Some(new)) => format!("tier {new} serves again: {backends} ready"),
            (_, None) => "no backend is ready: new flows are refused".to_owned(),
        };
        service.active_tier = first;
        let name = service.name().to_owned();
        self.tell(&name, None, text);
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
fn value(id: u32, me: ServiceRef, service: &Service) -> ServiceValue {
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

/// Decides where flows without an entry are when new ones go by the table `wanted`.
fn track(service: &mut Service, made: &Made, wanted: &[u32], generation: u32) {
    let bits = client_bits(service, made.hash);
    if let Some(tracked) = &mut service.tracked {
        let same = pairs(tracked, made, wanted);
        // Another table than that of the same hash knows nothing of them: they all get entries.
        tracked.follow(Some(wanted).filter(|table| same && !table.is_empty()), generation);
        // By other bits of their addresses clients are others.
        let others = tracked.hash.by == HashedBy::Client && bits.is_some_and(|bits| bits != tracked.hash.client_bits);
        if tracked.over() || others {
            service.tracked = None;
        }
    }
    if let (None, Some(hash), false) = (&service.tracked, made.hash, wanted.is_empty()) {
        service.tracked = Some(Tracked::begin(hash, wanted, generation));
    }
}

/// Whether the scheduler's table is one of the slots by which flows without an entry are found.
fn pairs(tracked: &Tracked, made: &Made, wanted: &[u32]) -> bool {
    made.hash == Some(tracked.hash) && (wanted.len() == tracked.len() || wanted.is_empty())
}

/// Bits of an address that name a client; `None`: the service's own flows do not ask.
fn client_bits(service: &Service, hash: Option<Hash>) -> Option<(u8, u8)> {
    let hashed = hash.filter(|hash| hash.by == HashedBy::Client).map(|hash| hash.client_bits);
    let asked = service.granularity() == Granularity::Client;
    hashed.or(asked.then(|| service.client_bits()))
}

/// Backends that were removed and have died do not come back.
fn forget_the_dead(service: &mut Service) {
    let policies = service.flow_policies();
    let Some(tracked) = &mut service.tracked else { return };
    let over = |m: &&Member| !BackendState::keeps_flows(m.ending(policies).state as u8);
    let dead = service.members.iter().filter(|m| m.leaving.is_some()).filter(over);
    let gone: BTreeSet<u32> = dead.filter_map(|member| Some(member.place.as_ref()?.id)).collect();
    if !gone.is_empty() {
        tracked.forget(&gone);
    }
}

impl Made {
    /// The scheduler's table.
    fn slots(&self) -> Vec<u32> {
        let turns = &self.turns;
        match self.scheduler {
            Scheduler::RoundRobin | Scheduler::LeastConnections => turns.iter().map(|turn| turn.id).collect(),
            Scheduler::WeightedRoundRobin | Scheduler::RandomTwo => {
                let weights: Vec<(u32, u16)> = turns.iter().map(|turn| (turn.id, turn.weight)).collect();
                rotation::weighted(&weights, rotation::longest(turns.len()))
            }
            Scheduler::SourceHash | Scheduler::Maglev => maglev::table(turns, self.maglev_table),
        }
    }
}

fn ready(service: &Service) -> impl Iterator<Item = (&Member, &Place)> {
    let ready = service.members.iter().filter(|member| service.leaving.is_none() && member.ready());
    ready.filter_map(|member| Some((member, member.place.as_ref()?)))
}

/// First index and length of the longest run of slots that pass.
fn longest_run(slots: &[Slot], pass: impl Fn(Slot) -> bool) -> (u32, u32) {
    let (mut best, mut first) = ((0, 0), 0);
    for (i, &slot) in slots.iter().enumerate() {
        if !pass(slot) {
            first = i + 1;
        } else if i + 1 - first > best.1 {
            best = (first, i + 1 - first);
        }
    }
    (best.0 as u32, best.1 as u32)
}

fn limit(what: &str, limit: u32, setting: &str) -> String {
    format!("not published as configured: all {limit} {what} are taken; raise `limits.{setting}` and restart")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_run_is_found_wherever_it_is() {
        let even = |slot: Slot| slot.current().is_multiple_of(2);
        let run = |ids: &[u32]| longest_run(&ids.iter().copied().map(Slot::clean).collect::<Vec<_>>(), even);
        assert_eq!(run(&[]), (0, 0));
        assert_eq!(run(&[1, 3]), (0, 0));
        assert_eq!(run(&[2, 1, 4, 6, 8, 3, 2, 2]), (2, 3));
        assert_eq!(run(&[1, 2, 4]), (1, 2));
    }
}
