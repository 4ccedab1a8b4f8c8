//! What clients' packets tell of backends before a check does: who is out of turn for it, how soon, for what
//! sign, and who is not.

mod stage;

use std::{
    net::UdpSocket,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use stage::{
    MODES, PATIENCE, Stage, XTASK,
    arrivals::{
        Attempt, CLIENTS, TOO_LATE, address, assert_unnoticed, counter, give_addresses, receipts, under_load,
        with_stalls,
    },
    echo::{ECHO_PORT, Echo},
};
use xtask::world::{
    Balancer, Family, Namespace, Process, Topology,
    config::{Health, Service},
    process,
    servers::WEB_PORT,
};

/// From the first connection without an answer until new ones go elsewhere.
const PROMISED: Duration = Duration::from_millis(100);
/// The backend that something happens to.
const FAULTY: u8 = 1;

fn service(mode: &'static str) -> Service {
    Service::tcp(Family::V4, mode, 80, vec![0, 1, 2, 3], WEB_PORT)
}

/// One rule in the input chain of a host's firewall.
fn firewall(host: &Namespace, rule: &str) {
    let rules = format!(
        "add table inet fault; add chain inet fault in {{ type filter hook input priority 0; }}; \
         add rule inet fault in {rule}"
    );
    assert!(host.command("nft").arg(rules).status().unwrap().success());
}

fn no_firewall(host: &Namespace) {
    assert!(host.command("nft").arg("delete table inet fault").status().unwrap().success());
}

fn text<'a>(receipt: &'a Value, key: &str) -> &'a str {
    receipt[key].as_str().unwrap_or_else(|| panic!("no {key}: {receipt:#}"))
}

/// The first receipt of a failover is of the faulty backend, for this sign, with all its times in order, and in
/// time. `stalled`: by how much threads were kept from running meanwhile, the agent's like the test's.
fn assert_told(lb: &Balancer<'_>, service: &Service, cause: &str, stalled: Duration) -> Value {
    let first = receipts(lb, service, FAULTY).remove(0);
    assert_eq!(first["cause"], cause, "{first:#}");
    // RFC 3339 to the millisecond, UTC: later is greater.
    let times = ["lastGood", "firstBad", "detected", "switched", "firstGood"].map(|key| text(&first, key));
    assert!(times.is_sorted(), "{times:?}");
    let clients = first["witnesses"].as_u64().unwrap();
    assert!((3..=u64::from(CLIENTS)).contains(&clients), "{first:#}");
    let took = Duration::from_micros(first["suspectMicros"].as_u64().unwrap());
    println!("{}, {cause}: out of turn after {took:?}, threads waited {stalled:?} at most", service.mode);
    assert!(took <= PROMISED + stalled, "{took:?}, threads waited {stalled:?}: {first:#}");
    first
}

/// Every connection that was sent to another backend is in the receipts of the faulty one.
fn assert_all_rescued_are_told(lb: &Balancer<'_>, service: &Service) {
    let rescued = counter(lb, service, "rescued");
    assert!(rescued > 0, "nothing was rescued");
    let told = |lb: &Balancer<'_>| {
        let receipts = receipts(lb, service, FAULTY);
        let told: u64 = receipts.iter().map(|receipt| receipt["flows"]["rescued"].as_u64().unwrap()).sum();
        if told == rescued { Ok(()) } else { anyhow::bail!("{told} of {rescued}: {receipts:#?}") }
    };
    lb.until("all rescued connections in the receipt", PATIENCE, told).unwrap();
}

/// Without those that the faulty backend had taken when it happened, which nobody can help, at most two.
fn without_taken(mut attempts: Vec<Attempt>, fault: Instant) -> Vec<Attempt> {
    let before = attempts.len();
    attempts.retain(|attempt| attempt.outcome.is_ok() && attempt.took < TOO_LATE || attempt.begun > fault);
    assert!(attempts.len() + 2 >= before, "{} were lost that had begun before", before - attempts.len());
    attempts
}

#[test]
fn a_silent_host_is_out_of_turn_within_a_tenth_of_a_second() {
    for mode in MODES {
        let stage = Stage::new("passive_silent", Topology::TwoArm, 4);
        give_addresses(&stage);
        let _webs = stage.webs();
        let service = service(mode);
        let mut lb = stage.lb(std::slice::from_ref(&service));
        let mut cut = Instant::now();
        let load = || {
            under_load(&stage.world.client, service.listen(), || {
                cut = Instant::now();
                stage.world.switch.ip(&["link set web2 down"]).unwrap();
            })
        };
        let (attempts, stalled) = with_stalls(load);
        assert_unnoticed(&format!("{mode}, link down"), &without_taken(attempts, cut));
        let told = assert_told(&lb, &service, "unanswered", stalled);
        assert!(text(&told, "reason").contains("; then down: "), "probes confirm it: {told:#}");
        assert_all_rescued_are_told(&lb, &service);
        stage.world.switch.ip(&["link set web2 up"]).unwrap();
        lb.wait_for_backends(&service.name, &service.backend_addresses(), PATIENCE).unwrap();
        let last = receipts(&lb, &service, FAULTY).pop().unwrap();
        assert!(last["back"].is_string(), "{last:#}");
    }
}

