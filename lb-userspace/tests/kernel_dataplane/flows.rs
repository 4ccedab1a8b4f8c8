use std::{collections::BTreeMap, time::Duration};

use lb_common::{
    abi::{Backend, Flow, Mode, Port, Protocol},
    flow::{ReplyWord, Seen, State, Word},
};
use lb_userspace::{
    config::PortRange,
    dataplane::{
        Dataplane, FlowCensus, Op,
        kernel::{Audit, FlowFilter, Flows, KernelDataplane, Sweeper},
    },
};

use crate::support::{BACKEND, HandTable, PinDir, ago, flow};

fn prepared() -> (PinDir, KernelDataplane, HandTable) {
    let pins = PinDir::new();
    drop(pins.load());
    let mut dataplane = pins.open();
    dataplane.apply(&Op::SetBackend { id: 5, backend: BACKEND }).unwrap();
    let ports = vec![PortRange { first: 1024, last: 65_535 }];
    dataplane.apply(&Op::SetPortPool { pool: 1, ports }).unwrap();
    let table = HandTable::open(&pins);
    (pins, dataplane, table)
}

fn begun(seconds_ago: u64) -> impl FnOnce(u32) -> Word {
    move |tag| Word::begin(tag, true, ago(seconds_ago))
}

fn client(port: u16, flow: Flow) -> Flow {
    Flow { client_port: Port::new(port), ..flow }
}

#[test]
fn a_sweep_removes_idle_flows_with_their_reply_word_and_port() {
    let (_pins, mut dataplane, table) = prepared();
    let (old, old_reply) = table.store(&client(1, flow(2001)), begun(60));
    let (live, live_reply) = table.store(&client(2, flow(2002)), begun(1));
    assert_eq!(
        dataplane.sweep().unwrap(),
        FlowCensus {
            live: 1,
            aged: 1,
            by_backend: BTreeMap::from([(5, 1)]),
            by_service: BTreeMap::from([(BACKEND.service_id, 1)]),
            entries: BTreeMap::new(),
            ended: BTreeMap::new(),
            knocks: BTreeMap::new(),
        }
    );
    assert_eq!((table.word(old), table.reply(old_reply)), (Word::EMPTY, ReplyWord::EMPTY));
    assert!(!table.port_taken(2001) && table.port_taken(2002));
    assert!(table.word(live).live(ago(0)));
    assert_eq!(table.reply(live_reply).index(), Some(live));
}

#[test]
fn a_walk_mends_the_load_of_the_backends() {
    let (_pins, mut dataplane, table) = prepared();
    let counted = Flow { flags: Flow::COUNTED, ..flow(2001) };
    let (first, _) = table.store(&client(1, counted), begun(1));
    table.store(&client(2, flow(2002)), begun(1));
    let closed = |tag| begun(1)(tag).after(Seen { tcp: true, reply: true, tcp_flags: 0x04 }, ago(0));
    table.store(&client(3, flow(2003)), closed);
    assert_eq!(dataplane.backend_load(5), Some(0), "nobody has counted");
    assert_eq!(dataplane.sweep().unwrap().live, 3);
    assert_eq!(dataplane.backend_load(5), Some(2), "the open ones");
    // The counted one expires: the walk that removes it takes it off the load.
    table.set_word(first, begun(60)(table.word(first).tag()));
    assert_eq!(dataplane.sweep().unwrap().aged, 1);
    assert_eq!(dataplane.backend_load(5), Some(1));
    let next = Backend { generation: BACKEND.generation + 1, ..BACKEND };
    dataplane.apply(&Op::SetBackend { id: 5, backend: next }).unwrap();
    assert_eq!(dataplane.backend_load(5), Some(0), "another backend begins without load");
    assert_eq!(dataplane.backend_load(64), None);
}

#[test]
fn states_age_by_their_own_timeouts() {
    let (_pins, mut dataplane, table) = prepared();
    let established = |tag| {
        let seen = |reply, tcp_flags| Seen { tcp: true, reply, tcp_flags };
        Word::begin(tag, true, ago(600)).after(seen(true, 0x12), ago(600)).after(seen(false, 0x10), ago(600))
    };
    let (at, _) = table.store(&flow(2001), established);
    assert_eq!(table.word(at).state(), State::Established);
    assert_eq!(dataplane.sweep().unwrap().live, 1);
    let (udp, _) = table.store(&Flow { protocol: 17, ..client(9, flow(2002)) }, |tag| Word::begin(tag, false, ago(60)));
    assert_eq!(dataplane.sweep().unwrap().aged, 1);
    assert_eq!(table.word(udp), Word::EMPTY);
}

#[test]
fn a_flow_in_mode_nat_frees_no_port() {
    let (_pins, mut dataplane, table) = prepared();
    let nat = Flow { mode: Mode::Nat as u8, ..flow(2001) };
    let (at, reply) = table.store(&nat, begun(60));
    assert_eq!(dataplane.sweep().unwrap().aged, 1);
    assert_eq!((table.word(at), table.reply(reply)), (Word::EMPTY, ReplyWord::EMPTY));
    assert!(table.port_taken(2001), "it is somebody else's");
}

