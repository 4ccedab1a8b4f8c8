//! Backends that die, and hosts that know nobody yet.

mod stage;

use std::{
    collections::BTreeSet,
    io,
    net::TcpStream,
    path::Path,
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use stage::{
    MODES, PATIENCE, Stage, XTASK,
    clients::{Connection, Load, curl_names},
    echo::{ECHO_PORT, Echo, ask, udp_client},
};
use xtask::world::{
    Family, Topology,
    config::{Config, Health, Service},
    servers::WEB_PORT,
};

/// The probes' own time: `fall` intervals of 100 ms with 10 % jitter and a timeout of 100 ms; the
/// rest is for a busy machine.
const DETECTED: Duration = Duration::from_secs(1);

#[test]
fn a_killed_backend_costs_only_its_own_requests_and_comes_back() {
    for (mode, family) in [("nat", Family::V4), ("full-nat", Family::V6)] {
        let stage = Stage::new("killed_backend", Topology::TwoArm, 3);
        let mut webs = stage.webs();
        let service = Service::tcp(family, mode, 80, vec![0, 1, 2], WEB_PORT);
        let mut lb = stage.lb(std::slice::from_ref(&service));
        let mut open: Vec<_> =
            (0..9).map(|_| Connection::open(&stage.world.client, service.listen()).unwrap()).collect();
        let owners: Vec<_> = open.iter_mut().map(|connection| connection.ask().unwrap()).collect();
        assert_eq!(owners.iter().collect::<BTreeSet<_>>().len(), 3, "nine flows in turn: {owners:?}");

        let stop = AtomicBool::new(false);
        let (killed, attempts) = thread::scope(|scope| {
            let load = Load::start(scope, &stop, &stage.world.client, service.listen());
            thread::sleep(Duration::from_millis(300));
            let killed = Instant::now();
            webs[1].kill().unwrap();
            let left = [service.backend_address(0), service.backend_address(2)];
            let gone = lb.wait_for_backends(&service.name, &left, DETECTED);
            thread::sleep((killed + DETECTED + Duration::from_secs(1)).saturating_duration_since(Instant::now()));
            let attempts = load.finish();
            gone.unwrap();
            (killed, attempts)
        });
        let failed = |attempt: &&stage::clients::Attempt| attempt.outcome.is_err();
        for attempt in attempts.iter().filter(failed) {
            assert!(attempt.begun + Duration::from_millis(50) > killed, "failed before the kill: {attempt:?}");
            assert!(attempt.begun < killed + DETECTED, "failed after the failover: {attempt:?}");
        }
        assert!(attempts.iter().filter(|a| a.begun > killed + DETECTED).count() > 20);

        for (connection, owner) in open.iter_mut().zip(&owners).filter(|(_, owner)| *owner != "web2") {
            assert_eq!(&connection.ask().unwrap(), owner, "a flow of a living backend was disturbed");
        }
        let micros = lb.json(&["status"]).unwrap()["lastChange"]["detectToWrittenMicros"].as_u64();
        assert!(micros.is_some_and(|micros| micros < 10_000), "from verdict to map: {micros:?} us, promised are 10 ms");

        webs[1].restart(&stage.world, Path::new(XTASK)).unwrap();
        lb.wait_for_backends(&service.name, &service.backend_addresses(), DETECTED).unwrap();
        assert_eq!(curl_names(&stage.world.client, service.listen(), 30).len(), 3);
    }
}

#[test]
fn a_client_of_a_backend_that_fell_silent_gets_a_reset_and_no_silence() {
    for (mode, family) in [("nat", Family::V6), ("full-nat", Family::V4)] {
        let stage = Stage::new("silent_backend", Topology::TwoArm, 2);
        let _webs = stage.webs();
        let _echoes = Echo::on_all(&stage.world);
        let tcp = Service::tcp(family, mode, 80, vec![0, 1], WEB_PORT);
        let health = Health::Tcp { port: Some(WEB_PORT) };
        let udp = Service { health, ..Service::udp(family, mode, 7001, vec![0, 1], ECHO_PORT) };
        let reset = Service {
            lines: vec!["on-down = \"reset\"".to_owned()],
            health: udp.health.clone(),
            ..Service::udp(family, mode, 7002, vec![0, 1], ECHO_PORT)
        };
        let mut lb = stage.lb(&[tcp.clone(), udp.clone(), reset.clone()]);
        let mut streams: Vec<_> =
            (0..4).map(|_| Connection::open(&stage.world.client, tcp.listen()).unwrap()).collect();
        let owners: Vec<_> = streams.iter_mut().map(|stream| stream.ask().unwrap()).collect();
        let asked = |service: &Service| -> Vec<_> {
            let sockets = (0..4).map(|_| udp_client(&stage.world.client, 0, service.listen()).unwrap());
            sockets.map(|socket| ask(&socket, "who").map(|owner| (socket, owner)).unwrap()).collect()
        };
        let (moved, cut) = (asked(&udp), asked(&reset));

        // The cable is cut: nothing answers any more, not even with a reset.
        stage.world.switch.ip(&["link set web2 down"]).unwrap();
        for service in [&tcp, &udp, &reset] {
            lb.wait_for_backends(&service.name, &[service.backend_address(0)], 2 * DETECTED).unwrap();
        }
        for (stream, owner) in streams.iter_mut().zip(&owners) {
            let begun = Instant::now();
            match (owner.as_str(), stream.ask()) {
                ("web2", Err(error)) => {
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{mode} {family:?}");
                    assert!(begun.elapsed() < Duration::from_millis(500), "reset only after {:?}", begun.elapsed());
                }
                ("web2", Ok(name)) => panic!("a flow of web2 was answered by {name}"),
                (_, answer) => assert_eq!(&answer.unwrap(), owner),
            }
        }
        // Datagrams of its flows go to the other one, which is what is done where nothing else is asked for.
        assert!(moved.iter().any(|(_, owner)| owner == "web2"), "{moved:?}");
        for (socket, _) in &moved {
            assert_eq!(ask(socket, "still there").unwrap(), "web1", "{mode} {family:?}");
        }
        // Where `on-down` says so, their clients learn that nobody is there.
        assert!(cut.iter().any(|(_, owner)| owner == "web2"), "{cut:?}");
        for (socket, owner) in &cut {
            match (owner.as_str(), ask(socket, "still there")) {
                ("web2", Err(error)) => assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{mode} {family:?}"),
                ("web2", Ok(name)) => panic!("a flow of web2 was answered by {name}"),
                (_, answer) => assert_eq!(&answer.unwrap(), owner),
            }
        }
        let names = curl_names(&stage.world.client, tcp.listen(), 20);
        assert_eq!(names.keys().collect::<Vec<_>>(), ["web1"]);
    }
}

#[test]
fn without_any_backend_connections_are_refused_at_once() {
    let stage = Stage::new("no_backend", Topology::TwoArm, 2);
    let mut services = Vec::new();
    for family in Family::BOTH {
        let health = Health::Tcp { port: Some(WEB_PORT) };
        services.push(Service::tcp(family, "full-nat", 80, vec![0, 1], WEB_PORT));
        services.push(Service { health, ..Service::udp(family, "nat", 7001, vec![0, 1], ECHO_PORT) });
    }
    let mut lb = stage.lb_at_once(&Config::new(stage.world.topology, services.clone()));
    for service in &services {
        lb.wait_for_backends(&service.name, &[], PATIENCE).unwrap();
        lb.until("both backends are known to be down", PATIENCE, |lb| {
            let list = lb.json(&["backend", "list", &service.name])?;
            let down = list["backends"].as_array().into_iter().flatten().filter(|b| b["health"]["state"] == "down");
            anyhow::ensure!(down.count() == 2, "{list}");
            Ok(())
        })
        .unwrap();
        let begun = Instant::now();
        let error = if service.protocol == "tcp" {
            let connect = || TcpStream::connect_timeout(&service.listen(), Duration::from_secs(5));
            stage.world.client.enter(connect).expect_err("nobody is there")
        } else {
            ask(&udp_client(&stage.world.client, 0, service.listen()).unwrap(), "hello").expect_err("nobody is there")
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{service:?}");
        assert!(begun.elapsed() < Duration::from_millis(500), "refused only after {:?}", begun.elapsed());
        let refused = lb.json(&["stats", &service.name]).unwrap()["services"][0]["refused"].as_u64();
        assert!(refused.is_some_and(|refused| refused >= 1), "the refusal was not counted: {refused:?}");
    }
}

#[test]
fn cold_neighbours_cost_at_most_a_retransmission() {
    for topology in Topology::BOTH {
        let stage = Stage::new("cold_neighbours", topology, 1);
        let _web = stage.web(0);
        let mut services = Vec::new();
        for (port, mode) in (80..).zip(MODES) {
            for family in Family::BOTH {
                // Probes would keep the backend's address warm.
                let tcp = Service::tcp(family, mode, port, vec![0], WEB_PORT);
                services.push(Service { health: Health::None, ..tcp });
            }
        }
        let _lb = stage.lb(&services);
        for service in &services {
            let mut open = Connection::open(&stage.world.client, service.listen()).unwrap();
            assert_eq!(open.ask().unwrap(), "web1");
            for host in [&stage.world.lb, &stage.world.backends[0], &stage.world.client] {
                // The old flow first, then a new one.
                host.ip(&["neigh flush all"]).unwrap();
                let begun = Instant::now();
                assert_eq!(open.ask().unwrap(), "web1");
                assert!(begun.elapsed() < Duration::from_millis(1500), "an open flow took {:?}", begun.elapsed());

                host.ip(&["neigh flush all"]).unwrap();
                let begun = Instant::now();
                curl_names(&stage.world.client, service.listen(), 1);
                assert!(begun.elapsed() < Duration::from_millis(1500), "a new flow took {:?}", begun.elapsed());
            }
        }
    }
}
