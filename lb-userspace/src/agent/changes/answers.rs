//! From what the core and the agent know to what is answered.

use crate::{
    api::model::{BackendImpactView, FlowImpactView, ImpactView, ServiceImpactView},
    core::{BackendImpact, FlowImpact, Impact, Presence, ServiceImpact},
};

pub(super) fn impact_view(impact: &Impact) -> ImpactView {
    ImpactView { services: impact.services.iter().map(service_view).collect(), flows: flows_view(impact.flows) }
}

/// All flows are cut: the maps are made anew.
pub(super) fn all_reset(flows: FlowImpactView) -> FlowImpactView {
    let FlowImpactView { kept, drained, reset } = flows;
    FlowImpactView { kept: 0, drained: 0, reset: kept + drained + reset }
}

fn service_view(service: &ServiceImpact) -> ServiceImpactView {
    let ServiceImpact { name, presence, changes, backends, moved, flows } = service;
    ServiceImpactView {
        name: name.clone(),
        presence: presence_name(*presence).to_owned(),
        changes: changes.clone(),
        backends: backends.iter().map(backend_view).collect(),
        moved: *moved,
        flows: flows_view(*flows),
    }
}

fn backend_view(backend: &BackendImpact) -> BackendImpactView {
    let BackendImpact { address, presence, changes, share, flows } = backend;
    BackendImpactView {
        address: *address,
        presence: presence_name(*presence).to_owned(),
        changes: changes.clone(),
        share_before: share.0,
        share_after: share.1,
        flows: flows_view(*flows),
    }
}

fn flows_view(flows: FlowImpact) -> FlowImpactView {
    let FlowImpact { kept, drained, reset } = flows;
    FlowImpactView { kept, drained, reset }
}

fn presence_name(presence: Presence) -> &'static str {
    match presence {
        Presence::Added => "added",
        Presence::Removed => "removed",
        Presence::Changed => "changed",
        Presence::Same => "same",
    }
}
