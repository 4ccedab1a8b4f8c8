//! `[service.passive]`: what follows from how backends answer the connections of clients.

use std::time::Duration;

use lb_common::abi::{Mode, Protocol, limits::KNOCK_TRIES};
use toml::de::DeTable;

use super::{
    diagnostic::{At, Finding, Findings, Located, Read},
    form::{Flag, Time, Whole},
    model::Passive,
    reader::{Key, LeftOut, Nested, Section, Table},
};

pub(super) static PASSIVE_TABLE: Nested = Nested {
    name: "passive",
    repeated: false,
    section: &PASSIVE,
    doc: "What follows from how backends answer the connections of clients (TCP), and their first datagrams (UDP).",
};

pub(super) static PASSIVE: Section = Section {
    header: "[service.passive]",
    keys: &[&ENABLED, &RETRIES, &CLIENTS, &MAX_SUSPENDED, &PANIC_THRESHOLD, &BACK_OFF, &ANSWER_WITHIN],
};

static ENABLED: Key<bool> = Key {
    name: "enabled",
    form: &Flag,
    left_out: LeftOut::Value(Passive::DEFAULT.enabled),
    doc: "Take a backend that refuses or does not answer connections out of turn until probes have found out what is \
          the matter with it. With direct server return, where answers are not seen, it stays in turn meanwhile.",
};

static RETRIES: Key<u8> = Key {
    name: "retries",
    form: &Whole { min: 0, max: KNOCK_TRIES as u8 - 1, unit: "" },
    left_out: LeftOut::Value(Passive::DEFAULT.retries),
    doc: "Other backends that a connection is sent to when one refuses it or does not answer, before its client hears \
          of it. 0: none.",
};

static CLIENTS: Key<u8> = Key {
    name: "clients",
    form: &Whole { min: 1, max: 32, unit: "" },
    left_out: LeftOut::Value(Passive::DEFAULT.clients),
    doc: "Different clients that a backend must have refused or not answered, and none answered meanwhile, before it \
          is taken out of turn: a client whose own network is broken takes nobody out. Clients are told apart by one \
          of 64 marks of their address.",
};

static MAX_SUSPENDED: Key<u8> = Key {
    name: "max-suspended",
    form: &Whole { min: 0, max: 100, unit: "percent" },
    left_out: LeftOut::Value(Passive::DEFAULT.max_suspended_percent),
    doc: "Largest share of the service's backends that is out of turn for this reason at a time; one is always \
          allowed, unless this is 0, and never the last one that is in turn.",
};

static PANIC_THRESHOLD: Key<u8> = Key {
    name: "panic-threshold",
    form: &Whole { min: 0, max: 100, unit: "percent" },
    left_out: LeftOut::Value(Passive::DEFAULT.panic_percent),
    doc: "When a smaller share of the service's backends than this is up, all that are up stay in turn, whatever \
          clients' connections say.",
};

static BACK_OFF: Key<Duration> = Key {
    name: "back-off",
    form: &Time { min: Duration::from_millis(100), max: Duration::from_secs(3600) },
    left_out: LeftOut::Value(Passive::DEFAULT.back_off),
    doc: "After a false alarm, the time until the backend may be taken out of turn again; doubled with each further \
          one, up to 64 times, and forgotten after as long without one.",
};

static ANSWER_WITHIN: Key<Duration> = Key {
    name: "answer-within",
    form: &Time { min: Duration::from_millis(20), max: Duration::from_secs(1) },
    left_out: LeftOut::Depends("that a backend does not answer says nothing"),
    doc: "UDP, `nat` and `full-nat`: backends answer the first datagram of each flow within this time, and one that \
          leaves those of several clients without an answer for longer, and answers nobody meanwhile, is taken out of \
          turn. For DNS or QUIC; not for what is sent one way only, such as syslog, where every backend is silent.",
};

/// What the service's file says, complete.
pub(super) fn read(
    findings: &mut Findings,
    service: &Table<'_>,
    protocol: &Read<Located<Protocol>>,
    mode: &Read<Located<Mode>>,
) -> Read<Passive> {
    let nothing = DeTable::new();
    let table = match service.table(findings, &PASSIVE_TABLE)? {
        Some(table) => {
            warn(findings, &table, protocol, mode);
            table
        }
        None => {
            let at = At { path: service.path(PASSIVE_TABLE.name), span: service.at.span };
            Table::open(findings, &nothing, &PASSIVE, at)
        }
    };
    let enabled = table.value(findings, &ENABLED);
    let retries = table.value(findings, &RETRIES);
    let clients = table.value(findings, &CLIENTS);
    let max_suspended = table.value(findings, &MAX_SUSPENDED);
    let panic_threshold = table.value(findings, &PANIC_THRESHOLD);
    let back_off = table.value(findings, &BACK_OFF);
    let answer_within = table.find(findings, &ANSWER_WITHIN)?;
    if let (Some(within), Ok(protocol), Ok(mode)) = (&answer_within, protocol, mode)
        && (protocol.value != Protocol::Udp || Mode::is_one_sided(mode.value as u8))
    {
        let message = "`answer-within` has no effect: it is for UDP whose answers come by here";
        findings.warning(Finding::new(&within.at, message).and(&protocol.at, "because of this"));
    }
    Ok(Passive {
        enabled: enabled?.value,
        retries: retries?.value,
        clients: clients?.value,
        max_suspended_percent: max_suspended?.value,
        panic_percent: panic_threshold?.value,
        back_off: back_off?.value,
        answer_within: answer_within.map(|within| within.value),
    })
}

/// What is written for nothing.
fn warn(findings: &mut Findings, table: &Table<'_>, protocol: &Read<Located<Protocol>>, mode: &Read<Located<Mode>>) {
    let (Ok(protocol), Ok(mode)) = (protocol, mode) else { return };
    let one_sided = Mode::is_one_sided(mode.value as u8);
    if protocol.value == Protocol::Sctp || protocol.value == Protocol::Udp && one_sided {
        let message =
            format!("[service.passive] has no effect: nothing tells how {} is answered", protocol.value.name());
        findings.warning(Finding::new(&table.at, message).and(&protocol.at, "because of this"));
    } else if one_sided {
        let message = "with direct server return the backends' answers are not seen: clients that send their first \
                       packet again make the checks faster, and take no backend out of turn";
        let finding = Finding::new(&table.at, message)
            .and(&mode.at, "because of this")
            .help("write a short `interval`, or a `fast-interval`, in [service.health]");
        findings.warning(finding);
    }
}
