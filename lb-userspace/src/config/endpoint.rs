//! Addresses with and without a port, and which of them can be balanced.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lb_common::abi::Mode;

use super::{
    diagnostic::{Finding, Findings, Located, Read},
    reader::Field,
    value::string,
};

pub(super) const LISTEN_ALLOWED: &str =
    "an IP address and a port: \"203.0.113.10:80\", \"[2001:db8::10]:80\"; port 0 stands for every port";
pub(super) const BACKEND_ALLOWED: &str = "an IP address and a port: \"10.0.0.11:8080\", \"[2001:db8::11]:8080\"; no port where the service listens on every port";

pub(super) const CHECK_ALLOWED: &str = "an IP address, with a port or without: \"10.1.0.11\", \"10.1.0.11:8008\"";

/// An address as it is written, with a port or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) ip: IpAddr,
    pub(super) port: Option<u16>,
}

impl Endpoint {
    pub(super) fn or_port(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(port))
    }
}

pub(super) fn listen(findings: &mut Findings, field: &Field<'_>) -> Read<SocketAddr> {
    let Endpoint { ip, port } = endpoint(findings, field, LISTEN_ALLOWED)?;
    match port {
        Some(port) => Ok(SocketAddr::new(ip, port)),
        None => {
            let finding = Finding::new(&field.at, format!("`{}` has no port", field.name)).help(format!(
                "write \"{}\", or \"{}\" for every port",
                SocketAddr::new(ip, 80),
                SocketAddr::new(ip, 0)
            ));
            Err(findings.error(finding))
        }
    }
}

pub(super) fn backend(findings: &mut Findings, field: &Field<'_>) -> Read<Endpoint> {
    endpoint(findings, field, BACKEND_ALLOWED)
}

pub(super) fn check(findings: &mut Findings, field: &Field<'_>) -> Read<Endpoint> {
    endpoint(findings, field, CHECK_ALLOWED)
}

/// The backend's address with the port that goes with the service's; `mode`: none that could be read.
pub(super) fn with_port(
    findings: &mut Findings,
    backend: &Located<Endpoint>,
    service: &Located<SocketAddr>,
    mode: Option<&Located<Mode>>,
) -> Read<SocketAddr> {
    let Endpoint { ip, port } = backend.value;
    if let Some(mode) = mode.filter(|mode| Mode::is_one_sided(mode.value as u8)) {
        return with_same_port(findings, backend, service, mode);
    }
    match (service.value.port(), port) {
        (0, None | Some(0)) => Ok(SocketAddr::new(ip, 0)),
        (0, Some(port)) => {
            let finding = Finding::new(&backend.at, format!("the backend cannot have a port of its own ({port})"))
                .and(&service.at, "port 0: every port")
                .help("a service on every port keeps the port that the client asked for")
                .help(format!("write \"{ip}\""));
            Err(findings.error(finding))
        }
        (asked, None | Some(0)) => {
            let finding = Finding::new(&backend.at, "the backend has no port")
                .help(format!("write \"{}\"", SocketAddr::new(ip, asked)))
                .help("only a service on every port (\"ip:0\") has backends without one");
            Err(findings.error(finding))
        }
        (_, Some(port)) => Ok(SocketAddr::new(ip, port)),
    }
}

/// Direct server return: packets keep the port that the client asked for.
fn with_same_port(
    findings: &mut Findings,
    backend: &Located<Endpoint>,
    service: &Located<SocketAddr>,
    mode: &Located<Mode>,
) -> Read<SocketAddr> {
    let Endpoint { ip, port } = backend.value;
    let (asked, name) = (service.value.port(), mode.value.name());
    let Some(port) = port.filter(|port| ![0, asked].contains(port)) else { return Ok(SocketAddr::new(ip, asked)) };
    let wanted = if asked == 0 { "any port".to_owned() } else { format!("port {asked}") };
    let message = format!("with \"{name}\" the backend's port cannot be {port}: clients ask for {wanted}");
    let finding = Finding::new(&backend.at, message)
        .and(&service.at, wanted)
        .and(&mode.at, "packets stay as they are")
        .help(format!("write \"{ip}\", and have the server listen where the service does ({})", service.value))
        .help("ports are translated by \"full-nat\" and \"nat\"");
    Err(findings.error(finding))
}

fn endpoint(findings: &mut Findings, field: &Field<'_>, allowed: &'static str) -> Read<Endpoint> {
    let written = string(findings, field, allowed)?;
    let endpoint = match parse(written) {
        Some(endpoint) => endpoint,
        None => {
            let finding = Finding::new(&field.at, format!("`{}` cannot be {written:?}", field.name))
                .maybe_help(why_not(written))
                .help(format!("allowed: {allowed}"));
            return Err(findings.error(finding));
        }
    };
    if let Some((what, instead)) = unusable(endpoint.ip) {
        let finding = Finding::new(&field.at, format!("`{}` cannot be {written:?}: {what}", field.name));
        return Err(findings.error(finding.help(instead)));
    }
    if endpoint.ip.is_loopback() {
        let message = format!("{} is a loopback address: no packet from a network has it", endpoint.ip);
        findings.warning(Finding::new(&field.at, message).help("write an address that other hosts can reach"));
    }
    Ok(endpoint)
}

