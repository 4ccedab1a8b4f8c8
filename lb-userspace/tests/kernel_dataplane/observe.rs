use std::{collections::BTreeMap, mem::MaybeUninit, os::fd::AsRawFd as _, time::Duration};

use aya::{
    maps::{Map, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_func_id, bpf_prog_type};
use lb_common::{
    abi::{Address, BackendCounters, DirectionCounters, Event, EventKind, ServiceCounters, VerdictCounters, names},
    verdict::Reason,
};
use lb_userspace::{
    config::Limits,
    dataplane::{
        Dataplane as _, KnockCounts, Op,
        kernel::{DataplaneEvent, Events, Stats},
    },
};

use crate::support::{BACKEND, LIMITS, PinDir};

/// Writes counters as if each CPU had seen `cpu + 1` of everything.
pub fn count(pins: &PinDir, service: u32, backend: u32) {
    let direction = |n: u64| DirectionCounters { packets: n, bytes: n * 100 };
    set(pins, names::SERVICE_STATS, service, |n| ServiceCounters {
        forward: direction(n),
        reply: direction(2 * n),
        flows: n,
        refused: 3 * n,
        dropped: 4 * n,
        rescued: 6 * n,
    });
    set(pins, names::BACKEND_STATS, backend, |n| BackendCounters {
        forward: direction(n),
        reply: direction(2 * n),
        flows: n,
        ended: 5 * n,
        reset: 9 * n,
        moved: 10 * n,
        refusals: 7 * n,
        unanswered: 8 * n,
        rescued: 11 * n,
    });
}

fn set<V: aya::Pod>(pins: &PinDir, name: &str, id: u32, value: impl Fn(u64) -> V) {
    let mut map: PerCpuArray<_, V> = PerCpuArray::try_from(Map::PerCpuArray(pins.map(name))).unwrap();
    let values: Vec<_> = (1..=nr_cpus().unwrap() as u64).map(value).collect();
    map.set(id, PerCpuValues::try_from(values).unwrap(), 0).unwrap();
}

fn sum() -> u64 {
    let cpus = nr_cpus().unwrap() as u64;
    cpus * (cpus + 1) / 2
}

#[test]
fn a_walk_tells_what_backends_did_not_take_wherever_they_lie_in_the_map() {
    // More than are read at once.
    let limits = Limits { backends: 10_000, ..LIMITS };
    let pins = PinDir::new();
    let _loaded = pins.try_load(&limits).unwrap();
    let mut dataplane = pins.open();
    let there = [0, 4095, 4096, 9999];
    for id in there.into_iter().chain([8]) {
        dataplane.apply(&Op::SetBackend { id, backend: BACKEND }).unwrap();
    }
    // Of the last two, one is in nobody's use, and one has counted nothing.
    there.into_iter().chain([7]).for_each(|id| count(&pins, 2, id));
    let counted = KnockCounts { refusals: 7 * sum(), unanswered: 8 * sum(), rescued: 11 * sum() };
    let expected = there.into_iter().map(|id| (id, counted)).collect::<BTreeMap<u32, KnockCounts>>();
    assert_eq!(dataplane.sweep().unwrap().knocks, expected);
}

#[test]
fn counters_are_summed_over_the_cpus() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    count(&pins, 2, 5);
    let stats = Stats::open(&pins.0).unwrap();
    let n = sum();
    let (forward, reply) =
        (DirectionCounters { packets: n, bytes: 100 * n }, DirectionCounters { packets: 2 * n, bytes: 200 * n });
    let service = ServiceCounters { forward, reply, flows: n, refused: 3 * n, dropped: 4 * n, rescued: 6 * n };
    assert_eq!(stats.service(2).unwrap(), service);
    assert_eq!(stats.service(3).unwrap(), ServiceCounters::default());
    let backend = BackendCounters {
        forward,
        reply,
        flows: n,
        ended: 5 * n,
        reset: 9 * n,
        moved: 10 * n,
        refusals: 7 * n,
        unanswered: 8 * n,
        rescued: 11 * n,
    };
    assert_eq!(stats.backend(5).unwrap(), backend);
    assert_eq!(stats.backend(6).unwrap(), BackendCounters::default());
    assert!(stats.service(LIMITS.services).is_err());
}

