//! The keys of a service's ways of failing over, and how they are read.

use std::time::Duration;

use lb_common::abi::Protocol;

use super::{
    diagnostic::{Finding, Findings, Located, Read},
    failover::{Failover, FlowPolicies, FlowPolicy},
    form::{OneOf, Time, Whole},
    reader::{Describe, Key, LeftOut, Table},
    role::RolePolicy,
};

static POLICY: OneOf<FlowPolicy> = OneOf { all: &FlowPolicy::ALL, name: FlowPolicy::name };

const OVER: &str = "`\"reset\"`, for UDP `\"rehome\"`";

pub(super) static ON_DOWN: Key<FlowPolicy> = Key {
    name: "on-down",
    form: &POLICY,
    left_out: LeftOut::Depends(OVER),
    doc: "Flows of a backend whose check is down. `reset`: the next packet of each, from either side, is answered with \
          a TCP reset (UDP: \"port unreachable\"), and connections that say nothing are brought to speak. `keep`: \
          they go on for as long as the backend answers. `rehome` (UDP): the next packet goes where a new flow would.",
};

pub(super) static ON_DEMOTE: Key<FlowPolicy> = Key {
    name: "on-demote",
    form: &POLICY,
    left_out: LeftOut::Depends("with `role = \"primary\"` `\"reset\"`, with `\"replica\"` `\"keep\"`"),
    doc: "Needs a `role`: flows of a backend that says it has another role by now, or in whose place another one is the \
          primary. A lag is no loss of the role.",
};

pub(super) static ON_DRAIN_TIMEOUT: Key<FlowPolicy> = Key {
    name: "on-drain-timeout",
    form: &POLICY,
    left_out: LeftOut::Depends(OVER),
    doc: "Flows that are left when the time of `lb backend drain --timeout` is over.",
};

pub(super) static ON_REMOVE: Key<FlowPolicy> = Key {
    name: "on-remove",
    form: &POLICY,
    left_out: LeftOut::Value(FlowPolicy::Keep),
    doc: "Flows of a backend, or a service, that is removed.",
};

pub(super) static MIN_READY: Key<u32> = Key {
    name: "min-ready",
    form: &Whole { min: 1, max: 65_536, unit: "backends" },
    left_out: LeftOut::Value(1),
    doc: "Backends that should be ready: where the tier that serves has fewer, as many as are missing step in from the \
          next tiers. With 1 the next tier serves, with all its backends, once none of this one is left.",
};

pub(super) static FAILBACK_DELAY: Key<Duration> = Key {
    name: "failback-delay",
    form: &Time { min: Duration::ZERO, max: Duration::from_secs(86_400) },
    left_out: LeftOut::Value(Duration::ZERO),
    doc: "A backend that comes back while a later tier serves gets no new flows before it was up for so long. Flows \
          that began meanwhile stay where they are. Without any other backend it serves at once.",
};

pub(super) static SLOW_START: Key<Duration> = Key {
    name: "slow-start",
    form: &Time { min: Duration::ZERO, max: Duration::from_secs(3600) },
    left_out: LeftOut::Value(Duration::ZERO),
    doc: "Time in which the share of a backend that has come back grows to its whole: a quarter at first, then two, three and four. Not with \
          `round-robin`, which knows no shares, and not while all backends of the service are new.",
};

/// `role` has been judged already.
pub(super) fn read(
    findings: &mut Findings,
    service: &Table<'_>,
    protocol: &Read<Located<Protocol>>,
    role: &Read<Option<RolePolicy>>,
) -> Read<Failover> {
    let keys = [&ON_DOWN, &ON_DEMOTE, &ON_DRAIN_TIMEOUT];
    let [on_down, on_demote, on_drain_timeout] = keys.map(|key| policy(findings, service, key, protocol));
    let on_remove = policy(findings, service, &ON_REMOVE, protocol);
    let min_ready = service.value(findings, &MIN_READY);
    let failback_delay = service.value(findings, &FAILBACK_DELAY);
    let slow_start = service.value(findings, &SLOW_START);
    let protocol = protocol.as_ref().map_err(|reported| *reported)?.value;
    let role = role.as_ref().map_err(|reported| *reported)?.as_ref().map(|policy| policy.role);
    let idle = service.field(ON_DEMOTE.name).filter(|_| role.is_none());
    if let Some(field) = idle {
        let finding = Finding::new(&field.at, format!("`{}` needs a `role`", ON_DEMOTE.name()))
            .help("write role = \"primary\" (or \"replica\"), or leave it out");
        return Err(findings.error(finding));
    }
    let otherwise = Failover::of(protocol, role);
    Ok(Failover {
        flows: FlowPolicies {
            on_down: on_down?.unwrap_or(otherwise.flows.on_down),
            on_demote: on_demote?.unwrap_or(otherwise.flows.on_demote),
            on_drain_timeout: on_drain_timeout?.unwrap_or(otherwise.flows.on_drain_timeout),
            on_remove: on_remove?.unwrap_or(otherwise.flows.on_remove),
        },
        min_ready: min_ready?.value,
        failback_delay: failback_delay?.value,
        slow_start: slow_start?.value,
    })
}

fn policy(
    findings: &mut Findings,
    service: &Table<'_>,
    key: &'static Key<FlowPolicy>,
    protocol: &Read<Located<Protocol>>,
) -> Read<Option<FlowPolicy>> {
    let Some(Located { value, at }) = service.find(findings, key)? else { return Ok(None) };
    let Ok(protocol) = protocol else { return Ok(None) };
    if value == FlowPolicy::Rehome && protocol.value != Protocol::Udp {
        let finding = Finding::new(&at, format!("`{}` cannot be \"rehome\": that goes with UDP only", key.name()))
            .and(&protocol.at, "the protocol of this service")
            .help("another server knows nothing of a connection: write \"reset\" or \"keep\"");
        return Err(findings.error(finding));
    }
    Ok(Some(value))
}