fn parse(written: &str) -> Option<Endpoint> {
    // The standard library would take the numeric scope of "[fe80::1%2]:80".
    if written.contains('%') {
        return None;
    }
    if let Ok(address) = written.parse::<SocketAddr>() {
        return Some(Endpoint { ip: address.ip(), port: Some(address.port()) });
    }
    let bare = written.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let ip = match bare {
        Some(inside) => IpAddr::V6(inside.parse::<Ipv6Addr>().ok()?),
        None => written.parse().ok()?,
    };
    Some(Endpoint { ip, port: None })
}

/// What is probably wrong with text that is no address.
fn why_not(written: &str) -> Option<String> {
    if written.contains("://") {
        return Some("leave out the scheme: a balancer of packets knows no URLs".to_owned());
    }
    if written.contains('%') {
        return Some("leave out the zone (\"%...\"): addresses that need one cannot be balanced".to_owned());
    }
    if written.contains('/') {
        return Some("write one address, without a prefix length".to_owned());
    }
    let (host, port) = written.rsplit_once(':')?;
    if host.parse::<IpAddr>().is_ok() && !host.contains(':') || parse(host).is_some_and(|_| host.ends_with(']')) {
        return Some(format!("{port:?} is no port: ports go from 0 to 65535"));
    }
    if port.parse::<u16>().is_ok() && host.contains(|c: char| c.is_ascii_alphabetic()) && !host.contains(':') {
        return Some(
            "names are not looked up, so that no DNS answer can move traffic: write the IP address".to_owned(),
        );
    }
    if host.contains(':') && !host.starts_with('[') {
        return Some("an IPv6 address with a port stands in brackets: \"[2001:db8::10]:80\"".to_owned());
    }
    None
}

/// Why packets cannot go to an address.
pub fn why_unusable(ip: IpAddr) -> Option<&'static str> {
    unusable(ip).map(|(why, _)| why)
}

/// Why packets cannot go to an address, and what to do instead.
fn unusable(ip: IpAddr) -> Option<(&'static str, String)> {
    let other = || "write the unicast address of one host".to_owned();
    match ip {
        IpAddr::V4(ip) if ip.is_broadcast() => Some(("it is the broadcast address", other())),
        IpAddr::V4(ip) if ip.octets()[0] == 0 => Some(("addresses of 0.0.0.0/8 name no host", other())),
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            let v4 = ip.to_ipv4_mapped()?;
            Some(("it is an IPv4 address mapped into IPv6", format!("write the IPv4 address {v4}")))
        }
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            let why = "link-local addresses are valid on one link only, and the data path routes by address alone";
            Some((why, "write a global or unique local (fc00::/7) address".to_owned()))
        }
        ip if ip.is_unspecified() => Some(("the unspecified address names no host", other())),
        ip if ip.is_multicast() => Some(("it is a multicast address", other())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_ports() {
        let endpoint = |ip: &str, port| Some(Endpoint { ip: ip.parse().expect("an address"), port });
        assert_eq!(parse("10.0.0.1:80"), endpoint("10.0.0.1", Some(80)));
        assert_eq!(parse("10.0.0.1"), endpoint("10.0.0.1", None));
        assert_eq!(parse("[2001:db8::1]:0"), endpoint("2001:db8::1", Some(0)));
        assert_eq!(parse("[2001:db8::1]"), endpoint("2001:db8::1", None));
        assert_eq!(parse("2001:db8::1"), endpoint("2001:db8::1", None));
    }

    #[test]
    fn what_is_no_address_is_not_read() {
        for bad in [
            "",
            "10.0.0.1:",
            "10.0.0.1:65536",
            "10.0.0.256:1",
            "010.0.0.1:1",
            "[10.0.0.1]:1",
            "host:80",
            "[fe80::1%1]:1",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn every_usual_mistake_gets_a_word_of_its_own() {
        for (written, word) in [
            ("http://10.0.0.1:80", "scheme"),
            ("[fe80::1%eth0]:80", "zone"),
            ("10.0.0.0/24", "prefix"),
            ("10.0.0.1:70000", "no port"),
            ("[2001:db8::1]:http", "no port"),
            ("web1.example:80", "names are not looked up"),
            ("2001:db8::1:70000", "brackets"),
        ] {
            let why = why_not(written).unwrap_or_default();
            assert!(why.contains(word), "{written}: {why}");
        }
    }
}
