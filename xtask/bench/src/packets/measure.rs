//! Rows in rounds: in each round every program of the row has its turn, so that what the machine does
//! meanwhile hits all of them alike.

use anyhow::{Context as _, Result, bail};
use lb_common::{abi::Mode, bench::WINDOW};

use super::{
    bench::Bench,
    lab,
    lane::{Lanes, Which},
    ours::{Counted, ProgramSize},
    rows::{Case, Row},
    setting::FLOWS,
};
use crate::{
    result::RowResult,
    statistics::{Spread, median},
    target::Cost,
};

/// How long to look.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub rounds: u32,
    /// Windows in a round.
    pub windows: u32,
}

impl Effort {
    pub const QUICK: Self = Self { rounds: 5, windows: 24 };
    pub const FULL: Self = Self { rounds: 7, windows: 48 };
    /// For tests of the bench itself.
    pub const LEAST: Self = Self { rounds: 2, windows: 4 };
}

/// What the rows have come to.
#[derive(Debug, Default)]
pub struct Measured {
    pub rows: Vec<RowResult>,
    pub program: Option<ProgramSize>,
}

/// Measures rows in their order; `tell` hears of each.
///
/// # Errors
/// The kernel refuses, or a packet did not end as its row says.
pub fn measure(rows: &[Row], effort: Effort, tell: &(dyn Fn(&RowResult) + Sync)) -> Result<Measured> {
    let mut measured = Measured::default();
    for group in rows.chunk_by(|a, b| a.setting == b.setting) {
        let setting = group[0].setting;
        let cpu = last_cpu();
        let (results, program) = lab::inside(cpu, || {
            let mut bench = Bench::new(setting)?;
            let program = bench.program_size()?;
            let mut results = Vec::new();
            for row in group {
                let mut result = self::row(&mut bench, row, effort).with_context(|| row.name())?;
                judge(row, &mut result, &measured.rows);
                tell(&result);
                results.push(result);
            }
            Ok((results, program))
        })?;
        measured.rows.extend(results);
        measured.program.get_or_insert(program);
    }
    Ok(measured)
}

/// The last CPU: the first one takes most interrupts.
pub fn last_cpu() -> usize {
    std::thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1)
}

fn row(bench: &mut Bench, row: &Row, effort: Effort) -> Result<RowResult> {
    let mut lanes = bench.lanes(row.case)?;
    let (before, textbook_before) = (bench.ours.verdicts()?, bench.object.textbook_sent()?);
    if matches!(row.case, Case::New | Case::Flood) {
        // Until nothing is free any more.
        for lane in lanes.iter_mut().filter(|lane| matches!(lane.which, Which::Ours | Which::Textbook)) {
            lane.packets += u64::from(bench.turn(lane, FLOWS / WINDOW)?.packets);
        }
    }
    let warm = bench.ours.verdicts()?;
    for round in 0..effort.rounds {
        // Nobody is always first.
        let first = round as usize % lanes.len();
        for at in (first..lanes.len()).chain(0..first) {
            let ran = bench.turn(&mut lanes[at], effort.windows)?;
            lanes[at].round(&ran);
        }
    }
    let lanes = Lanes(lanes);
    let after = bench.ours.verdicts()?;
    let textbook = bench.object.textbook_sent()? - textbook_before;
    check(row, &lanes, &Counted::between(&before, &after), textbook)?;
    let evicted = Counted::between(&warm, &after).evicted();
    result(row, &lanes, evicted).context("too few rounds")
}

/// Every packet ended as the row says, in both balancers.
fn check(row: &Row, lanes: &Lanes, counted: &Counted, textbook: u64) -> Result<()> {
    let case = row.case;
    let sent = lanes.get(Which::Ours).map_or(0, |lane| lane.packets);
    let good = if case.passes() { counted.passed() } else { counted.forwarded() };
    // The balancer's own interface may see a packet of its own.
    if good < sent || good > sent + 64 {
        bail!("of {sent} packets {good} ended as they should: {}", counted.words());
    }
    if let Some(lane) = lanes.get(Which::Textbook) {
        let wanted = if case.passes() { 0 } else { lane.packets };
        let lost = match case {
            // A full LRU hash refuses an entry now and then, and a flow without one is dropped.
            Case::New | Case::Flood => wanted / 200,
            // Its few tries for a port may all find one that is taken, and the flow is dropped for good.
            _ if row.setting.mode == Mode::FullNat => wanted / 1000,
            _ => 0,
        };
        if textbook > wanted || textbook + lost < wanted {
            bail!(
                "of {} packets the textbook balancer sent {textbook} on, and should have sent {wanted}",
                lane.packets
            );
        }
    }
    Ok(())
}

fn result(row: &Row, lanes: &Lanes, evicted: u64) -> Option<RowResult> {
    let ours = lanes.get(Which::Ours)?;
    let spread = Spread::of(&ours.each)?;
    let setting = &row.setting;
    let about_flows = !row.case.passes();
    let arp = row.case == Case::Arp;
    Some(RowResult {
        name: row.name(),
        mode: about_flows.then(|| setting.mode.name().to_owned()),
        scheduler: about_flows.then(|| setting.scheduler.name().to_owned()),
        family: (!arp).then(|| if setting.kind.v4 { "ipv4" } else { "ipv6" }.to_owned()),
        protocol: (!arp).then(|| setting.kind.protocol.name().to_owned()),
        flows: row.case.flows(),
        services: setting.services,
        median_ns: tenths(spread.median),
        min_ns: tenths(spread.min),
        max_ns: tenths(spread.max),
        kernel_ns: median(&ours.kernel)?,
        floor_ns: tenths(median(&lanes.get(Which::Floor)?.each)?),
        net_ns: tenths(median(&lanes.net(Which::Ours)?)?),
        textbook_net_ns: lanes.net(Which::Textbook).and_then(|net| median(&net)).map(tenths),
        textbook_ratio: lanes.textbook_ratio().map(|ratio| (ratio * 1000.0).round() / 1000.0),
        target: row.target.as_ref().map(crate::target::Target::words),
        met: None,
        evicted,
    })
}

/// Compares the row with its target, by rows that were measured before.
fn judge(row: &Row, result: &mut RowResult, before: &[RowResult]) {
    let Some(target) = &row.target else { return };
    let other = target.other().and_then(|name| before.iter().find(|row| row.name == name));
    let cost = Cost {
        net_ns: result.net_ns,
        textbook_ratio: result.textbook_ratio,
        other_net_ns: other.map(|row| row.net_ns),
    };
    result.met = target.met(&cost);
}

pub fn tenths(ns: f64) -> f64 {
    (ns * 10.0).round() / 10.0
}
