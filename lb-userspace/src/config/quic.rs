//! QUIC connection IDs: how long the server ids in them are, and which backend has which.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::{
    abi::{Granularity, Protocol},
    quic::{SERVER_ID_MAX, ServerId},
};

use super::{
    diagnostic::{At, Finding, Findings, Located, Read},
    form::{Shaped, Whole},
    read::{BackendDraft, ServiceDraft},
    reader::{Field, Key, LeftOut, Table},
    shape,
    value::string,
};

/// Which connection IDs name a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quic {
    /// Bytes of a server id; 0: connection IDs are not looked at.
    pub server_id_length: u8,
    /// Of the backends that have one.
    pub server_ids: BTreeMap<SocketAddr, ServerId>,
}

pub(super) static SERVER_ID_LENGTH: Key<u8> = Key {
    name: "quic-server-id-length",
    form: &Whole { min: 1, max: SERVER_ID_MAX, unit: "bytes" },
    left_out: LeftOut::Depends("connection IDs are not looked at"),
    doc: "QUIC: connections follow the server id in their connection IDs (QUIC-LB, plaintext), whatever address the \
          client comes from; what names no backend follows its flow. UDP only.",
};

const SERVER_ID_ALLOWED: &str = "bytes in hexadecimal, as many as `quic-server-id-length` says: \"0a1b2c3d\"";

pub(super) static SERVER_ID: Key<Vec<u8>> = Key {
    name: "server-id",
    form: &Shaped::new(SERVER_ID_ALLOWED, server_id, shape::server_id),
    left_out: LeftOut::Depends("none: its connections follow their flows"),
    doc: "QUIC: the server id that this backend puts into its connection IDs; unique within the service.",
};

pub(super) type LengthDraft = Read<Option<Located<u8>>>;
pub(super) type ServerIdDraft = Read<Option<Located<Vec<u8>>>>;

pub(super) fn read_length(findings: &mut Findings, service: &Table<'_>) -> LengthDraft {
    service.find(findings, &SERVER_ID_LENGTH)
}

pub(super) fn read_server_id(findings: &mut Findings, backend: &Table<'_>) -> ServerIdDraft {
    backend.find(findings, &SERVER_ID)
}

/// What can only be judged by looking at the whole service.
pub(super) fn check(findings: &mut Findings, service: &ServiceDraft) {
    let Ok(length) = &service.quic_length else { return };
    let ids = || service.backends.iter().filter_map(|backend| backend.as_ref().ok()).map(|backend| &backend.server_id);
    let written = || ids().filter_map(|id| id.as_ref().ok()?.as_ref());
    let Some(length) = length else {
        if let Some(id) = written().next() {
            let finding = Finding::new(&id.at, "`server-id` has no meaning: the service does not look at them")
                .help(format!("write quic-server-id-length = {} in [[service]]", id.value.len()));
            findings.error(finding);
        }
        return;
    };
    possible(findings, service, length);
    for id in written().filter(|id| id.value.len() != usize::from(length.value)) {
        let message = format!("this server id has {} bytes, and should have {}", id.value.len(), length.value);
        let finding = Finding::new(&id.at, message).and(&length.at, "this is the length of all of them");
        findings.error(finding.help("servers and balancer must agree on it"));
    }
    unique(findings, written());
    let without = ids().filter(|id| matches!(id, Ok(None))).count();
    if without > 0 {
        let message = format!("backends without a `server-id`: {without}; connections to them do not migrate");
        findings.warning(Finding::new(&length.at, message).help("write a server-id in each [[service.backend]]"));
    }
}

fn possible(findings: &mut Findings, service: &ServiceDraft, length: &Located<u8>) {
    if let Ok(protocol) = &service.protocol
        && protocol.value != Protocol::Udp
    {
        let finding = Finding::new(&length.at, "connection IDs are for QUIC, which travels in UDP")
            .and(&protocol.at, format!("protocol \"{}\"", protocol.value.name()))
            .help("write protocol = \"udp\", or leave out `quic-server-id-length`");
        findings.error(finding);
    }
    if let Ok(granularity) = &service.granularity
        && granularity.value == Granularity::Packet
    {
        let finding = Finding::new(&length.at, "a QUIC connection cannot be scheduled packet by packet")
            .and(&granularity.at, "granularity \"packet\"")
            .help("write granularity = \"flow\", or leave out `quic-server-id-length`");
        findings.error(finding);
    }
}

fn unique<'a>(findings: &mut Findings, ids: impl Iterator<Item = &'a Located<Vec<u8>>>) {
    let mut seen: BTreeMap<&[u8], &At> = BTreeMap::new();
    for Located { value, at } in ids {
        let first = *seen.entry(value).or_insert(at);
        if first != at {
            let finding = Finding::new(at, "another backend of this service has this server id already")
                .and(first, "first here")
                .help("each server puts its own into its connection IDs");
            findings.error(finding);
        }
    }
}

/// Everything has been read and judged.
pub(super) fn finish(length: LengthDraft, backends: &[Read<BackendDraft>]) -> Read<Quic> {
    let Some(length) = length? else { return Ok(Quic::default()) };
    let mut server_ids = BTreeMap::new();
    for backend in backends {
        let backend = backend.as_ref().map_err(|reported| *reported)?;
        let address = backend.address.as_ref().map_err(|reported| *reported)?.value;
        if let Some(id) = backend.server_id.as_ref().map_err(|reported| *reported)? {
            server_ids.insert(address, padded(&id.value));
        }
    }
    Ok(Quic { server_id_length: length.value, server_ids })
}

/// As map keys have it.
fn padded(id: &[u8]) -> ServerId {
    std::array::from_fn(|at| id.get(at).copied().unwrap_or(0))
}

fn server_id(findings: &mut Findings, field: &Field<'_>) -> Read<Vec<u8>> {
    let written = string(findings, field, SERVER_ID_ALLOWED)?;
    hexadecimal(written).filter(|id| (1..=usize::from(SERVER_ID_MAX)).contains(&id.len())).ok_or_else(|| {
        let message = format!("`{}` cannot be {written:?}", field.name);
        findings.error(Finding::new(&field.at, message).help(format!("allowed: {SERVER_ID_ALLOWED}")))
    })
}

fn hexadecimal(written: &str) -> Option<Vec<u8>> {
    let digits = written.chars().map(|c| c.to_digit(16)).collect::<Option<Vec<u32>>>()?;
    let byte = |pair: &[u32]| Some((*pair.first()? << 4 | *pair.get(1)?) as u8);
    digits.chunks(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_ids_are_pairs_of_hexadecimal_digits() {
        assert_eq!(hexadecimal("00fFa1"), Some(vec![0, 0xff, 0xa1]));
        for bad in ["0", "0x01", "fg", "a b ", "\u{661}1"] {
            assert_eq!(hexadecimal(bad), None, "{bad:?}");
        }
    }
}
