//! The hash of a flow's 5-tuple, for the flow table and for schedulers.

use crate::abi::{
    Address, HashedBy, Port, ServiceKey, ServiceValue,
    limits::{ADDRESS_BITS, SERVICE_LINES},
};

/// Keeps a seed of zero from meaning nothing: 2^64 divided by the golden ratio.
const START: u64 = 0x9e37_79b9_7f4a_7c15;
/// The second multiplier of MurmurHash3's 64-bit finalizer (public domain, A. Appleby).
const FINISH: u64 = 0xc4ce_b9fe_1a85_ec53;

/// Seed of the hash that picks a backend: the same on every node of one byte order, so that nodes
/// with the same backends send a flow to the same one, whichever of them it reaches.
///
/// It is no secret: somebody who knows it can choose ports (or addresses) whose flows all meet one
/// backend. What that wins is load on one backend, which health checks and tiers answer as they
/// answer any overload; `least-connections` and `random-two` cannot be aimed at all. The flow table,
/// where aimed collisions would evict other people's flows, keeps its secret seed.
const SELECTION_SEED: u64 = 0x6c62_2d73_656c_6563;

/// Hash of everything a new flow can be told by, in packet order: for `maglev`.
#[inline(always)]
pub fn selection_hash(source: &Address, destination: &Address, source_port: Port, port: Port, protocol: u8) -> u64 {
    tuple_hash(SELECTION_SEED, source, destination, source_port, port, protocol, 0)
}

/// Hash of a client's address alone: for `source-hash`.
#[inline(always)]
pub fn source_hash(source: &Address) -> u64 {
    let nothing = Address::from_words([0; 4]);
    tuple_hash(SELECTION_SEED, source, &nothing, Port::ANY, Port::ANY, 0, 0)
}

/// The hash that finds the slot of a client's packet in the tables of a service, by a [`HashedBy`].
#[inline(always)]
pub fn slot_hash(
    by: u8,
    service: &ServiceValue,
    source: &Address,
    destination: &Address,
    source_port: Port,
    port: Port,
    protocol: u8,
) -> u64 {
    if by == HashedBy::Client as u8 {
        return source_hash(&source.masked(service.client_prefix_v4, service.client_prefix_v6));
    }
    selection_hash(source, destination, source_port, port, protocol)
}

/// The slot, below `len`, of a selection hash: each is as likely as any other. Each of four attempts
/// (0 to 3) goes by other bits of the hash: where a backend cannot take its flows, they spread over
/// all others.
#[inline(always)]
pub fn selection_slot(hash: u64, attempt: u32, len: u32) -> u32 {
    let bits = hash.rotate_left((attempt & 3) * 16) >> 32;
    (bits.wrapping_mul(len as u64) >> 32) as u32
}

/// The bit of an address in the map `address_bits`: set where the address may be ours. It need not be a
/// secret: who aims at it makes the packet look up what others look up too.
#[inline(always)]
pub const fn address_bit(address: &Address) -> u32 {
    (address_hash(address) >> (64 - ADDRESS_BITS.trailing_zeros())) as u32
}

/// The two elements of `service_lines` that may be a service's. No secret either: nobody outside chooses
/// services.
#[inline(always)]
pub const fn service_lines(key: &ServiceKey) -> [u32; 2] {
    const BITS: u32 = SERVICE_LINES.trailing_zeros();
    let rest = u16::from_ne_bytes(key.port.to_wire()) as u64 | (key.protocol as u64) << 16;
    // The upper half alone depends on all of an address: of neighbours the lower halves are the same.
    let address = address_hash(&key.address);
    let hash = (address ^ address >> 32 ^ rest).wrapping_mul(FINISH);
    [(hash >> (64 - BITS)) as u32, (hash >> (64 - 2 * BITS)) as u32 & (SERVICE_LINES - 1)]
}

/// Good in its upper bits.
#[inline(always)]
const fn address_hash(address: &Address) -> u64 {
    let [a, b, c, d] = address.words();
    let high = (a as u64 | (b as u64) << 32).wrapping_mul(FINISH);
    (high ^ (c as u64 | (d as u64) << 32)).wrapping_mul(START)
}

/// The `extra` of [`tuple_hash`] for a client whose backend is remembered; no backend's.
pub const CLIENT_EXTRA: u32 = 0xff_ffff;

/// The `extra` of [`tuple_hash`] for one of the flows of a tuple that go to several backends; not 0, which is
/// for those that go to one.
#[inline(always)]
pub const fn backend_extra(id: u32) -> u32 {
    id.wrapping_add(1)
}

/// 64 bits of hash over a 5-tuple in packet order (source, destination), mixed with a secret
/// `seed`. `extra` tells apart flows of one tuple: 0, [`backend_extra`] or [`CLIENT_EXTRA`]; its lower 24
/// bits count.
#[inline(always)]
pub fn tuple_hash(
    seed: u64,
    source: &Address,
    destination: &Address,
    source_port: Port,
    destination_port: Port,
    protocol: u8,
    extra: u32,
) -> u64 {
    let s = source.words();
    let d = destination.words();
    let ports = u16::from_ne_bytes(source_port.to_wire()) as u64
        | (u16::from_ne_bytes(destination_port.to_wire()) as u64) << 16;
    let mut hash = seed ^ START;
    hash = mix(hash, s[0] as u64 | (s[1] as u64) << 32);
    hash = mix(hash, s[2] as u64 | (s[3] as u64) << 32);
    hash = mix(hash, d[0] as u64 | (d[1] as u64) << 32);
    hash = mix(hash, d[2] as u64 | (d[3] as u64) << 32);
    hash = mix(hash, ports | (protocol as u64) << 32 | (extra as u64) << 40);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(FINISH);
    hash ^ hash >> 33
}

