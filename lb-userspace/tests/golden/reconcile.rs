//! The core, the plan and the reconciler over the kernel's maps, with packets between every two writes:
//! random changes, probes, restarts and writes that fail, are cut short, or took effect all the same.
//! A packet sees the old state or the new one, and flows stay where they are.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use lb_common::{
    abi::{BackendState, Granularity, Mode, Port, Protocol, Scheduler, ServiceKey, ServiceValue},
    flow::{TCP_ACK, TCP_SYN},
};
use lb_userspace::{
    config::{self, Check, Config, Health, Limits, Service, XdpMode},
    core::{Core, Input, OperatorLayer, ProbeOutcome, reconcile::Reconciler},
    dataplane::{Dataplane, DataplaneError, FlowCensus, Op, Tables},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::lab::{Lab, PORTS, Side, backend, client, from_client, lab, packet, vip};

const STEPS: usize = 40;
/// Of each write: to fail before it, within it, and after it.
const FAULTS: f64 = 0.04;
/// The client port of the flow that is there all the time.
const LASTING: u16 = 30_000;

/// What a new flow may meet.
#[derive(Clone, Debug, Default)]
struct Allowed {
    backends: BTreeSet<IpAddr>,
    /// No backend is ready, or none of the old ones lives on.
    refused: bool,
    /// The service is not there.
    passed: bool,
}

impl Allowed {
    fn of(tables: &Tables) -> Self {
        if service(tables).is_none() || !tables.addresses.contains_key(&vip(true).into()) {
            return Self { passed: true, ..Self::default() };
        }
        let live = slots(tables).into_iter().filter_map(|id| tables.backends.get(&id));
        let live = live.filter(|backend| backend.state == BackendState::Live as u8);
        let backends: BTreeSet<IpAddr> = live.map(|backend| backend.address.into()).collect();
        Self { refused: backends.is_empty(), backends, passed: false }
    }

    /// On the way from what is in the maps to what should be.
    fn between(actual: &Tables, desired: &Tables) -> Self {
        let (mut allowed, new) = (Self::of(actual), Self::of(desired));
        let live = |tables: &Tables, id| tables.backends.get(id).is_some_and(|b| b.state == BackendState::Live as u8);
        let slots = slots(actual);
        // Where no backend of the old table lives on, the last of them dies first.
        let survives = slots.iter().any(|id| live(actual, id) && live(desired, id));
        // A hash that meets a dead one tries a few other slots, not all of them.
        let hashed = service(actual).is_some_and(|value| value.scheduler == Scheduler::Maglev as u8);
        let one_dies = slots.iter().any(|id| !live(actual, id) || !live(desired, id));
        allowed.refused |= new.refused || (!slots.is_empty() && !survives) || (hashed && one_dies);
        allowed.passed |= new.passed;
        allowed.backends.extend(new.backends);
        // One of the old table that was dead may live again before the new one is published.
        let revived = slots.iter().filter(|id| live(desired, id)).filter_map(|id| desired.backends.get(id));
        allowed.backends.extend(revived.map(|backend| IpAddr::from(backend.address)));
        allowed
    }
}

fn service(tables: &Tables) -> Option<&ServiceValue> {
    tables.services.get(&ServiceKey::new(vip(true).into(), Port::new(80), Protocol::Tcp as u8))
}

/// The service's selection table.
fn slots(tables: &Tables) -> Vec<u32> {
    let value = service(tables).filter(|value| value.selection_len > 0);
    let slots = value.and_then(|value| tables.selection.get(&value.selection_base));
    slots.into_iter().flatten().map(|slot| slot.current()).collect()
}

/// The kernel's maps, with faults and packets.
struct Between<'a> {
    lab: &'a mut Lab,
    random: &'a mut StdRng,
    faults: f64,
    allowed: Allowed,
    port: &'a mut u16,
    /// Where the lasting flow goes, while it lives.
    lasting: &'a mut Option<IpAddr>,
    /// Backends that are dead now or in the state that is on its way.
    dying: BTreeSet<IpAddr>,
}

