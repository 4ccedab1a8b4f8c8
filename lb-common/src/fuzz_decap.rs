//! What must hold when any bytes arrive at the backend's end of a tunnel: for libFuzzer (`fuzz/`) and
//! for the bounded run among the normal tests.

use crate::{
    abi::Port,
    decap::{self, Fate, Inner, Outcome, Outer},
    parse::{self, NETWORK_OFFSET},
};

/// Where GUE is listened for.
const GUE_PORT: Port = Port::new(6080);

/// Strips the frame as the program does, from any source and for any address; panics when a rule is
/// broken.
pub fn check(original: &[u8]) -> Outcome {
    let (outcome, stripped) = strip(original);
    let Some(stripped) = stripped else {
        assert_ne!(outcome.fate(), Fate::Stripped);
        return outcome;
    };
    if outcome.fate() != Fate::Stripped {
        return outcome;
    }
    assert!(stripped.len() < original.len(), "headers were taken off");
    assert_eq!(stripped[..12], original[..12], "link-layer addresses");
    let network = parse::network(&stripped.clone().as_mut_slice()).expect("an IP packet");
    let ip = &stripped[NETWORK_OFFSET..];
    let length = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]) as usize;
    let (length, hops) = if network.v4 { (length(2), ip[8]) } else { (length(4) + 40, ip[7]) };
    assert!(length <= ip.len(), "the packet ends within the frame");
    assert_ne!(hops, 0, "a packet without a hop left");
    // Nothing but the ECN field, and the checksum over it, has changed.
    let before = &original[original.len() - ip.len()..];
    let ecn: &[usize] = if network.v4 { &[1, 10, 11] } else { &[1] };
    let changed = |at: &usize| ip[*at] != before[*at];
    assert!((0..ip.len()).filter(changed).all(|at| ecn.contains(&at)), "other bytes than ECN have changed");
    outcome
}

/// What the program does with a frame, and what is left of it where it got as far as to shorten it.
fn strip(original: &[u8]) -> (Outcome, Option<Vec<u8>>) {
    let mut frame = original.to_vec();
    let (mut outer, mut inner) = (Outer::EMPTY, Inner::EMPTY);
    if let Err(outcome) = decap::outer(&frame.as_mut_slice(), GUE_PORT, &mut outer) {
        return (outcome, None);
    }
    if let Err(outcome) = decap::inner(&frame.as_mut_slice(), original.len(), &outer, &mut inner, |_| true) {
        return (outcome, None);
    }
    assert_eq!(frame, original, "the reader writes");
    decap::hand_over(&mut frame.as_mut_slice(), &outer, &inner).expect("the reader saw every field");
    let mut left = frame.split_off(outer.growth() as usize);
    if outer.is_gue() && !decap::checksum_fits(&left.as_mut_slice(), &outer, &inner) {
        return (Outcome::BadChecksum, Some(left));
    }
    decap::mark_congestion(&mut left.as_mut_slice(), &outer, &inner).expect("the reader saw every field");
    (outer.stripped(), Some(left))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;
    use crate::{
        abi::Address,
        encap::{Tunnel, encapsulate},
        fuzz::PREFIX,
    };

    /// How tunnels are stripped.
    const KINDS: [Outcome; 3] = [Outcome::Ipip, Outcome::Gue, Outcome::Gre];

    static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(seeds);

    /// The frames of the fuzzer's seeds that can be balanced.
    fn seeds() -> Vec<Vec<u8>> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/parse");
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let frames = files.iter().map(|path| std::fs::read(path).unwrap().split_off(PREFIX));
        frames.filter(|frame| parsed(frame).is_some()).collect()
    }

    fn parsed(frame: &[u8]) -> Option<(parse::Network, parse::Transport)> {
        let mut frame = frame.to_vec();
        let network = parse::network(&frame.as_mut_slice()).ok()?;
        Some((network, parse::transport(&frame.as_mut_slice(), &network).ok()?))
    }

    /// Into the tunnel that is stripped with this outcome.
    fn wrapped(frame: &[u8], outer_v4: bool, kind: Outcome) -> Vec<u8> {
        let address = |last| if outer_v4 { Address::v4([10, 0, 0, last]) } else { Address::v6([last; 16]) };
        let (gue_port, gre) = (if kind == Outcome::Gue { GUE_PORT } else { Port::ANY }, u8::from(kind == Outcome::Gre));
        let (source, destination) = (address(0x20), address(0x21));
        let tunnel = Tunnel { source, destination, gue_port, gre, entropy: 7, dont_fragment: 0, id: 0 };
        let (network, transport) = parsed(frame).unwrap();
        let mut out = vec![0; tunnel.growth()];
        out.extend_from_slice(frame);
        encapsulate(&mut out.as_mut_slice(), &network, &transport, &tunnel).unwrap();
        out[..12].copy_from_slice(&frame[..12]);
        out
    }

    #[test]
    fn every_seed_comes_out_as_it_went_in() {
        assert!(SEEDS.len() >= 20, "{} seeds", SEEDS.len());
        for seed in SEEDS.iter() {
            for (outer_v4, kind) in [true, false].into_iter().flat_map(|v4| KINDS.map(|kind| (v4, kind))) {
                let frame = wrapped(seed, outer_v4, kind);
                assert_eq!(check(&frame), kind);
                assert_eq!(strip(&frame).1.as_ref(), Some(seed));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn damaged_frames_keep_the_rules(
            seed in any::<Index>(),
            outer_v4 in any::<bool>(),
            kind in 0..KINDS.len(),
            damage in vec((any::<Index>(), any::<u8>()), 0..5),
            cut in proptest::option::weighted(0.2, any::<Index>()),
        ) {
            let mut frame = wrapped(&SEEDS[seed.index(SEEDS.len())], outer_v4, KINDS[kind]);
            for (at, byte) in damage {
                let at = at.index(frame.len().min(120));
                frame[at] = byte;
            }
            if let Some(cut) = cut {
                frame.truncate(cut.index(frame.len()));
            }
            check(&frame);
        }

        #[test]
        fn any_bytes_keep_the_rules(mut bytes in vec(any::<u8>(), 0..200), v4 in any::<bool>(), protocol in 0..4usize) {
            if bytes.len() > 60 {
                bytes[12..14].copy_from_slice(if v4 { &[8, 0] } else { &[0x86, 0xdd] });
                bytes[NETWORK_OFFSET] = if v4 { 0x45 } else { 0x60 };
                bytes[NETWORK_OFFSET + if v4 { 9 } else { 6 }] = [4, 41, 17, 47][protocol];
            }
            check(&bytes);
        }
    }
}
