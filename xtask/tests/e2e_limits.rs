//! Backends with `max-connections`: clients of a full service are refused at once, and those that are
//! connected notice nothing.

mod stage;

use std::{collections::BTreeMap, io::ErrorKind};

use stage::{PATIENCE, Stage, clients::Connection};
use xtask::world::{
    Balancer, Family, Topology,
    config::{Config, Service},
    process,
    servers::WEB_PORT,
};

/// Of each backend.
const MOST: usize = 5;

#[test]
fn full_backends_get_no_more_connections_and_those_they_have_go_on() {
    let stage = Stage::new("full_backends", Topology::TwoArm, 2);
    let _webs = stage.webs();
    for (family, mode) in [(Family::V4, "nat"), (Family::V6, "full-nat")] {
        let service = Service::tcp(family, mode, 80, vec![0, 1], WEB_PORT);
        let limit = format!("[[service.backend]]\nmax-connections = {MOST}\n");
        let config = Config::new(stage.world.topology, vec![service.clone()]).render();
        let mut lb = stage.lb_running(&config.replace("[[service.backend]]\n", &limit));
        lb.wait_for_backends(&service.name, &service.backend_addresses(), PATIENCE).unwrap();

        let open = || Connection::open(&stage.world.client, service.listen());
        let mut connections: Vec<Connection> = (0..2 * MOST).map(|_| open().unwrap()).collect();
        assert_eq!(names(&mut connections).into_values().collect::<Vec<_>>(), [MOST, MOST], "{mode}");
        assert_eq!(open().err().expect("both are full").kind(), ErrorKind::ConnectionRefused, "{mode}");
        assert!(refused(&lb) >= 1, "{mode}");
        // Two of them end, and make room for two.
        connections.truncate(2 * MOST - 2);
        process::until("there is room again", PATIENCE, || {
            connections.push(open()?);
            Ok(())
        })
        .unwrap();
        process::until("and for another", PATIENCE, || {
            connections.push(open()?);
            Ok(())
        })
        .unwrap();
        assert_eq!(names(&mut connections).into_values().collect::<Vec<_>>(), [MOST, MOST], "{mode}");
        assert_eq!(open().err().expect("both are full again").kind(), ErrorKind::ConnectionRefused, "{mode}");
        lb.stop().unwrap();
        lb.done(&["detach"]).unwrap();
    }
}

/// Connections to each backend, every one of which answers.
fn names(connections: &mut [Connection]) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for connection in connections {
        *names.entry(connection.ask().unwrap()).or_default() += 1;
    }
    names
}

fn refused(lb: &Balancer) -> u64 {
    let stats = lb.json(&["stats"]).unwrap();
    let verdict = stats["verdicts"].as_array().unwrap().iter().find(|verdict| verdict["reason"] == "backends_full");
    verdict.and_then(|verdict| verdict["packets"].as_u64()).expect("a count")
}
