//! Through the driver: live frames from a generator in the kernel, over a veth into the program under
//! test and back into a sink.
//!
//! ```text
//! generator -> far ==> eth0 [program: XDP_TX] ==> far [sink: counts, drops]
//! ```
//!
//! veth works a frame off on the CPU that sent it: one CPU does all of it, without loss or wake-ups.
//! Another CPU reads the sink's counter every few milliseconds, and the best of these windows stands
//! for a run: averages would tell what else the machine did.

use anyhow::{Context as _, Result};
use aya::programs::{XdpMode, xdp::XdpLinkId};
use lb_common::abi::{Mode, Protocol, Scheduler};
use lb_userspace::dataplane::kernel::ifindex;

use super::{
    bench::Bench,
    lab::{self, FAR, INTERFACE},
    lane::Which,
    measure::last_cpu,
    rows::Case,
    setting::Setting,
    sink::Sink,
    stream::Kind,
};
use crate::{result::DriverResult, statistics::Spread};

/// How long to look.
#[derive(Clone, Copy, Debug)]
pub struct DriverEffort {
    pub rounds: u32,
    /// Of a run.
    pub frames: u32,
}

impl DriverEffort {
    pub const QUICK: Self = Self { rounds: 3, frames: 1 << 19 };
    pub const FULL: Self = Self { rounds: 10, frames: 1 << 21 };
    /// For tests of the bench itself.
    pub const LEAST: Self = Self { rounds: 1, frames: 1 << 17 };
}

/// Mode, scheduler, and which of the flows are sent.
pub type DriverRow = (Mode, Scheduler, Case);

/// What is sent through.
pub const ROWS: &[DriverRow] = &[
    (Mode::DsrIpip, Scheduler::Maglev, Case::Hit(1)),
    (Mode::DsrIpip, Scheduler::Maglev, Case::Hit(1 << 16)),
    (Mode::DsrIpip, Scheduler::Maglev, Case::Hit(1 << 20)),
    (Mode::FullNat, Scheduler::RoundRobin, Case::Hit(1)),
    (Mode::FullNat, Scheduler::RoundRobin, Case::Hit(1 << 16)),
    (Mode::FullNat, Scheduler::RoundRobin, Case::Hit(1 << 20)),
];

/// A pair of interfaces with one program under test.
struct Wire {
    name: String,
    /// Where frames are sent into.
    far: u32,
    runs: Vec<Run>,
}

/// What a run has come to.
#[derive(Clone, Copy)]
struct Run {
    best_ns: f64,
    delivered_percent: f64,
}

/// Measures each row beside its floor and the textbook balancer; `tell` hears of each.
///
/// # Errors
/// The kernel refuses.
pub fn driver(
    rows: &[DriverRow],
    effort: DriverEffort,
    tell: &(dyn Fn(&DriverResult) + Sync),
) -> Result<Vec<DriverResult>> {
    let mut results = Vec::new();
    for group in rows.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let kind = Kind { v4: true, protocol: Protocol::Tcp };
        let setting = Setting { mode: group[0].0, scheduler: group[0].1, kind, services: 1, visited: 1, lines: "" };
        let measured = lab::inside(last_cpu(), || {
            let mut stage = Stage::new(setting)?;
            let mut results = Vec::new();
            for (_, _, case) in group {
                for result in stage.row(*case, effort)? {
                    tell(&result);
                    results.push(result);
                }
            }
            Ok(results)
        })?;
        results.extend(measured);
    }
    Ok(results)
}

struct Stage {
    bench: Bench,
    sink: Sink,
    /// Programs stay on their interfaces for as long as these are known; they go with the namespace.
    _links: Vec<XdpLinkId>,
}

/// Interfaces of the floor and of the textbook balancer, and their far ends.
const FLOOR: (&str, &str) = ("floor", "floor-far");
const TEXTBOOK: (&str, &str) = ("book", "book-far");

