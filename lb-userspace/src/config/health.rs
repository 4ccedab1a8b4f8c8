//! Reading `[service.health]`: which check, and what goes with it.

use std::net::SocketAddr;

use lb_common::abi::Protocol;
use toml::de::DeTable;

use super::{
    diagnostic::{At, Finding, Findings, Located, Read},
    keys::{self, CheckKind},
    model::{Check, Health},
    reader::{Describe, Table},
};

/// What the check has to know of its service.
struct Service<'a> {
    protocol: &'a Located<Protocol>,
    listen: &'a Located<SocketAddr>,
}

impl Service<'_> {
    /// Why the port of a backend tells nothing about where to check; `None`: it can be checked.
    fn no_port_to_check(&self) -> Option<(&'static str, &At)> {
        if self.protocol.value == Protocol::Udp {
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
) -> Read<Health> {
    let nothing = DeTable::new();
    let table = match service.table(findings, &keys::HEALTH_TABLE)? {
        Some(table) => table,
        None => {
            let at = At { path: service.path(keys::HEALTH_TABLE.name), span: service.at.span };
            Table::open(findings, &nothing, &keys::HEALTH, at)
        }
    };
    let of = match (protocol, listen) {
        (Ok(protocol), Ok(listen)) => Ok(Service { protocol, listen }),
        (Err(reported), _) | (_, Err(reported)) => Err(*reported),
    };
    let kind = kind(findings, &table, &of);
    let port = port(findings, &table, &kind, &of);
    let timing = timing(findings, &table);
    let check = check(findings, &table, &kind);
    if let Ok(Located { value: CheckKind::None, at }) = &kind {
        warn_of_idle_keys(findings, &table, at);
    }
    Ok(Health { check: check?, port: port?, ..timing? })
}

/// The kind of check; the one that suits the service when it is left out.
fn kind(findings: &mut Findings, table: &Table<'_>, of: &Read<Service<'_>>) -> Read<Located<CheckKind>> {
    if let Some(found) = table.find(findings, &keys::CHECK_TYPE)? {
        return Ok(found);
    }
    let at = At { path: table.path(keys::CHECK_TYPE.name), span: table.at.span };
    let of = of.as_ref().map_err(|reported| *reported)?;
    match of.no_port_to_check() {
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
                .help(format!("{why}: write type = \"tcp\" or \"http\" with a `port`, or type = \"none\""));
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
    match of.no_port_to_check() {
        Some((why, cause)) if kind.value != CheckKind::None => {
            let at = At { path: table.path(keys::CHECK_PORT.name), span: kind.at.span };
            let message = format!("this service needs a `port` for its \"{}\" check", kind.value.name());
            let finding = Finding::new(&at, message)
                .and(cause, "because of this")
                .help(format!("{why}: write the TCP port to ask, as in port = 8080"));
            Err(findings.error(finding))
        }
        _ => Ok(None),
    }
}

/// Everything but the check itself.
fn timing(findings: &mut Findings, table: &Table<'_>) -> Read<Health> {
    let interval = table.value(findings, &keys::INTERVAL);
    let timeout = table.find(findings, &keys::TIMEOUT);
    let fall = table.value(findings, &keys::FALL);
    let rise = table.value(findings, &keys::RISE);
    let jitter = table.value(findings, &keys::JITTER);
    let (interval, timeout) = (interval?, timeout?);
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
        timeout: timeout.map_or(interval.value.min(keys::DEFAULT_TIMEOUT_MAX), |timeout| timeout.value),
        fall: fall?.value,
        rise: rise?.value,
        jitter_percent: jitter?.value,
        port: None,
    })
}

fn check(findings: &mut Findings, table: &Table<'_>, kind: &Read<Located<CheckKind>>) -> Read<Check> {
    let path = table.value(findings, &keys::HTTP_PATH);
    let host = table.find(findings, &keys::HTTP_HOST);
    let expect = table.value(findings, &keys::HTTP_EXPECT);
    let kind = kind.as_ref().map_err(|reported| *reported)?;
    let check = match kind.value {
        CheckKind::Http => {
            return Ok(Check::Http { path: path?.value, host: host?.map(|host| host.value), expect: expect?.value });
        }
        CheckKind::Tcp => Check::Tcp,
        CheckKind::None => Check::None,
    };
    let mut bad = None;
    for key in [keys::HTTP_PATH.name, keys::HTTP_HOST.name, keys::HTTP_EXPECT.name] {
        if let Some(field) = table.field(key) {
            let finding =
                Finding::new(&field.at, format!("`{key}` does not go with a \"{}\" check", kind.value.name()))
                    .help(format!("write type = \"http\", or leave out `{key}`"));
            bad = Some(findings.error(finding));
        }
    }
    bad.map_or(Ok(check), Err)
}

fn warn_of_idle_keys(findings: &mut Findings, table: &Table<'_>, kind: &At) {
    let idle: [&dyn Describe; 6] =
        [&keys::CHECK_PORT, &keys::INTERVAL, &keys::TIMEOUT, &keys::FALL, &keys::RISE, &keys::JITTER];
    for key in idle.map(|key| key.name()) {
        if let Some(field) = table.field(key) {
            let finding = Finding::new(&field.at, format!("`{key}` has no effect: backends are not checked"))
                .and(kind, "because of this");
            findings.warning(finding);
        }
    }
}
