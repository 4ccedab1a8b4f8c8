//! The tunnel to a backend, as its element of the map `backends` describes it. It stays with the
//! element while the service leaves, so that flows of a service that is gone keep their tunnel.

use std::net::IpAddr;

use lb_common::abi::{Address, Backend, Mode, Port};

use super::service::ServiceRef;
use crate::config;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tunnel {
    /// `dsr-gue`: UDP destination port.
    pub port: Port,
    /// [`lb_common::abi::DontFragment`]
    pub dont_fragment: u8,
    /// Configured source; `None`: the host's own towards the backend.
    pub source: Option<Address>,
    /// How many bits of the source are chosen for each flow.
    pub source_bits: u8,
}

impl Tunnel {
    /// Of modes without tunnels.
    pub(super) const NONE: Self = Self { port: Port::ANY, dont_fragment: 0, source: None, source_bits: 0 };

    /// As configured.
    pub(super) fn configured(me: ServiceRef, config: &config::Tunnel, backend: IpAddr) -> Self {
        if !Mode::is_tunnel(me.mode) {
            return Self::NONE;
        }
        let gue = me.mode == Mode::DsrGue as u8;
        let source = config.source(backend);
        Self {
            port: if gue { Port::new(config.gue_port) } else { Port::ANY },
            dont_fragment: config.dont_fragment as u8,
            source: source.map(|source| source.address.into()),
            source_bits: source.map_or(0, |source| source.chosen_bits),
        }
    }

    /// As found in the maps.
    pub(super) fn adopted(backend: &Backend) -> Self {
        let Backend { tunnel_port: port, dont_fragment, source_bits, .. } = *backend;
        Self { port, dont_fragment, source: None, source_bits }
    }
}
