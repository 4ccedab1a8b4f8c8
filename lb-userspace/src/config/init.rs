//! A configuration to begin with, made of what the machine has.

use std::net::SocketAddr;

use super::{health_keys, keys};

/// Beyond this, XDP needs multi-buffer support of driver and program: a page, less the room that the
/// kernel keeps for itself (3,498 bytes of payload on x86-64 with `XDP_PACKET_HEADROOM`).
const MTU_MAX: u32 = 3498;

/// An interface of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitLink {
    pub name: String,
    pub kind: String,
    pub mtu: u32,
    pub up: bool,
    /// With prefix lengths.
    pub addresses: Vec<String>,
    /// Whether a default route leaves by it.
    pub default_route: bool,
}

/// What is known of the configuration to be.
#[derive(Clone, Debug, Default)]
pub struct InitWish {
    /// Empty: the most likely one.
    pub interfaces: Vec<String>,
    pub listen: Option<SocketAddr>,
    pub backends: Vec<SocketAddr>,
}

/// A commented configuration file; valid as it is, also where it only stands for what is missing.
pub fn init(links: &[InitLink], wish: &InitWish) -> String {
    let chosen = if wish.interfaces.is_empty() { likely(links) } else { wish.interfaces.clone() };
    let mut text = String::from(
        "# The configuration of the load balancer. `lb config check FILE` checks it without using it;\n\
         # `lb config schema` prints a JSON Schema for editors.\n\n\
         # This machine has:\n",
    );
    for link in links {
        text.push_str(&format!("#   {}\n", described(link)));
    }
    let names: Vec<String> = chosen.iter().map(|name| format!("{name:?}")).collect();
    text.push_str(&format!(
        "\n# Where packets come in. One for one arm; two where clients and backends are on different sides.\n\
         {} = [{}]\n",
        keys::INTERFACES.name,
        names.join(", ")
    ));
    for link in links.iter().filter(|link| chosen.contains(&link.name)) {
        if link.mtu > MTU_MAX {
            let warning =
                format!("# {} has an MTU of {}: XDP takes at most {MTU_MAX} here, lower it.\n", link.name, link.mtu);
            text.push_str(&warning);
        }
    }
    text.push_str(&service(wish));
    text
}

fn service(wish: &InitWish) -> String {
    let example = wish.listen.is_none();
    let listen = wish.listen.unwrap_or(SocketAddr::from(([203, 0, 113, 10], 80)));
    let sample = if listen.is_ipv4() { "10.0.0.11:8080" } else { "[2001:db8:1::11]:8080" };
    let mut lines = vec![
        "[[service]]".to_owned(),
        format!("{} = \"web\"", keys::SERVICE_NAME.name),
        format!(
            "{} = \"{listen}\"          # what clients connect to; put on the interface and announced",
            keys::LISTEN.name
        ),
        format!(
            "{} = \"full-nat\"               # backends need no change; others: nat, dsr-l2, dsr-ipip",
            keys::MODE.name
        ),
        format!("{} = \"round-robin\"", keys::SCHEDULER.name),
        String::new(),
        "[service.health]".to_owned(),
        format!("{} = \"tcp\"                    # \"http\" asks for a `path`", health_keys::CHECK_TYPE.name),
        format!("{} = \"1s\"", health_keys::INTERVAL.name),
    ];
    for backend in &wish.backends {
        let address = format!("{} = \"{backend}\"", keys::BACKEND_ADDRESS.name);
        lines.extend([String::new(), "[[service.backend]]".to_owned(), address]);
    }
    if wish.backends.is_empty() {
        let backend =
            [String::new(), "[[service.backend]]".to_owned(), format!("{} = \"{sample}\"", keys::BACKEND_ADDRESS.name)];
        lines.extend(backend.map(|line| if example { line } else { format!("# {line}").trim_end().to_owned() }));
    }
    let lead = if example { "\n# A service, to be filled in and uncommented:\n" } else { "\n" };
    let body = lines.into_iter().map(|line| if example { format!("# {line}").trim_end().to_owned() } else { line });
    format!("{lead}{}\n", body.collect::<Vec<_>>().join("\n"))
}

/// The interface that clients most likely come in by.
fn likely(links: &[InitLink]) -> Vec<String> {
    let fits = |link: &&InitLink| link.kind != "loopback" && link.name != "lo";
    let score = |link: &&InitLink| (link.default_route, link.up, !link.addresses.is_empty(), link.kind == "ethernet");
    // The first of several that fit alike.
    let best = links.iter().filter(fits).rev().max_by_key(score);
    vec![best.map_or_else(|| "eth0".to_owned(), |link| link.name.clone())]
}

fn described(link: &InitLink) -> String {
    let InitLink { name, kind, mtu, up, addresses, default_route } = link;
    let addresses = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(" ") };
    let state = if *up { "up" } else { "down" };
    let route = if *default_route { ", default route" } else { "" };
    format!("{name}: {kind}, {state}, MTU {mtu}, {addresses}{route}")
}
