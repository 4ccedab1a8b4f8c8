//! Every key of `[service.health]`.

use std::{path::PathBuf, time::Duration};

use super::{
    form::{Flag, OneOf, Shaped, Time, Whole},
    health_values as values,
    probes::{DnsResponse, EXPIRY_WARNING, HeaderMatch, HttpMethod, StatusRange, Via},
    reader::{Key, LeftOut, Section},
    shape, value,
};

/// Kinds of health check, before their details are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckKind {
    Tcp,
    Http,
    Https,
    Tls,
    Udp,
    Dns,
    Exec,
    Mysql,
    Postgres,
    Redis,
    Patroni,
    None,
}

impl CheckKind {
    pub(super) const ALL: [Self; 12] = [
        Self::Tcp,
        Self::Http,
        Self::Https,
        Self::Tls,
        Self::Udp,
        Self::Dns,
        Self::Exec,
        Self::Mysql,
        Self::Postgres,
        Self::Redis,
        Self::Patroni,
        Self::None,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Https => "https",
            Self::Tls => "tls",
            Self::Udp => "udp",
            Self::Dns => "dns",
            Self::Exec => "exec",
            Self::Mysql => "mysql",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Patroni => "patroni",
            Self::None => "none",
        }
    }
}

pub(super) static HEALTH: Section = Section {
    header: "[service.health]",
    keys: &[
        &CHECK_TYPE,
        &CHECK_PORT,
        &VIA,
        &INTERVAL,
        &FAST_INTERVAL,
        &TIMEOUT,
        &FALL,
        &RISE,
        &JITTER,
        &HTTP_PATH,
        &HTTP_METHOD,
        &HTTP_HOST,
        &HTTP_EXPECT,
        &HTTP_BODY,
        &HTTP_BODY_REGEX,
        &HTTP_HEADERS,
        &TLS,
        &SERVER_NAME,
        &CA_FILE,
        &FINGERPRINT,
        &VERIFY,
        &EXPIRY,
        &UDP_SEND,
        &UDP_RECEIVE,
        &DNS_QUERY,
        &DNS_TYPE,
        &DNS_RESPONSE,
        &DNS_ANSWER,
        &COMMAND,
        &ARGUMENTS,
        &USER,
        &PASSWORD_FILE,
        &DATABASE,
        &AGENT_PORT,
        &AGENT_INTERVAL,
        &AGENT_SEND,
    ],
};

pub(super) static CHECK_TYPE: Key<CheckKind> = Key {
    name: "type",
    form: &OneOf { all: &CheckKind::ALL, name: CheckKind::name },
    left_out: LeftOut::Depends("`\"tcp\"` for TCP services on one port, otherwise `\"none\"` with a warning"),
    doc: "`tcp`: a connection is accepted. `tls`: and its handshake succeeds. `http`, `https`: a request is answered \
          as expected. `udp`: a datagram is answered. `dns`: a name is resolved. `exec`: a program ends with status \
          0. `mysql` (MariaDB too), `postgres`, `redis`: a login succeeds, and where the service has a `role`, the \
          server's role is told. `patroni`: Patroni's REST API says that PostgreSQL runs. `none`: backends always \
          count as up.",
};

pub(super) static CHECK_PORT: Key<u16> = Key {
    name: "port",
    form: &Whole { min: 1, max: 65_535, unit: "" },
    left_out: LeftOut::Depends("the backend's port; with `patroni` 8008"),
    doc: "Port to check. Needed for services on every port, and for UDP services whose check speaks TCP.",
};

pub(super) static VIA: Key<Via> = Key {
    name: "via",
    form: &OneOf { all: &Via::ALL, name: Via::name },
    left_out: LeftOut::Depends(
        "`\"service\"` in the modes `dsr-l2`, `dsr-ipip`, `dsr-gue` and `dsr-gre` for checks without a `port`, otherwise `\"backend\"`",
    ),
    doc: "Which way a check goes. `service`: to the service's address, by the backend's MAC or through its tunnel, as \
          the packets of clients do. `backend`: to the backend's own address. A backend with a `check-address` is \
          always asked there, and one of another address family than the service's at its own address.",
};

const INTERVAL_RANGE: Time = Time { min: Duration::from_millis(10), max: Duration::from_secs(3600) };

pub(super) static INTERVAL: Key<Duration> = Key {
    name: "interval",
    form: &INTERVAL_RANGE,
    left_out: LeftOut::Value(Duration::from_secs(1)),
    doc: "From one check of a backend to the next.",
};

pub(super) static FAST_INTERVAL: Key<Duration> = Key {
    name: "fast-interval",
    form: &INTERVAL_RANGE,
    left_out: LeftOut::Depends("the same as `interval`"),
    doc: "From one check to the next while the state may be changing: after a result unlike the one before, until \
          `fall` or `rise` is reached. At most `interval`.",
};

/// Longest timeout that is chosen without being asked for.
pub(super) const DEFAULT_TIMEOUT_MAX: Duration = Duration::from_secs(1);

