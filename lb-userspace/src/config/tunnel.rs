//! How a service's tunnels to its backends are: the keys `gue-port`, `tunnel-...`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::{DontFragment, Mode};
use toml::de::DeValue;

use super::{
    diagnostic::{At, Finding, Findings, Located, Read},
    endpoint::why_unusable,
    keys,
    model::{Tunnel, TunnelSource},
    reader::{Field, Table},
    value::string,
};

/// Lengths of a prefix that source addresses are chosen from: at least two bits are left to choose.
const PREFIX_V4: (u8, u8) = (8, 30);
const PREFIX_V6: (u8, u8) = (32, 126);

pub(super) fn read(findings: &mut Findings, service: &Table<'_>, mode: &Read<Located<Mode>>) -> Read<Tunnel> {
    let gue_port = service.value(findings, &keys::GUE_PORT);
    let fixed = service.find(findings, &keys::TUNNEL_SOURCE);
    let chosen = service.find(findings, &keys::TUNNEL_SOURCE_ENTROPY);
    let dont_fragment = service.value(findings, &keys::TUNNEL_DF);
    let (gue_port, fixed, chosen, dont_fragment) = (gue_port?, fixed?, chosen?, dont_fragment?);
    if let (Some(fixed), Some(chosen)) = (&fixed, &chosen) {
        not_both(findings, fixed, chosen)?;
    }
    if let Ok(mode) = mode {
        let (gue_tunnel, tunnel) = (mode.value == Mode::DsrGue, Mode::is_tunnel(mode.value as u8));
        let port = (gue_port.value != Tunnel::GUE_PORT).then_some(&gue_port.at);
        let df = (dont_fragment.value != DontFragment::Copy).then_some(&dont_fragment.at);
        for (at, name, used) in [
            (port, keys::GUE_PORT.name, gue_tunnel),
            (fixed.as_ref().map(|fixed| &fixed.at), keys::TUNNEL_SOURCE.name, tunnel),
            (chosen.as_ref().map(|chosen| &chosen.at), keys::TUNNEL_SOURCE_ENTROPY.name, tunnel),
            (df, keys::TUNNEL_DF.name, tunnel),
        ] {
            if let Some(at) = at.filter(|_| !used) {
                warn_of_idle_key(findings, name, at, mode);
            }
        }
    }
    let sources = fixed.into_iter().chain(chosen).flat_map(|list| list.value).collect();
    Ok(Tunnel { gue_port: gue_port.value, sources, dont_fragment: dont_fragment.value })
}

fn not_both(
    findings: &mut Findings,
    fixed: &Located<Vec<TunnelSource>>,
    chosen: &Located<Vec<TunnelSource>>,
) -> Read<()> {
    for (v4, family) in [(true, "IPv4"), (false, "IPv6")] {
        if [fixed, chosen].iter().all(|list| list.value.iter().any(|source| source.address.is_ipv4() == v4)) {
            let message = format!("the {family} source of the tunnels is given twice: fixed, and to be chosen");
            let finding = Finding::new(&chosen.at, message).and(&fixed.at, "fixed");
            return Err(findings.error(finding.help("leave out one of the two for this family")));
        }
    }
    Ok(())
}

fn warn_of_idle_key(findings: &mut Findings, name: &str, at: &At, mode: &Located<Mode>) {
    let message = format!("`{name}` has no effect: the service has no such tunnel");
    let why = format!("mode \"{}\"", mode.value.name());
    findings.warning(Finding::new(at, message).and(&mode.at, why));
}

pub(super) const SOURCE_ALLOWED: &str =
    "an IP address, or a list of one for each family: \"192.0.2.1\", [\"192.0.2.1\", \"2001:db8::1\"]";

