//! Who is configured: many small services, one large one, and two racks whose backends belong to many.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
};

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub services: usize,
    /// Of all services together.
    pub backends: usize,
    /// Backends of the large service.
    pub large: usize,
    /// Backends of a rack, each of another service.
    pub rack: usize,
    /// Slots of a Maglev table.
    pub maglev_table: u32,
}

impl Scale {
    pub const FULL: Self = Self { services: 10_000, backends: 100_000, large: 1000, rack: 1000, maglev_table: 65_537 };
    /// For tests of the bench itself.
    pub const LEAST: Self = Self { services: 60, backends: 600, large: 40, rack: 20, maglev_table: 251 };
}

/// Where all backends are; none of them but the checks' ends exists.
pub const NETWORK: &str = "100.64.0.0/10";
/// Name of the large service.
pub const LARGE: &str = "large";
/// Ports of the checks' ends.
pub const STEADY_PORT: u16 = 9000;
pub const SHARED_PORT: u16 = 9001;
pub const OWN_PORT: u16 = 9002;

#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub listen: SocketAddr,
    maglev: bool,
    pub backends: Vec<Backend>,
}

#[derive(Clone, Copy, Debug)]
pub struct Backend {
    pub address: SocketAddr,
    /// Where it is checked.
    check: Option<SocketAddr>,
    pub rack: Option<Rack>,
}

/// Backends that fail together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rack {
    /// One check tells about all of them.
    Shared,
    /// Each has a check of its own.
    Own,
}

/// Services in the order of their keys: the large one, one for each backend of either rack, the others.
///
/// `checks` is the host where checks end; `None`: nothing is checked.
pub fn services(scale: Scale, checks: Option<Ipv4Addr>) -> Vec<Service> {
    let plain = |address| Backend { address, check: None, rack: None };
    let large = (0..scale.large).map(|n| plain(large_backend(n))).collect();
    let mut services = vec![Service { name: LARGE.to_owned(), listen: listen(0), maglev: true, backends: large }];
    let small = scale.services - 1;
    let mut left = scale.backends - scale.large;
    for n in 0..small {
        let count = left.div_ceil(small - n);
        left -= count;
        let rack = [Rack::Shared, Rack::Own].get(n / scale.rack).copied();
        let mut backends: Vec<Backend> = (0..count).map(|b| plain(backend(n, b))).collect();
        if let Some(rack) = rack {
            backends[0].rack = Some(rack);
            backends[0].address = at(120 + rack as u8, n % scale.rack, 80);
            for backend in &mut backends {
                backend.check = checks.map(|host| check(host, backend));
            }
        }
        services.push(Service { name: format!("s{n}"), listen: listen(n + 1), maglev: false, backends });
    }
    services
}

/// A backend of the large service, configured (below its count) or not.
pub fn large_backend(n: usize) -> SocketAddr {
    at(124, n, 80)
}

fn check(host: Ipv4Addr, backend: &Backend) -> SocketAddr {
    match backend.rack {
        None => SocketAddr::from((host, STEADY_PORT)),
        Some(Rack::Shared) => SocketAddr::from((host, SHARED_PORT)),
        Some(Rack::Own) => SocketAddr::new(backend.address.ip(), OWN_PORT),
    }
}

fn listen(n: usize) -> SocketAddr {
    let [c, d] = u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(198, 18, c, d), 80))
}

fn backend(service: usize, n: usize) -> SocketAddr {
    let [b, c] = u16::try_from(service).unwrap_or(u16::MAX).to_be_bytes();
    SocketAddr::from(([100, 64 + b, c, n as u8 + 1], 80))
}

fn at(second: u8, n: usize, port: u16) -> SocketAddr {
    SocketAddr::from(([100, second, (n / 250) as u8, (n % 250) as u8 + 1], port))
}

/// The configuration file.
pub fn file(interfaces: &[&str], scale: Scale, services: &[Service]) -> String {
    let mut text = format!("interfaces = {interfaces:?}\nmanage-addresses = false\n");
    let _ = writeln!(text, "maglev-table-size = {}\n\n[limits]", scale.maglev_table);
    let (addresses, slots) = (scale.backends + scale.services, 16 * scale.services + 4 * scale.maglev_table as usize);
    for (name, need) in [("services", scale.services), ("backends", scale.backends), ("addresses", addresses)] {
        let _ = writeln!(text, "{name} = {}", (need + need / 4).next_power_of_two());
    }
    let _ = writeln!(text, "selection-slots = {}\nflows = 65536", (2 * slots).next_power_of_two());
    services.iter().for_each(|service| service.write(&mut text));
    text
}

impl Service {
    fn write(&self, text: &mut String) {
        let Self { name, listen, .. } = self;
        let scheduler = if self.maglev { "maglev" } else { "round-robin" };
        let _ = write!(text, "\n[[service]]\nname = \"{name}\"\nlisten = \"{listen}\"\nprotocol = \"tcp\"\n");
        let _ = write!(text, "mode = \"nat\"\nscheduler = \"{scheduler}\"\nbackend = [");
        for Backend { address, check, .. } in &self.backends {
            let _ = match check {
                Some(check) => write!(text, "{{ address = \"{address}\", check-address = \"{check}\" }}, "),
                None => write!(text, "{{ address = \"{address}\" }}, "),
            };
        }
        text.push_str("]\n\n[service.health]\n");
        // Without jitter all checks of a rack come at the same time, second by second.
        text.push_str(if self.backends.iter().any(|backend| backend.check.is_some()) {
            "type = \"http\"\ninterval = \"1s\"\ntimeout = \"900ms\"\nfall = 1\nrise = 1\njitter = 0\n"
        } else {
            "type = \"none\"\n"
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn there_is_as_much_as_asked_for_and_every_address_is_one_backends() {
        for scale in [Scale::FULL, Scale::LEAST] {
            let services = services(scale, Some(Ipv4Addr::LOCALHOST));
            let backends: Vec<&Backend> = services.iter().flat_map(|service| &service.backends).collect();
            assert_eq!((services.len(), backends.len()), (scale.services, scale.backends));
            let addresses: BTreeSet<SocketAddr> = backends.iter().map(|backend| backend.address).collect();
            assert_eq!(addresses.len(), scale.backends);
            for rack in [Rack::Shared, Rack::Own] {
                let of_rack = backends.iter().filter(|backend| backend.rack == Some(rack));
                let checks: BTreeSet<_> = of_rack.clone().map(|backend| backend.check).collect();
                assert_eq!(of_rack.count(), scale.rack);
                assert_eq!(checks.len(), if rack == Rack::Shared { 1 } else { scale.rack });
            }
        }
    }
}