pub(super) static TIMEOUT: Key<Duration> = Key {
    name: "timeout",
    form: &Time { min: Duration::from_millis(1), max: Duration::from_secs(3600) },
    left_out: LeftOut::Depends("`interval`, but at most `\"1s\"`"),
    doc: "A check that takes longer has failed; at most `interval`.",
};

pub(super) static FALL: Key<u32> = Key {
    name: "fall",
    form: &Whole { min: 1, max: 100, unit: "" },
    left_out: LeftOut::Value(2),
    doc: "Failures in a row that take a backend down.",
};

pub(super) static RISE: Key<u32> = Key {
    name: "rise",
    form: &Whole { min: 1, max: 100, unit: "" },
    left_out: LeftOut::Value(2),
    doc: "Successes in a row that bring it back, and answers in a row that make it primary or replica.",
};

pub(super) static JITTER: Key<u8> = Key {
    name: "jitter",
    form: &Whole { min: 0, max: 50, unit: "percent" },
    left_out: LeftOut::Value(10),
    doc: "Each interval is varied by up to this share of it, so that checks spread out.",
};

pub(super) static HTTP_PATH: Key<String> = Key {
    name: "path",
    form: &Shaped::new(value::PATH_ALLOWED, value::http_path, shape::http_path),
    left_out: LeftOut::Text("\"/\""),
    doc: "`http`, `https`: what is asked for.",
};

pub(super) static HTTP_METHOD: Key<HttpMethod> = Key {
    name: "method",
    form: &OneOf { all: &HttpMethod::ALL, name: HttpMethod::name },
    left_out: LeftOut::Value(HttpMethod::Get),
    doc: "`http`, `https`: how it is asked for.",
};

pub(super) static HTTP_HOST: Key<String> = Key {
    name: "host",
    form: &Shaped::new(value::HOST_ALLOWED, value::http_host, shape::http_host),
    left_out: LeftOut::Depends("the address that is asked"),
    doc: "`http`, `https`: the Host header.",
};

pub(super) static HTTP_EXPECT: Key<Vec<StatusRange>> = Key {
    name: "expect",
    form: &Shaped::new(value::EXPECT_ALLOWED, value::statuses, shape::statuses),
    left_out: LeftOut::Text("\"200-399\""),
    doc: "`http`, `https`: statuses that count as success.",
};

pub(super) static HTTP_BODY: Key<String> = Key {
    name: "body",
    form: &Shaped::new(values::TEXT_ALLOWED, values::text, shape::text),
    left_out: LeftOut::Depends("any"),
    doc: "`http`, `https`: must be in the first 64 KiB of the answer's body.",
};

pub(super) static HTTP_BODY_REGEX: Key<String> = Key {
    name: "body-regex",
    form: &Shaped::new(values::REGEX_ALLOWED, values::regex, shape::text),
    left_out: LeftOut::Depends("any"),
    doc: "`http`, `https`: must match in the first 64 KiB of the answer's body.",
};

pub(super) static HTTP_HEADERS: Key<Vec<HeaderMatch>> = Key {
    name: "headers",
    form: &Shaped::new(values::HEADERS_ALLOWED, values::headers, shape::headers),
    left_out: LeftOut::Text("[]"),
    doc: "`http`, `https`: headers that the answer must have, with this text in their value.",
};

pub(super) static TLS: Key<bool> = Key {
    name: "tls",
    form: &Flag,
    left_out: LeftOut::Value(false),
    doc: "`mysql`, `postgres`, `redis`, `patroni`: encrypted; the server's certificate is verified.",
};

pub(super) static SERVER_NAME: Key<String> = Key {
    name: "server-name",
    form: &Shaped::new(values::NAME_ALLOWED, values::name, shape::host_name),
    left_out: LeftOut::Depends("the name in `host`, otherwise the address that is asked"),
    doc: "TLS: the name that is asked for (SNI) and that the certificate must have.",
};

pub(super) static CA_FILE: Key<PathBuf> = Key {
    name: "ca-file",
    form: &Shaped::new(values::FILE_ALLOWED, values::file, shape::file),
    left_out: LeftOut::Depends("the authorities that this host trusts"),
    doc: "TLS: authorities that may have signed the certificate (PEM). Read anew when it changes.",
};

pub(super) static FINGERPRINT: Key<[u8; 32]> = Key {
    name: "fingerprint",
    form: &Shaped::new(values::FINGERPRINT_ALLOWED, values::fingerprint, shape::fingerprint),
    left_out: LeftOut::Depends("any certificate that verifies"),
    doc: "TLS: the one certificate that is accepted, whatever its name and dates.",
};

pub(super) static VERIFY: Key<bool> = Key {
    name: "verify",
    form: &Flag,
    left_out: LeftOut::Value(true),
    doc: "TLS: `false` accepts every certificate; its end is warned of all the same.",
};

