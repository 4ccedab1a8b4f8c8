//! How many flows a backend has at most: the key `max-connections`.

use lb_common::abi::{Granularity, HashedBy, Mode};

use super::{
    diagnostic::{Finding, Findings, Located},
    form::Whole,
    read::ServiceDraft,
    reader::{Key, LeftOut},
};

pub(super) static MAX_CONNECTIONS: Key<u32> = Key {
    name: "max-connections",
    form: &Whole { min: 1, max: u32::MAX, unit: "open flows" },
    left_out: LeftOut::Depends("no limit"),
    doc: "New flows go to other backends while this one has so many open; where none has room they are refused \
          (`backends_full`). Flows that it has stay. Where flows have entries in the flow table only: not for \
          `granularity = \"packet\"`, nor for `maglev` and `source-hash` with direct server return.",
};

/// Flows are counted where each has an entry of its own, that of one flow.
pub(super) fn check(findings: &mut Findings, service: &ServiceDraft) {
    let backends = service.backends.iter().filter_map(|backend| backend.as_ref().ok());
    let Some(Located { at, .. }) = backends.filter_map(|one| one.max_connections.as_ref().ok()?.as_ref()).next() else {
        return;
    };
    let (Ok(mode), Ok(scheduler), Ok(granularity)) = (&service.mode, &service.scheduler, &service.granularity) else {
        return;
    };
    let message = "connections to this backend cannot be counted";
    if granularity.value == Granularity::Packet {
        let finding = Finding::new(at, message)
            .and(&granularity.at, "every packet is scheduled: a client has a flow to each backend")
            .help("write granularity = \"flow\", or leave `max-connections` out");
        findings.error(finding);
        return;
    }
    let hashed = HashedBy::of(scheduler.value as u8, granularity.value as u8).is_some();
    let by_id = service.quic_length.as_ref().is_ok_and(Option::is_some);
    if Mode::is_one_sided(mode.value as u8) && hashed && !by_id {
        let name = scheduler.value.name();
        let why = format!("with \"{name}\" and direct server return flows have no entries");
        let finding = Finding::new(at, message)
            .and(&scheduler.at, why)
            .and(&mode.at, format!("mode \"{}\"", mode.value.name()))
            .help("write another scheduler: \"least-connections\" and \"random-two\" keep backends even as well")
            .help("or leave `max-connections` out");
        findings.error(finding);
    }
}
