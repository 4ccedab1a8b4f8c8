//! Direct server return: backends have the service's address too and answer clients themselves.

mod stage;

use stage::{Stage, clients::assert_balanced, dsr::prepare_backends};
use xtask::world::{Family, Topology, config::Service, servers::WEB_PORT};

#[test]
fn dsr_l2_backends_answer_curl_in_turn_and_past_the_balancer() {
    let stage = Stage::new("dsr_l2", Topology::OneArm, 3);
    prepare_backends(&stage.world);
    let _webs = stage.webs();
    let services = Family::BOTH.map(|family| Service::tcp(family, "dsr-l2", WEB_PORT, vec![0, 1, 2], WEB_PORT));
    let lb = stage.lb(&services);
    for service in &services {
        let _connection = assert_balanced(&stage.world.client, service.listen(), &service.hosts(), 300);
        let flows = lb.json(&["flows", "--service", &service.name, "--limit", "1000"]).unwrap().to_string();
        assert!(flows.contains("established"), "the open connection: {flows}");
        assert!(flows.contains("closing"), "those that curl has ended: {flows}");
        let stats = lb.json(&["stats", &service.name]).unwrap();
        let counted = &stats["services"][0];
        assert_eq!(counted["flows"], 301, "{stats}");
        assert!(counted["forward"]["packets"].as_u64().unwrap() > 300 * 4, "{stats}");
        assert_eq!(counted["reply"]["packets"], 0, "no reply comes by: {stats}");
    }
}