#[test]
fn a_port_behind_a_firewall_is_noticed_by_its_silence_or_by_what_icmp_says() {
    let rules = [
        ("tcp dport 8080 drop", "unanswered"),
        ("tcp dport 8080 reject with icmpx type port-unreachable", "unreachable"),
        ("tcp dport 8080 reject with icmpx type admin-prohibited", "unreachable"),
        ("tcp dport 8080 reject with icmpx type host-unreachable", "unreachable"),
        ("tcp dport 8080 reject with tcp reset", "refused"),
    ];
    for (number, (rule, cause)) in rules.into_iter().enumerate() {
        let mode = MODES[number % 2];
        let stage = Stage::new("passive_firewall", Topology::TwoArm, 4);
        give_addresses(&stage);
        let _webs = stage.webs();
        let service = service(mode);
        let mut lb = stage.lb(std::slice::from_ref(&service));
        let host = &stage.world.backends[usize::from(FAULTY)];
        let mut begun = Instant::now();
        let load = || {
            under_load(&stage.world.client, service.listen(), || {
                begun = Instant::now();
                firewall(host, rule);
            })
        };
        let (attempts, stalled) = with_stalls(load);
        assert_unnoticed(&format!("{mode}, {rule}"), &without_taken(attempts, begun));
        assert_told(&lb, &service, cause, stalled);
        assert_all_rescued_are_told(&lb, &service);
        no_firewall(host);
        lb.wait_for_backends(&service.name, &service.backend_addresses(), PATIENCE).unwrap();
    }
}

/// A server of the project with a short queue, on its own port of the host.
fn server(stage: &Stage, index: u8, backlog: u32, pause: Duration) -> Process {
    let name = &stage.world.backend_names()[usize::from(index)];
    let host = &stage.world.backends[usize::from(index)];
    let mut command = host.command(Path::new(XTASK));
    command.args(["serve", "--name", name, "--port", &OWN_PORT.to_string()]);
    command.args(["--backlog", &backlog.to_string(), "--pause", &pause.as_millis().to_string()]);
    let server = Process::start(name, &mut command, &stage.folder().join(format!("{name}.log"))).unwrap();
    let address = Family::V4.backend_port(index, OWN_PORT);
    process::until("the server listens", PATIENCE, || {
        host.enter(|| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(500))).map_err(Into::into)
    })
    .unwrap();
    server
}

const OWN_PORT: u16 = 8090;

#[test]
fn a_frozen_server_loses_what_its_kernel_had_taken_and_nothing_else() {
    for mode in MODES {
        let stage = Stage::new("passive_frozen", Topology::TwoArm, 4);
        give_addresses(&stage);
        // Its queue holds two connections, and perhaps a few whose handshake is under way as it fills.
        let backlog = |index| if index == FAULTY { 1 } else { 128 };
        let servers: Vec<_> = (0..4).map(|index| server(&stage, index, backlog(index), Duration::ZERO)).collect();
        let service = Service::tcp(Family::V4, mode, 80, vec![0, 1, 2, 3], OWN_PORT);
        let mut lb = stage.lb(std::slice::from_ref(&service));
        let mut frozen = Instant::now();
        let load = || {
            under_load(&stage.world.client, service.listen(), || {
                frozen = Instant::now();
                servers[usize::from(FAULTY)].signal(Signal::STOP).unwrap();
            })
        };
        let (attempts, stalled) = with_stalls(load);
        let failed = |attempt: &&Attempt| attempt.outcome.is_err() || attempt.took > TOO_LATE;
        let failed: Vec<_> = attempts.iter().filter(failed).collect();
        println!("{mode}, frozen: {} of {} failed", failed.len(), attempts.len());
        assert!(failed.len() <= 8, "{failed:#?}");
        // Whom it took in its queue; later ones go elsewhere.
        let taken = frozen + Duration::from_millis(300) + stalled;
        assert!(failed.iter().all(|attempt| attempt.begun < taken), "frozen at {frozen:?}: {failed:#?}");
        assert_told(&lb, &service, "unanswered", stalled);
        assert_all_rescued_are_told(&lb, &service);
        servers[usize::from(FAULTY)].signal(Signal::CONT).unwrap();
        lb.wait_for_backends(&service.name, &service.backend_addresses(), PATIENCE).unwrap();
    }
}

