//! Orders of numbers. No averages: a machine that does something else for a moment makes those
//! useless.

/// A share (0 to 1) of the numbers is at most this; the lower of two neighbours. `None` without
/// numbers. None of them may be NaN.
pub fn quantile(numbers: &[f64], share: f64) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    sorted.get((share * last as f64).floor() as usize).copied()
}

/// The middle one; the mean of the two in the middle.
pub fn median(numbers: &[f64]) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[half]),
        _ => Some((sorted[half - 1] + sorted[half]) / 2.0),
    }
}

/// Middle, least and greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` without numbers.
    pub fn of(numbers: &[f64]) -> Option<Self> {
        let min = numbers.iter().copied().min_by(f64::total_cmp)?;
        let max = numbers.iter().copied().max_by(f64::total_cmp)?;
        Some(Self { median: median(numbers)?, min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_does_not_depend_on_the_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn one_number_far_out_moves_only_the_greatest() {
        let spread = Spread::of(&[10.0, 11.0, 12.0, 900.0, 11.0]).unwrap();
        assert_eq!(spread, Spread { median: 11.0, min: 10.0, max: 900.0 });
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn a_quantile_is_one_of_the_numbers() {
        let numbers = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(quantile(&numbers, 0.0), Some(1.0));
        assert_eq!(quantile(&numbers, 0.25), Some(2.0));
        assert_eq!(quantile(&numbers, 1.0), Some(5.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
