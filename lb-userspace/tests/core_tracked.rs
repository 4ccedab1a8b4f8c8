//! Flows without an entry: where the core says they are, whatever happens to their service. The data
//! path is played by the rules of `lb-ebpf/src/stages/hashed.rs`, over the tables that are published.

mod core_support;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use core_support::{A, B, C, World, backend, drain, key_of, ok, refused, service, slot_entries, state};
use lb_common::abi::{BackendState, Granularity, Mode, Scheduler, ServiceKey, ServiceValue, Slot};
use lb_userspace::{
    config::Config,
    core::{Command, Input, OperatorLayer},
    dataplane::FlowCensus,
};
use proptest::prelude::*;

/// Longer than any flow may be silent.
const IDLE: Duration = Duration::from_secs(7400);

/// A maglev service `web` with direct server return.
fn dsr(backends: &[&str]) -> Config {
    let mut service = service("web", "203.0.113.1:80", backends);
    service.mode = Mode::DsrL2;
    service.scheduler = Scheduler::Maglev;
    core_support::config(vec![service])
}

/// A connection as its client and its backend know it.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// Stands for the hash: its slot follows from it in tables of every length.
    hash: u64,
    backend: u32,
    generation: u32,
    /// It is in the flow table.
    listed: bool,
    /// Its backend died, or was removed while dead: what becomes of it does not matter any more.
    over: bool,
}

/// A world with flows.
struct Played {
    world: World,
    key: ServiceKey,
    flows: Vec<Flow>,
    hashes: u64,
    /// Entries that were made.
    listed: usize,
}

impl Played {
    fn new(config: Config) -> Self {
        let key = key_of(&config.services[0]);
        let mut world = World::new(config);
        world.all_up();
        Self { world, key, flows: Vec::new(), hashes: 0, listed: 0 }
    }

    fn value(&self) -> ServiceValue {
        *self.world.dataplane.service(&self.key).unwrap()
    }

    fn slot(&self, value: &ServiceValue, index: u32) -> Slot {
        self.world.dataplane.slot(value.selection_base + index).unwrap()
    }

    fn stable_slot(&self, hash: u64) -> Slot {
        let value = self.value();
        self.slot(&value, lb_common::hash::selection_slot(hash, 0, value.stable_len))
    }

    fn lives(&self, id: u32) -> bool {
        let backend = self.world.dataplane.backend(id);
        backend.is_some_and(|backend| backend.state == BackendState::Live as u8)
    }

    /// New connections.
    fn begin(&mut self, count: usize) {
        for _ in 0..count {
            self.hashes += 1;
            let hash = self.hashes.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let value = self.value();
            if value.selection_len == 0 {
                continue;
            }
            let turn = |attempt| lb_common::hash::selection_slot(hash, attempt, value.selection_len);
            let picked: Vec<u32> = (0..4).map(|attempt| self.slot(&value, turn(attempt)).current()).collect();
            let Some(&id) = picked.iter().find(|id| self.lives(**id)) else { continue };
            let tracked = value.has(ServiceValue::TRACKED);
            let paired = value.has(ServiceValue::PAIRED) && id == picked[0];
            let slot = if tracked { self.stable_slot(hash) } else { Slot::clean(0) };
            let needs_none = tracked && paired && (slot.is_clean() || slot.stable() == slot.current());
            self.listed += usize::from(!needs_none);
            let generation = self.world.dataplane.backend(id).unwrap().generation;
            self.flows.push(Flow { hash, backend: id, generation, listed: !needs_none, over: false });
        }
    }

    /// Every connection sends a packet, which must reach its backend while that lives.
    fn send(&mut self) {
        let value = self.value();
        for at in 0..self.flows.len() {
            let flow = self.flows[at];
            let whole = self.world.dataplane.backend(flow.backend).is_some_and(|b| b.generation == flow.generation);
            if flow.over || !whole || !self.lives(flow.backend) {
                assert!(flow.over || whole, "{flow:?} lost its backend without having been reset");
                self.flows[at].over = true;
                continue;
            }
            if flow.listed {
                continue;
            }
            assert!(value.has(ServiceValue::TRACKED), "{flow:?} has no entry, and nobody looks for it elsewhere");
            let slot = self.stable_slot(flow.hash);
            let stable = if slot.is_clean() { slot.current() } else { slot.stable() };
            assert_eq!(stable, flow.backend, "{flow:?} was moved: its slot says {slot:?}");
            let stays = value.has(ServiceValue::PAIRED) && stable == slot.current();
            self.flows[at].listed = !stays;
            self.listed += usize::from(!stays);
        }
        self.flows.retain(|flow| !flow.over);
    }

