//! ICMP errors about probes: they quote a packet to the service's address, and their socket knows the backend's own.

use lb_common::{
    abi::probe::{AnswerKey, Backend},
    icmp::quote::{IcmpError, Quoted},
    parse::Network,
};

use crate::{
    maps::ANSWERS,
    skb::{Check, End, Skb},
};

/// Makes of an error about a probe's packet one about what its socket has sent. `None`: it is about nothing of
/// ours, or cannot be changed.
#[inline(always)]
pub fn turn(skb: &mut Skb, network: &Network) -> Option<()> {
    let error = IcmpError::of(skb, network).ok()?;
    let quoted = Quoted::at(skb, network.v4, error.quotation(), error.end as usize)?;
    let key = AnswerKey {
        local: quoted.network.source,
        service: quoted.network.destination,
        local_port: quoted.source_port,
        service_port: quoted.destination_port,
        protocol: quoted.protocol as u32,
    };
    // SAFETY: copied at once; the agent never writes here.
    let backend: Backend = unsafe { ANSWERS.get(key) }.copied()?;
    // Between families the socket hears nothing of it: the probe ends with its time.
    if backend.address.is_v4() != network.v4 {
        return None;
    }
    let check = Check::of_icmp(error.offset);
    skb.requote(check, &quoted, (backend.address, backend.port))?;
    // The kernel takes nothing from an address that this host has too.
    if network.source == key.service {
        skb.move_address(check, End::Source, key.service, backend.address)?;
    }
    Some(())
}
