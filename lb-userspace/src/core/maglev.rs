//! The tables of Maglev: every backend names the slots it would like, in an order of its own, and
//! they choose in turn (D. Eisenbud and others, "Maglev: a fast and reliable software network load
//! balancer", NSDI 2016, 3.4). A table depends on nothing but its size, the backends' addresses and
//! their weights, so every node makes the same one; and when a backend leaves, hardly any slot but
//! its own changes hands.
//!
//! `#[inline]`: whoever measures how long a table takes compiles it with optimisations of its own.

use std::net::{IpAddr, SocketAddr};

use crate::config::is_prime;

/// A backend as the table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Who it is, on every node.
    pub address: SocketAddr,
    /// What stands for it in this node's table.
    pub id: u32,
    /// Above 0.
    pub weight: u16,
}

/// A table of `size` slots (a prime), or of the next prime that has a slot for each backend. Empty
/// without backends.
///
/// Weights: a backend takes its next slot in as many rounds as its weight says, compared with the
/// largest; everybody has one in the first round, so nobody is left out.
#[inline]
pub fn table(turns: &[Turn], size: u32) -> Vec<u32> {
    let size = (size.max(turns.len() as u32).max(2)..).find(|&n| is_prime(n)).unwrap_or(size);
    let mut choosers: Vec<Chooser> = turns.iter().map(|turn| Chooser::new(turn, size)).collect();
    choosers.sort_unstable_by_key(|chooser| chooser.address);
    let Some(heaviest) = choosers.iter().map(|chooser| chooser.weight).max() else { return Vec::new() };
    let mut slots = Slots::free(size);
    loop {
        for chooser in &mut choosers {
            chooser.credit += chooser.weight;
            if chooser.credit < heaviest && chooser.taken > 0 {
                continue;
            }
            chooser.credit = chooser.credit.saturating_sub(heaviest);
            chooser.take(&mut slots);
            if slots.left == 0 {
                return slots.owners;
            }
        }
    }
}

/// The table while it is chosen from. Most looks at a slot find it taken: they look at bits, which fit
/// into the nearest cache.
struct Slots {
    owners: Vec<u32>,
    taken: Vec<u64>,
    left: u32,
}

impl Slots {
    #[inline]
    fn free(size: u32) -> Self {
        Self { owners: vec![0; size as usize], taken: vec![0; size.div_ceil(64) as usize], left: size }
    }

    /// Whether the slot was free; then it is the owner's.
    #[inline]
    fn take(&mut self, slot: u32, owner: u32) -> bool {
        let (word, bit) = (&mut self.taken[slot as usize / 64], 1 << (slot % 64));
        let free = *word & bit == 0;
        if free {
            *word |= bit;
            self.owners[slot as usize] = owner;
            self.left -= 1;
        }
        free
    }
}

/// A backend while it chooses.
struct Chooser {
    address: SocketAddr,
    id: u32,
    weight: u64,
    /// Weight gained and not yet spent on slots.
    credit: u64,
    taken: u32,
    /// The slot it would like next, and the way to the one after it.
    next: u32,
    step: u32,
}

impl Chooser {
    #[inline]
    fn new(turn: &Turn, size: u32) -> Self {
        let hash = identity(&turn.address);
        let (offset, step) = ((hash >> 32) as u32 % size, hash as u32 % (size - 1) + 1);
        let weight = turn.weight.max(1).into();
        Self { address: turn.address, id: turn.id, weight, credit: 0, taken: 0, next: offset, step }
    }

    /// Takes the first free slot on its way; there must be one.
    #[inline]
    fn take(&mut self, slots: &mut Slots) {
        let size = slots.owners.len() as u32;
        loop {
            let at = self.next;
            // Both are below the size: a division is not needed, nor can it overflow.
            let beyond = size - self.step;
            self.next = if at >= beyond { at - beyond } else { at + self.step };
            if slots.take(at, self.id) {
                self.taken += 1;
                return;
            }
        }
    }
}