    /// Walks over the flow table, a good second apart.
    fn walk(&mut self, times: usize) {
        for _ in 0..times {
            self.world.now += Duration::from_millis(1100);
            let mut census = FlowCensus { entries: slot_entries(&self.world.dataplane), ..FlowCensus::default() };
            let value = self.value();
            for flow in self.flows.iter().filter(|flow| flow.listed) {
                *census.by_backend.entry(flow.backend).or_default() += 1;
                *census.by_service.entry(value.id).or_default() += 1;
                if let Some(entries) = census.entries.get_mut(&value.id) {
                    entries.at.insert((lb_common::hash::selection_slot(flow.hash, 0, entries.len), flow.backend));
                }
            }
            self.world.input(Input::Flows(census));
        }
    }

    /// The service has been calm for long enough.
    fn settle(&mut self) {
        self.walk(4);
        self.world.now += Duration::from_secs(10);
        self.walk(1);
        self.world.now += Duration::from_secs(10);
        self.walk(4);
    }

    fn unsettled(&self) -> usize {
        self.world.core.service("web").unwrap().tracking.map_or(0, |tracking| tracking.unsettled)
    }

    /// All that can settle has settled.
    fn wait(&mut self) {
        self.walk(4);
        self.send();
        self.world.now += IDLE;
        for _ in 0..6 {
            self.walk(4);
            self.send();
            self.world.now += Duration::from_secs(10);
        }
        self.walk(3);
    }
}

fn backends_of(played: &Played) -> BTreeSet<u32> {
    let value = played.value();
    (0..value.slots()).flat_map(|at| played.slot(&value, at).backends().collect::<Vec<_>>()).collect()
}

#[test]
fn a_fresh_service_settles_when_it_is_calm_and_its_flows_need_no_entry_then() {
    let mut played = Played::new(dsr(&[A, B, C]));
    played.begin(10);
    assert_eq!(played.listed, 10);
    played.settle();
    assert_eq!(played.unsettled(), 0);
    played.begin(1000);
    played.send();
    assert_eq!(played.listed, 10);
    let tracking = played.world.core.service("web").unwrap().tracking.unwrap();
    assert_eq!((tracking.slots, tracking.settles_in), (251, None));
}

#[test]
fn modes_that_see_replies_and_single_packets_keep_their_entries() {
    let tracked = |change: &dyn Fn(&mut Config)| {
        let mut config = dsr(&[A, B]);
        change(&mut config);
        Played::new(config).value().has(ServiceValue::TRACKED)
    };
    assert!(tracked(&|_| {}));
    assert!(tracked(&|config| config.services[0].scheduler = Scheduler::SourceHash));
    assert!(tracked(&|config| config.services[0].granularity = Granularity::Client));
    assert!(!tracked(&|config| config.services[0].mode = Mode::Nat));
    assert!(!tracked(&|config| config.services[0].scheduler = Scheduler::RoundRobin));
    assert!(!tracked(&|config| config.services[0].granularity = Granularity::Packet));
}

#[test]
fn a_drained_backend_keeps_its_flows_and_its_slots_settle_when_they_are_over() {
    let mut played = Played::new(dsr(&[A, B, C]));
    played.settle();
    played.begin(2000);
    let a = played.world.id("web", A);
    played.world.command(&drain(A), false).unwrap();
    assert!((80..120).contains(&played.unsettled()), "about a third of 251: {}", played.unsettled());
    played.send();
    let after_drain = played.listed;
    assert!(after_drain > 500, "its flows have entries now: {after_drain}");
    played.walk(20);
    assert!(backends_of(&played).contains(&a), "old flows may still be without an entry");
    let left = played.world.core.service("web").unwrap().tracking.unwrap().settles_in.unwrap();
    assert!(left > Duration::from_secs(7000), "{left:?}");
    played.wait();
    assert!(!backends_of(&played).contains(&a));
    assert!(played.unsettled() > 0, "entries of its flows are still there");
    played.flows.retain(|flow| !flow.listed);
    played.wait();
    assert_eq!(played.unsettled(), 0);
    assert_eq!(played.listed, after_drain, "others never needed one");
}

