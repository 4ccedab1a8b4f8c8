//! What the agent tells of backends that take no flows though they should: why, and what to type. Pure.

use std::net::SocketAddr;

use crate::api::{
    doctor::{Check, CheckResult},
    model::{BackendView, ServiceView},
};

/// Backends that are told one by one; the others are counted.
const TOLD: usize = 20;

/// One check for each backend whose health is not up, and for each that is asked at another address than
/// clients use.
pub(super) fn checks(services: &[ServiceView]) -> Vec<Check> {
    let all = services.iter().flat_map(|service| service.backends.iter().map(move |backend| (service, backend)));
    let all = all.filter(|(_, backend)| !backend.leaving && backend.admin.state != "maintenance");
    let mut checks: Vec<Check> = all.filter_map(|(service, backend)| check(service, backend)).collect();
    let more = checks.len().saturating_sub(TOLD);
    if more > 0 {
        checks.truncate(TOLD);
        let evidence = format!("{more} more backends have such problems");
        checks.push(Check::new("more backends", CheckResult::Warn, evidence).fix("lb backend list"));
    }
    checks
}

fn check(service: &ServiceView, backend: &BackendView) -> Option<Check> {
    let name = format!("health {} {}", service.name, backend.address);
    let warn = |evidence: String| Check::new(&name, CheckResult::Warn, evidence);
    let health = &backend.health;
    if health.state != "up" {
        let evidence = format!("{} for {} s: {}", health.state, health.for_millis / 1000, health.reason);
        return Some(warn(evidence).fix(fix(service, backend)));
    }
    // An answer from its own address says nothing about what clients get.
    let why = health.asked_at_reason.as_ref()?;
    Some(warn(format!("up, but it is asked at its own address and not at the service's: {why}")).fix("lb status"))
}

/// What to look at next, by where the check ended (see `ProbeOutcome::result`).
fn fix(service: &ServiceView, backend: &BackendView) -> String {
    let address = backend.address;
    let (ip, port) = (address.ip(), address.port());
    if service.mode.starts_with("dsr") && backend.health.asked_at.as_deref() == Some("service") {
        let vip = service.listen.ip();
        return format!("on the backend: lb doctor --backend --mode {} --vip {vip}", service.mode);
    }
    match backend.health.reason.split([' ', ':']).next().unwrap_or_default() {
        "L4CON" => format!("on {ip}: ss -ltnup | grep :{port}; a firewall there may refuse it too"),
        "L4TOUT" => format!("ip route get {ip}; ping -c1 {ip}; a firewall on the way or there may drop it"),
        "L6RSP" | "L6TOUT" => format!("openssl s_client -connect {address} </dev/null"),
        "L7STS" | "L7RSP" | "L7TOUT" => ask(service, address),
        _ => format!("lb backend list {}", service.name),
    }
}

fn ask(service: &ServiceView, address: SocketAddr) -> String {
    let mut words = service.health_check.check.split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some(scheme @ ("http" | "https")), Some(_), Some(path)) => format!("curl -vk {scheme}://{address}{path}"),
        _ => format!("lb backend list {} -o wide; the server's own log", service.name),
    }
}