/// 64 bits that stand for an address and port: FNV-1a (Fowler, Noll, Vo), with the finalizer of
/// SplitMix64 (public domain, S. Vigna), so that neighbours have nothing in common. Both halves are
/// used: they must not depend on each other.
#[inline]
fn identity(address: &SocketAddr) -> u64 {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let bytes = octets.into_iter().chain(address.port().to_be_bytes());
    let mut hash =
        bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Instant};

    use proptest::prelude::*;

    use super::*;

    const SIZE: u32 = 65_537;

    fn turn(n: u32, weight: u16) -> Turn {
        let [_, _, c, d] = n.to_be_bytes();
        Turn { address: SocketAddr::from(([10, 0, c, d], 8080)), id: n, weight }
    }

    fn equal(n: u32) -> Vec<Turn> {
        (0..n).map(|n| turn(n, 1)).collect()
    }

    fn shares(table: &[u32]) -> BTreeMap<u32, u32> {
        let mut shares = BTreeMap::new();
        for &id in table {
            *shares.entry(id).or_insert(0) += 1;
        }
        shares
    }

    /// Share of the slots whose backend differs.
    fn moved(before: &[u32], after: &[u32]) -> f64 {
        assert_eq!(before.len(), after.len());
        before.iter().zip(after).filter(|(a, b)| a != b).count() as f64 / before.len() as f64
    }

    #[test]
    fn equal_backends_have_equal_shares_within_a_slot() {
        for n in [1, 2, 3, 10, 100, 1000] {
            let shares = shares(&table(&equal(n), SIZE));
            let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
            assert_eq!(shares.len() as u32, n);
            assert!(most - least <= 1, "{n} backends: {least} to {most}");
        }
    }

    #[test]
    fn shares_follow_the_weights_within_one_percent() {
        let turns: Vec<_> = [1, 2, 3, 50, 100].into_iter().zip(0..).map(|(weight, n)| turn(n, weight)).collect();
        let shares = shares(&table(&turns, SIZE));
        for turn in turns {
            let fair = f64::from(SIZE) * f64::from(turn.weight) / 156.0;
            let found = f64::from(shares[&turn.id]);
            println!("weight {}: {found} slots, fair {fair:.1}", turn.weight);
            assert!((found / fair - 1.0).abs() < 0.01, "weight {}: {found} for {fair}", turn.weight);
        }
    }

    #[test]
    fn hardly_more_than_its_own_slots_change_when_a_backend_leaves_or_comes_back() {
        for n in [3, 10, 100, 1000] {
            let all = equal(n);
            let before = table(&all, SIZE);
            let (mut sum, mut worst) = (0.0, 0.0f64);
            let leavers: Vec<u32> = (0..n).step_by(n as usize / 3).collect();
            for &leaver in &leavers {
                let rest: Vec<_> = all.iter().copied().filter(|turn| turn.id != leaver).collect();
                let after = table(&rest, SIZE);
                assert!(!after.contains(&leaver));
                let moved = moved(&before, &after);
                sum += moved;
                worst = worst.max(moved);
            }
            let (ideal, mean) = (1.0 / f64::from(n), sum / leavers.len() as f64);
            println!("one of {n} leaves: {:.2} % of the slots change, ideal {:.2} %", mean * 100.0, ideal * 100.0);
            assert!(worst < ideal * 1.5 + 0.01, "one of {n} leaves: {worst} of the slots change, ideal {ideal}");
        }
    }

    #[test]
    fn a_new_weight_moves_little_more_than_the_difference() {
        let mut turns: Vec<_> = (0..10).map(|n| turn(n, 10)).collect();
        let before = table(&turns, SIZE);
        turns[4].weight = 5;
        let moved = moved(&before, &table(&turns, SIZE));
        println!("one of ten at half its weight: {:.2} % of the slots change, ideal 4.74 %", moved * 100.0);
        assert!(moved < 0.08, "{moved}");
    }

    #[test]
    fn the_table_does_not_depend_on_order_or_ids() {
        let turns: Vec<_> = (0..50).map(|n| turn(n, n as u16 % 7 + 1)).collect();
        let mut others: Vec<_> = turns.iter().rev().map(|turn| Turn { id: 1000 - turn.id, ..*turn }).collect();
        others.rotate_left(17);
        let theirs: Vec<u32> = table(&others, SIZE).iter().map(|id| 1000 - id).collect();
        assert_eq!(table(&turns, SIZE), theirs);
    }

    #[test]
    fn the_table_never_changes_between_versions() {
        // Nodes of different versions must agree.
        assert_eq!(table(&equal(3), 13), [1, 0, 1, 0, 2, 2, 1, 2, 2, 0, 0, 1, 0]);
    }

    #[test]
    fn nobody_is_left_out_however_small_the_table() {
        let table = table(&equal(300), 251);
        assert_eq!((table.len(), shares(&table).len()), (307, 300));
        assert_eq!(super::table(&[turn(1, 1000), turn(2, 1)], 2).len(), 2);
        assert!(super::table(&[], SIZE).is_empty());
    }

    #[test]
    fn the_time_for_a_thousand_backends_is_told() {
        for (what, weights) in [("equal weights", 1), ("weights from 1 to 1000", 1000)] {
            let turns: Vec<_> = (0..1000).map(|n| turn(n, (n * 37 % weights) as u16 + 1)).collect();
            let begun = Instant::now();
            let table = table(&turns, SIZE);
            println!("1,000 backends, {what}: {} slots in {:?}", table.len(), begun.elapsed());
            assert_eq!(shares(&table).len(), 1000);
        }
    }

    proptest! {
        #[test]
        fn every_table_is_full_and_fair(weights in prop::collection::vec(1u16..200, 1..60)) {
            let turns: Vec<_> = weights.iter().zip(0..).map(|(&weight, n)| turn(n, weight)).collect();
            let table = table(&turns, 4099);
            let shares = shares(&table);
            prop_assert_eq!(table.len(), 4099);
            let sum: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            for turn in &turns {
                let fair = 4099.0 * f64::from(turn.weight) / sum as f64;
                let found = f64::from(shares[&turn.id]);
                // The first round gives everybody a slot, whatever the weight.
                prop_assert!((found - fair).abs() <= 1.0 + fair * 0.02 + 1.0, "{} for {}", found, fair);
            }
        }
    }
}
