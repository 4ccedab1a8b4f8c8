//! What can be asked of a backend to know how it is.

use std::{path::PathBuf, time::Duration};

/// Which way a question goes to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Via {
    /// To the service's address, as the packets of clients do; with direct server return only.
    Service,
    /// To the backend's own address.
    #[default]
    Backend,
}

impl Via {
    pub const ALL: [Self; 2] = [Self::Service, Self::Backend];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Backend => "backend",
        }
    }
}

/// One question, with everything that makes the answer good or bad. Two services that ask the same
/// of the same target share one probe.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Check {
    /// Always up.
    None,
    /// A connection is accepted.
    Tcp,
    /// A TLS handshake succeeds, with a certificate that is trusted.
    Tls(TlsCheck),
    /// A request is answered as expected.
    Http(HttpCheck),
    /// A datagram is answered.
    Udp(UdpCheck),
    /// A name is resolved.
    Dns(DnsCheck),
    /// A program of this host ends with status 0.
    Exec(ExecCheck),
    /// A login at MySQL or MariaDB succeeds.
    Mysql(LoginCheck),
    /// A login at PostgreSQL succeeds.
    Postgres(LoginCheck),
    /// Redis answers PING.
    Redis(LoginCheck),
    /// Patroni's REST API says that its PostgreSQL runs, and in which role.
    Patroni(PatroniCheck),
    /// The server's agent is asked for its word on weight and state (HAProxy's agent-check). Never
    /// the check of a service; it goes beside one.
    Agent(AgentCheck),
}

/// A GET, or another request, and what its answer must look like.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HttpCheck {
    pub method: HttpMethod,
    pub path: String,
    /// The Host header; `None`: the target.
    pub host: Option<String>,
    /// Statuses that count as success.
    pub expect: Vec<StatusRange>,
    pub body: Option<BodyMatch>,
    pub headers: Vec<HeaderMatch>,
    /// Set for `https`.
    pub tls: Option<TlsCheck>,
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self {
            method: HttpMethod::Get,
            path: "/".to_owned(),
            host: None,
            expect: vec![StatusRange { first: 200, last: 399 }],
            body: None,
            headers: Vec::new(),
            tls: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HttpMethod {
    Get,
    Head,
    Options,
}

impl HttpMethod {
    pub const ALL: [Self; 3] = [Self::Get, Self::Head, Self::Options];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
        }
    }
}

/// First and last HTTP status, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StatusRange {
    pub first: u16,
    pub last: u16,
}

/// What must be somewhere in the first 64 KiB of a body.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BodyMatch {
    Contains(String),
    /// A regular expression that compiles.
    Regex(String),
}

/// A header that must be in the answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeaderMatch {
    /// In lower case.
    pub name: String,
    /// Must be somewhere in its value; empty: any value will do.
    pub value: String,
}

/// How the server of a TLS connection is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TlsCheck {
    /// Asked for (SNI) and looked for in the certificate; `None`: the target's address.
    pub server_name: Option<String>,
    pub trust: Trust,
    /// A certificate that has less than this left is warned of.
    pub expiry_warning: Duration,
}

impl Default for TlsCheck {
    fn default() -> Self {
        Self { server_name: None, trust: Trust::System, expiry_warning: EXPIRY_WARNING }
    }
}

/// Two weeks: time enough to renew by hand what was meant to renew by itself.
pub(super) const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 86_400);

/// Which certificates are accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trust {
    /// Signed by an authority that this host trusts.
    System,
    /// Signed by one of the authorities in this file (PEM).
    CaFile(PathBuf),
    /// This one alone: SHA-256 of the certificate (DER). Name and dates do not count.
    Fingerprint([u8; 32]),
    /// Every one.
    Anyone,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UdpCheck {
    pub send: Vec<u8>,
    /// Must be somewhere in the answer; `None`: any answer will do.
    pub receive: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsCheck {
    /// A name that can be encoded.
    pub name: String,
    /// As in a zone file: `A`, `AAAA`, `SOA`.
    pub record_type: String,
    pub response: DnsResponse,
    /// One of the answers must read so, as in a zone file: `192.0.2.1`.
    pub answer: Option<String>,
}

/// What a DNS server says in the head of its answer (RFC 1035, 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DnsResponse {
    NoError,
    NxDomain,
    Refused,
    /// Any that tells of a server at work: not SERVFAIL.
    Any,
}

impl DnsResponse {
    pub const ALL: [Self; 4] = [Self::NoError, Self::NxDomain, Self::Refused, Self::Any];

    pub const fn name(self) -> &'static str {
        match self {
            Self::NoError => "noerror",
            Self::NxDomain => "nxdomain",
            Self::Refused => "refused",
            Self::Any => "any",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExecCheck {
    /// Absolute.
    pub command: PathBuf,
    pub arguments: Vec<String>,
}

/// Who logs in at a database, and what is asked there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoginCheck {
    pub user: Option<String>,
    /// Its first line is the password. Read for every probe, so that it may change.
    pub password_file: Option<PathBuf>,
    pub database: Option<String>,
    pub tls: Option<TlsCheck>,
    /// Whether the server's role is asked for too.
    pub role: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PatroniCheck {
    pub tls: Option<TlsCheck>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentCheck {
    /// Sent first, where the agent wants something.
    pub send: String,
}

impl Check {
    /// The word for it in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tcp => "tcp",
            Self::Tls(_) => "tls",
            Self::Http(HttpCheck { tls: None, .. }) => "http",
            Self::Http(_) => "https",
            Self::Udp(_) => "udp",
            Self::Dns(_) => "dns",
            Self::Exec(_) => "exec",
            Self::Mysql(_) => "mysql",
            Self::Postgres(_) => "postgres",
            Self::Redis(_) => "redis",
            Self::Patroni(_) => "patroni",
            Self::Agent(_) => "agent",
        }
    }

    /// Name and what is asked, in short: `http GET /healthz`, `dns A example.org`.
    pub fn describe(&self) -> String {
        let name = self.name();
        match self {
            Self::Http(HttpCheck { method, path, .. }) => format!("{name} {} {path}", method.name()),
            Self::Dns(DnsCheck { name: asked, record_type, .. }) => format!("{name} {record_type} {asked}"),
            Self::Exec(ExecCheck { command, .. }) => format!("{name} {}", command.display()),
            Self::Mysql(LoginCheck { role: true, .. })
            | Self::Postgres(LoginCheck { role: true, .. })
            | Self::Redis(LoginCheck { role: true, .. }) => format!("{name} with role"),
            _ => name.to_owned(),
        }
    }

    /// Whether its answers tell a database's role.
    pub fn tells_role(&self) -> bool {
        match self {
            Self::Mysql(login) | Self::Postgres(login) | Self::Redis(login) => login.role,
            Self::Patroni(_) => true,
            _ => false,
        }
    }

    /// Whether it is asked over UDP or of no port at all, so that a TCP port is not needed.
    pub fn needs_tcp_port(&self) -> bool {
        !matches!(self, Self::None | Self::Udp(_) | Self::Dns(_) | Self::Exec(_))
    }
}
