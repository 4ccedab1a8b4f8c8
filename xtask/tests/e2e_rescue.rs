//! Backends that fail under 200 new connections a second: clients do not notice.

mod stage;

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket_with};
use stage::Stage;
use xtask::world::{Balancer, Family, Namespace, Topology, config::Service, servers::WEB_PORT};

/// From one connection to the next.
const PACE: Duration = Duration::from_millis(5);
/// How many addresses the clients have.
const CLIENTS: u8 = 16;
/// What a client takes for a failure: it gives up, or complains.
const TOO_LATE: Duration = Duration::from_millis(1000);

/// One connection with one request.
#[derive(Debug)]
struct Attempt {
    begun: Instant,
    took: Duration,
    outcome: Result<(), String>,
}

/// Connections at a fixed pace, each on a thread of its own, from [`CLIENTS`] addresses in turn. `fault` happens
/// after a second; then three more pass.
fn under_load(client: &Namespace, service: SocketAddr, fault: impl FnOnce()) -> Vec<Attempt> {
    let attempts = Mutex::new(Vec::new());
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0u32..800 {
                let due = begun + PACE * number;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let from = IpAddr::from([10, 71, 1, 20 + (number % u32::from(CLIENTS)) as u8]);
                let attempts = &attempts;
                scope.spawn(move || {
                    client.join_thread();
                    let begun = Instant::now();
                    let outcome = request(from, service).map_err(|error| error.to_string());
                    attempts.lock().unwrap().push(Attempt { begun, took: begun.elapsed(), outcome });
                });
            }
        });
        thread::sleep(Duration::from_secs(1));
        fault();
    });
    attempts.into_inner().unwrap()
}

fn request(from: IpAddr, service: SocketAddr) -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, rustix::net::SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddr::new(from, 0))?;
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Send, Some(5 * TOO_LATE))?;
    connect(&socket, &service)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(5 * TOO_LATE))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: world\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(io::Error::other(answer)) }
}

fn give_addresses(stage: &Stage) {
    for n in 0..CLIENTS {
        stage.world.client.ip(&[&format!("addr add 10.71.1.{}/24 dev eth0", 20 + n)]).unwrap();
    }
}

fn service(mode: &'static str) -> Service {
    Service::tcp(Family::V4, mode, 80, vec![0, 1, 2, 3], WEB_PORT)
}

/// Nobody failed. Gives the slowest.
fn assert_unnoticed(what: &str, attempts: &[Attempt]) -> Duration {
    assert!(attempts.len() >= 798, "{what}: {}", attempts.len());
    let failed = |attempt: &&Attempt| attempt.outcome.is_err() || attempt.took > TOO_LATE;
    let failed: Vec<_> = attempts.iter().filter(failed).collect();
    let slow = attempts.iter().filter(|attempt| attempt.took > Duration::from_millis(50)).count();
    let worst = attempts.iter().map(|attempt| attempt.took).max().unwrap();
    println!("{what}: {} of {} failed, {slow} took over 50 ms, the longest {worst:?}", failed.len(), attempts.len());
    assert!(failed.is_empty(), "{what}: {failed:#?}");
    worst
}

fn counter(lb: &Balancer<'_>, service: &Service, name: &str) -> u64 {
    lb.json(&["stats", &service.name]).unwrap()["services"][0][name].as_u64().unwrap()
}

#[test]
fn a_killed_process_fails_no_connection() {
    for mode in ["nat", "full-nat"] {
        let stage = Stage::new("rescue_killed", Topology::TwoArm, 4);
        give_addresses(&stage);
        let mut webs = stage.webs();
        let service = service(mode);
        let lb = stage.lb(std::slice::from_ref(&service));
        let mut killed = None;
        let mut attempts = under_load(&stage.world.client, service.listen(), || {
            webs[1].kill().unwrap();
            killed = Some(Instant::now());
        });
        // A connection that the process had taken dies with it, whoever balances.
        let killed = killed.unwrap();
        let before = attempts.len();
        attempts.retain(|attempt| attempt.outcome.is_ok() || attempt.begun > killed);
        assert!(attempts.len() + 2 >= before, "{mode}: {} connections of the process", before - attempts.len());
        assert_unnoticed(&format!("{mode}, process killed"), &attempts);
        assert!(counter(&lb, &service, "rescued") > 0, "nothing was rescued");
    }
}

#[test]
fn a_host_that_falls_silent_fails_no_connection() {
    for mode in ["nat", "full-nat"] {
        let stage = Stage::new("rescue_silent", Topology::TwoArm, 4);
        give_addresses(&stage);
        let _webs = stage.webs();
        let service = service(mode);
        let mut lb = stage.lb(std::slice::from_ref(&service));
        let cut = || stage.world.switch.ip(&["link set web2 down"]).unwrap();
        let attempts = under_load(&stage.world.client, service.listen(), cut);
        assert_unnoticed(&format!("{mode}, link down"), &attempts);
        assert!(counter(&lb, &service, "rescued") > 0, "nothing was rescued");
        stage.world.switch.ip(&["link set web2 up"]).unwrap();
        lb.wait_for_backends(&service.name, &service.backend_addresses(), stage::PATIENCE).unwrap();
    }
}

#[test]
fn a_client_whose_packets_get_lost_takes_no_backend_out_of_turn() {
    let stage = Stage::new("rescue_broken_client", Topology::TwoArm, 4);
    give_addresses(&stage);
    let _webs = stage.webs();
    let service = service("nat");
    let lb = stage.lb(std::slice::from_ref(&service));
    // One backend's firewall drops one client's packets, and the other clients are as ever.
    let rules = "add table ip broken; add chain ip broken in { type filter hook input priority 0; }; \
                 add rule ip broken in ip saddr 10.71.1.20 drop";
    let nft = stage.world.backends[1].command("nft").arg(rules).status().unwrap();
    assert!(nft.success());
    let attempts = under_load(&stage.world.client, service.listen(), || ());
    assert!(attempts.iter().all(|attempt| attempt.outcome.is_ok()), "{attempts:#?}");
    let list = lb.json(&["backend", "list", &service.name]).unwrap();
    let used = list["backends"].as_array().unwrap().iter().filter(|backend| backend["effective"]["used"] == true);
    assert_eq!(used.count(), 4, "{list}");
    let log = std::fs::read_to_string(stage.folder().join("lb.log")).unwrap();
    assert!(!log.contains("suspended"), "{log}");
}
