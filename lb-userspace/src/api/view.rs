//! From what the core knows to what is shown.

use crate::{
    api::model::{AdminView, BackendView, EffectiveView, HealthCheckView, HealthView, ServiceView},
    config::{Check, Health},
    core::{self, Admin, HealthState, Now},
};

/// A service as it is shown at `now`.
pub fn service_view(service: &core::ServiceView, now: Now) -> ServiceView {
    let core::ServiceView { config, id, active_tier, live_flows, backends } = service;
    ServiceView {
        name: config.name.clone(),
        listen: config.listen,
        protocol: config.protocol.name().to_owned(),
        mode: config.mode.name().to_owned(),
        scheduler: config.scheduler.name().to_owned(),
        granularity: config.granularity.name().to_owned(),
        health_check: health_check_view(&config.health),
        id: *id,
        active_tier: *active_tier,
        live_flows: *live_flows,
        backends: backends.iter().map(|backend| backend_view(&config.name, backend, now)).collect(),
    }
}

/// `tcp`, `http GET /healthz`, `none`.
pub fn check_name(check: &Check) -> String {
    match check {
        Check::None => "none".to_owned(),
        Check::Tcp => "tcp".to_owned(),
        Check::Http { path, .. } => format!("http GET {path}"),
    }
}

pub fn admin_name(admin: Admin) -> &'static str {
    match admin {
        Admin::Ready => "ready",
        Admin::Drain => "drain",
        Admin::Maintenance => "maintenance",
    }
}

fn health_check_view(health: &Health) -> HealthCheckView {
    HealthCheckView {
        check: check_name(&health.check),
        interval_millis: millis(health.interval),
        timeout_millis: millis(health.timeout),
        fall: health.fall,
        rise: health.rise,
    }
}

fn backend_view(service: &str, backend: &core::BackendView, now: Now) -> BackendView {
    let mark = backend.overridden.as_ref().and_then(core::Override::shown);
    BackendView {
        service: service.to_owned(),
        address: backend.address,
        id: backend.id,
        weight: backend.weight,
        tier: backend.tier,
        admin: AdminView {
            state: admin_name(backend.admin).to_owned(),
            by: mark.map(|mark| mark.by.clone()),
            at: mark.map(|mark| mark.at.clone()),
            reason: mark.and_then(|mark| mark.reason.clone()),
            until: mark.and_then(|mark| mark.until.clone()),
        },
        health: HealthView {
            state: health_name(backend.health).to_owned(),
            reason: backend.health_reason.clone(),
            for_millis: millis(now.saturating_sub(backend.health_since)),
        },
        role: None,
        effective: EffectiveView { used: backend.used, reason: backend.used_reason.clone() },
        leaving: backend.leaving,
        live_flows: backend.live_flows,
    }
}

fn health_name(health: HealthState) -> &'static str {
    match health {
        HealthState::Unknown => "unknown",
        HealthState::Up => "up",
        HealthState::Down => "down",
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
