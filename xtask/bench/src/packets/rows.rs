//! What is measured. A new row is one line in [`rows`] or in [`further`].

use lb_common::abi::{Mode, Protocol, Scheduler};

use super::{setting::Setting, stream::Kind};
use crate::target::Target;

/// What the packets of a row are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Case {
    /// Of so many established flows, one packet each in turn.
    Hit(u32),
    /// From backends, of so many established flows.
    Reply(u32),
    /// Each begins a flow; the table is full, so another one gives way.
    New,
    /// The same by SYN, and each from a client that was never seen.
    Flood,
    /// To an address that is none of ours.
    NotService,
    Arp,
    /// The first part of a UDP datagram to the service, with others to come.
    Fragment,
}

/// Sizes of streams. Large ones are powers of two.
const K64: u32 = 1 << 16;
const M1: u32 = 1 << 20;

impl Case {
    pub fn name(self) -> String {
        let flows = |flows: u32| match flows {
            K64 => "64k".to_owned(),
            M1 => "1M".to_owned(),
            other => other.to_string(),
        };
        match self {
            Self::Hit(n) => format!("hit {}", flows(n)),
            Self::Reply(n) => format!("reply {}", flows(n)),
            Self::New => "new".to_owned(),
            Self::Flood => "flood".to_owned(),
            Self::NotService => "not a service".to_owned(),
            Self::Arp => "arp".to_owned(),
            Self::Fragment => "fragment".to_owned(),
        }
    }

    /// Flows of the stream.
    pub const fn flows(self) -> u32 {
        match self {
            Self::Hit(flows) | Self::Reply(flows) => flows,
            Self::New | Self::Flood | Self::NotService => M1,
            Self::Arp | Self::Fragment => 1,
        }
    }

    /// Whether its packets are left to the kernel's stack.
    pub const fn passes(self) -> bool {
        matches!(self, Self::NotService | Self::Arp)
    }
}

#[derive(Clone, Debug)]
pub struct Row {
    pub setting: Setting,
    pub case: Case,
    pub target: Option<Target>,
    /// Also measured by `--quick`.
    pub quick: bool,
}

impl Row {
    /// Unique: what `--filter` looks into and `--compare` goes by.
    pub fn name(&self) -> String {
        let Setting { mode, scheduler, kind, services, visited, .. } = self.setting;
        let kind = if self.case == Case::Arp { "" } else { kind.name() };
        if self.case.passes() {
            return format!("{} {kind}", self.case.name()).trim_end().to_owned();
        }
        let name = format!("{} {} {kind} {}", mode.name(), scheduler.name(), self.case.name());
        match (services, visited) {
            (1, _) => name,
            (_, 1) => format!("{name} one of {services} services"),
            _ => format!("{name} services {services}"),
        }
    }
}

/// Every row, those of one setting together and in the order in which they fill the tables.
pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for &mode in Mode::ALL {
        for scheduler in [Scheduler::Maglev, Scheduler::RoundRobin] {
            for kind in Kind::ALL {
                rows.extend(flow_rows(Setting { mode, scheduler, kind, services: 1, visited: 1, lines: "" }));
            }
        }
    }
    rows.extend(further());
    rows
}

/// Rows that stand by themselves.
fn further() -> Vec<Row> {
    let mut rows = Vec::new();
    let ours =
        |kind| Setting { mode: Mode::DsrIpip, scheduler: Scheduler::Maglev, kind, services: 1, visited: 1, lines: "" };
    for kind in Kind::ALL {
        let quick = kind == TCP4;
        let over_pass = Some(Target::OverPass { ns: 12.0, textbook: 0.5 });
        rows.push(Row { setting: ours(kind), case: Case::NotService, target: over_pass, quick });
        if kind.protocol == Protocol::Udp {
            rows.push(Row { setting: ours(kind), case: Case::Fragment, target: None, quick: kind.v4 });
        }
    }
    rows.push(Row { setting: ours(TCP4), case: Case::Arp, target: None, quick: true });
    for (mode, scheduler) in
        [(Mode::DsrIpip, Scheduler::Maglev), (Mode::Nat, Scheduler::RoundRobin), (Mode::FullNat, Scheduler::RoundRobin)]
    {
        // One of them, which is to cost what it costs alone; and all of them, where each has to be fetched
        // from memory.
        for (services, visited) in [(100, 100), (10_000, 1), (10_000, 10_000)] {
            let setting = Setting { mode, scheduler, kind: TCP4, services, visited, lines: "" };
            let one = Row { setting: Setting { services: 1, visited: 1, ..setting }, ..hit(setting, K64) }.name();
            let target =
                (services == 10_000 && visited == 1).then_some(Target::PercentOver { row: one, percent: 10.0 });
            rows.push(Row { target, quick: false, ..hit(setting, K64) });
        }
    }
    rows
}

