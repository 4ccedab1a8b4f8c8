//! What must hold after every packet, whatever came.

use std::{collections::BTreeMap, sync::OnceLock};

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use lb_common::{
    abi::{Address, BackendState, Granularity, VerdictCounters},
    verdict::{Action, Reason},
};

use crate::{
    frame::{ACK, FIN, RST, SYN},
    host::Host,
    judge::{Right, judge},
    play::{Sent, Side, Target},
    world::{BACKENDS, Change, LIMITS, World, backend_mac},
};

/// Counted beside the verdict of a packet.
pub const NO_VERDICTS: [Reason; 2] = [Reason::Evicted, Reason::FragmentGuessed];
/// Longer than any two packets of a flow may be apart for it to go on.
const PAUSE: u64 = 10_000_000_000;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The host's program under these rules.
pub struct Ruled<'a> {
    host: Host,
    world: &'a World,
    verdicts: Vec<VerdictCounters>,
    /// The backend of each connection that is to go on.
    owners: BTreeMap<Connection, u8>,
    /// States of backends by id, where they are not live.
    ended: BTreeMap<u32, u8>,
}

/// A client's address and port, the service's port, and whether IPv4.
type Connection = (Address, u16, u16);

impl<'a> Ruled<'a> {
    pub fn new(host: Host, world: &'a World) -> Self {
        let verdicts = host.verdicts();
        Self { host, world, verdicts, owners: BTreeMap::new(), ended: BTreeMap::new() }
    }

    /// The one reason that was counted, for this frame; tags may be left out of its length.
    fn reason(&mut self, frame: &[u8]) -> Reason {
        let lengths = [frame.len() as u64, (frame.len() - tags(frame)) as u64];
        let now = self.host.verdicts();
        let before = std::mem::replace(&mut self.verdicts, now);
        let mut reasons = Vec::new();
        for ((reason, before), after) in Reason::ALL.iter().zip(before).zip(&self.verdicts) {
            let (packets, counted) = (after.packets - before.packets, after.bytes - before.bytes);
            if NO_VERDICTS.contains(reason) {
                if packets != 0 {
                    // Somebody's flow has made room.
                    self.owners.clear();
                }
            } else if packets != 0 {
                assert_eq!(packets, 1, "{reason:?}: packets");
                assert!(lengths.contains(&counted), "{reason:?}: {counted} bytes of {lengths:?}");
                reasons.push(*reason);
            }
        }
        assert_eq!(reasons.len(), 1, "a packet has one verdict: {reasons:?}");
        reasons[0]
    }

    /// Connections stay where they are.
    fn follow(&mut self, side: Side, frame: &[u8], reason: Reason, sent: &Sent) {
        // Fragments and broken packets may end connections too, and nobody says which.
        let Some(right) = judge(frame).ok().filter(|right| right.transport.is_some()) else {
            return self.owners.clear();
        };
        let Some((connection, flags)) = connection(frame, &right) else { return };
        if side == Side::Back || flags & (FIN | RST) != 0 {
            // The end of one, or its answer; whose it is depends on the mode.
            if flags & (FIN | RST | SYN) != 0 {
                self.owners.clear();
            }
            return;
        }
        let service = self.world.services.iter().find(|service| {
            service.key.address == right.destination
                && service.key.protocol == TCP
                && service.key.port.get() == connection.2
        });
        let Some(service) = service.filter(|service| service.value.granularity != Granularity::Packet as u8) else {
            return;
        };
        if reason == Reason::Rescued {
            self.owners.remove(&connection);
        }
        if reason != Reason::ToBackend {
            return;
        }
        let Some(n) = (1..=BACKENDS).find(|n| sent.frame[..6] == backend_mac(*n)) else {
            panic!("sent to nobody's link-layer address: {:02x?}", &sent.frame[..6]);
        };
        let state = self.ended.get(&service.backend_id(n)).copied();
        assert!(state.is_none_or(BackendState::keeps_flows), "sent to a backend in state {state:?}");
        let owner = self.owners.get(&connection).copied();
        // Packets that come behind the end of a connection are on its way, and keep nothing there.
        if owner.is_some() || flags & (SYN | ACK | RST) == SYN {
            self.owners.insert(connection, n);
        }
        let rescued = service.is_watched() && flags & SYN != 0;
        assert!(
            owner.is_none_or(|owner| owner == n) || rescued,
            "{connection:?} of service {} has moved from backend {owner:?} to {n}",
            service.id
        );
    }
}

