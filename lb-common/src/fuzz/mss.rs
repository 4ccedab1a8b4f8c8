//! Rules for the clamping of segment sizes.

use super::{Arena, checksums_are_right, make_right};
use crate::{
    abi::Protocol,
    mss::{Cursor, clamp},
    parse::{Network, Transport},
};

/// Clamps any TCP packet: at most one option gets lower, and checksums stay as right as they were.
pub(super) fn check(original: &[u8], network: &Network, transport: &Transport, most: u16) {
    if transport.protocol != Protocol::Tcp {
        return;
    }
    let mut right = original.to_vec();
    make_right(&mut right, network, transport);
    for before in [original, &right] {
        let was_right = checksums_are_right(before, network, transport);
        let mut arena = Arena::new(before, 0);
        clamp(&mut arena.frame(), transport, most, &mut Cursor::default());
        let after = arena.into_frame();
        assert_eq!(checksums_are_right(&after, network, transport), was_right, "checksums of the clamped packet");
        check_fields(before, &after, transport, most);
    }
}

/// Nothing differs but the checksum and the two bytes of an MSS that was larger.
fn check_fields(before: &[u8], after: &[u8], transport: &Transport, most: u16) {
    let header = transport.offset as usize;
    let mut wanted = before.to_vec();
    wanted[header + 16..header + 18].copy_from_slice(&after[header + 16..header + 18]);
    let Some(first) = (0..before.len()).find(|&at| wanted[at] != after[at]) else {
        // Where the size stays the checksum does; it has no two ways to say the same.
        return assert_eq!(after, before);
    };
    let end = header + usize::from(before[header + 12] >> 4) * 4;
    // The first byte that differs is the size's first or, where that is the same, its second.
    let at = [first, first - 1].into_iter().find(|&at| after[at..at + 2] == most.to_be_bytes()).expect("the new size");
    assert!(at >= header + 22 && at + 2 <= end, "within the options");
    assert_eq!(before[at - 2..at], [2, 4], "an MSS option");
    assert!(u16::from_be_bytes([before[at], before[at + 1]]) > most, "only lower");
    wanted[at..at + 2].copy_from_slice(&most.to_be_bytes());
    assert_eq!(after, wanted);
}
