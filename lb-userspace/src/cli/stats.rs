//! `lb stats`: counters from the pinned maps.

use lb_common::abi::{BackendState, DirectionCounters};

use super::{
    Exit, Failure,
    args::{Global, Watch},
    maps::{self, Pinned, backend_state},
    output::Printer,
    render,
};
use crate::{
    api::model::{BackendStats, ServiceStats, StatsView, Traffic, VerdictStats},
    dataplane::{DataplaneError, kernel::Stats},
};

pub fn stats(global: &Global, printer: &Printer, service: Option<&str>, watch: Watch) -> Result<Exit, Failure> {
    printer.watched(watch, || read(global, service), render::stats)
}

fn read(global: &Global, service: Option<&str>) -> Result<StatsView, Failure> {
    let pinned = Pinned::read(global)?;
    let chosen = service.map(|name| pinned.service_id(name)).transpose()?;
    let unreadable = |error| maps::unreadable(&global.pin_dir, &error);
    let counters = Stats::open(&global.pin_dir).map_err(unreadable)?;
    collect(&pinned, &counters, chosen).map_err(unreadable)
}

fn collect(pinned: &Pinned, counters: &Stats, chosen: Option<u32>) -> Result<StatsView, DataplaneError> {
    let ids = pinned.tables.service_info.keys().copied().filter(|id| chosen.is_none_or(|chosen| chosen == *id));
    let services = ids.map(|id| service_stats(pinned, counters, id)).collect::<Result<_, _>>()?;
    let verdicts = counters.verdicts()?.into_iter().map(|(reason, counted)| VerdictStats {
        reason: reason.name().to_owned(),
        action: reason.action().name().to_owned(),
        packets: counted.packets,
        bytes: counted.bytes,
        meaning: reason.meaning().trim().to_owned(),
    });
    Ok(StatsView { agent_alive: pinned.agent_alive(), services, verdicts: verdicts.collect() })
}

fn service_stats(pinned: &Pinned, counters: &Stats, id: u32) -> Result<ServiceStats, DataplaneError> {
    let counted = counters.service(id)?;
    let info = &pinned.tables.service_info[&id];
    let in_use = |state: u8| state != BackendState::Empty as u8;
    let own = pinned.tables.backends.iter().filter(|(_, b)| b.service_id == id && in_use(b.state));
    let backends = own.map(|(backend_id, backend)| {
        let counted = counters.backend(*backend_id)?;
        Ok(BackendStats {
            id: *backend_id,
            address: std::net::SocketAddr::new(backend.address.into(), backend.port.get()),
            state: backend_state(backend.state).to_owned(),
            forward: traffic(counted.forward),
            reply: traffic(counted.reply),
            flows: counted.flows,
            ended: counted.ended,
            refusals: counted.refusals,
            unanswered: counted.unanswered,
            rescued: counted.rescued,
            reset: counted.reset,
            moved: counted.moved,
        })
    });
    Ok(ServiceStats {
        id,
        name: pinned.service_name(id),
        listen: maps::listen(info),
        protocol: maps::protocol(info.protocol).to_owned(),
        mode: pinned.mode(id).to_owned(),
        forward: traffic(counted.forward),
        reply: traffic(counted.reply),
        flows: counted.flows,
        refused: counted.refused,
        dropped: counted.dropped,
        rescued: counted.rescued,
        backends: backends.collect::<Result<_, DataplaneError>>()?,
    })
}

fn traffic(counted: DirectionCounters) -> Traffic {
    Traffic { packets: counted.packets, bytes: counted.bytes }
}
