//! Packets of a world, kept for the reader of a failed test.

use std::path::Path;

use anyhow::Result;

use super::{World, process::Process};

/// Records at the client's interface and at the switch, into `client.pcap` and `switch.pcap` of the
/// folder: the first 96 bytes of each of the last packets (two files of 10 MB each). Frames that
/// the balancer's program sends on are seen there, and not at the balancer itself.
///
/// # Errors
/// tcpdump cannot be started.
pub fn start(world: &World, folder: &Path) -> Result<Vec<Process>> {
    let places = [(&world.client, "client", "eth0"), (&world.switch, "switch", "br0")];
    places
        .into_iter()
        .map(|(host, name, interface)| {
            let mut command = host.command("tcpdump");
            command.args(["-i", interface, "-n", "-s", "96", "-U", "-Z", "root", "-C", "10", "-W", "2", "-w"]);
            command.arg(folder.join(format!("{name}.pcap")));
            Process::start(&format!("tcpdump {name}"), &mut command, &folder.join(format!("tcpdump-{name}.log")))
        })
        .collect()
}
