//! Port pools of `full-nat`: which pool hands out the source ports towards which endpoint.
//!
//! One pool per endpoint (address, port, protocol), shared by all services that use it, so that no
//! 5-tuple is handed out twice. Where a service reaches an address by any port, its flows may go to
//! every endpoint there, so all endpoints of that address and protocol share one pool; it stays
//! whole until its last user is gone.
//!
//! Becoming whole with one pool in use only widens that pool's meaning. With several in use the
//! lowest becomes the whole one, and backends on the others are begun anew on it (see `publish`);
//! until the old flows there end, only the data path's check for a taken tuple keeps the two apart.

use std::collections::BTreeMap;

use lb_common::abi::{Address, Port};

use super::ids::Ids;

/// An address and an IP protocol number.
pub(super) type Host = (Address, u8);

#[derive(Clone, Debug)]
struct Pool {
    /// `None`: all endpoints of the host.
    port: Option<Port>,
    /// Elements of `backends` that name the pool.
    users: u32,
}

/// Pools in use, by host.
#[derive(Clone, Debug)]
pub(super) struct Pools {
    ids: Ids,
    hosts: BTreeMap<Host, BTreeMap<u32, Pool>>,
    /// Configured backends that take any port, by host.
    any_port: BTreeMap<Host, u32>,
}

impl Pools {
    pub(super) fn new(limit: u32) -> Self {
        Self { ids: Ids::new(limit), hosts: BTreeMap::new(), any_port: BTreeMap::new() }
    }

    pub(super) fn limit(&self) -> u32 {
        self.ids.limit()
    }

    /// The pool in use for an endpoint; `None`: it has none yet.
    pub(super) fn find(&self, host: Host, port: Port) -> Option<u32> {
        let pools = self.hosts.get(&host)?;
        let matching = |wanted: Option<Port>| pools.iter().find(|(_, pool)| pool.port == wanted).map(|(&id, _)| id);
        matching(None).or_else(|| matching(Some(port)))
    }

    /// A user of an endpoint more: its pool, made when needed. `None`: no pool is free.
    pub(super) fn join(&mut self, host: Host, port: Port) -> Option<u32> {
        let id = match self.find(host, port) {
            Some(id) => id,
            None => self.make(host, port)?,
        };
        self.hosts.get_mut(&host)?.get_mut(&id)?.users += 1;
        Some(id)
    }

    /// A user found in the maps.
    pub(super) fn adopt(&mut self, id: u32, host: Host, port: Port) {
        self.ids.reserve(id);
        let port = (port != Port::ANY).then_some(port);
        let pool = self.hosts.entry(host).or_default().entry(id).or_insert(Pool { port, users: 0 });
        pool.users += 1;
        if pool.port != port {
            pool.port = None;
        }
    }

    /// A pool found in the maps that nobody uses: not free before [`Pools::give_back`].
    pub(super) fn reserve(&mut self, id: u32) {
        self.ids.reserve(id);
    }

    /// A user less. Returns true when the pool has no user any more: it is out of use then, but its
    /// id is not free before [`Pools::give_back`].
    pub(super) fn part(&mut self, host: Host, id: u32) -> bool {
        let Some(pools) = self.hosts.get_mut(&host) else { return false };
        let Some(pool) = pools.get_mut(&id) else { return false };
        pool.users -= 1;
        if pool.users > 0 {
            return false;
        }
        pools.remove(&id);
        if pools.is_empty() {
            self.hosts.remove(&host);
        }
        true
    }

    /// The id may be used for another endpoint.
    pub(super) fn give_back(&mut self, id: u32) {
        self.ids.give_back(id);
    }

    /// Another configured backend takes any port of the host. Returns true when backends of the
    /// host may have to change pools.
    pub(super) fn begin_any_port(&mut self, host: Host) -> bool {
        let count = self.any_port.entry(host).or_default();
        *count += 1;
        if *count > 1 {
            return false;
        }
        let Some(pools) = self.hosts.get_mut(&host) else { return false };
        if pools.values().all(|pool| pool.port.is_some())
            && let Some(first) = pools.values_mut().next()
        {
            first.port = None;
        }
        pools.len() > 1
    }

