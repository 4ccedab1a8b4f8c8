//! Four million connections through the real program, while the real core changes their service again and
//! again, and is killed and started anew in between: none may be moved.

use std::{sync::Arc, time::Duration};

use lb_common::{
    abi::{Protocol, Scheduler},
    flow::{TCP_ACK, TCP_SYN},
};
use lb_userspace::{
    config::Limits,
    core::{Command, Input, Now, OperatorLayer},
};

use crate::{
    agent::{Agent, config, make_neighbours, server},
    lab::{LIMITS, Lab, Side, from_client, ifindex, lab_with, packet, vip},
};

const CONNECTIONS: usize = 4_000_000;
/// Asks for another number, where there is less time or memory.
const ANOTHER_NUMBER: &str = "LB_TEST_CONNECTIONS";
/// Longer than any flow may be silent.
const IDLE: Duration = Duration::from_secs(7400);
/// Where a frame has its IPv4 source, TCP source port and TCP flags.
const SOURCE: usize = 26;
const PORT: usize = 34;
const FLAGS: usize = 47;
/// The exits of the program.
const TX: u32 = 3;
const REDIRECT: u32 = 4;

/// The server of each connection; 0: it was reset.
struct Connections {
    at: Vec<u8>,
    frame: Vec<u8>,
    front: u32,
    moved: usize,
}

impl Connections {
    fn new() -> Self {
        let packet = packet("192.0.2.9:1".parse().unwrap(), (vip(true), 80).into(), 64, Protocol::Tcp, 0);
        Self { at: Vec::new(), frame: from_client(&packet), front: ifindex(Side::Front), moved: 0 }
    }

    /// One packet of a connection; the server that it went to.
    fn send(&mut self, lab: &mut Lab, number: usize, flags: u8) -> u8 {
        let mut out = [0; 128];
        let client = 0x6440_0000 + (number as u32 / 50_000);
        self.frame[SOURCE..SOURCE + 4].copy_from_slice(&client.to_be_bytes());
        self.frame[PORT..PORT + 2].copy_from_slice(&(10_000 + (number % 50_000) as u16).to_be_bytes());
        self.frame[FLAGS] = flags;
        match lab.run_into(self.front, &self.frame, &mut out) {
            REDIRECT => out[5],
            TX => 0,
            other => panic!("exit {other}"),
        }
    }

    fn begin(&mut self, lab: &mut Lab, count: usize) {
        for number in self.at.len()..self.at.len() + count {
            let server = self.send(lab, number, TCP_SYN);
            assert_ne!(server, 0);
            self.at.push(server);
        }
    }

    /// Every connection sends; those of a server that has died are reset, no other one is.
    fn go_on(&mut self, lab: &mut Lab, dead: Option<u8>) {
        for number in 0..self.at.len() {
            let wanted = if Some(self.at[number]) == dead { 0 } else { self.at[number] };
            if self.at[number] != 0 {
                let got = self.send(lab, number, TCP_ACK);
                self.moved += usize::from(got != wanted);
                self.at[number] = wanted;
            }
        }
    }
}

#[test]
fn a_million_connections_and_more_stay_where_they_are_while_their_service_changes() {
    let connections = std::env::var(ANOTHER_NUMBER).map_or(CONNECTIONS, |text| text.parse().expect(ANOTHER_NUMBER));
    // Room for each of them: none may have to give way to another.
    let limits = Limits { flows: connections.next_power_of_two() as u32, selection_slots: 1 << 19, ..LIMITS };
    lab_with(limits, move |lab| {
        make_neighbours(101..=112);
        let file = |servers: std::ops::RangeInclusive<u8>, weight: u16| {
            config(Scheduler::Maglev, servers.map(|n| (n, if n == 104 { weight } else { 1 })), limits)
        };
        let mut agent = Agent::start(lab, &file(101..=110, 1), OperatorLayer::default(), Now::ZERO);
        agent.probe(|_| true, true);
        for _ in 0..2 {
            agent.walk(4);
            agent.now += Duration::from_secs(10);
        }
        agent.walk(3);
        assert_eq!(agent.unsettled(), 0);
        let mut all = Connections::new();
        all.begin(lab, connections);
        println!("{:>9} connections, {} entries", all.at.len(), agent.walk(1));

        let tell = |what: &str, all: &Connections, agent: &mut Agent| {
            let (entries, unsettled) = (agent.walk(1), agent.unsettled());
            println!("{what:<52} moved {}, entries {entries:>7}, unsettled slots {unsettled:>6}", all.moved);
        };
        let service = || "web".to_owned();
        agent.input(Input::Config(Arc::new(file(101..=111, 1))));
        agent.probe(|target| *target == server(111), true);
        all.go_on(lab, None);
        tell("an eleventh server is added", &all, &mut agent);
        agent.command(&Command::Drain { service: service(), address: server(102) });
        all.go_on(lab, None);
        tell("one is drained", &all, &mut agent);
        agent.input(Input::Config(Arc::new(file(101..=111, 3))));
        all.go_on(lab, None);
        tell("one gets three times its weight", &all, &mut agent);

        // Killed: nothing but the maps is left.
        let (now, layer) = (agent.now, agent.core.operator_layer().clone());
        drop(agent);
        all.begin(lab, 20_000);
        let mut agent = Agent::start(lab, &file(101..=110, 3), layer, now);
        all.go_on(lab, None);
        tell("the agent is killed; the next finds one server removed", &all, &mut agent);
        agent.probe(|target| *target == server(105), false);
        all.go_on(lab, Some(105));
        tell("one dies, its connections are reset", &all, &mut agent);
        agent.probe(|target| *target == server(105), true);
        agent.command(&Command::Ready { service: service(), address: server(102) });
        all.begin(lab, 20_000);
        all.go_on(lab, None);
        tell("that one and the drained one come back", &all, &mut agent);

        agent.walk(4);
        agent.now += IDLE;
        for _ in 0..2 {
            agent.walk(4);
            agent.now += Duration::from_secs(10);
        }
        agent.walk(3);
        all.go_on(lab, None);
        tell("two hours later", &all, &mut agent);
        assert_eq!(all.moved, 0);
        assert!(agent.walk(1) < connections as u64 * 6 / 10, "most connections never needed an entry");
    });
}
