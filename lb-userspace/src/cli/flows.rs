//! `lb flows`: the flow table from the pinned maps.

use std::net::SocketAddr;

use lb_common::{abi::Granularity, flow::State};

use super::{
    Exit, Failure,
    args::{FlowsArgs, Global},
    maps::{self, Pinned},
    output::Printer,
    render,
};
use crate::{
    api::model::{FlowList, FlowView},
    dataplane::kernel::{FlowFilter, FlowRecord, Flows},
};

/// State of an entry that is no flow, but tells where the next one of a client goes.
pub const CLIENT: &str = "client";

pub fn flows(global: &Global, printer: &Printer, arguments: &FlowsArgs) -> Result<Exit, Failure> {
    printer.watched(arguments.watch, || read(global, arguments), render::flow_list)
}

fn read(global: &Global, arguments: &FlowsArgs) -> Result<FlowList, Failure> {
    let pinned = Pinned::read(global)?;
    let table = Flows::open(&global.pin_dir).map_err(|error| maps::unreadable(&global.pin_dir, &error))?;
    let filter = FlowFilter {
        service_id: arguments.service.as_deref().map(|name| pinned.service_id(name)).transpose()?,
        backend_id: None,
        client: arguments.client.map(|client| client.address),
        state: arguments.state.as_deref().and_then(|name| State::ALL.into_iter().find(|state| state.name() == name)),
    };
    let mut list = FlowList { agent_alive: pinned.agent_alive(), matched: 0, flows: Vec::new() };
    for flow in table.iter(&filter) {
        let backend = pinned.backend(flow.backend_id, flow.backend_generation);
        if !asked_for(arguments, &flow, backend) {
            continue;
        }
        list.matched += 1;
        if list.flows.len() < arguments.limit {
            list.flows.push(view(&pinned, &flow, backend));
        }
    }
    Ok(list)
}

fn asked_for(arguments: &FlowsArgs, flow: &FlowRecord, backend: Option<SocketAddr>) -> bool {
    arguments.client.is_none_or(|client| client.matches(flow.client))
        && arguments.backend.is_none_or(|asked| backend.is_some_and(|backend| asked.matches(backend)))
}

fn view(pinned: &Pinned, flow: &FlowRecord, backend: Option<SocketAddr>) -> FlowView {
    let address = pinned.tables.service_info.get(&flow.service_id).map(|info| info.address.into());
    // A service of any port has the port that this client asked for; so has such a backend.
    let backend = backend.map(|b| if b.port() == 0 { SocketAddr::new(b.ip(), flow.service_port) } else { b });
    FlowView {
        service: pinned.service_name(flow.service_id),
        protocol: flow.protocol.name().to_owned(),
        mode: pinned.mode(flow.service_id).to_owned(),
        client: flow.client,
        listen: address.map(|address| SocketAddr::new(address, flow.service_port)),
        source: flow.source,
        backend,
        state: if flow.granularity == Granularity::Client { CLIENT } else { flow.state.name() }.to_owned(),
        idle_millis: u64::try_from(flow.idle.as_millis()).unwrap_or(u64::MAX),
    }
}
