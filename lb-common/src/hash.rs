//! The hash of a flow's 5-tuple.

use crate::abi::{Address, Port};

/// Keeps a seed of zero from meaning nothing: 2^64 divided by the golden ratio.
const START: u64 = 0x9e37_79b9_7f4a_7c15;
/// The second multiplier of MurmurHash3's 64-bit finalizer (public domain, A. Appleby).
const FINISH: u64 = 0xc4ce_b9fe_1a85_ec53;

/// 64 bits of hash over a 5-tuple in packet order (source, destination), mixed with a secret
/// `seed`. `extra` tells apart flows of one tuple (0, or a backend id for packet scheduling); its
/// lower 24 bits count.
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
