//! Which way probes of backends with direct server return go: to the service's address, as the packets
//! of clients do.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{Address, Mode, Port, probe};

use crate::config::{self, Via};

/// The way of a probe to a service's address. Its target is the backend's own: that is where its packets
/// are routed to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Way {
    /// With the port that is asked.
    pub service: SocketAddr,
    /// `None`: by the backend's MAC alone (`dsr-l2`).
    pub tunnel: Option<WayTunnel>,
}

/// A tunnel as the data path makes it for this backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WayTunnel {
    /// One with tunnels.
    pub mode: Mode,
    /// `dsr-gue`: UDP destination port.
    pub gue_port: Option<u16>,
    /// `None`: the address that this host has towards the backend.
    pub source: Option<IpAddr>,
    /// How many bits of the source are chosen for each flow.
    pub source_bits: u8,
    /// [`lb_common::abi::DontFragment`]
    pub dont_fragment: u8,
}

impl Way {
    /// To the service's address where its checks go there and the backend can be asked there; `port`: what
    /// is asked. `None`: to the backend's own.
    pub(super) fn of(service: &config::Service, backend: IpAddr, port: u16) -> Option<Self> {
        let listen = service.listen.ip();
        if service.health.via != Via::Service || listen.is_ipv4() != backend.is_ipv4() {
            return None;
        }
        let tunnel = Mode::is_tunnel(service.mode as u8).then(|| {
            let source = service.tunnel.source(backend);
            WayTunnel {
                mode: service.mode,
                gue_port: (service.mode == Mode::DsrGue).then_some(service.tunnel.gue_port),
                source: source.map(|source| source.address),
                source_bits: source.map_or(0, |source| source.chosen_bits),
                dont_fragment: service.tunnel.dont_fragment as u8,
            }
        });
        Some(Self { service: SocketAddr::new(listen, port), tunnel })
    }

    /// As the programs on the way read it, for a socket that is connected to `backend`.
    pub fn entry(&self, backend: SocketAddr) -> probe::Way {
        let tunnel = self.tunnel.as_ref();
        probe::Way {
            service: self.service.ip().into(),
            backend: backend.ip().into(),
            source: tunnel.and_then(|tunnel| tunnel.source).map_or(Address::v6([0; 16]), Address::from),
            service_port: Port::new(self.service.port()),
            backend_port: Port::new(backend.port()),
            gue_port: tunnel.and_then(|tunnel| tunnel.gue_port).map_or(Port::ANY, Port::new),
            tunnel: tunnel.map_or(0, |tunnel| tunnel.mode as u8),
            dont_fragment: tunnel.map_or(0, |tunnel| tunnel.dont_fragment),
            source_bits: tunnel.map_or(0, |tunnel| tunnel.source_bits),
            reserved: [0; 3],
            sent: 0,
        }
    }
}

/// Where a backend's probes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskedAt {
    /// The service's address, through the backend's tunnel or by its MAC.
    Service,
    /// The backend's own address; with the reason, where the service's was meant.
    Backend(Option<String>),
}

impl AskedAt {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Backend(_) => "backend",
        }
    }
}

/// Why probes go to a backend's own address although its service's checks go to the service's.
pub(super) const OTHER_FAMILY: &str = "the service's address is of another family than the backend's";
