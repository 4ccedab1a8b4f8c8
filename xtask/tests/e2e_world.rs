//! The worlds that all other end-to-end tests stand on: hosts reach each other, servers answer, and
//! nothing is left behind. The kernel's own forwarding stands in for the balancer.

mod stage;

use std::{fs, path::Path, process::Command, time::Duration};

use stage::{XTASK, read_names};
use xtask::{
    shell,
    world::{
        Family, Process, Topology, World, http, process,
        servers::{DNS_PORT, WEB_PORT, Web, dns},
    },
};

/// Set for the child of `what_a_killed_run_leaves_is_removed_by_the_next`: the file to report to.
const VICTIM: &str = "LBW_TEST_VICTIM";

fn forward_by_kernel(world: &World) {
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        world.lb.set_sysctl(key, "1").unwrap();
    }
}

#[test]
fn the_client_reaches_every_backend_through_the_balancers_host() {
    for topology in Topology::BOTH {
        let world = World::new(topology, 3).unwrap();
        forward_by_kernel(&world);
        let webs = Web::on_all(&world, Path::new(XTASK)).unwrap();
        for family in Family::BOTH {
            for web in &webs {
                let address = family.backend_port(web.index(), WEB_PORT);
                let body = world.client.enter(|| http::get(address, "/", Duration::from_secs(2)));
                assert_eq!(body.unwrap().trim(), web.name(), "{topology:?} {family:?}");
            }
        }
    }
}

#[test]
fn dns_servers_answer_with_their_names() {
    let world = World::new(Topology::TwoArm, 2).unwrap();
    forward_by_kernel(&world);
    let _servers = [dns(&world, 0).unwrap(), dns(&world, 1).unwrap()];
    for family in Family::BOTH {
        for (index, name) in (0..).zip(world.backend_names()) {
            let at = format!("@{}", family.backend(index));
            let port = DNS_PORT.to_string();
            let args = [&at, "-p", &port, "+short", "+tries=1", "+time=2", "TXT", "whoami.test"];
            assert_eq!(world.client.output("dig", &args).unwrap().trim(), format!("\"{name}\""));
        }
    }
}

#[test]
fn a_killed_web_server_refuses_connections_and_comes_back() {
    let world = World::new(Topology::OneArm, 1).unwrap();
    forward_by_kernel(&world);
    let mut web = Web::start(&world, 0, Path::new(XTASK)).unwrap();
    let address = Family::V4.backend_port(0, WEB_PORT);
    let get = || world.client.enter(|| http::get(address, "/", Duration::from_secs(2)));
    assert_eq!(get().unwrap(), "web1\n");
    web.kill().unwrap();
    assert_eq!(get().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    web.restart(&world, Path::new(XTASK)).unwrap();
    assert_eq!(get().unwrap(), "web1\n");
}

#[test]
fn the_small_web_server_of_this_project_answers_too() {
    let world = World::new(Topology::OneArm, 1).unwrap();
    forward_by_kernel(&world);
    let mut command = world.backends[0].command(XTASK);
    command.args(["serve", "--name", "web1", "--port", "8081"]);
    let _server = Process::start("serve", &mut command, &world.folder().join("serve.log")).unwrap();
    for family in Family::BOTH {
        let address = family.backend_port(0, 8081);
        let body = process::until("serve answers", Duration::from_secs(5), || {
            Ok(world.client.enter(|| http::get(address, "/", Duration::from_secs(1)))?)
        });
        assert_eq!(body.unwrap(), "web1\n");
    }
}

#[test]
fn a_world_that_ends_leaves_nothing() {
    let world = World::new(Topology::TwoArm, 2).unwrap();
    let name = world.name.clone();
    let _webs = Web::on_all(&world, Path::new(XTASK)).unwrap();
    assert!(!traces(&name).is_empty());
    drop(world);
    assert_eq!(traces(&name), Vec::<String>::new());
}

/// The child of this test, which is this test again, makes a world and is killed in it.
#[test]
fn what_a_killed_run_leaves_is_removed_by_the_next() {
    if let Some(report) = std::env::var_os(VICTIM) {
        let world = World::new(Topology::OneArm, 1).unwrap();
        let _web = Web::start(&world, 0, Path::new(XTASK)).unwrap();
        let unfinished = Path::new(&report).with_extension("unfinished");
        fs::write(&unfinished, &world.name).unwrap();
        fs::rename(&unfinished, &report).unwrap();
        std::thread::sleep(Duration::from_secs(60));
        unreachable!("should have been killed");
    }
    let report = std::env::temp_dir().join(format!("lbw-victim-{}", std::process::id()));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_a_killed_run_leaves_is_removed_by_the_next"])
        .env(VICTIM, &report)
        .spawn()
        .unwrap();
    let name = process::until("the victim's world", Duration::from_secs(30), || Ok(fs::read_to_string(&report)?));
    child.kill().unwrap();
    child.wait().unwrap();
    let name = name.unwrap();
    fs::remove_file(&report).unwrap();
    assert!(!traces(&name).is_empty(), "a killed run cannot have cleaned up");

    let next = World::new(Topology::OneArm, 1).unwrap();
    assert_eq!(traces(&name), Vec::<String>::new());
    assert!(!traces(&next.name).is_empty());
}

#[test]
fn a_namespace_with_a_name_like_ours_is_left_alone() {
    let foreign = format!("lbw-test-{}", std::process::id());
    shell::output(shell::tool("ip").args(["netns", "add", &foreign])).unwrap();
    drop(World::new(Topology::OneArm, 1));
    let left = read_names("/run/netns").contains(&foreign);
    shell::output(shell::tool("ip").args(["netns", "del", &foreign])).unwrap();
    assert!(left);
}

/// What there is of a world: namespaces, folders, pins, processes that run in its folder.
fn traces(world: &str) -> Vec<String> {
    let mut traces = Vec::new();
    for folder in ["/run/netns", "/run/lbw", "/sys/fs/bpf"] {
        let ours =
            read_names(folder).into_iter().filter(|name| *name == world || name.starts_with(&format!("{world}-")));
        traces.extend(ours.map(|name| format!("{folder}/{name}")));
    }
    for pid in read_names("/proc").into_iter().filter(|name| name.parse::<u32>().is_ok()) {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.contains(&format!("/run/lbw/{world}/")) {
            traces.push(format!("process {pid}: {}", line.replace('\0', " ")));
        }
    }
    traces
}
