//! Backends that fail under 200 new connections a second: clients do not notice.

mod stage;

use std::time::Instant;

use stage::{
    Stage,
    arrivals::{assert_unnoticed, counter, give_addresses, under_load},
};
use xtask::world::{Family, Topology, config::Service, servers::WEB_PORT};

fn service(mode: &'static str) -> Service {
    Service::tcp(Family::V4, mode, 80, vec![0, 1, 2, 3], WEB_PORT)
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
