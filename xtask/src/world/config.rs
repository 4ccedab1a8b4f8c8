//! Configuration files for the balancer of a world.

use std::{fmt::Write as _, time::Duration};

use super::{Family, Topology, plan};

#[derive(Clone, Debug)]
pub struct Config {
    pub interfaces: Vec<String>,
    /// Further lines at the top: `manage-addresses = false`.
    pub lines: Vec<String>,
    pub checks: Checks,
    pub services: Vec<Service>,
}

/// The rhythm of checks that do not bring their own ([`Health::Other`]): two failures take a backend down, two
/// successes bring it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Between two of them, and how long each may take.
    pub interval: Duration,
}

impl Checks {
    /// Ten times a second: for machines that are not emulated.
    pub const QUICK: Self = Self { interval: Duration::from_millis(100) };

    /// When requests no longer fail after a backend has died: three times what two checks need at most, which
    /// is two intervals with jitter and the time that a check may take, and that is an interval.
    pub const fn failover_budget(self) -> Duration {
        self.interval.saturating_mul(10)
    }
}

/// One service on the world's service address.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub family: Family,
    pub port: u16,
    pub protocol: &'static str,
    pub mode: &'static str,
    pub granularity: &'static str,
    pub health: Health,
    /// Indices of hosts, from 0.
    pub backends: Vec<u8>,
    pub backend_port: u16,
    /// Of the backends' addresses; in tunnels it may be another one than the service's.
    pub backend_family: Family,
    /// Further lines of the service: `gue-port = 6081`.
    pub lines: Vec<String>,
    /// QUIC: connections follow the server ids in their connection IDs.
    pub server_ids: bool,
}

/// Bytes of a backend's QUIC server id.
pub const SERVER_ID_LENGTH: usize = 4;

/// The QUIC server id of the backend of this index (from 0).
pub const fn server_id(index: u8) -> [u8; SERVER_ID_LENGTH] {
    [0xc0, 0xff, 0xee, index + 1]
}

/// How backends are checked; how often: [`Checks`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    None,
    Tcp {
        port: Option<u16>,
    },
    Http {
        path: &'static str,
    },
    /// A connection to the backend's own address in every mode, so that no probe is among the packets of
    /// clients.
    OwnAddress,
    /// A check of another type, with its own settings and times.
    Other {
        lines: String,
    },
}

impl Config {
    pub fn new(topology: Topology, services: Vec<Service>) -> Self {
        let interfaces = topology.interfaces().iter().map(|&name| name.to_owned()).collect();
        Self { interfaces, lines: Vec::new(), checks: Checks::QUICK, services }
    }

    pub fn render(&self) -> String {
        let mut text = format!("interfaces = {:?}\n", self.interfaces);
        for line in &self.lines {
            text += &format!("{line}\n");
        }
        for service in &self.services {
            text += &service.render(self.checks);
        }
        text
    }
}

impl Service {
    /// The same with backends of the other address family.
    pub fn across_families(self) -> Self {
        let backend_family = match self.family {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        };
        Self { backend_family, ..self }
    }

    /// A TCP service, round robin by flow, checked by connecting.
    pub fn tcp(family: Family, mode: &'static str, port: u16, backends: Vec<u8>, backend_port: u16) -> Self {
        Self {
            name: match family {
                Family::V4 => format!("tcp{port}"),
                Family::V6 => format!("tcp{port}-6"),
            },
            family,
            port,
            protocol: "tcp",
            mode,
            granularity: "flow",
            health: Health::Tcp { port: None },
            backends,
            backend_port,
            backend_family: family,
            lines: Vec::new(),
            server_ids: false,
        }
    }

    /// A UDP service whose backends always count as up.
    pub fn udp(family: Family, mode: &'static str, port: u16, backends: Vec<u8>, backend_port: u16) -> Self {
        let tcp = Self::tcp(family, mode, port, backends, backend_port);
        Self { name: tcp.name.replacen("tcp", "udp", 1), protocol: "udp", health: Health::None, ..tcp }
    }