    /// One configured backend less that takes any port.
    pub(super) fn end_any_port(&mut self, host: Host) {
        if let Some(count) = self.any_port.get_mut(&host) {
            *count -= 1;
            if *count == 0 {
                self.any_port.remove(&host);
            }
        }
    }

    fn make(&mut self, host: Host, port: Port) -> Option<u32> {
        let id = self.ids.take()?;
        let whole = port == Port::ANY || self.any_port.contains_key(&host);
        let pool = Pool { port: (!whole).then_some(port), users: 0 };
        self.hosts.entry(host).or_default().insert(id, pool);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = (Address::v4([10, 0, 0, 1]), 6);
    const OTHER: Host = (Address::v4([10, 0, 0, 2]), 6);

    fn port(number: u16) -> Port {
        Port::new(number)
    }

    #[test]
    fn an_endpoint_has_one_pool_whoever_uses_it() {
        let mut pools = Pools::new(8);
        assert_eq!(pools.join(HOST, port(80)), Some(0));
        assert_eq!(pools.join(HOST, port(80)), Some(0));
        assert_eq!(pools.join(HOST, port(81)), Some(1));
        assert_eq!(pools.join((HOST.0, 17), port(80)), Some(2));
        assert!(!pools.part(HOST, 0));
        assert!(pools.part(HOST, 0));
        assert_eq!(pools.find(HOST, port(80)), None);
    }

    #[test]
    fn any_port_shares_one_pool_with_all_endpoints_of_the_host() {
        let mut pools = Pools::new(8);
        pools.begin_any_port(HOST);
        let whole = pools.join(HOST, port(80));
        assert_eq!(pools.join(HOST, Port::ANY), whole);
        assert_eq!(pools.join(HOST, port(81)), whole);
        assert_ne!(pools.join(OTHER, port(80)), whole);
    }

    #[test]
    fn the_only_pool_becomes_whole_without_a_move() {
        let mut pools = Pools::new(8);
        let first = pools.join(HOST, port(80));
        assert!(!pools.begin_any_port(HOST));
        assert_eq!(pools.join(HOST, Port::ANY), first);
        assert_eq!(pools.find(HOST, port(80)), first);
    }

    #[test]
    fn the_lowest_of_several_becomes_whole_and_the_others_move() {
        let mut pools = Pools::new(8);
        pools.join(HOST, port(80));
        pools.join(HOST, port(81));
        assert!(pools.begin_any_port(HOST));
        assert_eq!([pools.find(HOST, port(80)), pools.find(HOST, port(81))], [Some(0), Some(0)]);
    }

    #[test]
    fn a_whole_pool_stays_whole_while_it_has_users() {
        let mut pools = Pools::new(8);
        pools.begin_any_port(HOST);
        pools.join(HOST, Port::ANY);
        pools.join(HOST, port(80));
        pools.end_any_port(HOST);
        pools.part(HOST, 0);
        assert_eq!(pools.join(HOST, port(81)), Some(0));
    }

    #[test]
    fn an_id_is_not_used_again_before_it_is_given_back() {
        let mut pools = Pools::new(1);
        pools.join(HOST, port(80));
        assert_eq!(pools.join(OTHER, port(80)), None);
        assert!(pools.part(HOST, 0));
        assert_eq!(pools.join(OTHER, port(80)), None);
        pools.give_back(0);
        assert_eq!(pools.join(OTHER, port(80)), Some(0));
    }

    #[test]
    fn endpoints_found_on_one_pool_make_it_whole() {
        let mut pools = Pools::new(8);
        pools.adopt(3, HOST, port(80));
        pools.adopt(3, HOST, port(81));
        assert_eq!(pools.find(HOST, port(9999)), Some(3));
        assert_eq!(pools.join(OTHER, port(80)), Some(0));
    }
}