impl Between<'_> {
    /// Where a packet to the service goes; `None`: to the host's stack.
    fn send(&mut self, port: u16, flags: u8) -> Option<IpAddr> {
        let packet = packet((client(true), port).into(), (vip(true), 80).into(), 64, Protocol::Tcp, flags);
        let sent = self.lab.send(Side::Front, &from_client(&packet));
        match sent.exit {
            "pass" => None,
            "drop" => panic!("a packet was dropped: {:?}", sent.counted),
            _ => Some(IpAddr::from([sent.frame[30], sent.frame[31], sent.frame[32], sent.frame[33]])),
        }
    }

    fn look(&mut self, after: &Op) {
        *self.port += 1;
        let Allowed { backends, refused, passed } = self.allowed.clone();
        match self.send(*self.port, TCP_SYN) {
            None => assert!(passed, "a new flow passed the balancer after {after:?}"),
            Some(to) if to == client(true) => assert!(refused, "a new flow was refused after {after:?}: {backends:?}"),
            Some(to) => assert!(backends.contains(&to), "a new flow went to {to} after {after:?}: {backends:?}"),
        }
        let Some(home) = *self.lasting else { return };
        match self.send(LASTING, TCP_ACK) {
            Some(to) if to == home => {}
            other => {
                assert!(self.dying.contains(&home), "the lasting flow left {home} for {other:?} after {after:?}");
                *self.lasting = None;
            }
        }
    }

    fn fault<T>(&mut self) -> Result<T, DataplaneError> {
        let source = std::io::Error::other("a fault made by the test");
        Err(DataplaneError::Kernel { what: "write".to_owned(), source })
    }
}

impl Dataplane for Between<'_> {
    fn apply(&mut self, op: &Op) -> Result<(), DataplaneError> {
        if self.random.random_bool(self.faults) {
            return self.fault();
        }
        if let Op::WriteSelection { base, slots } = op
            && self.random.random_bool(self.faults * 4.0)
        {
            let written = self.random.random_range(0..=slots.len());
            self.lab.data.apply(&Op::WriteSelection { base: *base, slots: slots[..written].to_vec() })?;
            self.look(op);
            return self.fault();
        }
        self.lab.data.apply(op)?;
        self.look(op);
        if self.random.random_bool(self.faults) { self.fault() } else { Ok(()) }
    }

    fn read(&mut self) -> Result<Tables, DataplaneError> {
        self.lab.data.read()
    }

    fn sweep(&mut self) -> Result<FlowCensus, DataplaneError> {
        self.lab.data.sweep()
    }

    fn beat(&mut self, rule: &lb_userspace::config::DeadMan) -> Result<(), DataplaneError> {
        self.lab.data.beat(rule)
    }
}

fn config(random: &mut StdRng) -> Config {
    config_of(random, false)
}

/// A random configuration; `lasting`: with a service that has backend 1.
pub fn config_of(random: &mut StdRng, lasting: bool) -> Config {
    let mut numbers: Vec<u8> = (1..=3).filter(|n| (lasting && *n == 1) || random.random_bool(0.7)).collect();
    if numbers.is_empty() && random.random_bool(0.8) {
        numbers.push(random.random_range(1..=3));
    }
    let service = Service {
        name: "web".to_owned(),
        listen: (vip(true), 80).into(),
        protocol: Protocol::Tcp,
        mode: Mode::Nat,
        scheduler: *[Scheduler::RoundRobin, Scheduler::WeightedRoundRobin, Scheduler::Maglev].choose(random).unwrap(),
        granularity: Granularity::Flow,
        tunnel: config::Tunnel::default(),
        mss_clamp: config::MssClamp::Off,
        clients: config::Clients::default(),
        timeouts: lb_common::flow::State::TIMEOUTS,
        passive: config::Passive::default(),
        quic: config::Quic::default(),
        health: Health {
            check: Check::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            fall: 1,
            rise: 1,
            jitter_percent: 0,
            ..Health::default()
        },
        role: None,
        failover: lb_userspace::config::Failover::of(lb_common::abi::Protocol::Tcp, None),
        backends: numbers
            .into_iter()
            .map(|n| config::Backend {
                address: (backend(true, n), 80).into(),
                weight: random.random_range(1..4),
                tier: random.random_range(0..2),
                check_address: None,
                max_connections: None,
            })
            .collect(),
    };
    Config {
        interfaces: vec!["front".to_owned(), "back".to_owned()],
        xdp_mode: XdpMode::Native,
        manage_addresses: false,
        watch_config: false,
        dead_man: lb_userspace::config::DeadMan::default(),
        source_ports: PORTS.to_vec(),
        limits: Limits { services: 16, backends: 64, addresses: 64, selection_slots: 256, flows: 1024, port_pools: 8 },
        maglev_table_size: 13,
        services: if !lasting && random.random_bool(0.1) { Vec::new() } else { vec![service] },
    }
}