/// Multiplies the halves of what is secret with each other. A multiplication by a constant would let
/// whoever controls two words cancel a difference in the first by one in the second, whatever the
/// seed. Adding the factors keeps a zero half from forgetting everything.
#[inline(always)]
fn mix(hash: u64, word: u64) -> u64 {
    let x = hash ^ word;
    (x & 0xffff_ffff).wrapping_mul(x >> 32).wrapping_add(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(port: u16, extra: u32) -> u64 {
        tuple_hash(
            7,
            &Address::v4([10, 0, 0, 1]),
            &Address::v4([10, 0, 0, 2]),
            Port::new(port),
            Port::new(80),
            6,
            extra,
        )
    }

    #[test]
    fn low_and_high_bits_spread_over_ports() {
        for shift in [0, 32] {
            let mut buckets = [0u32; 1024];
            for port in 0..=u16::MAX {
                buckets[(hash(port, 0) >> shift) as usize % 1024] += 1;
            }
            // 64 on average; eight standard deviations are 64.
            assert!(buckets.iter().all(|&n| n > 16 && n < 128), "uneven: {:?}", buckets.iter().max());
        }
    }

    #[test]
    fn no_difference_between_addresses_collides_under_every_seed() {
        // Single bits of the first address word against pairs of bits of the second: what a product
        // with a constant lets through.
        let base = [0x20u8, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let port = Port::new(443);
        let of = |seed, octets| tuple_hash(seed, &Address::v6(octets), &Address::v6(base), port, port, 6, 0);
        for first in 0..64 {
            for second in 0..64 {
                for third in 0..64 {
                    let mut other = base;
                    other[first / 8] ^= 1 << (first % 8);
                    other[8 + second / 8] ^= 1 << (second % 8);
                    other[8 + third / 8] ^= 1 << (third % 8);
                    let collides = |seed| of(seed, base) == of(seed, other);
                    assert!(!(collides(1) && collides(0x5eed)), "{first} {second} {third}");
                }
            }
        }
    }

    #[test]
    fn every_bit_of_the_tuple_turns_half_the_bits_of_the_hash() {
        let octets: [u8; 16] = core::array::from_fn(|i| i as u8 * 17);
        for bit in 0..160 {
            let mut turned = 0;
            for seed in 0..256u64 {
                let seed = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
                let of = |flip: bool| {
                    let (mut s, d, mut ports) = (octets, octets, [0x12, 0x34, 0, 80]);
                    if flip && bit < 128 {
                        s[bit / 8] ^= 1 << (bit % 8);
                    } else if flip {
                        ports[(bit - 128) / 8] ^= 1 << (bit % 8);
                    }
                    let [a, b, c, e] = ports;
                    let (a, b) = (Port::from_wire([a, b]), Port::from_wire([c, e]));
                    tuple_hash(seed, &Address::v6(s), &Address::v6(d), a, b, 17, 0)
                };
                turned += (of(false) ^ of(true)).count_ones();
            }
            let share = f64::from(turned) / (256.0 * 64.0);
            assert!((0.45..0.55).contains(&share), "bit {bit} turns {share}");
        }
    }

    #[test]
    fn clients_spread_over_slots_and_a_second_attempt_goes_elsewhere() {
        let mut shares = [0u32; 7];
        let mut again = 0;
        for n in 0..70_000u32 {
            let hash = source_hash(&Address::v4(n.wrapping_add(0x0a00_0000).to_be_bytes()));
            let slot = selection_slot(hash, 0, 7);
            shares[slot as usize] += 1;
            again += u32::from(selection_slot(hash, 1, 7) == slot);
        }
        // Five standard deviations are 463.
        assert!(shares.iter().all(|&n| n.abs_diff(10_000) < 463), "{shares:?}");
        assert!(again.abs_diff(10_000) < 463, "{again} of 70,000 meet the same slot of seven again");
    }

    #[test]
    fn the_selection_hash_never_changes() {
        // Nodes of different versions must agree. Byte order is the only difference there is.
        let client = Address::v4([198, 51, 100, 7]);
        let service = Address::v4([203, 0, 113, 10]);
        let hash = selection_hash(&client, &service, Port::new(40_000), Port::new(80), 6);
        if cfg!(target_endian = "little") {
            assert_eq!((hash, source_hash(&client)), (1_441_731_060_201_829_570, 16_659_017_421_112_125_487));
        }
    }

    #[test]
    fn every_input_matters() {
        assert_ne!(hash(1, 0), hash(2, 0));
        assert_ne!(hash(1, 0), hash(1, 1));
        let a = Address::v4([10, 0, 0, 1]);
        let b = Address::v4([10, 0, 0, 2]);
        let p = Port::new(80);
        assert_ne!(tuple_hash(7, &a, &b, p, p, 6, 0), tuple_hash(7, &b, &a, p, p, 6, 0));
        assert_ne!(tuple_hash(7, &a, &b, p, p, 6, 0), tuple_hash(7, &a, &b, p, p, 17, 0));
        assert_ne!(tuple_hash(7, &a, &b, p, p, 6, 0), tuple_hash(8, &a, &b, p, p, 6, 0));
    }
}
