//! Reading the pinned maps: works with the agent dead, and asks a living one only for names.

use std::{collections::BTreeMap, io, net::SocketAddr, path::Path, time::Duration};

use lb_common::abi::{BackendState, Mode, Protocol, ServiceInfo};

use super::{Failure, args::Global, reads::block_on};
use crate::{
    api::{client, model::ServiceList},
    dataplane::{Dataplane, DataplaneError, Tables, kernel::KernelDataplane},
};

/// What the maps hold, and what a living agent calls it.
pub struct Pinned {
    pub tables: Tables,
    /// By service id; `None`: no agent answers.
    names: Option<BTreeMap<u32, String>>,
}

impl Pinned {
    /// # Errors
    /// Nothing is pinned, or the maps cannot be read.
    pub fn read(global: &Global) -> Result<Self, Failure> {
        let unreadable = |error| unreadable(&global.pin_dir, &error);
        let tables = KernelDataplane::open(&global.pin_dir).and_then(|mut maps| maps.read()).map_err(unreadable)?;
        Ok(Self { tables, names: names(global)? })
    }

    pub fn agent_alive(&self) -> bool {
        self.names.is_some()
    }

    /// The service's name, or its address and protocol.
    pub fn service_name(&self, id: u32) -> String {
        let named = self.names.as_ref().and_then(|names| names.get(&id)).cloned();
        named.unwrap_or_else(|| match self.tables.service_info.get(&id) {
            Some(info) => format!("{}/{}", listen(info), protocol(info.protocol)),
            None => format!("id {id}"),
        })
    }

    /// The id of the service with this name, or with this address where no agent knows names.
    ///
    /// # Errors
    /// There is none.
    pub fn service_id(&self, name: &str) -> Result<u32, Failure> {
        let mut known: Vec<String> = Vec::new();
        for id in self.tables.service_info.keys() {
            let own = self.service_name(*id);
            if own == name {
                return Ok(*id);
            }
            known.push(own);
        }
        let (why, next) = match self.names {
            Some(_) => (format!("there are: {}", known.join(", ")), "lb service list"),
            None => (format!("no agent answers to name them; there are: {}", known.join(", ")), "lb stats"),
        };
        Err(Failure::new(format!("no service is named `{name}`"), why, next))
    }

    /// Where the backend with this id is; `None` when the id went to another since `generation`.
    pub fn backend(&self, id: u32, generation: u32) -> Option<SocketAddr> {
        let backend = self.tables.backends.get(&id)?;
        (backend.generation == generation).then(|| SocketAddr::new(backend.address.into(), backend.port.get()))
    }

    pub fn mode(&self, service: u32) -> &'static str {
        let number = self.tables.service_info.get(&service).map(|info| info.mode);
        number.and_then(Mode::from_number).map_or("unknown", Mode::name)
    }
}

pub fn listen(info: &ServiceInfo) -> SocketAddr {
    SocketAddr::new(info.address.into(), info.port.get())
}

pub fn protocol(number: u8) -> &'static str {
    Protocol::from_number(number).map_or("unknown", Protocol::name)
}

pub fn backend_state(number: u8) -> &'static str {
    BackendState::from_number(number).map_or("unknown", BackendState::name)
}

/// The failure to show for pinned maps that cannot be read.
pub fn unreadable(pin_dir: &Path, error: &DataplaneError) -> Failure {
    let what = format!("cannot read the maps under {}", pin_dir.display());
    let next = match error {
        DataplaneError::Kernel { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "repeat it with sudo"
        }
        DataplaneError::Kernel { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            "start the balancer: lb run --config FILE (or name the place: --pin-dir DIR)"
        }
        _ => "use an `lb` of the version that made the maps",
    };
    Failure::new(what, error.to_string(), next)
}

/// Names are no reason to wait for an agent that hangs.
const NAMES_TIMEOUT: Duration = Duration::from_secs(1);

/// A dead agent is no failure here.
fn names(global: &Global) -> Result<Option<BTreeMap<u32, String>>, Failure> {
    let list = block_on(async {
        let asked = client::get::<ServiceList>(&global.socket, "/v1/services");
        tokio::time::timeout(NAMES_TIMEOUT, asked).await
    })?;
    let named = |list: ServiceList| list.services.into_iter().filter_map(|s| Some((s.id?, s.name))).collect();
    Ok(list.ok().and_then(Result::ok).map(named))
}
