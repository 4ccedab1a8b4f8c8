//! What is shown of services and backends.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use super::{
    Admin, AskedAt, BackendView, Core, HealthState, Override, ProbeKey, RoleView, ServiceView, TrackingView, census,
    election::RoleState,
    health::word,
    service::{Member, Service},
    way::OTHER_FAMILY,
};
use crate::config::Via;

impl Core {
    /// Every configured service, in file order.
    pub fn view(&self) -> Vec<ServiceView> {
        self.config.services.iter().filter_map(|service| self.service(&service.name)).collect()
    }

    /// Addresses of the backends of all configured services.
    pub fn backend_addresses(&self) -> BTreeSet<IpAddr> {
        let configured = self.names.values().filter_map(|me| self.services.get(me));
        configured.flat_map(|service| &service.members).map(|member| member.address.ip()).collect()
    }

    /// One configured service; `None`: no service has this name.
    pub fn service(&self, name: &str) -> Option<ServiceView> {
        let service = self.services.get(self.names.get(name)?)?;
        let unlisted = census::unlisted(&self.ledger, service);
        let backends = service.members.iter().map(|member| {
            let waits = member.place.as_ref().is_some_and(|place| unlisted.contains(&place.id));
            backend(service, member, member.used, waits)
        });
        Some(ServiceView {
            config: service.config.clone()?,
            id: service.id,
            active_tier: service.active_tier,
            live_flows: service.live_flows,
            tracking: self.tracking(service),
            frozen_until: service.frozen.map(|frozen| frozen.until),
            backends: backends.collect(),
        })
    }

    /// These backends of a configured service, of each whatever of it was there first; `None`: it has none of
    /// that address.
    pub fn backends(&self, name: &str, addresses: &[SocketAddr]) -> Vec<Option<BackendView>> {
        let service = self.names.get(name).and_then(|me| self.services.get(me));
        let one = |address: &SocketAddr| {
            let service = service?;
            let member = service.members.iter().find(|member| member.address == *address)?;
            let waits = member.leaving.is_some()
                && member.place.as_ref().is_some_and(|p| census::unlisted(&self.ledger, service).contains(&p.id));
            Some(backend(service, member, member.used, waits))
        };
        addresses.iter().map(one).collect()
    }

    fn tracking(&self, service: &Service) -> Option<TrackingView> {
        let (id, tracked) = (service.id?, service.tracked.as_ref()?);
        Some(TrackingView {
            slots: tracked.len(),
            unsettled: tracked.unsettled(),
            settles_in: tracked.settles_in(self.walked_at, census::idle(&self.ledger, id)),
        })
    }
}

fn backend(service: &Service, member: &Member, used: bool, unlisted: bool) -> BackendView {
    BackendView {
        address: member.address,
        id: member.place.as_ref().map(|place| place.id),
        weight: member.weight,
        tier: member.tier,
        admin: member.admin,
        overridden: member.overridden.clone(),
        health: member.health.state,
        health_reason: member.health.reason.clone(),
        health_since: member.health.since,
        last_probe: member.last_probe.clone(),
        asked: member.probes.health.as_ref().map(|key| asked_at(service, member, key)),
        role: service.config.as_ref().and_then(|config| config.role.as_ref()).map(|_| role(&member.role)),
        agent: member.agent.shown(),
        suspended: member.suspicion.suspended.is_some(),
        used,
        used_reason: used_reason(service, member, used, unlisted),
        leaving: member.leaving.is_some(),
        live_flows: member.live_flows,
        knocks: member.knocks,
    }
}

fn asked_at(service: &Service, member: &Member, key: &ProbeKey) -> AskedAt {
    let meant = service.config.as_ref().is_some_and(|config| config.health.via == Via::Service);
    let last = member.last_probe.as_ref().and_then(|last| last.own_address.clone());
    match &key.way {
        Some(_) if last.is_none() => AskedAt::Service,
        Some(_) => AskedAt::Backend(last),
        None => AskedAt::Backend((meant && member.check_address.is_none()).then(|| OTHER_FAMILY.to_owned())),
    }
}

fn role(state: &RoleState) -> RoleView {
    RoleView {
        role: state.role,
        reason: state.reason.clone(),
        lag_bytes: state.lag_bytes,
        lag_time: state.lag_time,
        epoch: state.report.as_ref().and_then(|report| report.epoch.as_ref()).map(ToString::to_string),
    }
}

/// The first reason, in the order in which an operator would ask.
fn used_reason(service: &Service, member: &Member, used: bool, unlisted: bool) -> String {
    let mark = || member.overridden.as_ref().and_then(Override::shown);
    let by = || mark().map(|mark| format!(" by {}", mark.by)).unwrap_or_default();
    if member.leaving.is_some() {
        let others = if unlisted { ", and there may be others without an entry" } else { "" };
        return format!("removed: {} flows left{others}", member.live_flows);
    }
    match member.admin {
        Admin::Drain => return format!("drain{}", by()),
        Admin::Maintenance => return format!("maintenance{}", by()),
        Admin::Ready => {}
    }
    if member.health.state != HealthState::Up {
        return format!("health {} ({})", word(member.health.state), member.health.reason);
    }
    if let Some(why) = &member.suspicion.suspended {
        return format!("suspended: {why}");
    }
    if let Some(refused) = member.agent.refuses() {
        return refused;
    }
    if member.weight == 0 {
        return "weight 0".to_owned();
    }
    if member.share() == 0 {
        return "weight 0 by its agent".to_owned();
    }
    if let Some(role) = service.not_elected(member) {
        return role;
    }
    if let Some(problem) = member.problem.as_ref().or(service.problem.as_ref()).filter(|_| !used) {
        return problem.clone();
    }
    if member.no_route {
        return "no route to it".to_owned();
    }
    if member.place.is_none() {
        return "the host's source address towards it is not known yet".to_owned();
    }
    if member.held {
        return "held back until it has been up for `failback-delay`".to_owned();
    }
    match service.active_tier {
        Some(tier) if used && member.tier > tier => format!("steps in for tier {tier}: `min-ready`"),
        Some(tier) if used => format!("tier {tier} serves"),
        Some(tier) => format!("standby: tier {tier} serves"),
        None => "not published yet".to_owned(),
    }
}