/// One random thing happens to the core.
fn happen(core: &mut Core, random: &mut StdRng, now: Duration) {
    if random.random_bool(0.4) {
        core.handle(Input::Config(Arc::new(config(random))), now);
    }
    for key in core.probes() {
        let up = random.random_bool(0.8);
        let outcome = ProbeOutcome::new(up, "L4", Duration::ZERO);
        core.handle(Input::Probe { key, outcome }, now);
    }
}

/// Steps that were carried out, and writes between which a packet was sent.
fn walk(lab: &mut Lab, seed: u64) -> (usize, usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut now, mut port, mut lasting) = (Duration::ZERO, 1024, None);
    let (mut steps, mut failed) = (0, 0);
    let first = Arc::new(config(&mut random));
    let mut core = Core::new(Arc::clone(&first), OperatorLayer::default(), &lab.data.read().unwrap(), now);
    let mut reconciler = Reconciler::new();
    for step in 0..STEPS {
        now += Duration::from_millis(1100);
        happen(&mut core, &mut random, now);
        if random.random_bool(0.1) {
            // Another agent takes over what it finds, in the middle of a change or not.
            let config = Arc::new(config(&mut random));
            core = Core::new(config, OperatorLayer::default(), &lab.data.read().unwrap(), now);
            reconciler = Reconciler::new();
        }
        let desired = core.desired().clone();
        let actual = lab.data.read().unwrap();
        let dead = |tables: &Tables| -> Vec<IpAddr> {
            let dead = tables.backends.values().filter(|backend| backend.state != BackendState::Live as u8);
            dead.map(|backend| backend.address.into()).collect()
        };
        let dying = dead(&desired).into_iter().chain(dead(&actual)).collect();
        let faults = if step + 1 == STEPS { 0.0 } else { FAULTS };
        let mut between = Between {
            lab: &mut *lab,
            random: &mut random,
            faults,
            allowed: Allowed::between(&actual, &desired),
            port: &mut port,
            lasting: &mut lasting,
            dying,
        };
        let done = reconciler.step_touched(&mut between, &desired, core.touched());
        let Ok(report) = done else {
            failed += 1;
            continue;
        };
        steps += 1;
        assert_eq!(lab.data.read().unwrap(), desired, "a step that succeeded is complete");
        core.handle(Input::Published { generation: report.generation }, now);
        if lasting.is_none() && !Allowed::of(&desired).backends.is_empty() {
            lasting = begin(lab);
        }
    }
    assert!(steps > STEPS / 2, "{steps} steps succeeded, {failed} failed");
    (failed, usize::from(port - 1024))
}

/// A new flow from the lasting one's port: where it goes.
fn begin(lab: &mut Lab) -> Option<IpAddr> {
    let packet = packet((client(true), LASTING).into(), (vip(true), 80).into(), 64, Protocol::Tcp, TCP_SYN);
    let sent = lab.send(Side::Front, &from_client(&packet));
    let to = IpAddr::from([sent.frame[30], sent.frame[31], sent.frame[32], sent.frame[33]]);
    (sent.exit == "redirect" && to != client(true)).then_some(to)
}

#[test]
fn between_any_two_writes_a_packet_sees_a_whole_service() {
    let (mut failed, mut looked) = (0, 0);
    for seed in 0..8 {
        let (send, result) = std::sync::mpsc::channel();
        lab(move |lab| send.send(walk(lab, seed)).unwrap());
        let (failures, looks) = result.recv().unwrap();
        failed += failures;
        looked += looks;
    }
    assert!(failed > 10 && looked > 400, "nothing happened: {failed} failures, {looked} looks");
}
