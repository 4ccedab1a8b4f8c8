//! What becomes of a backend's flows when it takes no new ones: its service's policies, by the reason.

use lb_common::abi::{BackendState, EndCause};

use super::{
    HealthState,
    report::Role,
    service::{Member, Service},
};
use crate::config::{FlowPolicies, FlowPolicy, WantedRole};

/// What the map `backends` says of a backend's flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    pub state: BackendState,
    pub cause: EndCause,
}

impl Ending {
    /// Flows come and go.
    pub(super) const LIVE: Self = Self { state: BackendState::Live, cause: EndCause::None };
}

impl Service {
    /// The policies for its flows; `None`: only the maps knew the service.
    pub(super) fn flow_policies(&self) -> Option<FlowPolicies> {
        self.config.as_ref().map(|config| config.failover.flows)
    }
}

impl Member {
    /// What becomes of its flows. Where several reasons hold, the policy that ends most decides; of equal
    /// ones the first.
    pub(super) fn ending(&self, policies: Option<FlowPolicies>) -> Ending {
        let Some(policies) = policies else { return self.inherited };
        let reasons = [
            (self.health.state == HealthState::Down, EndCause::Down, policies.on_down),
            (self.demoted, EndCause::Demoted, policies.on_demote),
            (self.drained, EndCause::Drained, policies.on_drain_timeout),
            (self.leaving.is_some(), EndCause::Removed, policies.on_remove),
        ];
        let holding = reasons.into_iter().filter(|(holds, _, _)| *holds);
        let Some((_, cause, policy)) = holding.min_by_key(|(_, _, policy)| *policy) else {
            let state = if self.elected { BackendState::Live } else { BackendState::Kept };
            return Ending { state, cause: EndCause::None };
        };
        match policy {
            FlowPolicy::Reset => Ending { state: BackendState::Dead, cause },
            FlowPolicy::Rehome => Ending { state: BackendState::Moved, cause },
            // Removed and no more: as it was, until its last flow is over.
            FlowPolicy::Keep if cause == EndCause::Removed && self.elected => Ending::LIVE,
            FlowPolicy::Keep => Ending { state: BackendState::Kept, cause },
        }
    }

    /// What becomes of its flows, in a word.
    pub(super) fn policy(&self, policies: Option<FlowPolicies>) -> &'static str {
        match self.ending(policies).state {
            BackendState::Dead => FlowPolicy::Reset.name(),
            BackendState::Moved => FlowPolicy::Rehome.name(),
            BackendState::Empty | BackendState::Live | BackendState::Kept => FlowPolicy::Keep.name(),
        }
    }

    /// Decides whether it has lost the role that its service wants: by what it says, or because
    /// another one is the primary. It stays lost until the backend is elected again.
    pub(super) fn judge_demotion(&mut self, wanted: WantedRole, another_is_primary: bool) {
        let wanted_role = match wanted {
            WantedRole::Primary => Role::Primary,
            WantedRole::Replica => Role::Replica,
        };
        let contrary = self.role.report.as_ref().is_some_and(|report| report.role != wanted_role);
        let superseded = wanted == WantedRole::Primary && another_is_primary;
        self.demoted = !self.elected && (self.demoted || contrary || superseded);
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::Protocol;

    use super::*;
    use crate::{
        config::Failover,
        core::{Now, health::Health, service::Leave},
    };

    fn member(down: bool) -> Member {
        let health = if down { Health::down("L4CON", Now::ZERO) } else { Health::up("L4OK", Now::ZERO) };
        Member::new("10.0.0.1:80".parse().unwrap(), health)
    }

    fn policies(protocol: Protocol) -> FlowPolicies {
        Failover::of(protocol, None).flows
    }

    #[test]
    fn each_reason_has_its_policy_and_the_one_that_ends_most_decides() {
        use BackendState::{Dead, Kept, Live, Moved};
        let end = |member: &Member, policies| {
            let Ending { state, cause } = member.ending(Some(policies));
            (state, cause)
        };
        let tcp = policies(Protocol::Tcp);
        let udp = policies(Protocol::Udp);
        assert_eq!(end(&member(false), tcp), (Live, EndCause::None));
        assert_eq!(end(&member(true), tcp), (Dead, EndCause::Down));
        assert_eq!(end(&member(true), udp), (Moved, EndCause::Down));
        let keep = FlowPolicies { on_down: FlowPolicy::Keep, ..tcp };
        assert_eq!(end(&member(true), keep), (Kept, EndCause::Down));
        let mut both = Member { demoted: true, elected: false, ..member(true) };
        assert_eq!(end(&both, keep), (Dead, EndCause::Demoted));
        both.demoted = false;
        assert_eq!(end(&Member { elected: false, ..member(false) }, tcp), (Kept, EndCause::None));
        let leaving = Member { leaving: Some(Leave::at(1)), ..member(false) };
        assert_eq!(end(&leaving, tcp), (Live, EndCause::None));
        let reset = FlowPolicies { on_remove: FlowPolicy::Reset, ..tcp };
        assert_eq!(end(&leaving, reset), (Dead, EndCause::Removed));
        assert_eq!(end(&Member { drained: true, ..member(false) }, tcp), (Dead, EndCause::Drained));
    }

    #[test]
    fn what_only_the_maps_knew_stays_as_it_was() {
        let dead = Ending { state: BackendState::Dead, cause: EndCause::Removed };
        let inherited = Member { inherited: dead, ..member(false) };
        assert_eq!(inherited.ending(None), dead);
    }
}
