//! Sets of ports, and keeping the host's own sockets off the ports of `full-nat` flows. Pure.

use std::fmt;

use super::HostError;
use crate::config::PortRange;

/// Ephemeral ports the host keeps for its own connections, at the least.
const FEWEST_EPHEMERAL: usize = 1024;

/// A set of ports; sorted ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet {
    ranges: Vec<PortRange>,
}

impl PortSet {
    pub fn new(ranges: impl IntoIterator<Item = PortRange>) -> Self {
        let mut ranges: Vec<PortRange> = ranges.into_iter().filter(|range| range.first <= range.last).collect();
        ranges.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        Self { ranges: merged }
    }

    /// From the kernel's notation, `8080,9148,30000-32767`. `None`: it is not that.
    pub fn parse(text: &str) -> Option<Self> {
        let ranges = text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(PortRange { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? })
        });
        Some(Self::new(ranges.collect::<Option<Vec<_>>>()?))
    }

    pub fn ranges(&self) -> &[PortRange] {
        &self.ranges
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ports.
    pub fn count(&self) -> usize {
        self.ranges.iter().map(|range| usize::from(range.last - range.first) + 1).sum()
    }

    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::new(self.ranges.iter().chain(&other.ranges).copied())
    }

    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = self.ranges.clone();
        for hole in &other.ranges {
            left = left.into_iter().flat_map(|range| cut(range, *hole)).flatten().collect();
        }
        Self { ranges: left }
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, PortRange { first, last }) in self.ranges.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

/// What must be added to the reserved ports so that the kernel gives no port of `wanted` to a socket
/// of the host. `ephemeral`: the value of `ip_local_port_range`.
///
/// # Errors
/// Fewer than 1,024 ephemeral ports would remain, or a value is not in the kernel's notation.
pub fn to_reserve(wanted: &PortSet, reserved: &PortSet, ephemeral: &str) -> Result<PortSet, HostError> {
    let mut bounds = ephemeral.split_whitespace().map(str::parse);
    let (Some(Ok(first)), Some(Ok(last))) = (bounds.next(), bounds.next()) else {
        return Err(HostError::Ports(format!("net.ipv4.ip_local_port_range is not two ports: `{ephemeral}`")));
    };
    let ephemeral = PortSet::new([PortRange { first, last }]);
    let left = ephemeral.without(&reserved.union(wanted)).count();
    if left < FEWEST_EPHEMERAL {
        return Err(HostError::Ports(format!(
            "with `source-ports` {wanted} reserved for full-nat flows, {left} of the host's ephemeral ports \
             ({first}-{last}, net.ipv4.ip_local_port_range) would be left for its own connections; it needs \
             {FEWEST_EPHEMERAL}. Choose `source-ports` outside {first}-{last} or fewer of them, or widen the range: \
             sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\""
        )));
    }
    Ok(wanted.without(reserved))
}

/// `range` without `hole`: what is left below and above it.
fn cut(range: PortRange, hole: PortRange) -> [Option<PortRange>; 2] {
    if hole.last < range.first || range.last < hole.first {
        return [Some(range), None];
    }
    let below = (range.first < hole.first).then(|| PortRange { first: range.first, last: hole.first - 1 });
    let above = (hole.last < range.last).then(|| PortRange { first: hole.last + 1, last: range.last });
    [below, above]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(text: &str) -> PortSet {
        PortSet::parse(text).unwrap()
    }

    #[test]
    fn the_kernels_notation_is_read_and_written() {
        assert_eq!(set("").to_string(), "");
        assert_eq!(set("8080,9148,30000-32767").to_string(), "8080,9148,30000-32767");
        assert_eq!(set("10-20,15-30,31,0-65535").to_string(), "0-65535");
        assert_eq!(PortSet::parse("80,http"), None);
        assert_eq!(PortSet::parse("70000"), None);
    }

    #[test]
    fn reserving_keeps_what_others_reserved() {
        let others = set("8080,20000-20100");
        let added = to_reserve(&set("20050-29999"), &others, "32768\t60999").unwrap();
        assert_eq!(added.to_string(), "20101-29999");
        let now = others.union(&added);
        assert_eq!(now.to_string(), "8080,20000-29999");
        assert_eq!(now.without(&added), others, "unmerging restores the value");
    }

    #[test]
    fn the_host_keeps_enough_ephemeral_ports() {
        assert!(to_reserve(&set("32768-59975"), &set(""), "32768 60999").is_ok(), "1,024 are left");
        let error = to_reserve(&set("32768-59976"), &set(""), "32768 60999").unwrap_err().to_string();
        assert!(error.contains("1023 of the host's ephemeral ports"), "{error}");
        assert!(error.contains("sysctl -w net.ipv4.ip_local_port_range"), "{error}");
        assert!(to_reserve(&set("1024-2000"), &set("32768-60000"), "32768 60999").is_err(), "others' count too");
    }

    fn any_set() -> impl Strategy<Value = PortSet> {
        prop::collection::vec((any::<u16>(), 0..2000_u16), 0..8).prop_map(|parts| {
            PortSet::new(parts.into_iter().map(|(first, more)| PortRange { first, last: first.saturating_add(more) }))
        })
    }

    proptest! {
        #[test]
        fn union_and_difference_obey_the_laws_of_sets(a in any_set(), b in any_set(), port: u16) {
            let has = |set: &PortSet| set.ranges().iter().any(|range| (range.first..=range.last).contains(&port));
            prop_assert_eq!(has(&a.union(&b)), has(&a) || has(&b));
            prop_assert_eq!(has(&a.without(&b)), has(&a) && !has(&b));
            prop_assert_eq!(a.union(&b).count(), a.count() + b.without(&a).count());
            prop_assert_eq!(set(&a.to_string()), a);
        }
    }
}