#[test]
fn a_removed_backend_keeps_its_id_until_no_flow_can_be_left() {
    let mut played = Played::new(dsr(&[A, B]));
    played.settle();
    played.begin(100);
    let a = played.world.id("web", A);
    played.world.configure(dsr(&[B]));
    played.walk(30);
    assert_eq!(state(&played.world, a), BackendState::Live as u8);
    let view = played.world.core.service("web").unwrap();
    let leaver = view.backends.iter().find(|backend| backend.leaving).unwrap();
    assert_eq!(leaver.used_reason, "removed: 0 flows left, and there may be others without an entry");
    played.wait();
    assert_eq!(state(&played.world, a), BackendState::Live as u8, "its flows have entries and go on");
    played.flows.retain(|flow| flow.backend != a);
    played.walk(4);
    assert_eq!(state(&played.world, a), BackendState::Empty as u8);
}

#[test]
fn a_removed_backend_that_dies_is_let_go_at_once() {
    let mut played = Played::new(dsr(&[A, B]));
    played.settle();
    played.begin(100);
    let a = played.world.id("web", A);
    played.world.configure(dsr(&[B]));
    played.world.probe(A, &refused(), 2);
    assert!(!backends_of(&played).contains(&a), "flows without an entry are refused");
    played.send();
    played.walk(4);
    assert_eq!(state(&played.world, a), BackendState::Empty as u8);
}

#[test]
fn flows_go_on_when_the_last_backend_is_drained_and_when_the_service_is_removed() {
    let mut played = Played::new(dsr(&[A]));
    played.settle();
    played.begin(50);
    played.world.command(&drain(A), true).unwrap();
    played.begin(50);
    assert_eq!(played.flows.len(), 50, "nobody takes new flows");
    played.send();
    played.world.configure(core_support::config(Vec::new()));
    played.send();
    assert_eq!(played.flows.len(), 50);
    played.walk(5);
    assert!(played.world.dataplane.service(&played.key).is_some());
    played.flows.clear();
    played.world.now += IDLE;
    for _ in 0..8 {
        if played.world.dataplane.service(&played.key).is_some() {
            played.walk(1);
        }
    }
    assert!(played.world.dataplane.service(&played.key).is_none());
}

#[test]
fn other_schedulers_and_other_table_sizes_leave_old_flows_where_they_are() {
    let mut played = Played::new(dsr(&[A, B, C]));
    played.settle();
    played.begin(500);
    let mut config = dsr(&[A, B, C]);
    config.services[0].scheduler = Scheduler::WeightedRoundRobin;
    played.world.configure(config.clone());
    let value = played.value();
    assert_eq!((value.selection_len, value.stable_len), (3, 251));
    assert!(value.has(ServiceValue::TRACKED) && !value.has(ServiceValue::PAIRED));
    played.begin(100);
    played.send();
    assert_eq!(played.listed, 600);
    played.wait();
    assert!(!played.value().has(ServiceValue::TRACKED), "all flows have entries now");
    played.send();

    config.services[0].scheduler = Scheduler::Maglev;
    played.world.configure(config.clone());
    played.settle();
    played.begin(500);
    assert_eq!(played.listed, 600, "only flows of before need entries");
    config.maglev_table_size = 127;
    played.world.configure(config);
    played.begin(100);
    let value = played.value();
    assert_eq!((value.selection_len, value.stable_len), (127, 251));
    played.send();
    played.wait();
    assert_eq!((played.value().selection_len, played.value().stable_len), (127, 127));
    played.send();
    played.flows.clear();
    played.wait();
    assert_eq!(played.unsettled(), 0);
}

