//! Which elements of the desired tables changed, and with which generation: what a plan has to look
//! at when the tables before are known.

use std::collections::{BTreeSet, VecDeque};

use lb_common::abi::{Address, QuicKey, ServiceKey};

/// Entries that are kept; beyond, a plan compares whole tables.
const KEPT: usize = 1 << 18;

/// One element of the desired tables.
#[derive(Clone, Copy, Debug)]
pub(super) enum Element {
    Address(Address),
    Service(ServiceKey),
    ServiceInfo(u32),
    Backend(u32),
    /// By its first slot.
    Selection(u32),
    Pool(u32),
    QuicId(QuicKey),
}

/// A log of changed elements, in the order of their generations.
#[derive(Clone, Debug)]
pub struct Touched {
    /// Every change after this generation is in the log.
    complete_since: u32,
    entries: VecDeque<(u32, Element)>,
}

/// The elements that may differ between two generations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub addresses: BTreeSet<Address>,
    pub services: BTreeSet<ServiceKey>,
    pub service_info: BTreeSet<u32>,
    pub backends: BTreeSet<u32>,
    pub selection: BTreeSet<u32>,
    pub port_pools: BTreeSet<u32>,
    pub quic_ids: BTreeSet<QuicKey>,
}

impl Touched {
    /// Nothing has changed since this generation.
    pub(super) fn since(generation: u32) -> Self {
        Self { complete_since: generation, entries: VecDeque::new() }
    }

    /// The element changes with this generation, which is never older than the last one told.
    pub(super) fn note(&mut self, generation: u32, element: Element) {
        if self.entries.len() == KEPT {
            self.entries.clear();
            self.complete_since = generation;
        }
        // An entry of the generation that the log begins after would never be looked at: it is not
        // complete for that generation either.
        if generation != self.complete_since {
            self.entries.push_back((generation, element));
        }
    }

    /// The maps hold this generation: nobody will ask for what changed before.
    pub(super) fn forget_until(&mut self, generation: u32) {
        while let Some(&(changed, _)) = self.entries.front()
            && !after(changed, generation)
        {
            self.entries.pop_front();
        }
        if after(generation, self.complete_since) {
            self.complete_since = generation;
        }
    }

    /// What may differ from tables of this generation; `None`: the log does not go back that far.
    pub fn scope_since(&self, generation: u32) -> Option<Scope> {
        if after(self.complete_since, generation) {
            return None;
        }
        let mut scope = Scope::default();
        for (_, element) in self.entries.iter().rev().take_while(|(changed, _)| after(*changed, generation)) {
            match *element {
                Element::Address(address) => _ = scope.addresses.insert(address),
                Element::Service(key) => _ = scope.services.insert(key),
                Element::ServiceInfo(id) => _ = scope.service_info.insert(id),
                Element::Backend(id) => _ = scope.backends.insert(id),
                Element::Selection(base) => _ = scope.selection.insert(base),
                Element::Pool(id) => _ = scope.port_pools.insert(id),
                Element::QuicId(key) => _ = scope.quic_ids.insert(key),
            }
        }
        Some(scope)
    }
}

/// Whether counting up from `earlier` comes to `generation` later; numbers wrap.
fn after(generation: u32, earlier: u32) -> bool {
    generation.wrapping_sub(earlier) as i32 > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(touched: &Touched, since: u32) -> Option<Vec<u32>> {
        touched.scope_since(since).map(|scope| scope.backends.into_iter().collect())
    }

    #[test]
    fn what_changed_after_a_generation_is_found_once() {
        let mut touched = Touched::since(7);
        for (generation, id) in [(8, 1), (8, 1), (9, 2)] {
            touched.note(generation, Element::Backend(id));
        }
        assert_eq!(backends(&touched, 7), Some(vec![1, 2]));
        assert_eq!(backends(&touched, 8), Some(vec![2]));
        assert_eq!(backends(&touched, 9), Some(vec![]));
        assert_eq!(backends(&touched, 6), None);
        touched.forget_until(8);
        assert_eq!((backends(&touched, 7), backends(&touched, 8)), (None, Some(vec![2])));
    }

    #[test]
    fn generations_wrap() {
        let mut touched = Touched::since(u32::MAX - 1);
        touched.note(u32::MAX, Element::Backend(1));
        touched.note(0, Element::Backend(2));
        assert_eq!(backends(&touched, u32::MAX), Some(vec![2]));
        assert_eq!(backends(&touched, u32::MAX - 1), Some(vec![1, 2]));
    }

    #[test]
    fn a_log_that_overflowed_says_so_instead_of_leaving_something_out() {
        let mut touched = Touched::since(0);
        for id in 0..=KEPT as u32 {
            touched.note(1, Element::Backend(id));
        }
        assert_eq!(backends(&touched, 0), None);
        touched.note(2, Element::Backend(5));
        assert_eq!(backends(&touched, 1), Some(vec![5]));
        assert_eq!(backends(&touched, 0), None);
    }
}
