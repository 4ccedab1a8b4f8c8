//! What the data path does with a packet, and why. Every packet ends in exactly one counted reason.

use crate::abi::EndCause;

/// What happens to the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Action {
    /// Untouched, to the kernel's stack.
    Pass,
    /// Rewritten and sent on.
    Forward,
    /// Answered to its sender with what it asked for.
    Answer,
    /// Answered to its sender with a TCP reset or an ICMP error.
    Refuse,
    Drop,
}

impl Action {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Forward => "forward",
            Self::Answer => "answer",
            Self::Refuse => "refuse",
            Self::Drop => "drop",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $value:literal, $action:ident, $text:literal;)+) => {
        /// Why a packet was passed, forwarded, refused or dropped.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        pub enum Reason { $($(#[doc = $doc])+ $variant = $value),+ }

        impl Reason {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// Elements of `verdict_stats`.
            pub const COUNT: u32 = Self::ALL.len() as u32;

            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Self::$variant => Action::$action),+ }
            }

            /// The reason of that number, [`Self::Internal`] for a number without one.
            #[inline(always)]
            pub const fn from_number(number: u32) -> Self {
                match number { $($value => Self::$variant,)+ _ => Self::Internal }
            }

            /// The word used in CLI and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// What it means, in a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii_start()),+ }
            }
        }
    };
}

reasons! {
    /// Neither IPv4 nor IPv6: ARP, more than two VLAN tags and the rest.
    NotIp = 0, Pass, "not_ip";
    /// An address that is neither a service's nor of a backend's reply.
    NotForUs = 1, Pass, "not_for_us";
    /// To one of our addresses, but no service has the protocol and port.
    NoService = 2, Pass, "no_service";
    /// To one of our addresses, neither TCP nor UDP nor SCTP, or with a route to further nodes.
    NotTransport = 3, Pass, "not_transport";
    /// To one of our addresses, a fragment of what is not balanced, or of no flow.
    Fragment = 4, Pass, "fragment";
    /// TTL or hop limit used up: the kernel answers.
    TtlExpired = 5, Pass, "ttl_expired";
    /// From a backend or to a source address, but of no flow: the host's own traffic.
    NoFlow = 6, Pass, "no_flow";
    /// Too short or contradictory, and not for a service.
    MalformedPassed = 7, Pass, "malformed_passed";
    /// Sent on to the backend.
    ToBackend = 8, Forward, "to_backend";
    /// Sent on to the client.
    ToClient = 9, Forward, "to_client";
    /// No backend of the service is ready.
    NoBackend = 10, Refuse, "no_backend";
    /// The flow's backend was declared dead.
    BackendDead = 11, Refuse, "backend_dead";
    /// TCP of a flow that is not known, and not its beginning.
    UnknownFlow = 12, Refuse, "unknown_flow";
    /// For a service, but too short or contradictory.
    Malformed = 13, Drop, "malformed";
    /// A reset of a flow that is not known: never answered.
    UnknownReset = 14, Drop, "unknown_reset";
    /// No source port is free towards any backend that was tried.
    PortsExhausted = 15, Drop, "ports_exhausted";
    /// The client's tuple is taken at every backend that was tried, by a flow of another service.
    TupleTaken = 16, Drop, "tuple_taken";
    /// No way in the flow table could be had.
    TableFull = 17, Drop, "table_full";
    /// The next hop's link-layer address is not known yet; the agent was asked to resolve it.
    NeighbourMissing = 18, Drop, "neighbour_missing";
    /// The host has no route, or forwarding is off on the interface.
    NoRoute = 19, Drop, "no_route";
    /// Larger than the way to the receiver takes: the sender was told what fits.
    TooBig = 20, Refuse, "too_big";
    /// The kernel refused to resize or resend the packet.
    Internal = 21, Drop, "internal";
    /// To be answered, but an ICMP error itself, a fragment behind the first, or its source is no single host that an answer could go to.
    Unanswerable = 22, Drop, "unanswerable";
    /// To be answered with an ICMP error, but enough of them were sent in this moment.
    AnswerLimited = 23, Drop, "answer_limited";
    /// Not a verdict: flows evicted while live because the table was full, one count each.
    Evicted = 24, Drop, "evicted";
    /// The backend of a `dsr-l2` service is behind a gateway, not on a segment with the balancer.
    NotOnSegment = 25, Drop, "not_on_segment";
    /// An echo request (ping) to a service's address.
    Echo = 26, Answer, "echo";
    /// An ICMP error about a reply: sent on to the backend that sent the reply.
    ErrorToBackend = 27, Forward, "error_to_backend";
    /// An ICMP error about a client's packet that was sent on: sent on to the client.
    ErrorToClient = 28, Forward, "error_to_client";
    /// An ICMP error about a reply of a service that belongs to no flow.
    ErrorOfNoFlow = 29, Drop, "error_of_no_flow";
    /// An ICMP error about a packet in a tunnel that no client can be told of.
    TunnelError = 30, Pass, "tunnel_error";
    /// Of a flow between IPv4 and IPv6, and with headers that the other family does not know: a source
    /// route, authentication, mobility; or a fragment; or an ICMP error that the other family has not.
    NotTranslatable = 31, Drop, "not_translatable";
    /// SCTP of a flow that is not known, and not its beginning: perhaps from a further address of the
    /// client. Never answered: that would end the association on its first address too.
    UnknownAssociation = 32, Drop, "unknown_association";
    /// To a service, a fragment whose first one has not come by, or was not sent on, and no other
    /// datagram told the way.
    FragmentEarly = 33, Drop, "fragment_early";
    /// Not a verdict: fragments that came before their first, and were sent the way of the last datagram
    /// in pieces between the same two addresses.
    FragmentGuessed = 34, Drop, "fragment_guessed";
    /// A backend's refusal of a connection: in its place the client's SYN was sent to another backend.
    Rescued = 35, Forward, "rescued";
    /// A backend's answer to a connection that another one has by now: reset.
    LateAnswer = 36, Refuse, "late_answer";
    /// Of a new flow, while the agent is silent and `dead-man` is `pass`: the kernel's.
    AgentSilentPassed = 37, Pass, "agent_silent_passed";
    /// Of a new flow, while the agent is silent and `dead-man` is `drop`.
    AgentSilentDropped = 38, Drop, "agent_silent_dropped";
    /// The flow's backend has lost the role that its service asks for.
    BackendDemoted = 39, Refuse, "backend_demoted";
    /// The drain of the flow's backend has ended before the flow.
    BackendDrained = 40, Refuse, "backend_drained";
    /// The flow's backend was removed from its service.
    BackendRemoved = 41, Refuse, "backend_removed";
    /// Would begin a flow while the service is frozen: the client tries again.
    Parked = 42, Drop, "parked";
    /// Would begin a flow, but each backend that was asked has as many as `max-connections` lets it have.
    BackendsFull = 43, Refuse, "backends_full";
}