pub(super) static EXPIRY: Key<Duration> = Key {
    name: "expiry-warning",
    form: &Time { min: Duration::from_secs(3600), max: Duration::from_secs(31_557_600) },
    left_out: LeftOut::Value(EXPIRY_WARNING),
    doc: "TLS: a certificate that has less than this left is warned of.",
};

pub(super) static UDP_SEND: Key<Vec<u8>> = Key {
    name: "send",
    form: &Shaped::new(values::PAYLOAD_ALLOWED, values::payload, shape::payload),
    left_out: LeftOut::Depends("must be there for `udp`"),
    doc: "`udp`: what is sent.",
};

pub(super) static UDP_RECEIVE: Key<Vec<u8>> = Key {
    name: "receive",
    form: &Shaped::new(values::PAYLOAD_ALLOWED, values::payload, shape::payload),
    left_out: LeftOut::Depends("any answer"),
    doc: "`udp`: must be in the answer.",
};

pub(super) static DNS_QUERY: Key<String> = Key {
    name: "query",
    form: &Shaped::new(values::NAME_ALLOWED, values::name, shape::host_name),
    left_out: LeftOut::Text("\".\""),
    doc: "`dns`: the name that is asked for; choose one that the server answers by itself.",
};

pub(super) const RECORD_TYPES: [&str; 9] = ["A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"];

pub(super) static DNS_TYPE: Key<&'static str> = Key {
    name: "query-type",
    form: &OneOf { all: &RECORD_TYPES, name: same },
    left_out: LeftOut::Value("NS"),
    doc: "`dns`: the type of record that is asked for.",
};

pub(super) static DNS_RESPONSE: Key<DnsResponse> = Key {
    name: "response",
    form: &OneOf { all: &DnsResponse::ALL, name: DnsResponse::name },
    left_out: LeftOut::Value(DnsResponse::NoError),
    doc: "`dns`: the response code that counts as success; `any` is every one but SERVFAIL.",
};

pub(super) static DNS_ANSWER: Key<String> = Key {
    name: "answer",
    form: &Shaped::new(values::TEXT_ALLOWED, values::text, shape::text),
    left_out: LeftOut::Depends("any, or none"),
    doc: "`dns`: one of the records must have this value, as in a zone file: `\"192.0.2.1\"`.",
};

pub(super) static COMMAND: Key<PathBuf> = Key {
    name: "command",
    form: &Shaped::new(values::FILE_ALLOWED, values::file, shape::file),
    left_out: LeftOut::Depends("must be there for `exec`"),
    doc: "`exec`: the program. It runs without a shell, with the agent's rights, an empty environment but for \
          `LB_ADDRESS`, `LB_PORT`, `LB_TIMEOUT_MS` and `PATH`, and is killed with its process group at the timeout.",
};

pub(super) static ARGUMENTS: Key<Vec<String>> = Key {
    name: "arguments",
    form: &Shaped::new(values::ARGUMENTS_ALLOWED, values::arguments, shape::arguments),
    left_out: LeftOut::Text("[]"),
    doc: "`exec`: what the program is called with.",
};

pub(super) static USER: Key<String> = Key {
    name: "user",
    form: &Shaped::new(values::TEXT_ALLOWED, values::text, shape::text),
    left_out: LeftOut::Depends("must be there for `mysql` and `postgres`; with `redis` the default user"),
    doc: "`mysql`, `postgres`, `redis`: who logs in.",
};

pub(super) static PASSWORD_FILE: Key<PathBuf> = Key {
    name: "password-file",
    form: &Shaped::new(values::FILE_ALLOWED, values::file, shape::file),
    left_out: LeftOut::Depends("no password"),
    doc: "`mysql`, `postgres`, `redis`: a file whose first line is the password, read for every check.",
};

pub(super) static DATABASE: Key<String> = Key {
    name: "database",
    form: &Shaped::new(values::TEXT_ALLOWED, values::text, shape::text),
    left_out: LeftOut::Depends("with `postgres` the user's name, with `mysql` none"),
    doc: "`mysql`, `postgres`: the database that is logged in to.",
};

pub(super) static AGENT_PORT: Key<u16> = Key {
    name: "agent-port",
    form: &Whole { min: 1, max: 65_535, unit: "" },
    left_out: LeftOut::Depends("no agent"),
    doc: "TCP port of a program on the backend that says how much it can take, in HAProxy's text protocol: `75%`, \
          `ready`, `drain`, `maint`, `up`, `down`, `failed`, `stopped`. Beside the check, not instead of it.",
};

pub(super) static AGENT_INTERVAL: Key<Duration> = Key {
    name: "agent-interval",
    form: &INTERVAL_RANGE,
    left_out: LeftOut::Depends("the same as `interval`"),
    doc: "From one question to the agent to the next.",
};

pub(super) static AGENT_SEND: Key<String> = Key {
    name: "agent-send",
    form: &Shaped::new(values::TEXT_ALLOWED, values::text, shape::text),
    left_out: LeftOut::Depends("nothing"),
    doc: "Sent to the agent first; write `\\n` where it wants a line.",
};

fn same(word: &'static str) -> &'static str {
    word
}