#[test]
fn a_restarted_agent_knows_where_flows_are_and_waits_anew() {
    let mut played = Played::new(dsr(&[A, B, C]));
    played.settle();
    played.begin(1000);
    let a = played.world.id("web", A);
    played.world.configure(dsr(&[B, C]));
    played.walk(3);
    played.world.now += IDLE - Duration::from_secs(60);
    played.world.restart(dsr(&[B, C]), OperatorLayer::default());
    played.send();
    played.world.now += Duration::from_secs(120);
    played.walk(20);
    assert!(backends_of(&played).contains(&a), "how long it was before is not known");
    played.world.restart(dsr(&[A, B, C]), OperatorLayer::default());
    played.world.all_up();
    played.send();
    played.begin(1000);
    played.send();
    assert_eq!(played.flows.len(), 2000);
}

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    Servers(Vec<bool>),
    Weights(Vec<u16>),
    Drain(usize),
    Ready(usize),
    Flap(usize),
    Restart,
    Scheduler(u8),
    Table(bool),
    Begin(usize),
    Send,
    Walk(usize),
    Wait,
    EndSome(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let server = 0usize..6;
    prop_oneof![
        2 => prop::collection::vec(any::<bool>(), 6).prop_map(Step::Servers),
        2 => prop::collection::vec(0u16..4, 6).prop_map(Step::Weights),
        2 => server.clone().prop_map(Step::Drain),
        2 => server.clone().prop_map(Step::Ready),
        3 => server.prop_map(Step::Flap),
        1 => Just(Step::Restart),
        1 => (0u8..3).prop_map(Step::Scheduler),
        1 => any::<bool>().prop_map(Step::Table),
        4 => (1usize..60).prop_map(Step::Begin),
        3 => Just(Step::Send),
        2 => (1usize..12).prop_map(Step::Walk),
        1 => Just(Step::Wait),
        1 => any::<u64>().prop_map(Step::EndSome),
    ]
}

fn address(n: usize) -> String {
    format!("10.0.0.{}:80", n + 1)
}

/// What the file says and which servers answer.
struct Wanted {
    config: Config,
    present: Vec<bool>,
    weights: Vec<u16>,
    up: BTreeMap<usize, bool>,
}

impl Wanted {
    fn config(&mut self) -> Config {
        let present = (0..6).filter(|n| self.present[*n]);
        self.config.services[0].backends =
            present.map(|n| backend(&address(n), self.weights[n].max(u16::from(n == 0)), 0)).collect();
        self.config.clone()
    }

    fn probe(&self, played: &mut Played) {
        for n in 0..6 {
            let outcome = if *self.up.get(&n).unwrap_or(&true) { ok() } else { refused() };
            played.world.probe(&address(n), &outcome, 2);
        }
    }
}

fn take(step: Step, wanted: &mut Wanted, played: &mut Played) {
    let service = "web".to_owned();
    match step {
        Step::Servers(present) => {
            wanted.present = present;
            played.world.configure(wanted.config());
            wanted.probe(played);
        }
        Step::Weights(weights) => {
            wanted.weights = weights;
            played.world.configure(wanted.config());
        }
        Step::Drain(n) => {
            let address = address(n).parse().unwrap();
            _ = played.world.command(&Command::Drain { service, address }, true);
        }
        Step::Ready(n) => {
            let address = address(n).parse().unwrap();
            _ = played.world.command(&Command::Ready { service, address }, true);
        }
        Step::Flap(n) => {
            let up = wanted.up.entry(n).or_insert(true);
            *up = !*up;
            wanted.probe(played);
            // What a dead backend had is over, whether it said something meanwhile or not.
            for at in 0..played.flows.len() {
                let dead = !played.lives(played.flows[at].backend);
                played.flows[at].over |= dead;
            }
        }
        Step::Restart => {
            let layer = played.world.core.operator_layer().clone();
            played.world.restart(wanted.config(), layer);
            wanted.probe(played);
        }
        Step::Scheduler(n) => {
            wanted.config.services[0].scheduler =
                [Scheduler::Maglev, Scheduler::RoundRobin, Scheduler::SourceHash][usize::from(n)];
            played.world.configure(wanted.config());
        }
        Step::Table(large) => {
            wanted.config.maglev_table_size = if large { 251 } else { 61 };
            played.world.configure(wanted.config());
        }
        Step::Begin(count) => played.begin(count),
        Step::Send => played.send(),
        Step::Walk(times) => played.walk(times),
        Step::Wait => played.wait(),
        Step::EndSome(mask) => played.flows.retain(|flow| flow.hash & 63 & mask != 0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_flow_is_moved_whatever_happens(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut config = dsr(&[A, B, C]);
        config.limits.selection_slots = 65_536;
        let mut played = Played::new(config.clone());
        let present = vec![true, true, true, false, false, false];
        let mut wanted = Wanted { config, present, weights: vec![1; 6], up: BTreeMap::new() };
        for step in steps {
            take(step, &mut wanted, &mut played);
        }
        played.send();
        played.wait();
        played.send();
        // When all flows are over, nothing is left to look up.
        played.flows.clear();
        played.wait();
        played.wait();
        let tracked = played.world.core.service("web").unwrap().tracking;
        prop_assert_eq!(tracked.map_or(0, |tracking| tracking.unsettled), 0);
    }
}