/// Fixed source addresses.
pub(super) fn source(findings: &mut Findings, field: &Field<'_>) -> Read<Vec<TunnelSource>> {
    one_per_family(findings, field, SOURCE_ALLOWED, |findings, field, written| {
        let address: Option<IpAddr> = written.parse().ok();
        match address.map(|address| (address, why_unusable(address))) {
            Some((address, None)) => Ok(TunnelSource { address, chosen_bits: 0 }),
            Some((_, Some(why))) => {
                let message = format!("`{}` cannot be {written:?}: {why}", field.name);
                Err(findings.error(Finding::new(&field.at, message).help("write an address of this host")))
            }
            None => {
                let message = format!("`{}` cannot be {written:?}", field.name);
                let prefix = written.contains('/').then(|| {
                    format!(
                        "to have addresses chosen from a prefix: {} = {written:?}",
                        keys::TUNNEL_SOURCE_ENTROPY.name
                    )
                });
                let finding = Finding::new(&field.at, message).maybe_help(prefix);
                Err(findings.error(finding.help(format!("allowed: {SOURCE_ALLOWED}"))))
            }
        }
    })
}

pub(super) const ENTROPY_ALLOWED: &str = "a prefix of 8 to 30 bits (IPv4) or 32 to 126 bits (IPv6), or a list of one for each family: \"10.0.0.0/16\", [\"10.0.0.0/16\", \"2001:db8:ff::/96\"]";

/// Prefixes that source addresses are chosen from.
pub(super) fn entropy(findings: &mut Findings, field: &Field<'_>) -> Read<Vec<TunnelSource>> {
    one_per_family(findings, field, ENTROPY_ALLOWED, |findings, field, written| {
        let refuse = |findings: &mut Findings, why: &str, instead: Option<String>| {
            let message = format!("`{}` cannot be {written:?}{why}", field.name);
            let finding = Finding::new(&field.at, message).maybe_help(instead);
            Err(findings.error(finding.help(format!("allowed: {ENTROPY_ALLOWED}"))))
        };
        let parsed = written
            .split_once('/')
            .and_then(|(address, length)| Some((address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?)));
        let Some((address, length)) = parsed else { return refuse(findings, "", None) };
        let (shortest, longest) = if address.is_ipv4() { PREFIX_V4 } else { PREFIX_V6 };
        if !(shortest..=longest).contains(&length) {
            return refuse(findings, &format!(": a prefix of {length} bits"), None);
        }
        if let Some(why) = why_unusable(address) {
            return refuse(findings, &format!(": {why}"), None);
        }
        let network = network(address, length);
        if network != address {
            let instead = format!("write \"{network}/{length}\"");
            return refuse(findings, ": there are bits set behind the prefix", Some(instead));
        }
        let bits = if address.is_ipv4() { 32 } else { 128 };
        Ok(TunnelSource { address, chosen_bits: (bits - length).min(32) })
    })
}

/// The address with all bits behind the prefix cleared. `length` fits the family.
fn network(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address) & !(u32::MAX >> length)).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !(u128::MAX >> length)).into(),
    }
}

/// A text, or a list of at most one text for each family.
fn one_per_family(
    findings: &mut Findings,
    field: &Field<'_>,
    allowed: &'static str,
    read: impl Fn(&mut Findings, &Field<'_>, &str) -> Read<TunnelSource>,
) -> Read<Vec<TunnelSource>> {
    let DeValue::Array(list) = field.value else {
        let written = string(findings, field, allowed)?;
        return Ok(vec![read(findings, field, written)?]);
    };
    if list.is_empty() {
        let finding = Finding::new(&field.at, format!("`{}` is empty", field.name));
        return Err(findings.error(finding.help(format!("allowed: {allowed}"))));
    }
    let mut found: Vec<TunnelSource> = Vec::new();
    for element in field.elements(list) {
        let written = string(findings, &element, allowed)?;
        let source = read(findings, &element, written)?;
        if found.iter().any(|other| other.address.is_ipv4() == source.address.is_ipv4()) {
            let message = format!("{written:?} is the second of its family");
            return Err(findings.error(Finding::new(&element.at, message).help(format!("allowed: {allowed}"))));
        }
        found.push(source);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_behind_a_prefix_are_cleared() {
        let network = |address: &str, length| network(address.parse().unwrap(), length).to_string();
        assert_eq!(network("10.1.2.3", 8), "10.0.0.0");
        assert_eq!(network("10.1.2.3", 30), "10.1.2.0");
        assert_eq!(network("2001:db8::ffff:1", 112), "2001:db8::ffff:0");
    }
}
