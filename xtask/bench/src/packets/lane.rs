//! One program under test with its own stream, and what each round has found.

use aya::programs::ProgramFd;
use lb_common::bench::{Step, Stream};

use super::{
    bench::Flows,
    object::{Harness, Ran},
    stream::Order,
};
use crate::statistics::{median, quantile};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// A program that does nothing: what is left is the harness.
    Harness,
    /// Only makes room for an outer header, as tunnels must; the harness takes it back.
    Grow,
    Floor,
    Ours,
    Textbook,
    /// Ours as far as this step.
    Step(Step),
}

pub struct Lane {
    pub which: Which,
    pub program: ProgramFd,
    pub harness: Harness,
    pub flows: Flows,
    pub stream: Stream,
    /// Whether its frames come out longer, so that the harness has to cut them.
    pub grows: bool,
    /// Nanoseconds a packet, by round.
    pub each: Vec<f64>,
    pub kernel: Vec<f64>,
    /// Packets sent to it so far.
    pub packets: u64,
}

impl Lane {
    pub fn new(which: Which, program: ProgramFd, harness: Harness, flows: Flows, order: &Order, grows: bool) -> Self {
        let stream = order.begin(0);
        Self { which, program, harness, flows, stream, grows, each: Vec::new(), kernel: Vec::new(), packets: 0 }
    }

    /// Takes in a round. The lower quartile of its windows stands for it: a window in which the machine
    /// did something else tells nothing of the program.
    pub fn round(&mut self, ran: &Ran) {
        self.each.extend(quantile(&ran.windows, 0.25));
        self.kernel.push(ran.kernel_ns as f64);
        self.packets += u64::from(ran.packets);
    }
}

/// The lanes of a row.
pub struct Lanes(pub Vec<Lane>);

impl Lanes {
    pub fn get(&self, which: Which) -> Option<&Lane> {
        self.0.iter().find(|lane| lane.which == which)
    }

    /// Cost of a program by round, without the harness.
    pub fn net(&self, which: Which) -> Option<Vec<f64>> {
        let lane = self.get(which)?;
        let harness = self.get(Which::Harness)?;
        let moves = if lane.grows { self.get(Which::Grow) } else { None };
        let net = lane.each.iter().enumerate().map(|(round, each)| {
            let harness = harness.each[round];
            // The growing program moves the head once, and the harness once more to take it back.
            let back = moves.map_or(0.0, |moves| (moves.each[round] - harness) / 2.0);
            each - harness - back
        });
        Some(net.collect())
    }

    /// Our net cost over the textbook balancer's: the median over the rounds.
    pub fn textbook_ratio(&self) -> Option<f64> {
        let (ours, textbook) = (self.net(Which::Ours)?, self.net(Which::Textbook)?);
        let ratios: Vec<f64> =
            ours.iter().zip(&textbook).filter(|(_, textbook)| **textbook > 0.0).map(|(a, b)| a / b).collect();
        median(&ratios)
    }
}