impl Stage {
    /// Ours is on its interface already; the others get one each, and every far end the sink.
    fn new(setting: Setting) -> Result<Self> {
        let mut lines = Vec::new();
        for (near, far) in [FLOOR, TEXTBOOK] {
            lines.push(format!("link add {near} type veth peer name {far}"));
            lines.extend([near, far].map(|name| format!("link set {name} addrgenmode none")));
            lines.extend([near, far].map(|name| format!("link set {name} up")));
        }
        lab::ip_batch(&lines)?;
        let mut bench = Bench::new(setting)?;
        let grows = Mode::is_one_sided(setting.mode as u8);
        let textbook = if grows { "textbook" } else { "textbook_nat" };
        let mut links = Vec::new();
        let attachments =
            [("floor_tx", FLOOR.0), (textbook, TEXTBOOK.0), ("sink", FAR), ("sink", FLOOR.1), ("sink", TEXTBOOK.1)];
        for (program, interface) in attachments {
            let link = bench.object.xdp(program)?.attach(interface, XdpMode::Driver);
            links.push(link.with_context(|| format!("attaching {program} to {interface}"))?);
        }
        let sink = Sink::open(&bench.object)?;
        Ok(Self { bench, sink, _links: links })
    }

    /// Ours, the textbook balancer and the floor, in turns.
    fn row(&mut self, case: Case, effort: DriverEffort) -> Result<Vec<DriverResult>> {
        let lanes = self.bench.lanes(case)?;
        let lane = lanes.iter().find(|lane| lane.which == Which::Ours).context("no lane for ours")?;
        self.bench.send_flows(&lane.flows);
        let setting = self.bench.setting;
        let what = format!("{} {} {}", setting.mode.name(), setting.scheduler.name(), setting.kind.name());
        let mut wires = Vec::new();
        for (name, far) in
            [(format!("floor for {what}"), FLOOR.1), (format!("textbook for {what}"), TEXTBOOK.1), (what.clone(), FAR)]
        {
            wires.push(Wire { name: format!("{name} {}", case.name()), far: ifindex(far)?, runs: Vec::new() });
        }
        for round in 0..effort.rounds {
            let first = round as usize % wires.len();
            for at in (first..wires.len()).chain(0..first) {
                let stream = lb_common::bench::Stream { ifindex: wires[at].far, ..lane.stream };
                self.bench.object.set_stream(&stream);
                let run = self.run(effort.frames)?;
                wires[at].runs.push(run);
            }
        }
        let floor: Vec<f64> = wires[0].runs.iter().map(|run| run.best_ns).collect();
        wires.iter().map(|wire| wire.result(case, &floor)).collect()
    }

    fn run(&mut self, frames: u32) -> Result<Run> {
        let kind = self.bench.setting.kind;
        let (best_ns, delivered) = self.sink.run(&mut self.bench.object, kind, ifindex(INTERFACE)?, frames)?;
        Ok(Run { best_ns, delivered_percent: delivered as f64 * 100.0 / f64::from(frames) })
    }
}

impl Wire {
    fn result(&self, case: Case, floor: &[f64]) -> Result<DriverResult> {
        let each: Vec<f64> = self.runs.iter().map(|run| run.best_ns).collect();
        let over: Vec<f64> = each.iter().zip(floor).map(|(each, floor)| each - floor).collect();
        let delivered: Vec<f64> = self.runs.iter().map(|run| run.delivered_percent).collect();
        let (spread, over) = (Spread::of(&each), Spread::of(&over));
        let (spread, over, delivered) =
            (spread.context("no runs")?, over.context("no runs")?, Spread::of(&delivered).context("no runs")?);
        let tenths = |ns: f64| (ns * 10.0).round() / 10.0;
        Ok(DriverResult {
            name: self.name.clone(),
            flows: case.flows(),
            median_ns: tenths(spread.median),
            min_ns: tenths(spread.min),
            max_ns: tenths(spread.max),
            over_floor_ns: tenths(over.median),
            mpps: (100_000.0 / spread.median).round() / 100.0,
            delivered_percent: (delivered.min * 100.0).round() / 100.0,
        })
    }
}