#[test]
fn every_verdict_is_listed() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    set(&pins, names::VERDICT_STATS, Reason::NoBackend as u32, |n| VerdictCounters { packets: n, bytes: 60 * n });
    let verdicts = Stats::open(&pins.0).unwrap().verdicts().unwrap();
    assert_eq!(verdicts.len(), Reason::ALL.len());
    assert_eq!(verdicts[&Reason::NoBackend], VerdictCounters { packets: sum(), bytes: 60 * sum() });
    assert_eq!(verdicts[&Reason::ToBackend], VerdictCounters::default());
}

#[tokio::test]
async fn events_arrive_in_order_and_wake_the_reader() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut events = Events::open(&pins.0).unwrap();
    let address = Address::v4([10, 0, 0, 9]);
    let missing = Event { kind: EventKind::NeighbourMissing as u32, ifindex: 3, address, backend_id: 0, zero: 0 };
    let unknown = Event { kind: 77, ..missing };
    let exhausted = Event { kind: EventKind::PortsExhausted as u32, ifindex: 0, backend_id: 5, ..missing };

    assert!(tokio::time::timeout(Duration::from_millis(50), events.next()).await.is_err(), "nothing was sent yet");
    let waiting = tokio::spawn(async move {
        let first = events.next().await.unwrap();
        (first, events.next().await.unwrap())
    });
    tokio::task::yield_now().await;
    for event in [missing, unknown, exhausted] {
        emit(&pins, &event);
    }
    let (first, second) = tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("woken").unwrap();
    let address = address.into();
    assert_eq!(first, DataplaneEvent::NeighbourMissing { ifindex: 3, address });
    assert_eq!(second, DataplaneEvent::PortsExhausted { backend_id: 5, address });
}

/// Puts a record into the ring buffer, by a small program: userspace cannot.
fn emit(pins: &PinDir, event: &Event) {
    let map = pins.map(names::EVENTS);
    let ring = {
        use std::os::fd::AsFd as _;
        map.fd().as_fd().as_raw_fd()
    };
    // struct bpf_insn: opcode, source and destination register, offset, immediate
    let instruction = |code: u8, destination: u8, source: u8, offset: i16, immediate: i32| {
        u64::from(code)
            | u64::from(source << 4 | destination) << 8
            | u64::from(offset as u16) << 16
            | u64::from(immediate as u32) << 32
    };
    let words: &[i32] = bytemuck::cast_slice(std::slice::from_ref(event));
    let mut program: Vec<u64> =
        (0i16..).zip(words).map(|(i, word)| instruction(0x62, 10, 0, i * 4 - 32, *word)).collect();
    program.extend([
        instruction(0x18, 1, 1, 0, ring), // r1 = map
        0,
        instruction(0xbf, 2, 10, 0, 0), // r2 = frame pointer
        instruction(0x07, 2, 0, 0, -32),
        instruction(0xb7, 3, 0, 0, 32),
        instruction(0xb7, 4, 0, 0, 0),
        instruction(0x85, 0, 0, 0, bpf_func_id::BPF_FUNC_ringbuf_output as i32),
        instruction(0x95, 0, 0, 0, 0), // exit with the helper's result
    ]);
    let mut attr = zeroed();
    attr.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_SOCKET_FILTER as u32;
    attr.__bindgen_anon_3.insn_cnt = program.len() as u32;
    attr.__bindgen_anon_3.insns = program.as_ptr() as u64;
    attr.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr);
    let frame = [0u8; 64];
    let mut attr = zeroed();
    attr.test.prog_fd = fd as u32;
    attr.test.data_size_in = frame.len() as u32;
    attr.test.data_in = frame.as_ptr() as u64;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr);
    // SAFETY: the kernel filled the member in.
    assert_eq!(unsafe { attr.test.retval }, 0, "the ring buffer took the record");
    // SAFETY: the descriptor is ours and not used afterwards.
    unsafe { libc::close(fd) };
}

fn zeroed() -> bpf_attr {
    // SAFETY: plain integers.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> i32 {
    // SAFETY: the attribute is whole and what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as i32, attr as *mut bpf_attr, size_of::<bpf_attr>()) };
    assert!(result >= 0, "{command:?}: {}", std::io::Error::last_os_error());
    result as i32
}
