//! What a walk over the flow table tells: who still has flows, and who is gone for good.

use std::{collections::BTreeSet, time::Duration};

use lb_common::{
    abi::Protocol,
    flow::{State, TICK_SHIFT},
};

use super::{
    Core, Now,
    ledger::Ledger,
    service::{Leave, Service},
    tracked::{self, Walk},
};
use crate::dataplane::FlowCensus;

impl Core {
    /// Takes a walk in. It counts for those that left the maps at least a second before; the walk
    /// may have begun earlier, so two in a row without a flow are needed.
    pub(super) fn walked(&mut self, census: FlowCensus, now: Now) {
        self.ledger.advance(now);
        let ledger = &self.ledger;
        let walked = |leave: &mut Leave, flows: u64| {
            if ledger.settled(leave.generation) {
                leave.walked(flows);
            }
            leave.over()
        };
        for (me, service) in &mut self.services {
            let mut over = walk_slots(ledger, &census, service, now);
            let unlisted = unlisted(ledger, service);
            service.live_flows = service.id.and_then(|id| census.by_service.get(&id)).copied().unwrap_or(0);
            if let Some(leave) = &mut service.leaving {
                over |= walked(leave, service.live_flows + unlisted.len() as u64);
            }
            for member in &mut service.members {
                let Some(place) = &mut member.place else { continue };
                let flows = census.by_backend.get(&place.id).copied().unwrap_or(0);
                member.live_flows = flows;
                if let Some(leave) = &mut member.leaving {
                    over |= walked(leave, flows + u64::from(unlisted.contains(&place.id)));
                }
                for (_, leave) in &mut place.old_sources {
                    over |= walked(leave, flows);
                }
            }
            if over {
                self.dirty.insert(*me);
            }
        }
        self.expire_suspicions(now);
        self.receipts_walked(&census, now);
        self.walked_at = now;
        self.ledger.walked(census);
    }
}

/// Silence after which any flow of the service is over.
pub(super) fn idle(ledger: &Ledger, service_id: u32) -> Duration {
    let info = ledger.desired().service_info.get(&service_id);
    let tcp = info.is_none_or(|info| info.protocol == Protocol::Tcp as u8);
    let longest = if tcp { State::Established } else { State::BothWays };
    let ticks = info.map_or(longest.timeout(), |info| info.timeouts[longest as usize]);
    Duration::from_nanos(u64::from(ticks) << TICK_SHIFT)
}

/// What the walk tells about the slots of a service. Returns whether the maps should know.
fn walk_slots(ledger: &Ledger, census: &FlowCensus, service: &mut Service, now: Now) -> bool {
    let client_timeout = service.client_timeout();
    let (Some(id), Some(tracked)) = (service.id, &mut service.tracked) else { return false };
    let walk = Walk {
        entries: census.entries.get(&id),
        now,
        generation: ledger.next_generation(),
        idle: idle(ledger, id),
        client_timeout,
    };
    tracked.walked(&walk, |generation| ledger.settled(generation));
    tracked.stale
}

/// Backends that flows without an entry may still go to, where anybody waits for them to be over.
pub(super) fn unlisted(ledger: &Ledger, service: &Service) -> BTreeSet<u32> {
    let waits = service.leaving.is_some() || service.members.iter().any(|member| member.leaving.is_some());
    let mut backends = BTreeSet::new();
    if let Some(tracked) = service.tracked.as_ref().filter(|_| waits) {
        backends = tracked.backends();
        let slots = service.table.map_or(&[][..], |table| ledger.slots(&table));
        backends.extend(tracked::distinct(slots.iter().flat_map(|slot| slot.backends())));
    }
    backends
}
