//! The selection table of a service: made by its scheduler, and put where there is room for it.

use std::collections::BTreeSet;

use lb_common::abi::{BackendState, HashedBy, Scheduler, Slot};

use super::{
    maglev::{self, Turn},
    publish::{Round, client_bits, limit, value},
    rotation,
    service::{Made, Member, Place, Service, ServiceRef, Shape},
    tracked::Tracked,
};

/// The selection table and what points to it.
impl Round<'_> {
    /// Returns false when there was no room for the table as wanted.
    pub(super) fn publish_table(&mut self, me: ServiceRef, service: &mut Service, id: u32) -> bool {
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
