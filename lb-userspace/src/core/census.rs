//! What a walk over the flow table tells: who still has flows, and who is gone for good.

use super::{Core, Now, service::Leave};
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
            let mut over = false;
            service.live_flows = service.id.and_then(|id| census.by_service.get(&id)).copied().unwrap_or(0);
            if let Some(leave) = &mut service.leaving {
                over |= walked(leave, service.live_flows);
            }
            for member in &mut service.members {
                let Some(place) = &mut member.place else { continue };
                let flows = census.by_backend.get(&place.id).copied().unwrap_or(0);
                member.live_flows = flows;
                if let Some(leave) = &mut member.leaving {
                    over |= walked(leave, flows);
                }
                for (_, leave) in &mut place.old_sources {
                    over |= walked(leave, flows);
                }
            }
            if over {
                self.dirty.insert(*me);
            }
        }
        self.ledger.walked(census);
    }
}
