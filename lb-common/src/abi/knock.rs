//! Connections that wait for their first answer, and how long backends have owed one.

use bytemuck::{Pod, Zeroable};

use super::{Address, Port, limits::KNOCK_TRIES};
use crate::rescue::HEADERS;

/// Element of the array `knocks`: the first packet of a TCP connection that passes through the balancer
/// in both directions, kept until the backend answers. Its place follows from the hash of the client's
/// tuple; of two with the same place the later one stays. Whoever swaps `stamp` for [`Knock::BUSY`] owns
/// the element until it stores another stamp.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Knock {
    /// [`Knock::stamp_of`] the connection, or [`Knock::FREE`] or [`Knock::BUSY`].
    pub stamp: u64,
    /// Monotonic time in nanoseconds when it was sent to the last backend.
    pub sent_at: u64,
    pub service_id: u32,
    /// Interface that it came in by; 0: not to be sent again from there (it had VLAN tags).
    pub ifindex: u32,
    /// Ids of the backends that it was sent to, in order.
    pub tried: [u32; KNOCK_TRIES],
    /// How many of them there are; at least one.
    pub tries: u8,
    /// Bytes of `headers` that count; 0: the SYN was not kept (it had data, or its answer will not be seen), and
    /// only its client can send it to another backend.
    pub len: u8,
    /// Not 0: IPv4.
    pub v4: u8,
    /// Not 0: the last backend is there, but has acknowledged an earlier connection of the same tuple (it holds
    /// it in TIME-WAIT). The client resets that and sends its SYN again: to the same backend.
    pub contested: u8,
    /// Link-layer source of the client's frame.
    pub client_mac: [u8; 6],
    pub reserved: [u8; 6],
    /// IP header and TCP header with its options, as they came.
    pub headers: [u8; HEADERS],
}

impl Knock {
    pub const FREE: u64 = 0;
    pub const BUSY: u64 = 1;

    /// Of a connection, by the hash of its client's tuple.
    #[inline(always)]
    pub const fn stamp_of(hash: u64) -> u64 {
        hash | 2
    }

    /// The place of a connection in `knocks`.
    #[inline(always)]
    pub const fn place_of(hash: u64) -> u32 {
        hash as u32 & (super::limits::KNOCKS - 1)
    }
}

/// Element of the array `silences`, by backend id: what the data path has seen of flows that knocked at
/// the backend: connections, and flows of UDP that are answered. Written by all CPUs without order: a
/// lost write costs one flow's testimony. The agent takes what it has judged out again.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct Silence {
    /// Monotonic time in nanoseconds of the oldest first packet that was sent since the backend's last
    /// answer; 0: the backend owes none.
    pub since: u64,
    /// The same of the last one.
    pub asked_at: u64,
    /// [`Silence::client_bit`] of the clients that sent them.
    pub waiting: u64,
    /// Of the clients that were refused since the last answer.
    pub refused: u64,
    /// When the last one was.
    pub refused_at: u64,
    /// Of the clients that sent their SYN again: all there is to see where answers take another way.
    pub repeated: u64,
    pub repeated_at: u64,
    /// Of the clients about whose first packets an ICMP error said since the last answer that the backend
    /// cannot be reached.
    pub unreachable: u64,
    pub unreachable_at: u64,
    /// When the oldest of those came that `refused` and `unreachable` count; 0: there is none.
    pub denied_since: u64,
    /// When the backend last answered a first packet.
    pub answered_at: u64,
    /// When the agent was woken for this backend.
    pub told_at: u64,
    pub reserved: [u64; 4],
}

impl Silence {
    /// One of 64 bits for a client's address: enough to tell one client from a few.
    #[inline(always)]
    pub const fn client_bit(client: &Address) -> u64 {
        let [a, b, c, d] = client.words();
        let mixed = (a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d).wrapping_mul(0x9e37_79b1);
        1 << (mixed >> 26)
    }
}

/// Key of the map `moved`: what a backend answers to a connection that was taken away from it. The value
/// is the service's id.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct MovedKey {
    pub backend: Address,
    /// Where it sends its answer: the client, or in `full-nat` us.
    pub source: Address,
    pub backend_port: Port,
    pub source_port: Port,
}

/// Element of the per-CPU array `handshakes`, by service id: how long backends took to answer a SYN.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct Handshakes {
    /// Counts by [`Handshakes::bucket`].
    pub counts: [u64; Handshakes::BUCKETS],
}

impl Handshakes {
    pub const BUCKETS: usize = 32;
    /// Nanoseconds below which all is in the first bucket, as a power of two: 65 µs.
    const SHIFT: u32 = 16;

    /// Two buckets for each power of two of nanoseconds.
    #[inline(always)]
    pub const fn bucket(ns: u64) -> usize {
        let log = 64 - (ns >> Self::SHIFT).leading_zeros();
        let half = if log > 0 { (ns >> (log + Self::SHIFT - 2)) & 1 } else { 0 };
        let bucket = log as usize * 2 + half as usize;
        if bucket < Self::BUCKETS { bucket } else { Self::BUCKETS - 1 }
    }

    /// The time in nanoseconds below which everything in a bucket is.
    pub const fn upper(bucket: usize) -> u64 {
        let (log, half) = (bucket as u32 / 2, bucket as u64 % 2);
        if log == 0 {
            return 1 << Self::SHIFT;
        }
        let base = 1u64 << (log - 1 + Self::SHIFT);
        base + base / 2 * (half + 1)
    }

    /// The time in nanoseconds below which this share (percent) of all handshakes was; `None`: there were
    /// fewer than `least`.
    pub fn percentile(&self, percent: u64, least: u64) -> Option<u64> {
        let all: u64 = self.counts.iter().sum();
        if all < least.max(1) {
            return None;
        }
        let wanted = (all * percent).div_ceil(100);
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        bucket.map(Self::upper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_below_the_end_of_its_bucket_and_not_below_the_one_before() {
        for ns in (0..45).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + (1 << bit) / 2]) {
            let bucket = Handshakes::bucket(ns);
            assert!(bucket == Handshakes::BUCKETS - 1 || ns < Handshakes::upper(bucket), "{ns} in {bucket}");
            let floor = if bucket < 2 { 0 } else { Handshakes::upper(bucket - 1) };
            assert!(ns >= floor, "{ns} in {bucket} above {floor}");
        }
    }

    #[test]
    fn a_percentile_needs_enough_handshakes() {
        let mut handshakes = Handshakes::default();
        assert_eq!(handshakes.percentile(99, 1), None);
        handshakes.counts[Handshakes::bucket(1_000_000)] = 99;
        handshakes.counts[Handshakes::bucket(50_000_000)] = 1;
        assert_eq!(handshakes.percentile(99, 101), None);
        let most = handshakes.percentile(99, 100).unwrap();
        assert!((1_000_000..2_000_000).contains(&most), "{most}");
        assert!(handshakes.percentile(100, 100).unwrap() > 50_000_000);
    }

    #[test]
    fn clients_are_told_apart_by_their_addresses() {
        let bits = (0..64u8).map(|n| Silence::client_bit(&Address::v4([10, 0, 0, n])));
        let together = bits.fold(0, |all, bit| all | bit);
        assert!(together.count_ones() > 30, "{together:x}");
    }
}
