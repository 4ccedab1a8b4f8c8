//! From what the core knows to what is shown.

use std::time::{Duration, SystemTime};

use crate::{
    api::model::{
        AdminView, BackendView, CertificateView, EffectiveView, HealthCheckView, HealthView, PhaseView, ProbeView,
        RoleDetail, ServiceView, TrackingView,
    },
    config::Health,
    core::{self, Admin, AskedAt, HealthState, Now, Phase, ProbeOutcome},
};

/// A service as it is shown at `now`.
pub fn service_view(service: &core::ServiceView, now: Now) -> ServiceView {
    let core::ServiceView { config, id, active_tier, live_flows, tracking, frozen_until, backends } = service;
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
        tracking: tracking.map(|tracking| TrackingView {
            slots: tracking.slots,
            unsettled: tracking.unsettled,
            settles_in_millis: tracking.settles_in.map(millis),
        }),
        frozen_millis: frozen_until.map(|until| millis(until.saturating_sub(now))),
        backends: backends.iter().map(|backend| backend_view(&config.name, backend, now)).collect(),
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
        check: health.check.describe(),
        interval_millis: millis(health.interval),
        fast_interval_millis: health.fast_interval.map(millis),
        timeout_millis: millis(health.timeout),
        fall: health.fall,
        rise: health.rise,
    }
}

/// A backend of the service of this name as it is shown at `now`.
pub fn backend_view(service: &str, backend: &core::BackendView, now: Now) -> BackendView {
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
            last_probe: backend.last_probe.as_ref().map(last_probe),
            asked_at: backend.asked.as_ref().map(|asked| asked.name().to_owned()),
            asked_at_reason: match &backend.asked {
                Some(AskedAt::Backend(why)) => why.clone(),
                _ => None,
            },
        },
        role: backend.role.as_ref().map(|role| role.role.name().to_owned()),
        role_detail: backend.role.as_ref().map(role_detail),
        agent: backend.agent.clone(),
        effective: EffectiveView { used: backend.used, reason: backend.used_reason.clone() },
        leaving: backend.leaving,
        live_flows: backend.live_flows,
        refusals: backend.knocks.refusals,
        unanswered: backend.knocks.unanswered,
        rescued: backend.knocks.rescued,
    }
}

fn last_probe(outcome: &ProbeOutcome) -> ProbeView {
    let phase = |(phase, took): &(Phase, Duration)| PhaseView { phase: phase.name().to_owned(), micros: micros(*took) };
    ProbeView {
        up: outcome.up,
        result: outcome.result.clone(),
        micros: micros(outcome.took),
        phases: outcome.phases.iter().map(phase).collect(),
        certificate: outcome.certificate.map(|certificate| CertificateView {
            not_after: utc(certificate.not_after),
            days_left: certificate.days_left,
        }),
    }
}

fn role_detail(role: &core::RoleView) -> RoleDetail {
    RoleDetail {
        reason: role.reason.clone(),
        lag_bytes: role.lag_bytes,
        lag_millis: role.lag_time.map(millis),
        epoch: role.epoch.clone(),
    }
}

/// RFC 3339; the certificates of before 1970 are over too.
fn utc(seconds: i64) -> String {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string()
}

fn health_name(health: HealthState) -> &'static str {
    match health {
        HealthState::Unknown => "unknown",
        HealthState::Up => "up",
        HealthState::Down => "down",
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
