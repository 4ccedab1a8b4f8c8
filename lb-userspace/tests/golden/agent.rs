//! The agent of a lab: the core over the kernel's maps, with a clock of its own.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use lb_common::{
    abi::{Granularity, Mode, Protocol, Scheduler},
    flow::State,
};
use lb_userspace::{
    config::{Backend, Check, Clients, Config, Health, Limits, MssClamp, Quic, Service, Tunnel, XdpMode},
    core::{Command, Core, Input, Now, OperatorLayer, ProbeOutcome, reconcile::Reconciler},
    dataplane::{Dataplane as _, kernel::KernelDataplane},
};

use crate::lab::{Lab, ip_batch, vip};

/// Slots of a hashed service.
const SLOTS: u32 = 65_537;

/// Makes the link-layer addresses of these servers known.
pub fn make_neighbours(servers: std::ops::RangeInclusive<u8>) {
    let neighbour = |n| format!("neigh add 10.0.0.{n} lladdr 02:00:00:00:02:{n:02x} dev back nud permanent\n");
    ip_batch(&servers.map(neighbour).collect::<String>());
}

/// Server `n` has the address 10.0.0.`n` and the link-layer address 02:00:00:00:02:`n`.
pub fn server(n: u8) -> SocketAddr {
    ([10, 0, 0, n], 80).into()
}

/// One service of TCP with direct server return, and these servers with their weights.
pub fn config(scheduler: Scheduler, backends: impl Iterator<Item = (u8, u16)>, limits: Limits) -> Config {
    let health = Health {
        check: Check::Tcp,
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        fall: 1,
        rise: 1,
        jitter_percent: 0,
        ..Health::default()
    };
    let service = Service {
        name: "web".to_owned(),
        listen: (vip(true), 80).into(),
        protocol: Protocol::Tcp,
        mode: Mode::DsrL2,
        scheduler,
        granularity: Granularity::Flow,
        tunnel: Tunnel::default(),
        mss_clamp: MssClamp::Off,
        clients: Clients::default(),
        health,
        timeouts: State::TIMEOUTS,
        passive: lb_userspace::config::Passive::default(),
        quic: Quic::default(),
        role: None,
        failover: lb_userspace::config::Failover::of(lb_common::abi::Protocol::Tcp, None),
        backends: backends
            .map(|(n, weight)| Backend {
                address: server(n),
                weight,
                tier: 0,
                check_address: None,
                max_connections: None,
            })
            .collect(),
    };
    Config {
        interfaces: vec!["front".to_owned(), "back".to_owned()],
        xdp_mode: XdpMode::Auto,
        manage_addresses: false,
        watch_config: false,
        dead_man: lb_userspace::config::DeadMan::default(),
        source_ports: Vec::new(),
        limits,
        maglev_table_size: SLOTS,
        services: vec![service],
    }
}

/// One that publishes at once.
pub struct Agent {
    pub core: Core,
    maps: KernelDataplane,
    reconciler: Reconciler,
    pub now: Now,
}

impl Agent {
    /// Takes over what is in the maps.
    pub fn start(lab: &Lab, config: &Config, layer: OperatorLayer, now: Now) -> Self {
        let mut maps = KernelDataplane::open(lab.pin_dir()).unwrap();
        let inherited = maps.read().unwrap();
        let core = Core::new(Arc::new(config.clone()), layer, &inherited, now);
        let mut agent = Self { core, maps, reconciler: Reconciler::new(), now };
        agent.publish();
        agent
    }

    fn publish(&mut self) {
        let generation = self.reconciler.step(&mut self.maps, self.core.desired()).unwrap().generation;
        self.core.handle(Input::Published { generation }, self.now);
    }

    /// Something happens, and what follows from it is published.
    pub fn input(&mut self, input: Input) {
        self.core.handle(input, self.now);
        self.publish();
    }

    /// All checks of these servers have found them up or down.
    pub fn probe(&mut self, which: impl Fn(&SocketAddr) -> bool, up: bool) {
        for key in self.core.probes().into_iter().filter(|key| which(&key.target)) {
            let outcome = ProbeOutcome::new(up, "L4", Duration::ZERO);
            self.input(Input::Probe { key, outcome });
        }
    }

    /// An operator says something about a server.
    pub fn command(&mut self, command: &Command) {
        let layer = self.core.operator_layer().clone();
        let layer = self.core.apply_command(&layer, command, "alice", "now", true).unwrap();
        self.input(Input::Operator(layer));
    }

    /// Walks over the flow table; gives how many flows have an entry.
    pub fn walk(&mut self, times: usize) -> u64 {
        let mut live = 0;
        for _ in 0..times {
            self.now += Duration::from_millis(1100);
            let census = self.maps.sweep().unwrap();
            live = census.live;
            self.input(Input::Flows(census));
        }
        live
    }

    /// Slots of the service that are not clean.
    pub fn unsettled(&self) -> usize {
        self.core.service("web").unwrap().tracking.map_or(0, |tracking| tracking.unsettled)
    }
}