#[test]
fn ways_left_busy_are_recovered_and_their_port_is_left_to_the_audit() {
    let (_pins, mut dataplane, table) = prepared();
    let (stuck, reply) = table.store(&client(1, flow(2001)), |_| Word::busy(ago(60)));
    let (working, _) = table.store(&client(2, flow(2002)), |_| Word::busy(ago(1)));
    let census = dataplane.sweep().unwrap();
    assert_eq!((census.live, census.aged), (0, 0));
    assert_eq!((table.word(stuck), table.reply(reply)), (Word::EMPTY, ReplyWord::EMPTY));
    assert_eq!(table.word(working).state(), State::Busy);
    // Somebody else may have the port by now.
    assert!(table.port_taken(2001));
    dataplane.audit_ports().unwrap();
    assert_eq!(dataplane.audit_ports().unwrap(), Audit { ports: 1, replies: 0 });
    assert!(!table.port_taken(2001) && table.port_taken(2002));
}

#[test]
fn flows_of_a_backend_before_count_for_the_service_and_touch_no_port_of_the_next() {
    let (_pins, mut dataplane, table) = prepared();
    let (old, _) = table.store(&client(1, flow(2001)), begun(60));
    table.store(&client(2, flow(2002)), begun(1));
    dataplane.apply(&Op::SetBackend { id: 5, backend: Backend { generation: 4, ..BACKEND } }).unwrap();
    let census = dataplane.sweep().unwrap();
    assert_eq!((census.live, census.aged), (1, 1));
    assert_eq!((census.by_backend.len(), census.by_service[&BACKEND.service_id]), (0, 1));
    assert_eq!(table.word(old), Word::EMPTY);
    assert!(table.port_taken(2001));
}

#[test]
fn the_audit_removes_reply_words_that_lead_nowhere() {
    let (_pins, mut dataplane, table) = prepared();
    let (_, kept) = table.store(&client(1, flow(2001)), begun(1));
    let lost = table.store_reply(&flow(2500), 500);
    assert_eq!(dataplane.audit_ports().unwrap(), Audit::default());
    assert_eq!(dataplane.audit_ports().unwrap(), Audit { ports: 0, replies: 1 });
    assert_eq!(table.reply(lost), ReplyWord::EMPTY);
    assert_ne!(table.reply(kept), ReplyWord::EMPTY);
}

#[test]
fn a_full_table_is_swept_and_counted() {
    let (pins, _, table) = prepared();
    let capacity = table.flows.len();
    for at in 0..capacity {
        table.flows.write(at, &flow(1024 + at as u16)).unwrap();
        let age = if at % 2 == 0 { 0 } else { 60 };
        table.words.words(at / 8).unwrap()[at as usize % 8]
            .store(Word::begin(at, true, ago(age)).0, std::sync::atomic::Ordering::Release);
    }
    let census = Sweeper::open(&pins.0).unwrap().sweep().unwrap();
    assert_eq!((census.live, census.aged), (u64::from(capacity / 2), u64::from(capacity / 2)));
    assert_eq!(census.by_backend, BTreeMap::from([(5, u64::from(capacity / 2))]));
}

#[test]
fn flows_are_listed_with_filters() {
    let (pins, _dataplane, table) = prepared();
    table.store(&client(1, flow(2001)), begun(5));
    table.store(&Flow { backend_id: 6, service_id: 9, ..client(2, flow(2002)) }, begun(1));
    table.store(&client(3, flow(2003)), begun(60));
    table.store(&client(4, flow(2004)), |_| Word::busy(ago(1)));
    let flows = Flows::open(&pins.0).unwrap();
    assert_eq!(flows.capacity(), crate::support::LIMITS.flows);
    let list = |filter: FlowFilter| flows.iter(&filter).collect::<Vec<_>>();
    assert_eq!(list(FlowFilter::default()).len(), 2, "idle and busy ones are left out");

    let found = list(FlowFilter { backend_id: Some(5), ..Default::default() });
    let [flow] = &found[..] else { panic!("{found:?}") };
    assert_eq!(flow.client, "192.0.2.7:1".parse().unwrap());
    assert_eq!(flow.source, "10.0.0.1:2001".parse().unwrap());
    assert_eq!((flow.service_id, flow.service_port, flow.protocol), (2, 80, Protocol::Tcp));
    assert_eq!(flow.state, State::Opening);
    assert!(flow.idle >= Duration::from_secs(4) && flow.idle < Duration::from_secs(8), "{:?}", flow.idle);

    let client = |text: &str| FlowFilter { client: Some(text.parse().unwrap()), ..Default::default() };
    assert_eq!((list(client("192.0.2.7")).len(), list(client("192.0.2.8")).len()), (2, 0));
    assert_eq!(list(FlowFilter { service_id: Some(9), ..Default::default() }).len(), 1);
    assert_eq!(list(FlowFilter { state: Some(State::Established), ..Default::default() }).len(), 0);
}
