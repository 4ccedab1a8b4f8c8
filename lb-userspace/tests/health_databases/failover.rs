//! PostgreSQL from the probes to the decision: the core is told what the probes find, and new flows
//! of writers go to one server or to none.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::abi::{Granularity, Mode, Protocol, Scheduler};
use lb_userspace::{
    config::{
        Backend, Check, Config, Health, Limits, OnMultiplePrimaries, PortRange, RolePolicy, Service, WantedRole,
        XdpMode,
    },
    core::{Core, Input, OperatorLayer, ProbeKey, ProbeOutcome},
    dataplane::Tables,
    health::Prober,
};
use tokio::sync::mpsc;

use super::{
    certificates,
    postgres::Postgres,
    server::{PATIENCE, file, folder, login},
};

struct Balancer {
    core: Core,
    config: Config,
    _prober: Prober,
    results: mpsc::Receiver<(ProbeKey, ProbeOutcome)>,
    began: Instant,
}

impl Balancer {
    fn start(config: Config) -> Self {
        let core = Core::new(Arc::new(config.clone()), OperatorLayer::default(), &Tables::default(), Duration::ZERO);
        let (tx, results) = mpsc::channel(64);
        let mut prober = Prober::new(tx);
        prober.set(core.probes());
        assert_eq!(prober.running(), 2, "writers and readers share the probes");
        Self { core, config, _prober: prober, results, began: Instant::now() }
    }

    /// Addresses that new flows of a service go to.
    fn used(&self, service: &str) -> Vec<std::net::SocketAddr> {
        let backends = self.core.service(service).unwrap().backends;
        backends.into_iter().filter(|backend| backend.used).map(|backend| backend.address).collect()
    }

    /// Takes results in until it is so; writers never have two servers meanwhile.
    async fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !so(self) {
            let reasons =
                || self.core.service("write").unwrap().backends.into_iter().map(|backend| backend.used_reason);
            assert!(begun.elapsed() < PATIENCE, "{what}: {:?}", reasons().collect::<Vec<_>>());
            let (key, outcome) = self.results.recv().await.unwrap();
            self.core.handle(Input::Probe { key, outcome }, self.began.elapsed());
            assert!(self.used("write").len() <= 1, "{what}: two writers");
        }
    }

    fn on_multiple_primaries(&mut self, policy: OnMultiplePrimaries) {
        for service in &mut self.config.services {
            service.role.as_mut().unwrap().on_multiple_primaries = policy;
        }
        self.core.handle(Input::Config(Arc::new(self.config.clone())), self.began.elapsed());
    }
}

fn config(check: &Check, backends: [std::net::SocketAddr; 2]) -> Config {
    let service = |name: &str, listen: &str, role| Service {
        name: name.to_owned(),
        listen: listen.parse().unwrap(),
        protocol: Protocol::Tcp,
        mode: Mode::Nat,
        scheduler: Scheduler::RoundRobin,
        granularity: Granularity::Flow,
        tunnel: lb_userspace::config::Tunnel::default(),
        mss_clamp: lb_userspace::config::MssClamp::Off,
        clients: lb_userspace::config::Clients::default(),
        failover: lb_userspace::config::Failover::of(Protocol::Tcp, None),
        timeouts: lb_common::flow::State::TIMEOUTS,
        passive: lb_userspace::config::Passive::default(),
        quic: lb_userspace::config::Quic::default(),
        health: Health {
            check: check.clone(),
            interval: Duration::from_millis(200),
            // What a loaded machine may need.
            timeout: Duration::from_secs(5),
            ..Health::default()
        },
        role: Some(RolePolicy {
            role,
            max_lag: None,
            replica_fallback: true,
            on_multiple_primaries: OnMultiplePrimaries::Block,
        }),
        backends: backends
            .map(|address| Backend { address, weight: 1, tier: 0, check_address: None, max_connections: None })
            .into(),
    };
    Config {
        interfaces: vec!["eth0".to_owned()],
        xdp_mode: XdpMode::Auto,
        manage_addresses: true,
        watch_config: false,
        dead_man: lb_userspace::config::DeadMan::default(),
        source_ports: vec![PortRange { first: 1024, last: 65_535 }],
        limits: Limits::default(),
        maglev_table_size: 251,
        services: vec![
            service("write", "203.0.113.1:5432", WantedRole::Primary),
            service("read", "203.0.113.2:5432", WantedRole::Replica),
        ],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_follow_a_failover_of_postgresql_and_a_split_brain_is_blocked() {
    let shared = folder();
    let certificates = certificates::make(shared.path());
    let check = Check::Postgres(login(&file(shared.path(), "password", "secret\n")));
    let mut primary = Postgres::primary(&certificates, shared.path()).await;
    let replica = primary.replica(&certificates, shared.path()).await;
    let (first, second) = (primary.server.address, replica.server.address);
    let mut balancer = Balancer::start(config(&check, [first, second]));

    balancer.until("both find their role", |b| b.used("write") == [first] && b.used("read") == [second]).await;
    primary.server.kill();
    balancer.until("the dead primary is left", |b| b.used("write").is_empty()).await;
    assert_eq!(balancer.used("read"), [second], "the replica reads on");
    replica.promote();
    balancer.until("the new primary writes", |b| b.used("write") == [second]).await;
    balancer.until("and reads, for want of a replica", |b| b.used("read") == [second]).await;

    // The old primary comes back and knows nothing of it.
    primary.start_again();
    balancer.until("a split brain is blocked", |b| b.used("write").is_empty()).await;
    let reason = balancer.core.service("write").unwrap().backends[0].used_reason.clone();
    assert!(reason.contains("say that they are the primary: none of them"), "{reason}");
    balancer.on_multiple_primaries(OnMultiplePrimaries::HighestEpoch);
    assert_eq!(balancer.used("write"), [second], "the later timeline");
}
