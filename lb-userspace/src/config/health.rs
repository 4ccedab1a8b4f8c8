//! Reading `[service.health]`: which check, when, and where it asks.

use std::{net::SocketAddr, time::Duration};

use lb_common::abi::{Mode, Protocol};
use toml::de::DeTable;

use super::{
    diagnostic::{At, Finding, Findings, Located, Read},
    health_check,
    health_keys::{self as keys, CheckKind},
    keys::HEALTH_TABLE,
    model::{AgentHealth, Health},
    probes::{AgentCheck, Check, Via},
    reader::{Describe, Table},
};

/// Where Patroni's REST API listens when it is not told otherwise.
const PATRONI_PORT: u16 = 8008;

/// What the check has to know of its service.
struct Service<'a> {
    protocol: &'a Located<Protocol>,
    listen: &'a Located<SocketAddr>,
    mode: &'a Located<Mode>,
}

impl Service<'_> {
    /// Why the port of a backend tells nothing about where to check; `None`: it can be checked.
    fn no_port_to_check(&self, kind: CheckKind) -> Option<(&'static str, &At)> {
        let over_udp = matches!(kind, CheckKind::Udp | CheckKind::Dns);
        if matches!(kind, CheckKind::None | CheckKind::Exec | CheckKind::Patroni) {
            None
        } else if self.protocol.value == Protocol::Udp && !over_udp {
            Some(("a UDP service has no TCP port of its own to check", &self.protocol.at))
        } else if self.protocol.value == Protocol::Sctp {
            Some(("an SCTP service has no TCP port of its own to check", &self.protocol.at))
        } else if self.listen.value.port() == 0 {
            Some(("a service on every port has no port of its own to check", &self.listen.at))
        } else {
            None
        }
    }
}

pub(super) fn read(
    findings: &mut Findings,
    service: &Table<'_>,
    protocol: &Read<Located<Protocol>>,
    listen: &Read<Located<SocketAddr>>,
    mode: &Read<Located<Mode>>,
    asks_role: bool,
) -> Read<Health> {
    let nothing = DeTable::new();
    let table = match service.table(findings, &HEALTH_TABLE)? {
        Some(table) => table,
        None => {
            let at = At { path: service.path(HEALTH_TABLE.name), span: service.at.span };
            Table::open(findings, &nothing, &keys::HEALTH, at)
        }
    };
    let of = match (protocol, listen, mode) {
        (Ok(protocol), Ok(listen), Ok(mode)) => Ok(Service { protocol, listen, mode }),
        (Err(reported), _, _) | (_, Err(reported), _) | (_, _, Err(reported)) => Err(*reported),
    };
    let kind = kind(findings, &table, &of);
    let port = port(findings, &table, &kind, &of);
    let via = via(findings, &table, &kind, &port, &of);
    let timing = timing(findings, &table);
    let agent = agent(findings, &table);
    let check = health_check::read(findings, &table, &kind, asks_role);
    if let Ok(Located { value: CheckKind::None, at }) = &kind {
        warn_of_idle_keys(findings, &table, at);
    }
    let timing = timing?;
    let agent = agent?.map(|Agent { port, interval, check }| {
        let interval = interval.unwrap_or(timing.interval);
        AgentHealth { port, interval, check }
    });
    Ok(Health { check: check?, port: port?, via: via?, agent, ..timing })
}

/// The kind of check; the one that suits the service when it is left out.
fn kind(findings: &mut Findings, table: &Table<'_>, of: &Read<Service<'_>>) -> Read<Located<CheckKind>> {
    if let Some(found) = table.find(findings, &keys::CHECK_TYPE)? {
        return Ok(found);
    }
    let at = At { path: table.path(keys::CHECK_TYPE.name), span: table.at.span };
    let of = of.as_ref().map_err(|reported| *reported)?;
    match of.no_port_to_check(CheckKind::Tcp) {
        None => Ok(Located { value: CheckKind::Tcp, at }),
        Some((why, _)) if table.is_empty() => {
            let message = "the backends of this service are not checked: they count as up even when they are dead";
            let finding = Finding::new(&table.at, message)
                .help(format!("{why}: name a TCP port that tells whether a backend lives"))
                .help("    [service.health]\n    type = \"tcp\"\n    port = 8080")
                .help("or say that this is meant: type = \"none\"");
            findings.warning(finding);
            Ok(Located { value: CheckKind::None, at })
        }
        Some((why, cause)) => {
            let finding = Finding::new(&at, "`type` is missing in [service.health]")
                .and(cause, "this service has no check by default")
                .help(format!("{why}: write type = \"tcp\" or \"http\" with a `port`, \"udp\", \"dns\", or \"none\""));
            Err(findings.error(finding))
        }
    }
}

fn port(
    findings: &mut Findings,
    table: &Table<'_>,
    kind: &Read<Located<CheckKind>>,
    of: &Read<Service<'_>>,
) -> Read<Option<u16>> {
    if let Some(port) = table.find(findings, &keys::CHECK_PORT)? {
        return Ok(Some(port.value));
    }
    let (Ok(kind), Ok(of)) = (kind, of) else { return Ok(None) };
    match of.no_port_to_check(kind.value) {
        Some((why, cause)) => {
            let at = At { path: table.path(keys::CHECK_PORT.name), span: kind.at.span };
            let message = format!("this service needs a `port` for its \"{}\" check", kind.value.name());
            let finding = Finding::new(&at, message)
                .and(cause, "because of this")
                .help(format!("{why}: write the port to ask, as in port = 8080"));
            Err(findings.error(finding))
        }
        None if kind.value == CheckKind::Patroni => Ok(Some(PATRONI_PORT)),
        None => Ok(None),
    }
}

