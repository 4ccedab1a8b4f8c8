//! All counters of the data path before and after a frame.

use lb_common::{
    abi::{BackendCounters, DirectionCounters, ServiceCounters, VerdictCounters},
    verdict::Reason,
};
use lb_userspace::{config::Limits, dataplane::kernel::Stats};

use crate::lab::Sent;

/// Every counter there is.
pub struct Counters {
    verdicts: Vec<(Reason, VerdictCounters)>,
    services: Vec<ServiceCounters>,
    backends: Vec<BackendCounters>,
}

impl Counters {
    pub fn read(stats: &Stats, limits: &Limits) -> Self {
        Self {
            verdicts: stats.verdicts().unwrap().into_iter().collect(),
            services: (0..limits.services).map(|id| stats.service(id).unwrap()).collect(),
            backends: (0..limits.backends).map(|id| stats.backend(id).unwrap()).collect(),
        }
    }

    /// What changed since, in words and sorted: `to_backend 1 x 74`, `service 0 flows 1`.
    pub fn changed(&self, after: &Self) -> Vec<String> {
        let mut lines = vec![];
        for ((reason, b), (_, a)) in self.verdicts.iter().zip(&after.verdicts) {
            if a != b {
                lines.push(format!("{} {} x {}", reason.name(), a.packets - b.packets, a.bytes - b.bytes));
            }
        }
        let mut number = |what: String, before: u64, after: u64| {
            if after != before {
                lines.push(format!("{what} {}", after.wrapping_sub(before)));
            }
        };
        for (id, (b, a)) in self.services.iter().zip(&after.services).enumerate() {
            number(format!("service {id} flows"), b.flows, a.flows);
            number(format!("service {id} refused"), b.refused, a.refused);
            number(format!("service {id} dropped"), b.dropped, a.dropped);
            number(format!("service {id} rescued"), b.rescued, a.rescued);
        }
        for (id, (b, a)) in self.backends.iter().zip(&after.backends).enumerate() {
            number(format!("backend {id} flows"), b.flows, a.flows);
            number(format!("backend {id} ended"), b.ended, a.ended);
            number(format!("backend {id} reset"), b.reset, a.reset);
            number(format!("backend {id} moved"), b.moved, a.moved);
            number(format!("backend {id} refusals"), b.refusals, a.refusals);
            number(format!("backend {id} unanswered"), b.unanswered, a.unanswered);
            number(format!("backend {id} rescued"), b.rescued, a.rescued);
        }
        let mut direction = |what: String, b: DirectionCounters, a: DirectionCounters| {
            if a != b {
                lines.push(format!("{what} {} x {}", a.packets - b.packets, a.bytes - b.bytes));
            }
        };
        for (id, (b, a)) in self.services.iter().zip(&after.services).enumerate() {
            direction(format!("service {id} forward"), b.forward, a.forward);
            direction(format!("service {id} reply"), b.reply, a.reply);
        }
        for (id, (b, a)) in self.backends.iter().zip(&after.backends).enumerate() {
            direction(format!("backend {id} forward"), b.forward, a.forward);
            direction(format!("backend {id} reply"), b.reply, a.reply);
        }
        lines.sort();
        lines
    }
}

/// Compares what was counted with the lines that are wanted, in any order.
#[track_caller]
pub fn assert_counted(sent: &Sent, wanted: &[&str]) {
    let mut wanted: Vec<String> = wanted.iter().map(|line| (*line).to_owned()).collect();
    wanted.sort();
    assert_eq!(sent.counted, wanted);
}