    /// Addresses of its backends, as the command line prints them.
    pub fn backend_addresses(&self) -> Vec<String> {
        self.backends.iter().map(|&index| self.backend_address(index)).collect()
    }

    /// Address of the service's backend on this host.
    pub fn backend_address(&self, index: u8) -> String {
        self.backend_family.backend_port(index, self.backend_port).to_string()
    }

    /// What clients connect to.
    pub const fn listen(&self) -> std::net::SocketAddr {
        self.family.service_port(self.port)
    }

    /// Names of the hosts behind it.
    pub fn hosts(&self) -> Vec<String> {
        self.backends.iter().map(|&index| plan::backend_name(index)).collect()
    }

    fn render(&self, checks: Checks) -> String {
        let mut text = format!(
            "\n[[service]]\nname = \"{}\"\nlisten = \"{}\"\nprotocol = \"{}\"\nmode = \"{}\"\n\
             scheduler = \"round-robin\"\ngranularity = \"{}\"\n",
            self.name,
            self.listen(),
            self.protocol,
            self.mode,
            self.granularity
        );
        for line in &self.lines {
            text += &format!("{line}\n");
        }
        if self.server_ids {
            let _ = writeln!(text, "quic-server-id-length = {SERVER_ID_LENGTH}");
        }
        text += &self.health.render(checks);
        for &index in &self.backends {
            let _ = write!(text, "[[service.backend]]\naddress = \"{}\"\n", self.backend_address(index));
            if self.server_ids {
                let _ = writeln!(text, "server-id = \"{:08x}\"", u32::from_be_bytes(server_id(index)));
            }
        }
        text
    }
}

impl Health {
    fn render(&self, checks: Checks) -> String {
        let every = checks.interval.as_millis();
        let times = format!("interval = \"{every}ms\"\ntimeout = \"{every}ms\"\nfall = 2\nrise = 2\n");
        match self {
            Self::None => "[service.health]\ntype = \"none\"\n".to_owned(),
            Self::Tcp { port: None } => format!("[service.health]\ntype = \"tcp\"\n{times}"),
            Self::Tcp { port: Some(port) } => format!("[service.health]\ntype = \"tcp\"\nport = {port}\n{times}"),
            Self::Other { lines } => format!("[service.health]\n{lines}\n"),
            Self::OwnAddress => format!("[service.health]\ntype = \"tcp\"\nvia = \"backend\"\n{times}"),
            Self::Http { path } => format!("[service.health]\ntype = \"http\"\npath = \"{path}\"\n{times}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_valid_toml_with_everything_in_its_place() {
        let mut config = Config::new(
            Topology::TwoArm,
            vec![
                Service::tcp(Family::V4, "nat", 80, vec![0, 2], 8080),
                Service { granularity: "packet", ..Service::udp(Family::V6, "full-nat", 53, vec![1], 53) },
            ],
        );
        config.lines.push("manage-addresses = false".to_owned());
        let table: toml::Table = config.render().parse().unwrap();
        assert_eq!(table["interfaces"].as_array().unwrap().len(), 2);
        assert_eq!(table["manage-addresses"].as_bool(), Some(false));
        let services = table["service"].as_array().unwrap();
        assert_eq!(services[0]["listen"].as_str(), Some("10.71.1.100:80"));
        assert_eq!(services[0]["backend"][1]["address"].as_str(), Some("10.71.2.13:8080"));
        assert_eq!(services[0]["health"]["interval"].as_str(), Some("100ms"));
        assert_eq!(services[1]["name"].as_str(), Some("udp53-6"));
        assert_eq!(services[1]["granularity"].as_str(), Some("packet"));
        config.checks = Checks { interval: Duration::from_secs(1) };
        let table: toml::Table = config.render().parse().unwrap();
        for key in ["interval", "timeout"] {
            assert_eq!(table["service"][0]["health"][key].as_str(), Some("1000ms"), "{key}");
        }
        assert_eq!(services[1]["backend"][0]["address"].as_str(), Some("[fd71:2::12]:53"));
    }
}
