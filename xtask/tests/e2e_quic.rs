//! QUIC connections of a real client to real servers, over changes of the client's address.

#[path = "stage/quic.rs"]
mod quic;
mod stage;

use std::{collections::BTreeSet, net::IpAddr};

use quic::{Client, Identity, QUIC_PORT, serve};
use stage::{
    Stage,
    dsr::{decap_on_all, prepare_backends},
};
use tokio::runtime::Runtime;
use xtask::world::{Balancer, Family, Topology, config::Service};

const CONNECTIONS: usize = 6;
/// Changes of address of each connection.
const MIGRATIONS: usize = 4;

fn service(family: Family, mode: &'static str, port: u16, server_ids: bool) -> Service {
    Service { server_ids, ..Service::udp(family, mode, port, vec![0, 1, 2], QUIC_PORT) }
}

/// A second address of the client, of each family.
fn second_addresses(stage: &Stage) {
    for address in [other(Family::V4), other(Family::V6)] {
        let prefix = if address.is_ipv4() { "24" } else { "64 nodad" };
        stage.world.client.ip(&[format!("address add {address}/{prefix} dev eth0")]).unwrap();
    }
}

fn other(family: Family) -> IpAddr {
    match family {
        Family::V4 => "10.71.1.3".parse().unwrap(),
        Family::V6 => "fd71:1::3".parse().unwrap(),
    }
}

#[test]
fn connections_survive_every_change_of_the_clients_address() {
    let stage = Stage::new("quic", Topology::TwoArm, 3);
    second_addresses(&stage);
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();
    let identity = Identity::new();
    let _servers: Vec<_> = (0..3).map(|index| serve(&stage.world, index, &identity)).collect();
    let services: Vec<_> = [("nat", 443), ("full-nat", 444)]
        .into_iter()
        .flat_map(|(mode, port)| Family::BOTH.map(|family| service(family, mode, port, true)))
        .collect();
    let lb = stage.lb(&services);
    for service in &services {
        assert_followed(&stage, &runtime, &identity, &lb, service);
    }
}

#[test]
fn connections_of_servers_that_answer_themselves_survive_too() {
    let stage = Stage::new("quic_dsr", Topology::OneArm, 3);
    prepare_backends(&stage.world);
    second_addresses(&stage);
    // With the outer headers packets fit the wires of 1,500.
    stage.world.client.ip(&["link set eth0 mtu 1400".to_owned()]).unwrap();
    let balancers = Family::BOTH.map(|family| family.lb_backend_side().to_string());
    let decaps = decap_on_all(&stage.world, &balancers.each_ref().map(String::as_str));
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();
    let identity = Identity::new();
    let _servers: Vec<_> = (0..3).map(|index| serve(&stage.world, index, &identity)).collect();
    for (mode, outcome) in [("dsr-l2", None), ("dsr-ipip", Some("ipip")), ("dsr-gue", Some("gue"))] {
        // Backends have the service's port.
        let services = Family::BOTH.map(|family| service(family, mode, QUIC_PORT, true));
        let mut lb = stage.lb(&services);
        for service in &services {
            let stats = assert_followed(&stage, &runtime, &identity, &lb, service);
            assert_eq!(stats["services"][0]["reply"]["packets"], 0, "no reply comes by: {stats}");
        }
        if let Some(outcome) = outcome {
            assert!(decaps.iter().all(|decap| decap.counted(outcome).unwrap() > 0), "{mode}: every server had some");
        }
        lb.stop().unwrap();
        lb.done(&["detach"]).unwrap();
    }
}

/// Connections go on at their server whenever their client's address changes. Gives the counters.
fn assert_followed(
    stage: &Stage,
    runtime: &Runtime,
    identity: &Identity,
    lb: &Balancer<'_>,
    service: &Service,
) -> serde_json::Value {
    let addresses = [service.family.client(), other(service.family)];
    let mut names = BTreeSet::new();
    runtime.block_on(async {
        for _ in 0..CONNECTIONS {
            let client = Client::connect(&stage.world.client, addresses[0], service.listen(), identity).await;
            let first = client.ask("hello").await.unwrap();
            for round in 0..MIGRATIONS {
                client.migrate(addresses[(round + 1) % 2]);
                for word in ["again", &"x".repeat(100_000)] {
                    assert_eq!(client.ask(word).await.as_ref(), Ok(&first), "{} round {round}", service.name);
                }
            }
            names.insert(first);
        }
    });
    assert_eq!(names.len(), 3, "every server had a connection: {names:?}");
    let stats = lb.json(&["stats", &service.name]).unwrap();
    let flows = stats["services"][0]["flows"].as_u64().unwrap();
    assert!(flows >= (CONNECTIONS * (1 + MIGRATIONS)) as u64, "each address had a flow: {stats}");
    assert_eq!(stats["services"][0]["dropped"], 0, "{stats}");
    stats
}

#[test]
fn without_server_ids_a_connection_is_lost_with_the_clients_address() {
    let stage = Stage::new("quic_without", Topology::TwoArm, 3);
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();
    let identity = Identity::new();
    let _servers: Vec<_> = (0..3).map(|index| serve(&stage.world, index, &identity)).collect();
    let service = service(Family::V4, "full-nat", 443, false);
    let _lb = stage.lb(std::slice::from_ref(&service));
    let lost = runtime.block_on(async {
        let mut lost = 0;
        for _ in 0..CONNECTIONS {
            let address = Family::V4.client();
            let client = Client::connect(&stage.world.client, address, service.listen(), &identity).await;
            client.ask("hello").await.unwrap();
            client.migrate(address);
            lost += usize::from(client.ask("again").await.is_err());
        }
        lost
    });
    assert!(lost > 0, "new flows go to the servers in turn, which know nothing of each other's connections");
}
