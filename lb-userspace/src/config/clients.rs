//! Reading how clients are told apart, where they are what is scheduled.

use std::net::SocketAddr;

use lb_common::abi::Granularity;

use super::{
    diagnostic::{Finding, Findings, Located, Read},
    keys,
    model::Clients,
    reader::Table,
};

/// Bits of an IPv4 address.
const IPV4_BITS: u8 = 32;

/// The settings of `granularity = "client"`; elsewhere they are wrong.
pub(super) fn read(
    findings: &mut Findings,
    table: &Table<'_>,
    granularity: &Read<Located<Granularity>>,
    listen: &Read<Located<SocketAddr>>,
) -> Read<Clients> {
    let timeout = table.value(findings, &keys::CLIENT_TIMEOUT);
    let netmask = table.find(findings, &keys::CLIENT_NETMASK);
    idle(findings, table, granularity)?;
    let mut clients = Clients { timeout: timeout?.value, ..Clients::default() };
    if let (Some(netmask), Ok(listen)) = (netmask?, listen) {
        if listen.value.is_ipv6() {
            clients.bits.1 = netmask.value;
        } else if netmask.value <= IPV4_BITS {
            clients.bits.0 = netmask.value;
        } else {
            let message = format!("`client-netmask` cannot be {}: an IPv4 address has {IPV4_BITS} bits", netmask.value);
            let finding = Finding::new(&netmask.at, message).and(&listen.at, "clients of an IPv4 service");
            return Err(findings.error(finding));
        }
    }
    Ok(clients)
}

fn idle(findings: &mut Findings, table: &Table<'_>, granularity: &Read<Located<Granularity>>) -> Read<()> {
    let granularity = granularity.as_ref().map_err(|reported| *reported)?;
    if granularity.value == Granularity::Client {
        return Ok(());
    }
    let mut bad = None;
    for key in [keys::CLIENT_TIMEOUT.name, keys::CLIENT_NETMASK.name] {
        if let Some(field) = table.field(key) {
            let name = granularity.value.name();
            let finding = Finding::new(&field.at, format!("`{key}` does not go with granularity \"{name}\""))
                .help(format!("write granularity = \"client\", or leave out `{key}`"));
            bad = Some(findings.error(finding));
        }
    }
    bad.map_or(Ok(()), Err)
}
