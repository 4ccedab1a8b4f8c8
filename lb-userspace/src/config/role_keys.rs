//! The keys of a service whose backends have roles, and how they are read.

use std::time::Duration;

use super::{
    diagnostic::{At, Finding, Findings, Located, Read},
    form::{Flag, OneOf, Shaped},
    model::Health,
    probes::Check,
    reader::{Describe, Field, Key, LeftOut, Table},
    role::{MaxLag, OnMultiplePrimaries, RolePolicy, WantedRole},
    shape,
    value::{refuse, string},
};

pub(super) static ROLE: Key<WantedRole> = Key {
    name: "role",
    form: &OneOf { all: &WantedRole::ALL, name: WantedRole::name },
    left_out: LeftOut::Depends("roles do not matter"),
    doc: "Databases: which backends get flows. `primary`: the one that takes writes, at most one. `replica`: those \
          that follow it. Needs a check that tells roles: `mysql`, `postgres`, `redis` or `patroni`.",
};

pub(super) static MAX_LAG: Key<MaxLag> = Key {
    name: "max-lag",
    form: &Shaped::new(LAG_ALLOWED, max_lag, shape::max_lag),
    left_out: LeftOut::Depends("any lag"),
    doc: "`role = \"replica\"`: replicas further behind get no flows. A size is measured in the log against the backend \
          that is furthest ahead (`postgres`, `patroni`, `redis`), a time as the server tells it (`postgres`, `mysql`).",
};

pub(super) static REPLICA_FALLBACK: Key<bool> = Key {
    name: "replica-fallback",
    form: &Flag,
    left_out: LeftOut::Value(false),
    doc: "`role = \"replica\"`: while no replica is fit, the primary gets the flows.",
};

pub(super) static ON_MULTIPLE_PRIMARIES: Key<OnMultiplePrimaries> = Key {
    name: "on-multiple-primaries",
    form: &OneOf { all: &OnMultiplePrimaries::ALL, name: OnMultiplePrimaries::name },
    left_out: LeftOut::Value(OnMultiplePrimaries::Block),
    doc: "While several backends say that they are the primary: `block` (no new flows), `keep-current` (the one that \
          had them keeps them), `highest-epoch` (the one whose timeline or GTID is ahead of all others).",
};

const LAG_ALLOWED: &str = "a size or a time: \"16MiB\", \"500kB\", \"10s\"";

/// The service's policy; `None`: it has no role. `at` is the role's.
pub(super) fn read(findings: &mut Findings, service: &Table<'_>) -> Read<Option<Located<RolePolicy>>> {
    let role = service.find(findings, &ROLE);
    let max_lag = service.find(findings, &MAX_LAG);
    let fallback = service.value(findings, &REPLICA_FALLBACK);
    let multiple = service.value(findings, &ON_MULTIPLE_PRIMARIES);
    let Some(role) = role? else {
        let keys: [&dyn Describe; 3] = [&MAX_LAG, &REPLICA_FALLBACK, &ON_MULTIPLE_PRIMARIES];
        return idle(findings, service, &keys, None).map(|()| None);
    };
    if role.value == WantedRole::Primary {
        idle(findings, service, &[&MAX_LAG, &REPLICA_FALLBACK], Some(&role.at))?;
    }
    let policy = RolePolicy {
        role: role.value,
        max_lag: max_lag?.map(|lag| lag.value),
        replica_fallback: fallback?.value,
        on_multiple_primaries: multiple?.value,
    };
    Ok(Some(Located { value: policy, at: role.at }))
}

/// The policy, if the check can tell what it needs.
pub(super) fn fitting(
    findings: &mut Findings,
    policy: Read<Option<Located<RolePolicy>>>,
    health: &Read<Health>,
) -> Read<Option<RolePolicy>> {
    let (Some(Located { value: policy, at }), Ok(health)) = (policy?, health) else { return Ok(None) };
    let check = health.check.name();
    if !health.check.tells_role() {
        let finding = Finding::new(&at, format!("a \"{check}\" check cannot tell which backend is the primary"))
            .help("write [service.health] with type = \"postgres\", \"mysql\", \"redis\" or \"patroni\"");
        return Err(findings.error(finding));
    }
    let instead = match (&health.check, policy.max_lag) {
        (Check::Mysql(_), Some(MaxLag::Bytes(_))) => Some("its lag in seconds: write a time, as in \"10s\""),
        (Check::Redis(_) | Check::Patroni(_), Some(MaxLag::Time(_))) => {
            Some("its lag in bytes: write a size, as in \"16MiB\"")
        }
        _ => None,
    };
    match instead {
        Some(tells) => {
            let finding = Finding::new(&at, format!("`max-lag` does not go with a \"{check}\" check"));
            Err(findings.error(finding.help(format!("such a server tells only {tells}"))))
        }
        None => Ok(Some(policy)),
    }
}

fn idle(findings: &mut Findings, service: &Table<'_>, keys: &[&dyn Describe], role: Option<&At>) -> Read<()> {
    let mut bad = Ok(());
    for key in keys {
        let Some(field) = service.field(key.name()) else { continue };
        let finding = match role {
            None => Finding::new(&field.at, format!("`{}` needs a `role`", key.name()))
                .help("write role = \"replica\" (or \"primary\"), or leave it out"),
            Some(role) => Finding::new(&field.at, format!("`{}` goes with role = \"replica\" only", key.name()))
                .and(role, "the role of this service")
                .help("leave it out, or write it into the service of the replicas"),
        };
        bad = Err(findings.error(finding));
    }
    bad
}

fn max_lag(findings: &mut Findings, field: &Field<'_>) -> Read<MaxLag> {
    let written = string(findings, field, LAG_ALLOWED)?;
    let time = humantime::parse_duration(written).ok().filter(|lag| *lag <= Duration::from_secs(86_400));
    let lag = size(written).map(MaxLag::Bytes).or(time.map(MaxLag::Time));
    lag.ok_or_else(|| refuse(findings, field, written, LAG_ALLOWED))
}

/// A whole number of bytes with a unit.
fn size(written: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let (number, unit) = UNITS.iter().find_map(|(name, unit)| Some((written.strip_suffix(name)?, unit)))?;
    let number = number.trim_end();
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse::<u64>().ok().filter(|_| plain)?.checked_mul(*unit)
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(size("16MiB"), Some(16 << 20));
        assert_eq!(size("500 kB"), Some(500_000));
        assert_eq!(size("0B"), Some(0));
        for bad in ["16", "10s", "-1MB", "MiB", "1.5MB", "99999999999999999999GB", "10m"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }
}