const TCP4: Kind = Kind { v4: true, protocol: Protocol::Tcp };

fn hit(setting: Setting, flows: u32) -> Row {
    Row { setting, case: Case::Hit(flows), target: None, quick: false }
}

fn flow_rows(setting: Setting) -> Vec<Row> {
    let mut cases = vec![Case::Hit(1), Case::Hit(K64), Case::Hit(M1)];
    if !Mode::is_one_sided(setting.mode as u8) {
        cases.push(Case::Reply(M1));
    }
    cases.push(Case::New);
    if setting.kind.protocol == Protocol::Tcp {
        cases.push(Case::Flood);
    }
    let row = |case| Row { setting, case, target: target(&setting, case), quick: is_quick(&setting, case) };
    cases.into_iter().map(row).collect()
}

/// The quick selection: one kind, each mode with the scheduler that it is usually run with.
fn is_quick(setting: &Setting, case: Case) -> bool {
    let usual = if setting.mode == Mode::FullNat { Scheduler::RoundRobin } else { Scheduler::Maglev };
    let rarer = matches!(setting.mode, Mode::DsrL2 | Mode::DsrGre);
    setting.kind == TCP4 && setting.scheduler == usual && !rarer && case != Case::Flood
}

/// What rows about flows have to reach.
fn target(setting: &Setting, case: Case) -> Option<Target> {
    let (dsr, maglev) = (Mode::is_one_sided(setting.mode as u8), setting.scheduler == Scheduler::Maglev);
    let full_nat = setting.mode == Mode::FullNat;
    let ratio = match case {
        Case::Hit(1) if dsr && maglev => 0.75,
        Case::Hit(1) if !dsr => 1.0,
        Case::Hit(K64 | M1) if dsr && maglev => 0.30,
        Case::Hit(M1) if !maglev && !full_nat => 0.45,
        Case::Hit(M1) if !dsr => 0.50,
        Case::New | Case::Flood if dsr && maglev => 0.20,
        Case::New | Case::Flood if full_nat => 0.60,
        Case::New | Case::Flood if !maglev => 0.30,
        _ => return None,
    };
    Some(Target::Textbook(ratio))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own_and_targets_name_rows() {
        let rows = rows();
        let names: BTreeSet<_> = rows.iter().map(Row::name).collect();
        assert_eq!(names.len(), rows.len());
        for other in rows.iter().filter_map(|row| row.target.as_ref()?.other()) {
            assert!(names.contains(other), "{other}");
        }
    }

    #[test]
    fn every_mode_family_and_transport_has_every_case() {
        let names: BTreeSet<_> = rows().iter().map(Row::name).collect();
        for mode in Mode::ALL {
            for kind in Kind::ALL {
                for case in ["hit 1", "hit 64k", "hit 1M", "new"] {
                    let name = format!("{} maglev {} {case}", mode.name(), kind.name());
                    assert!(names.contains(&name), "{name}");
                }
            }
        }
        for name in ["nat round-robin udp6 reply 1M", "full-nat maglev tcp4 flood", "arp", "not a service tcp6"] {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn the_quick_selection_is_small_and_has_every_kind_of_row() {
        let quick: Vec<_> = rows().into_iter().filter(|row| row.quick).collect();
        assert!((10..25).contains(&quick.len()), "{}", quick.len());
        assert!(quick.iter().any(|row| matches!(row.case, Case::Reply(_))));
        assert!(quick.iter().any(|row| row.case == Case::NotService));
    }
}
