//! Services, written into the maps as the agent would.

use lb_common::abi::{
    Address, AddressRoles, Backend, BackendState, Granularity, Mode, Port, Protocol, Scheduler, ServiceInfo,
    ServiceKey, ServiceValue, Slot,
};
use lb_userspace::dataplane::{Dataplane as _, Op};

use super::{LIMITS, Lab, PORTS, backend, source, vip};

/// A service to be published.
#[derive(Clone, Copy)]
pub struct Spec {
    pub v4: bool,
    /// Of the backends; that of the service, unless a test has both.
    pub backends_v4: bool,
    pub protocol: Protocol,
    pub mode: Mode,
    pub granularity: Granularity,
    pub scheduler: Scheduler,
    /// 0: any.
    pub port: u16,
    /// 0: the port that the client asked for.
    pub backend_port: u16,
    pub backends: u8,
}

impl Spec {
    pub fn new(v4: bool, protocol: Protocol, mode: Mode) -> Self {
        Self {
            v4,
            backends_v4: v4,
            protocol,
            mode,
            granularity: Granularity::Flow,
            scheduler: Scheduler::RoundRobin,
            port: 80,
            backend_port: 8080,
            backends: 1,
        }
    }
}

/// A published service.
#[derive(Clone)]
pub struct Served {
    pub spec: Spec,
    pub id: u32,
    /// Ids of backends 1, 2, 3.
    pub backends: Vec<u32>,
    pub value: ServiceValue,
}

impl Lab {
    /// Publishes a service whose backends are all ready.
    pub fn serve(&mut self, spec: Spec) -> Served {
        let number = self.served;
        self.served += 1;
        let backends: Vec<u32> = (0..u32::from(spec.backends)).map(|n| number * 4 + n).collect();
        for (n, &id) in (1..).zip(&backends) {
            let full_nat = spec.mode == Mode::FullNat;
            let pool = number * 4 % LIMITS.port_pools + u32::from(n) - 1;
            if full_nat {
                self.apply(Op::SetPortPool { pool, ports: PORTS.to_vec() });
            }
            let entry = Backend {
                address: backend(spec.backends_v4, n).into(),
                source: if Mode::needs_source(spec.mode as u8) {
                    source(spec.backends_v4).into()
                } else {
                    Address::v6([0; 16])
                },
                port: Port::new(spec.backend_port),
                state: BackendState::Live as u8,
                cause: 0,
                generation: 1,
                service_id: number,
                port_pool: pool,
                weight: 1,
                tunnel_port: Port::ANY,
                dont_fragment: 0,
                source_bits: 0,
                max_flows: 0,
                reserved: 0,
            };
            self.apply(Op::SetBackend { id, backend: entry });
            if spec.mode == Mode::Nat {
                let roles = AddressRoles(AddressRoles::NAT_BACKEND);
                self.apply(Op::SetAddress { address: entry.address, roles });
            }
        }
        let address = Address::from(vip(spec.v4));
        let port = Port::new(spec.port);
        let info = ServiceInfo::new(address, port, spec.protocol as u8, spec.mode as u8);
        self.apply(Op::SetServiceInfo { id: number, info });
        let base = number * 16;
        if !backends.is_empty() {
            self.apply(Op::WriteSelection { base, slots: backends.iter().copied().map(Slot::clean).collect() });
        }
        let value = ServiceValue {
            id: number,
            selection_base: base,
            selection_len: backends.len() as u32,
            generation: 7,
            mode: spec.mode as u8,
            scheduler: spec.scheduler as u8,
            granularity: spec.granularity as u8,
            ..ServiceValue::EMPTY
        };
        let served = Served { spec, id: number, backends, value };
        self.publish(&served, value);
        let any = if spec.port == 0 { AddressRoles::ANY_PORT } else { 0 };
        self.apply(Op::SetAddress { address, roles: AddressRoles(AddressRoles::SERVICE | any) });
        if spec.mode == Mode::FullNat {
            let roles = AddressRoles(AddressRoles::SOURCE);
            self.apply(Op::SetAddress { address: source(spec.backends_v4).into(), roles });
        }
        served
    }

    /// Replaces the service's value.
    pub fn publish(&mut self, served: &Served, value: ServiceValue) {
        let key = ServiceKey::new(vip(served.spec.v4).into(), Port::new(served.spec.port), served.spec.protocol as u8);
        self.apply(Op::SetService { key, value });
    }

    /// Points the service at these backends (1 to 3).
    pub fn select(&mut self, served: &Served, backends: &[u8]) {
        let base = served.value.selection_base + 8;
        let slots: Vec<Slot> = backends.iter().map(|&n| Slot::clean(served.backends[usize::from(n) - 1])).collect();
        let selection_len = slots.len() as u32;
        if !slots.is_empty() {
            self.apply(Op::WriteSelection { base, slots });
        }
        self.publish(served, ServiceValue { selection_base: base, selection_len, ..served.value });
    }

    /// Declares backend `n` of a service live or dead.
    pub fn set_state(&mut self, served: &Served, n: u8, state: BackendState) {
        let id = served.backends[usize::from(n) - 1];
        let mut backend = self.data.read().unwrap().backends[&id];
        backend.state = state as u8;
        self.apply(Op::SetBackend { id, backend });
    }

    /// Gives backend `n` of a service a weight.
    pub fn set_weight(&mut self, served: &Served, n: u8, weight: u32) {
        let id = served.backends[usize::from(n) - 1];
        let backend = Backend { weight, ..self.data.read().unwrap().backends[&id] };
        self.apply(Op::SetBackend { id, backend });
    }

    /// Flows begun so far towards each backend of a service.
    pub fn flows_begun(&self, served: &Served) -> Vec<u64> {
        served.backends.iter().map(|&id| self.stats.backend(id).unwrap().flows).collect()
    }
}
