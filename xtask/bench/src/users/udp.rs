//! UDP packets through a balancer: live frames from the client's end of the wire into a sink in front
//! of the backend's stack.

use anyhow::{Context as _, Result};
use lb_common::{abi::Protocol, bench::Stream};
use lb_userspace::dataplane::kernel::ifindex;

use super::{
    balancers::{Door, Past},
    stage::{PAST, Stage, mac_of},
};
use crate::{
    packets::{Kind, Sink, udp_order},
    result::UserResult,
    statistics::{Spread, median},
};

/// Flows of the loads.
const FLOWS: [u32; 2] = [1000, 50_000];

pub struct Frames {
    balancer: String,
    flows: u32,
    /// Nanoseconds a packet, in the best window.
    each: f64,
    delivered: u64,
    sent: u64,
}

/// Sends through one door, with few and with many flows.
///
/// # Errors
/// The kernel refuses, or nothing arrives.
pub fn run(stage: &mut Stage, door: &Door, frames: u32) -> Result<Vec<Frames>> {
    let kind = Kind { v4: true, protocol: Protocol::Udp };
    let direct = door.past == Past::Both;
    let to = if direct { &stage.world.backends[0] } else { &stage.world.lb };
    let mac = mac_of(to, "eth0")?;
    let interface = if direct { PAST } else { "eth0" };
    let near = stage.world.client.enter(|| ifindex(interface))?;
    let mut results = Vec::new();
    for flows in FLOWS {
        let (order, table) = udp_order(door.target, mac, flows);
        stage.object.set_flows(&table);
        let begin = Stream { ifindex: near, ..order.begin(0) };
        let sink = Sink::open(&stage.object)?;
        let object = &mut stage.object;
        let measured = stage.world.client.enter(|| {
            // The first lap makes flows; the second meets them.
            object.set_stream(&begin);
            object.generate(kind, near, flows)?;
            object.set_stream(&begin);
            sink.run(object, kind, near, frames)
        });
        let (each, delivered) = measured.with_context(|| format!("UDP through {}", door.name))?;
        results.push(Frames { balancer: door.name.clone(), flows, each, delivered, sent: u64::from(frames) });
    }
    Ok(results)
}

/// The medians of the rounds, those without a balancer first.
pub fn results(frames: &[Frames]) -> Vec<UserResult> {
    let mut results: Vec<UserResult> = Vec::new();
    for flows in FLOWS {
        let mut names: Vec<&str> = Vec::new();
        for run in frames.iter().filter(|run| run.flows == flows) {
            if !names.contains(&run.balancer.as_str()) {
                names.push(&run.balancer);
            }
        }
        let mut direct = None;
        for name in names {
            let runs: Vec<_> = frames.iter().filter(|run| run.flows == flows && run.balancer == name).collect();
            let each: Vec<f64> = runs.iter().map(|run| run.each).collect();
            let Some(ns) = median(&each) else { continue };
            let direct = *direct.get_or_insert(ns);
            let lost = runs.iter().map(|run| run.sent.saturating_sub(run.delivered)).sum();
            results.push(UserResult {
                balancer: name.to_owned(),
                load: format!("udp {flows}"),
                per_second: Spread::of(&each).map_or(0.0, |spread| (1e9 / spread.median).round()),
                cpu_us: (ns / 10.0).round() / 100.0,
                over_direct_us: ((ns - direct) / 10.0).round() / 100.0,
                failed: lost,
                ..UserResult::default()
            });
        }
    }
    results
}
