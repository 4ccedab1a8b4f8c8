//! Selection tables: the order in which backends take turns.

/// Length of a weighted table that may be exceeded only by the number of backends: the effort of
/// making one (length times backends) stays near a million steps.
pub(super) fn longest(backends: usize) -> usize {
    ((1 << 20) / backends.max(1)).clamp(1024, 4096).max(backends)
}

/// Smooth weighted round robin, as nginx spreads its upstreams (`ngx_http_upstream_get_peer`): in
/// every turn each backend gains its weight, the richest one is chosen and pays the sum of all
/// weights. Backends of one weight simply take turns.
///
/// `backends` are ids with their weights (all above 0). Weights are reduced by their greatest common
/// divisor, then scaled down until the table has at most `longest` slots; every backend stays in it
/// at least once. Each backend's slots are within one of its exact share of what is left after
/// those that were lifted to one slot.
pub(super) fn weighted(backends: &[(u32, u16)], longest: usize) -> Vec<u32> {
    let counts = counts(&backends.iter().map(|&(_, weight)| u64::from(weight)).collect::<Vec<_>>(), longest);
    if counts.iter().all(|&count| count == 1) {
        return backends.iter().map(|&(id, _)| id).collect();
    }
    let sum: i64 = counts.iter().sum();
    let mut wealth = vec![0i64; counts.len()];
    let mut table = Vec::with_capacity(sum as usize);
    for _ in 0..sum {
        let mut richest = 0;
        for (i, count) in counts.iter().enumerate() {
            wealth[i] += count;
            if wealth[i] > wealth[richest] {
                richest = i;
            }
        }
        wealth[richest] -= sum;
        table.push(backends[richest].0);
    }
    table
}

/// Slots for each weight.
fn counts(weights: &[u64], longest: usize) -> Vec<i64> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let sum = weights.iter().sum::<u64>() / divisor;
    if sum <= longest as u64 {
        return weights.iter().map(|weight| (weight / divisor) as i64).collect();
    }
    if weights.len() >= longest {
        return vec![1; weights.len()];
    }
    apportion(weights, longest as u64)
}

/// Shares out `slots` in proportion to `weights`, at least one each: the method of the largest
/// remainder over those whose share is a whole slot or more.
fn apportion(weights: &[u64], slots: u64) -> Vec<i64> {
    let (mut left, mut sum) = (slots, weights.iter().sum::<u64>());
    let mut lifted = vec![false; weights.len()];
    // Lifting one makes the others' shares smaller: again, until none is below one slot.
    while let Some(i) = (0..weights.len()).find(|&i| !lifted[i] && weights[i] * left < sum) {
        lifted[i] = true;
        left -= 1;
        sum -= weights[i];
    }
    let mut counts: Vec<i64> =
        weights.iter().zip(&lifted).map(|(w, &lifted)| if lifted { 1 } else { (w * left / sum) as i64 }).collect();
    let missing = slots - counts.iter().sum::<i64>() as u64;
    let mut by_remainder: Vec<usize> = (0..weights.len()).filter(|&i| !lifted[i]).collect();
    by_remainder.sort_by_key(|&i| std::cmp::Reverse(weights[i] * left % sum));
    for &i in by_remainder.iter().take(missing as usize) {
        counts[i] += 1;
    }
    counts
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slots_of(table: &[u32], id: u32) -> usize {
        table.iter().filter(|&&slot| slot == id).count()
    }

    /// Longest run of one backend, read as a ring.
    fn burst(table: &[u32], id: u32) -> usize {
        let (mut longest, mut run) = (0, 0);
        for &slot in table.iter().chain(table) {
            run = if slot == id { run + 1 } else { 0 };
            longest = longest.max(run);
        }
        longest.min(table.len())
    }

    #[test]
    fn five_one_one_is_spread_as_nginx_does() {
        assert_eq!(weighted(&[(7, 5), (8, 1), (9, 1)], 1024), [7, 7, 8, 7, 9, 7, 7]);
    }

    #[test]
    fn equal_weights_take_turns_once() {
        assert_eq!(weighted(&[(3, 50), (1, 50), (2, 50)], 1024), [3, 1, 2]);
    }

    #[test]
    fn weights_are_reduced_by_their_common_divisor() {
        assert_eq!(weighted(&[(0, 300), (1, 100)], 1024).len(), 4);
    }

    #[test]
    fn a_long_table_is_scaled_down_and_nobody_is_left_out() {
        let table = weighted(&[(0, 65535), (1, 1)], 1024);
        assert_eq!((table.len(), slots_of(&table, 0), slots_of(&table, 1)), (1024, 1023, 1));
    }

    #[test]
    fn more_backends_than_slots_take_turns_once() {
        let backends: Vec<(u32, u16)> = (0..2000).map(|id| (id, id as u16 + 1)).collect();
        assert_eq!(weighted(&backends, longest(2000)).len(), 2000);
    }

    #[test]
    fn no_backends_make_no_table() {
        assert!(weighted(&[], longest(0)).is_empty());
    }

    proptest! {
        #[test]
        fn shares_are_within_one_slot_and_bursts_are_short(weights in prop::collection::vec(500u16..2000, 1..40)) {
            let backends: Vec<(u32, u16)> = weights.iter().enumerate().map(|(i, &w)| (i as u32, w)).collect();
            let table = weighted(&backends, 4096);
            let sum: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            prop_assert!(table.len() <= 4096);
            for &(id, weight) in &backends {
                let share = f64::from(weight) * table.len() as f64 / sum as f64;
                let slots = slots_of(&table, id);
                prop_assert!((slots as f64 - share).abs() <= 1.0, "{slots} slots for a share of {share}");
                if backends.len() > 1 {
                    // As many in a row as there are for each slot of the others, and one more.
                    let others = table.len() - slots;
                    prop_assert!(burst(&table, id) <= slots.div_ceil(others) + 1);
                }
            }
        }

        #[test]
        fn scaling_down_keeps_everybody_and_the_length(weights in prop::collection::vec(1u16.., 2..200)) {
            let backends: Vec<(u32, u16)> = weights.iter().enumerate().map(|(i, &w)| (i as u32, w)).collect();
            let table = weighted(&backends, 1024);
            prop_assert!(table.len() <= 1024);
            prop_assert!(backends.iter().all(|&(id, _)| slots_of(&table, id) >= 1));
        }
    }
}