/// Where the mode lets it, a check goes the way of clients unless it is told otherwise, or is about
/// something else than the service's own port.
fn via(
    findings: &mut Findings,
    table: &Table<'_>,
    kind: &Read<Located<CheckKind>>,
    port: &Read<Option<u16>>,
    of: &Read<Service<'_>>,
) -> Read<Via> {
    let written = table.find(findings, &keys::VIA)?;
    let (Ok(kind), Ok(port), Ok(of)) = (kind, port, of) else { return Ok(Via::Backend) };
    let direct = Mode::is_one_sided(of.mode.value as u8);
    let Some(written) = written else {
        let asks = !matches!(kind.value, CheckKind::None | CheckKind::Exec);
        return Ok(if direct && asks && port.is_none() { Via::Service } else { Via::Backend });
    };
    if written.value == Via::Service && kind.value == CheckKind::Exec {
        let finding = Finding::new(&written.at, "an \"exec\" check cannot go to the service's address")
            .and(&kind.at, "because of this")
            .help("its program opens connections of its own: leave out `via`");
        return Err(findings.error(finding));
    }
    if written.value == Via::Service && !direct {
        let name = of.mode.value.name();
        let finding = Finding::new(&written.at, format!("in mode \"{name}\" no backend has the service's address"))
            .and(&of.mode.at, format!("mode \"{name}\""))
            .help("leave out `via`: the backend's own address is what clients are taken to");
        return Err(findings.error(finding));
    }
    Ok(written.value)
}

/// The agent's interval may be that of the check, which is read elsewhere.
struct Agent {
    port: u16,
    interval: Option<Duration>,
    check: AgentCheck,
}

fn agent(findings: &mut Findings, table: &Table<'_>) -> Read<Option<Agent>> {
    let port = table.find(findings, &keys::AGENT_PORT);
    let interval = table.find(findings, &keys::AGENT_INTERVAL);
    let send = table.find(findings, &keys::AGENT_SEND);
    let (port, interval, send) = (port?, interval?, send?);
    if let Some(port) = port {
        let check = AgentCheck { send: send.map_or_else(String::new, |send| send.value) };
        return Ok(Some(Agent { port: port.value, interval: interval.map(|interval| interval.value), check }));
    }
    let mut bad = Ok(None);
    for (key, at) in [(keys::AGENT_INTERVAL.name, interval.map(|i| i.at)), (keys::AGENT_SEND.name, send.map(|s| s.at))]
    {
        let Some(at) = at else { continue };
        let finding = Finding::new(&at, format!("`{key}` needs an `agent-port`"));
        bad = Err(findings.error(finding.help("write the port that the agent listens on, as in agent-port = 9999")));
    }
    bad
}

/// Everything but the check itself.
fn timing(findings: &mut Findings, table: &Table<'_>) -> Read<Health> {
    let interval = table.value(findings, &keys::INTERVAL);
    let fast = table.find(findings, &keys::FAST_INTERVAL);
    let timeout = table.find(findings, &keys::TIMEOUT);
    let fall = table.value(findings, &keys::FALL);
    let rise = table.value(findings, &keys::RISE);
    let jitter = table.value(findings, &keys::JITTER);
    let (interval, fast, timeout) = (interval?, fast?, timeout?);
    if let Some(fast) = fast.as_ref().filter(|fast| fast.value > interval.value) {
        let show = humantime::format_duration(interval.value);
        let finding = Finding::new(&fast.at, format!("`fast-interval` is longer than `interval` ({show})"))
            .and(&interval.at, format!("interval {show}"))
            .help("it is for asking more often while the state may be changing");
        return Err(findings.error(finding));
    }
    if let Some(timeout) = timeout.as_ref().filter(|timeout| timeout.value > interval.value) {
        let show = humantime::format_duration(interval.value);
        let finding = Finding::new(&timeout.at, format!("`timeout` is longer than `interval` ({show})"))
            .and(&interval.at, format!("interval {show}"))
            .help("a check must be over before the next one begins");
        return Err(findings.error(finding));
    }
    Ok(Health {
        check: Check::None,
        interval: interval.value,
        fast_interval: fast.map(|fast| fast.value),
        timeout: timeout.map_or(interval.value.min(keys::DEFAULT_TIMEOUT_MAX), |timeout| timeout.value),
        fall: fall?.value,
        rise: rise?.value,
        jitter_percent: jitter?.value,
        port: None,
        via: Via::Backend,
        agent: None,
    })
}

fn warn_of_idle_keys(findings: &mut Findings, table: &Table<'_>, kind: &At) {
    let idle: [&dyn Describe; 8] = [
        &keys::CHECK_PORT,
        &keys::VIA,
        &keys::INTERVAL,
        &keys::FAST_INTERVAL,
        &keys::TIMEOUT,
        &keys::FALL,
        &keys::RISE,
        &keys::JITTER,
    ];
    for key in idle.map(|key| key.name()) {
        if let Some(field) = table.field(key) {
            let finding = Finding::new(&field.at, format!("`{key}` has no effect: backends are not checked"))
                .and(kind, "because of this");
            findings.warning(finding);
        }
    }
}