impl Reason {
    /// Why packets of flows are refused that were over with their backend; `cause` is an
    /// [`EndCause`] as it stands in the maps.
    #[inline(always)]
    pub const fn of_end(cause: u8) -> Self {
        match EndCause::from_number(cause) {
            Some(EndCause::Demoted) => Self::BackendDemoted,
            Some(EndCause::Drained) => Self::BackendDrained,
            Some(EndCause::Removed) => Self::BackendRemoved,
            Some(EndCause::None | EndCause::Down) | None => Self::BackendDead,
        }
    }
}

/// How a packet leaves.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// To the stack.
    Pass = 0,
    /// Out of the interface it came from.
    Transmit = 1,
    /// Out of another interface, named by the verdict.
    Redirect = 2,
    Drop = 3,
    /// Not over yet: the program of a [`Stage`], named by the verdict, goes on with it.
    Continue = 4,
}

macro_rules! stages {
    ($($(#[doc = $doc:literal])+ $variant:ident = $value:literal, $program:literal;)+) => {
        /// What is rare has a program of its own, reached by a tail call: it costs the common packet
        /// nothing, and has stack and verifier budget for itself. The value is the index in the map
        /// `stages`.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Stage { $($(#[doc = $doc])+ $variant = $value),+ }

        impl Stage {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// Elements of `stages`.
            pub const COUNT: usize = Self::ALL.len();

            /// The program's name.
            pub const fn program(self) -> &'static str {
                match self { $(Self::$variant => $program),+ }
            }
        }
    };
}

stages! {
    /// ICMP and ICMPv6, which may be about a flow whoever sent it.
    Icmp = 0, "lb_icmp";
    /// A packet that does not fit where it should go.
    TooBig = 1, "lb_too_big";
    /// The first packet of a flow whose client may have a backend already.
    Client = 2, "lb_client";
    /// Packets of flows between IPv4 and IPv6.
    Family = 3, "lb_family";
    /// Frames with VLAN tags, and fragments: the whole way once more, with what they need besides.
    Unusual = 4, "lb_unusual";
    /// Connections that their backend refuses or does not answer.
    Rescue = 5, "lb_rescue";
    /// Packets that the short way has no answer for, and so every packet that begins or ends something: the
    /// whole way from its beginning.
    Whole = 6, "lb_whole";
}

/// The end of a packet's way through the program: reason, exit and target in one number, because
/// the compiler would spread a struct over the stack in ways that the verifier refuses.
///
/// ```text
/// 63          32 31    24 23         0
/// | target      | exit   | reason    |
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict(u64);

impl Verdict {
    #[inline(always)]
    const fn new(reason: Reason, exit: Exit, target: u32) -> Self {
        Self(reason as u64 | (exit as u64) << 24 | (target as u64) << 32)
    }

    /// A verdict that sends nothing: pass or drop, as the reason says.
    #[inline(always)]
    pub const fn of(reason: Reason) -> Self {
        let exit = match reason.action() {
            Action::Pass => Exit::Pass,
            Action::Forward | Action::Answer | Action::Refuse | Action::Drop => Exit::Drop,
        };
        Self::new(reason, exit, 0)
    }

    /// A verdict that sends the frame out of the interface it came from.
    #[inline(always)]
    pub const fn transmit(reason: Reason) -> Self {
        Self::new(reason, Exit::Transmit, 0)
    }

    /// A verdict that sends the frame out of another interface.
    #[inline(always)]
    pub const fn redirect(reason: Reason, ifindex: u32) -> Self {
        Self::new(reason, Exit::Redirect, ifindex)
    }

    /// Hands the packet to a stage, which finds the verdict.
    #[inline(always)]
    pub const fn go_on(stage: Stage) -> Self {
        Self::new(Reason::Internal, Exit::Continue, stage as u32)
    }

    /// The same reason with another way out; of a frame that leaves by other means than its way says.
    #[inline(always)]
    pub const fn leaving(self, exit: Exit, target: u32) -> Self {
        Self(self.0 & 0xff_ffff | (exit as u64) << 24 | (target as u64) << 32)
    }

    /// The same way out for another reason.
    #[inline(always)]
    pub const fn because(self, reason: Reason) -> Self {
        Self(self.0 & !0xff_ffff | reason as u64)
    }

    /// The whole verdict as a number, and back: for functions that are verified on their own.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// From what [`Self::bits`] gave.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Number of the [`Reason`].
    #[inline(always)]
    pub const fn reason(self) -> u32 {
        self.0 as u32 & 0xff_ffff
    }

    #[inline(always)]
    pub const fn exit(self) -> Exit {
        match (self.0 >> 24) as u8 {
            0 => Exit::Pass,
            1 => Exit::Transmit,
            2 => Exit::Redirect,
            4 => Exit::Continue,
            _ => Exit::Drop,
        }
    }

    /// For [`Exit::Redirect`] the interface's index, for [`Exit::Continue`] the stage's number,
    /// otherwise 0.
    #[inline(always)]
    pub const fn target(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_in_order_and_named_once() {
        let mut names = std::collections::BTreeSet::new();
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert_eq!(Reason::from_number(i as u32), *reason);
            assert!(names.insert(reason.name()));
            assert!(reason.meaning().starts_with(char::is_uppercase) && reason.meaning().ends_with('.'));
        }
    }

    #[test]
    fn a_verdict_keeps_what_it_was_made_of() {
        for reason in Reason::ALL {
            for exit in [Exit::Pass, Exit::Transmit, Exit::Redirect, Exit::Drop, Exit::Continue] {
                let verdict = Verdict::new(*reason, exit, u32::MAX - 1);
                assert_eq!((verdict.reason(), verdict.exit(), verdict.target()), (*reason as u32, exit, u32::MAX - 1));
                assert_eq!(Verdict::of(*reason).leaving(exit, u32::MAX - 1), verdict);
                assert_eq!(Verdict::from_bits(verdict.bits()), verdict);
            }
        }
    }
}
