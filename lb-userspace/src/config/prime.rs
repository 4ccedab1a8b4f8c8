//! Prime numbers: sizes of Maglev's tables.

/// Whether the number is prime, by trial division: at most a thousand steps for a table's size.
pub(crate) fn is_prime(number: u32) -> bool {
    let mut divisors = (2..).take_while(|divisor| u64::from(*divisor).pow(2) <= u64::from(number));
    number >= 2 && !divisors.any(|divisor| number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use super::is_prime;

    #[test]
    fn primes_are_known() {
        let primes: Vec<u32> = (0..30).filter(|&n| is_prime(n)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(65_537) && is_prime(5_000_011) && !is_prime(65_536) && !is_prime(u32::MAX));
    }
}
