//! Our tunnels into Linux's own tunnel devices: a backend without `lb` unpacks with `ipip`, `sit`,
//! `ip6tnl`, `fou`, `gre` and `ip6gre`, and answers. Then the same services with `lb decap` in place of the devices.
//! For kernels that have these devices; `cargo xtask vm` boots such.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::world::{
    Balancer, Family, Launch, Process, Topology, World,
    config::{Checks, Config, Health, Service},
    dsr::{self, Decap},
    http, process,
};

/// Connections to each service.
const REQUESTS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// An emulated machine would have time for nothing else if they came more often.
const CHECKS: Checks = Checks { interval: Duration::from_secs(1) };
/// What `tunnel-source-entropy` chooses from.
const CHOSEN: &str = "10.77.0.0/16";
/// With the largest outer headers packets fit the wires of 1500.
const CLIENT_MTU: u16 = 1400;

/// What is tried: mode, family of the outer header, further lines of the configuration, and the port
/// of both services (of each family).
const CASES: [(&str, Family, &str, u16); 7] = [
    ("dsr-ipip", Family::V4, "", 8001),
    ("dsr-ipip", Family::V6, "", 8002),
    ("dsr-gue", Family::V4, "", 8003),
    ("dsr-gue", Family::V6, "", 8004),
    ("dsr-ipip", Family::V4, "tunnel-source-entropy = \"10.77.0.0/16\"", 8005),
    ("dsr-gre", Family::V4, "", 8006),
    ("dsr-gre", Family::V6, "", 8007),
];

/// What is checked at the service's address, through the tunnel: mode, family, and the port of the service.
const CHECKED: [(&str, Family, u16); 6] = [
    ("dsr-ipip", Family::V4, 8011),
    ("dsr-ipip", Family::V6, 8012),
    ("dsr-gue", Family::V4, 8013),
    ("dsr-gue", Family::V6, 8014),
    ("dsr-gre", Family::V4, 8015),
    ("dsr-gre", Family::V6, 8016),
];

/// Plain FOU, whose port says what is inside: family of the service, the inner packet's protocol number, and
/// the ports of FOU and of the service. On the wire it is `dsr-gue`.
const FOU: [(Family, &str, u16, u16); 2] = [(Family::V4, "4", 5554, 8021), (Family::V6, "41", 5555, 8022)];

/// Makes a world, tries every case and says what came of it.
///
/// # Errors
/// This kernel lacks the devices, or a request was not answered.
pub fn interop(program: &Path) -> Result<()> {
    let world = World::new(Topology::OneArm, 1)?;
    dsr::prepare_backends(&world)?;
    world.client.ip(&[format!("link set eth0 mtu {CLIENT_MTU}")])?;
    let _servers = servers(&world)?;
    let services: Vec<Service> = CASES.iter().flat_map(|case| of_case(*case)).collect();
    let fou = FOU.map(|(family, _, udp, port)| Service {
        health: Health::None,
        backend_family: Family::V4,
        lines: vec![format!("gue-port = {udp}")],
        ..Service::tcp(family, "dsr-gue", port, vec![0], port)
    });
    let checked = CHECKED.map(|(mode, family, port)| Service::tcp(family, mode, port, vec![0], port));
    let services_of_all = [&services[..], &fou, &checked].concat();
    let config = Config { checks: CHECKS, ..Config::new(world.topology, services_of_all) }.render();
    let log = world.folder().join("lb.log");
    let mut lb = Balancer::start(&world, &Launch { program, config: &config, arguments: &[], log: &log })?;
    for service in &services {
        lb.wait_for_backends(&service.name, &service.backend_addresses(), PATIENCE)?;
    }
    ensure!(request(&world, &services[0]).is_err(), "a backend answers although nobody unpacks");
    wait_for_checks(&mut lb, &checked, false)?;

    println!("tunnel devices of the kernel:");
    make_devices(&world)?;
    diagnose(&world, program)?;
    wait_for_checks(&mut lb, &checked, true)?;
    try_all(&world, &mut lb, &[&services[..], &fou].concat())?;
    let devices = received(&world)?;
    ensure!(devices.iter().all(|(_, packets)| *packets > 0), "a device has received nothing: {devices:?}");
    println!("packets out of the devices: {devices:?}");

    println!("lb decap in their place:");
    let names: Vec<String> = DEVICES.iter().map(|(name, _)| format!("link del {name}")).collect();
    world.backends[0].ip(&names)?;
    // The GUE ports stay, and what they open finds no device.
    wait_for_checks(&mut lb, &checked, false)?;
    let sources = Family::BOTH.map(|family| family.lb_backend_side().to_string());
    let decap = Decap::start(&world, program, 0, &[&sources[0], &sources[1], CHOSEN], PATIENCE)?;
    wait_for_checks(&mut lb, &checked, true)?;
    try_all(&world, &mut lb, &services)?;
    for outcome in ["ipip", "gue", "gre"] {
        ensure!(decap.counted(outcome)? > 0, "nothing counted as {outcome}: {}", decap.status()?);
    }
    for outcome in ["malformed", "bad_checksum", "congestion", "internal"] {
        ensure!(decap.counted(outcome)? == 0, "{outcome}: {}", decap.status()?);
    }
    lb.stop()?;
    Ok(())
}

/// Waits until checks of the service's address find that somebody unpacks, or nobody.
fn wait_for_checks(lb: &mut Balancer<'_>, services: &[Service], unpacked: bool) -> Result<()> {
    for service in services {
        let backends = if unpacked { service.backend_addresses() } else { Vec::new() };
        lb.wait_for_backends(&service.name, &backends, PATIENCE)
            .with_context(|| format!("checks of {} through its tunnel", service.name))?;
    }
    println!("checks of the service's address through tunnels: {}", if unpacked { "up" } else { "down" });
    Ok(())
}