#[test]
fn a_server_whose_queue_is_slow_loses_no_connection_and_stays_or_comes_back() {
    for mode in MODES {
        let stage = Stage::new("passive_slow", Topology::TwoArm, 4);
        give_addresses(&stage);
        let _webs = stage.webs();
        // Fifty connections a second would come to it, and it takes thirty.
        let slow = |index| if index == FAULTY { (1, Duration::from_millis(33)) } else { (128, Duration::ZERO) };
        let _servers: Vec<_> = (0..4).map(|index| server(&stage, index, slow(index).0, slow(index).1)).collect();
        // What is asked is another port, so that nothing but packets tells of the queue.
        let health = Health::Tcp { port: Some(WEB_PORT) };
        let lines = vec!["[service.passive]\nback-off = \"500ms\"".to_owned()];
        let service = Service::tcp(Family::V4, mode, 80, vec![0, 1, 2, 3], OWN_PORT);
        let service = Service { health, lines, ..service };
        let mut lb = stage.lb(std::slice::from_ref(&service));
        let attempts = under_load(&stage.world.client, service.listen(), || ());
        let refused: Vec<_> = attempts.iter().filter(|attempt| attempt.outcome.is_err()).collect();
        let slow = attempts.iter().filter(|attempt| attempt.took > TOO_LATE).count();
        println!("{mode}, slow queue: {} failed, {slow} over {TOO_LATE:?}", refused.len());
        assert!(refused.is_empty(), "{refused:#?}");
        assert!(counter(&lb, &service, "rescued") > 0, "nothing was rescued");
        lb.wait_for_backends(&service.name, &service.backend_addresses(), PATIENCE).unwrap();
        let log = std::fs::read_to_string(stage.folder().join("lb.log")).unwrap();
        assert!(!log.contains("up -> down"), "{log}");
    }
}

#[test]
fn one_client_with_a_broken_network_takes_nobody_out() {
    // What it sends arrives and nothing comes back; or its first packets arrive and no others.
    for (mode, rules) in [
        ("nat", "ip daddr 10.71.1.20 tcp flags & (syn|ack) == syn|ack drop"),
        ("full-nat", "ip daddr 10.71.1.20 tcp flags & (syn|ack) == syn|ack drop"),
        ("full-nat", "ip daddr 10.71.1.20 ip saddr 10.71.1.100 drop"),
    ] {
        let stage = Stage::new("passive_client", Topology::TwoArm, 4);
        give_addresses(&stage);
        let _webs = stage.webs();
        let service = service(mode);
        let lb = stage.lb(std::slice::from_ref(&service));
        let broken = || firewall(&stage.world.client, rules);
        let attempts = under_load(&stage.world.client, service.listen(), broken);
        let (own, others): (Vec<_>, Vec<_>) = attempts.into_iter().partition(|attempt| attempt.from == address(0));
        assert!(own.iter().any(|attempt| attempt.outcome.is_err()), "its network works");
        assert!(others.iter().all(|attempt| attempt.outcome.is_ok()), "{others:#?}");
        assert_nobody_went(&stage, &lb, &service);
    }
}

fn assert_nobody_went(stage: &Stage, lb: &Balancer<'_>, service: &Service) {
    assert_eq!(lb.backends_in_use(&service.name).unwrap(), service.backend_addresses());
    let log = std::fs::read_to_string(stage.folder().join("lb.log")).unwrap();
    assert!(!log.contains("suspended"), "{log}");
}

/// New flows for three seconds, from [`CLIENTS`] addresses in turn, whether they are answered or not.
fn flows_of_udp(client: &Namespace, service: &Service, fault: impl FnOnce() + Send) {
    let mut fault = Some(fault);
    let begun = Instant::now();
    client.enter(|| {
        for number in 0..300u32 {
            let due = begun + Duration::from_millis(10) * number;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let socket = UdpSocket::bind((address((number % u32::from(CLIENTS)) as u8), 0)).unwrap();
            socket.send_to(b"who", service.listen()).unwrap();
            if number == 60
                && let Some(fault) = fault.take()
            {
                fault();
            }
        }
    });
}

#[test]
fn udp_that_is_not_answered_is_noticed_where_answers_are_expected_and_icmp_everywhere() {
    let expected = "[service.passive]\nanswer-within = \"30ms\"";
    for (number, (lines, rule, cause)) in [
        (expected, "udp dport 7000 drop", Some("unanswered")),
        (expected, "udp dport 7000 reject with icmpx type port-unreachable", Some("unreachable")),
        ("", "udp dport 7000 reject with icmpx type admin-prohibited", Some("unreachable")),
        // One way only, like syslog: silence says nothing.
        ("", "udp dport 7000 drop", None),
    ]
    .into_iter()
    .enumerate()
    {
        let stage = Stage::new("passive_udp", Topology::TwoArm, 4);
        give_addresses(&stage);
        let _echoes = Echo::on_all(&stage.world);
        let service = Service::udp(Family::V4, MODES[number % 2], 7001, vec![0, 1, 2, 3], ECHO_PORT);
        let service = Service { lines: vec![lines.to_owned()], ..service };
        let lb = stage.lb(std::slice::from_ref(&service));
        let host = &stage.world.backends[usize::from(FAULTY)];
        let (own, namespace) = (&stage.world.client, service.clone());
        flows_of_udp(own, &namespace, || firewall(host, rule));
        match cause {
            Some(cause) => {
                let told = receipts(&lb, &service, FAULTY).remove(0);
                assert_eq!(told["cause"], cause, "{told:#}");
                assert!(told["witnesses"].as_u64().unwrap() >= 3, "{told:#}");
            }
            None => assert_nobody_went(&stage, &lb, &service),
        }
    }
}
