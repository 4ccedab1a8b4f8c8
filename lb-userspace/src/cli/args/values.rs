//! From what is typed to values.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// An address, with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: Option<u16>,
}

impl Endpoint {
    pub fn matches(&self, other: SocketAddr) -> bool {
        self.address == other.ip() && self.port.is_none_or(|port| port == other.port())
    }
}

pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let every = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if every < Duration::from_millis(100) {
        return Err("at least 100ms".to_owned());
    }
    Ok(every)
}

/// At least a second: decisions and confirmations are kept in whole ones.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if span < Duration::from_secs(1) { Err("at least 1s".to_owned()) } else { Ok(span) }
}

/// `mode=nat`: the value as it is, or as a text in TOML.
pub(super) fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, as in mode=nat")?;
    if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Err("a key is made of letters, digits and `-`".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

pub(super) fn service_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || !text.chars().all(fits) {
        return Err("a service's name is made of letters, digits, `-`, `_` and `.`".to_owned());
    }
    Ok(text.to_owned())
}

/// As in the configuration file: a backend without a port is one of a service on every port.
pub(super) fn backend(text: &str) -> Result<SocketAddr, String> {
    let Endpoint { address, port } = endpoint(text)
        .map_err(|_| "an IP address and a port, as in 10.0.0.11:8080 or [2001:db8::11]:8080".to_owned())?;
    Ok(SocketAddr::new(address, port.unwrap_or(0)))
}

pub(super) fn endpoint(text: &str) -> Result<Endpoint, String> {
    if let Ok(whole) = text.parse::<SocketAddr>() {
        return Ok(Endpoint { address: whole.ip(), port: Some(whole.port()) });
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().map_err(|_| "an IP address, or one with a port".to_owned())?;
    Ok(Endpoint { address, port: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_a_port_or_not() {
        assert_eq!(endpoint("10.0.0.1").unwrap(), Endpoint { address: [10, 0, 0, 1].into(), port: None });
        assert_eq!(endpoint("[2001:db8::1]:80").unwrap().port, Some(80));
        assert_eq!(endpoint("2001:db8::1").unwrap().port, None);
        assert!(endpoint("example.com").is_err());
        assert_eq!(backend("10.0.0.1"), Ok(([10, 0, 0, 1], 0).into()), "of a service on every port");
        assert_eq!(backend("10.0.0.1:80"), Ok(([10, 0, 0, 1], 80).into()));
        assert!(backend("web1:80").unwrap_err().contains("10.0.0.11:8080"));
    }
}
