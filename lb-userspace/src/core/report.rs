//! What a probe found out.

use std::{cmp::Ordering, collections::BTreeMap, fmt, time::Duration};

/// How one probe ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeOutcome {
    pub up: bool,
    /// Where it ended, as HAProxy names it: `L4OK`, `L4CON`, `L4TOUT`, `L6OK`, `L6RSP`, `L6TOUT`,
    /// `L7OK 200`, `L7STS 503`, `L7RSP`, `L7TOUT`; followed by `: ` and words where there are any.
    pub result: String,
    pub took: Duration,
    /// The parts it came to, in their order; the last one is where it ended.
    pub phases: Vec<(Phase, Duration)>,
    /// Where the check tells one and the server answered it.
    pub role: Option<RoleReport>,
    /// The server's, where it was asked over TLS.
    pub certificate: Option<Certificate>,
    /// Of an agent that answered.
    pub agent: Option<AgentReply>,
    /// Why the backend's own address was asked, where the service's was meant.
    pub own_address: Option<String>,
}

impl ProbeOutcome {
    /// An outcome without particulars.
    pub fn new(up: bool, result: impl Into<String>, took: Duration) -> Self {
        Self { up, result: result.into(), took, ..Self::default() }
    }
}

/// A part of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Until the connection stood.
    Connect,
    /// Until the TLS handshake was over.
    Tls,
    /// Until the question was on its way.
    Send,
    /// Until the first byte of the answer was there.
    FirstByte,
    /// Until enough of the answer was there.
    Body,
    /// Until the server took the login.
    Login,
    /// Until everything asked after the login was answered.
    Query,
    /// Until the program ended.
    Run,
}

impl Phase {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Send => "send",
            Self::FirstByte => "first-byte",
            Self::Body => "body",
            Self::Login => "login",
            Self::Query => "query",
            Self::Run => "run",
        }
    }
}

/// The end of a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Seconds since 1970, UTC.
    pub not_after: i64,
    /// Whole days from the probe until then; below 0 when it is over.
    pub days_left: i64,
    /// It ends sooner than the check likes.
    pub warn: bool,
}

/// What a database says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleReport {
    pub role: Role,
    /// In words, what that was told from: `read_only is on, replication runs`.
    pub why: String,
    /// How far its log goes (bytes): what it wrote, or what it replayed.
    pub position: Option<u64>,
    /// Its own word on how far it is behind.
    pub delay: Option<Duration>,
    /// How far its history goes, against that of another that claims to be primary.
    pub epoch: Option<Epoch>,
}

impl RoleReport {
    pub fn new(role: Role, why: impl Into<String>) -> Self {
        Self { role, why: why.into(), position: None, delay: None, epoch: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Takes writes.
    Primary,
    /// Follows a primary, and is fit to be read.
    Replica,
    /// Neither: a replica that does not follow, a server that is being built.
    None,
}

impl Role {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::None => "none",
        }
    }
}

/// How far a history goes, in each of its lines: PostgreSQL has one (the timeline), MySQL and MariaDB
/// have one for each server that wrote (its transactions).
///
/// Ordered only where one history holds the whole of the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epoch(pub BTreeMap<String, u64>);

impl Epoch {
    /// Of a system with one line of history.
    pub fn of(line: &str, number: u64) -> Self {
        Self(BTreeMap::from([(line.to_owned(), number)]))
    }

    fn holds(&self, other: &Self) -> bool {
        other.0.iter().all(|(line, theirs)| self.0.get(line).is_some_and(|ours| ours >= theirs))
    }
}

impl PartialOrd for Epoch {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self.holds(other), other.holds(self)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Greater),
            (false, true) => Some(Ordering::Less),
            (false, false) => None,
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (line, number)) in self.0.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{line} {number}")?;
        }
        Ok(())
    }
}

/// What an agent said; what it left out stays as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentReply {
    /// Of the configured weight, 0 to 256.
    pub percent: Option<u16>,
    pub admin: Option<AgentAdmin>,
    /// `Err`: down, with the agent's reason.
    pub state: Option<Result<(), String>>,
}

/// Whether an agent wants new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentAdmin {
    Ready,
    Drain,
    Maintenance,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(lines: &[(&str, u64)]) -> Epoch {
        Epoch(lines.iter().map(|(line, number)| ((*line).to_owned(), *number)).collect())
    }

    #[test]
    fn an_epoch_is_ahead_only_when_it_holds_all_of_the_other() {
        assert!(Epoch::of("timeline", 3) > Epoch::of("timeline", 2));
        assert!(epoch(&[("a", 5), ("b", 1)]) > epoch(&[("a", 5)]));
        let (one, other) = (epoch(&[("a", 5), ("b", 1)]), epoch(&[("a", 4), ("b", 2)]));
        assert_eq!(one.partial_cmp(&other), None, "each has what the other lacks");
        assert_eq!(one.partial_cmp(&one), Some(Ordering::Equal));
    }
}