fn of_case((mode, outer, line, port): (&'static str, Family, &str, u16)) -> [Service; 2] {
    Family::BOTH.map(|family| Service {
        backend_family: outer,
        health: Health::None,
        lines: vec![line.to_owned()],
        ..Service::tcp(family, mode, port, vec![0], port)
    })
}

/// One on the port of each case: with direct server return it is the service's.
fn servers(world: &World) -> Result<Vec<Process>> {
    let xtask = std::env::current_exe().context("where this program is")?;
    let host = &world.backends[0];
    let checked = CHECKED.iter().map(|(_, _, port)| port);
    let ports = CASES.iter().map(|(_, _, _, port)| port).chain(checked).chain(FOU.iter().map(|(_, _, _, port)| port));
    ports
        .map(|port| {
            let mut command = host.command(&xtask);
            command.args(["serve", "--name", "web1", "--port", &port.to_string()]);
            let log = world.folder().join(format!("web{port}.log"));
            let server = Process::start("web1", &mut command, &log)?;
            let own = Family::V4.backend_port(0, *port);
            process::until("the server answers", PATIENCE, || {
                Ok(host.enter(|| http::get(own, "/", Duration::from_secs(5)))?)
            })?;
            Ok(server)
        })
        .collect()
}

/// Devices by name, with what makes them: for IPv4 in IPv4, IPv6 in IPv4, and both in IPv6; then for both in
/// GRE over either.
const DEVICES: [(&str, &str); 5] = [
    ("lb44", "type ipip local 10.71.2.11"),
    ("lb64", "type sit local 10.71.2.11"),
    ("lb6", "type ip6tnl mode any local fd71:2::11 remote fd71:2::1"),
    ("lbgre", "type gre local 10.71.2.11"),
    ("lbgre6", "type ip6gre local fd71:2::11 remote fd71:2::1"),
];

/// With any source over IPv4, as `tunnel-source-entropy` needs it, and ports that open GUE and FOU.
fn make_devices(world: &World) -> Result<()> {
    let backend = &world.backends[0];
    for (name, kind) in DEVICES {
        backend
            .ip(&[format!("link add name {name} {kind}"), format!("link set {name} up")])
            .with_context(|| format!("no tunnel device of {kind}: `cargo xtask vm` boots kernels that have them"))?;
        backend.set_sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), "0")?;
    }
    backend.set_sysctl("net.ipv4.conf.all.rp_filter", "0")?;
    for family in ["-4", "-6"] {
        backend.output("ip", &[family, "fou", "add", "port", "6080", "gue"]).context("a port that opens GUE")?;
    }
    for (_, protocol, udp, _) in FOU {
        let arguments = ["fou", "add", "port", &udp.to_string(), "ipproto", protocol];
        backend.output("ip", &arguments).context("a port that opens FOU")?;
    }
    Ok(())
}

/// `lb doctor` sees the devices.
fn diagnose(world: &World, program: &Path) -> Result<()> {
    let words = ["doctor", "--backend", "--mode", "dsr-gue", "-o", "json"];
    let mut command = dsr::lb_on(world, program, 0, &words);
    for family in Family::BOTH {
        command.args(["--vip", &family.service().to_string(), "--client", &family.client().to_string()]);
    }
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let diagnosis: Value = serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?;
    let failed: Vec<&Value> =
        diagnosis["checks"].as_array().into_iter().flatten().filter(|check| check["result"] == "fail").collect();
    ensure!(output.status.success() && failed.is_empty(), "lb doctor finds fault: {failed:?}");
    Ok(())
}

fn try_all(world: &World, lb: &mut Balancer<'_>, services: &[Service]) -> Result<()> {
    for service in services {
        let begun = Instant::now();
        for number in 0..REQUESTS {
            request(world, service).with_context(|| format!("request {number} to {service:?}"))?;
        }
        let outer = service.backend_family.name();
        let lines = service.lines.join(", ");
        let seconds = begun.elapsed().as_secs_f32();
        println!(
            "  {} {}: {} in {outer} {lines}: {REQUESTS} answers in {seconds:.1} s",
            service.mode,
            service.port,
            service.family.name()
        );
    }
    if let Some(status) = lb.agent().ended()? {
        bail!("the agent ended with {status}; its log ends:\n{}", lb.agent().log_tail());
    }
    for service in services {
        // Emulated, the agent may take longer to answer than the command line waits.
        let stats = lb.until("lb stats", PATIENCE, |lb| lb.json(&["stats", &service.name]))?;
        let counted = &stats["services"][0];
        ensure!(counted["reply"]["packets"] == 0 && counted["dropped"] == 0, "answers came by the balancer: {stats}");
    }
    Ok(())
}

fn request(world: &World, service: &Service) -> Result<()> {
    let body = world.client.enter(|| http::get(service.listen(), "/", Duration::from_secs(5)))?;
    if body.trim() != "web1" {
        bail!("{body:?} answered");
    }
    Ok(())
}

/// Packets that came out of each device.
fn received(world: &World) -> Result<Vec<(String, u64)>> {
    let text = world.backends[0].output("ip", &["-json", "-statistics", "link", "show"])?;
    let links: Value = serde_json::from_str(&text).context("what ip says")?;
    let all = links.as_array().context("a list of links")?;
    DEVICES
        .iter()
        .map(|(name, _)| {
            let link =
                all.iter().find(|link| link["ifname"] == *name).with_context(|| format!("no {name} in {text}"))?;
            let packets = link["stats64"]["rx"]["packets"].as_u64().context("received packets")?;
            Ok(((*name).to_owned(), packets))
        })
        .collect()
}
