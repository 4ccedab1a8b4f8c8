//! A bounded run of what libFuzzer does without end.

use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::StdRng};

const SEQUENCES: u64 = 20_000;

/// A sequence that broke a rule is told step by step by `LB_FUZZ_TELL=1 LB_FUZZ_SEED=<its number>`.
#[test]
fn no_sequence_breaks_a_rule() {
    let seeds = match std::env::var("LB_FUZZ_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("the number of a sequence");
            seed..seed + 1
        }
        Err(_) => 0..SEQUENCES,
    };
    let (mut played, count) = (0, seeds.end - seeds.start);
    for seed in seeds {
        let mut random = StdRng::seed_from_u64(seed);
        let mut data = vec![0; random.random_range(20..400)];
        random.fill_bytes(&mut data);
        let packets = std::panic::catch_unwind(|| lb_host::check(&data));
        played += packets.unwrap_or_else(|_| panic!("sequence {seed} breaks a rule"));
    }
    assert!(played as u64 > count, "{played} packets in {count} sequences");
}