impl Target for Ruled<'_> {
    fn change(&mut self, change: &Change) {
        if let Change::Backend { id, backend } = change {
            let live = backend.state == BackendState::Live as u8;
            if live {
                self.ended.remove(id);
            } else {
                self.ended.insert(*id, backend.state);
                let lost = self.world.services.iter().find_map(|service| {
                    (1..=BACKENDS).find(|n| service.backend_id(*n) == *id).map(|n| (service.key.port.get(), n))
                });
                if !BackendState::keeps_flows(backend.state) {
                    self.owners.retain(|(_, _, port), owner| lost != Some((*port, *owner)));
                }
            }
        }
        if tells() {
            eprintln!("{change:?}");
        }
        self.host.change(change);
    }

    fn wait(&mut self, ns: u64) {
        if ns > PAUSE {
            self.owners.clear();
        }
        if tells() {
            eprintln!("{} ms pass", ns / 1_000_000);
        }
        self.host.wait(ns);
    }

    fn run(&mut self, side: Side, frame: &[u8], first: usize) -> Sent {
        let sent = self.host.run(side, frame, first);
        let reason = self.reason(frame);
        if tells() {
            eprintln!("{side:?} {reason:?} exit {}: {}\n   -> {}", sent.action, short(frame), short(&sent.frame));
        }
        let tell = || format!("{reason:?}, from {side:?}\n  came {frame:02x?}\n  left {:02x?}", sent.frame);
        assert_ne!(reason, Reason::Internal, "{}", tell());
        assert_exit(reason, &sent, frame, &tell);
        if sent.action >= XDP_TX {
            assert_right(reason, frame, &sent.frame, &tell);
            if matches!(reason, Reason::ToBackend | Reason::ToClient) {
                assert_carried(frame, &sent.frame, &tell);
            }
        }
        self.follow(side, frame, reason, &sent);
        sent
    }
}

/// The way out is the reason's, and what is passed is as it came.
fn assert_exit(reason: Reason, sent: &Sent, frame: &[u8], tell: &impl Fn() -> String) {
    let exits: &[u32] = match reason.action() {
        Action::Pass => &[XDP_PASS],
        Action::Drop => &[XDP_DROP],
        Action::Forward | Action::Answer | Action::Refuse => &[XDP_TX, XDP_REDIRECT],
    };
    assert!(exits.contains(&sent.action), "exit {}: {}", sent.action, tell());
    if sent.action == XDP_PASS {
        assert_eq!(sent.frame, frame, "a frame that is passed is left as it was: {}", tell());
    }
}

/// What came with right lengths and checksums leaves with right ones, and a refusal has them anyhow.
fn assert_right(reason: Reason, frame: &[u8], left: &[u8], tell: &impl Fn() -> String) {
    let came = judge(frame);
    match (came, judge(left)) {
        (_, Ok(_)) => {}
        (Ok(_), Err(wrong)) => panic!("{wrong}: {}", tell()),
        (Err(_), Err(wrong)) => {
            // Checksums change by what was changed, so that damage stays seen; refusals are made anew.
            assert_ne!(reason.action(), Action::Refuse, "{wrong} in a refusal: {}", tell());
        }
    }
}

/// With `LB_FUZZ_TELL` in the environment every step is told.
fn tells() -> bool {
    static TELLS: OnceLock<bool> = OnceLock::new();
    *TELLS.get_or_init(|| std::env::var_os("LB_FUZZ_TELL").is_some())
}

/// A frame's headers, and what is wrong with them.
fn short(frame: &[u8]) -> String {
    let bytes: String = frame.iter().take(100).map(|byte| format!("{byte:02x}")).collect();
    match judge(frame) {
        Ok(right) => format!("{:?} {} bytes {bytes}", right.transport, frame.len()),
        Err(wrong) => format!("{wrong}, {} bytes {bytes}", frame.len()),
    }
}

/// Bytes of a frame's one or two tags.
fn tags(frame: &[u8]) -> usize {
    let tagged = |at: usize| matches!(frame.get(at..at + 2), Some([0x81, 0] | [0x88, 0xa8]));
    if !tagged(12) {
        0
    } else if !tagged(16) {
        4
    } else {
        8
    }
}

/// What is sent on ends with what it carried.
fn assert_carried(frame: &[u8], left: &[u8], tell: &impl Fn() -> String) {
    let Some((protocol, at)) = judge(frame).ok().and_then(|right| right.transport) else { return };
    let header = match protocol {
        TCP => usize::from(frame[at + 12] >> 4) * 4,
        UDP => 8,
        // SCTP is never rewritten.
        _ => 0,
    };
    assert!(left.ends_with(&frame[at + header..]), "the payload has changed: {}", tell());
}

/// A connection, and the flags of the packet.
fn connection(frame: &[u8], right: &Right) -> Option<(Connection, u8)> {
    let (protocol, at) = right.transport?;
    if protocol != TCP {
        return None;
    }
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    Some(((right.source, port(at), port(at + 2)), frame[at + 13]))
}

const _: () = assert!(LIMITS.flows.is_power_of_two());
