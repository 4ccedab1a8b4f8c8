//! The hash of a flow's 5-tuple.

use crate::abi::{Address, Port};

/// Odd constants of wide bit mixing: 2^64 divided by the golden ratio, and the second multiplier of
/// MurmurHash3's 64-bit finalizer (public domain, A. Appleby).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
const FINISH: u64 = 0xc4ce_b9fe_1a85_ec53;

/// 64 bits of hash over a 5-tuple in packet order (source, destination), mixed with a secret
/// `seed`. `extra` tells apart flows of one tuple (0, or a backend id for packet scheduling).
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
    let mut hash = seed;
    hash = mix(hash, s[0] as u64 | (s[1] as u64) << 32);
    hash = mix(hash, s[2] as u64 | (s[3] as u64) << 32);
    hash = mix(hash, d[0] as u64 | (d[1] as u64) << 32);
    hash = mix(hash, d[2] as u64 | (d[3] as u64) << 32);
    hash = mix(hash, ports | (protocol as u64) << 32 | (extra as u64) << 40);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(FINISH);
    hash ^ hash >> 33
}

#[inline(always)]
fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(MIX);
    mixed ^ mixed >> 29
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
