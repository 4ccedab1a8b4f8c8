//! Reading what a health check asks: the keys that go with its type, and no others.

use std::{net::IpAddr, path::PathBuf};

use super::{
    diagnostic::{Finding, Findings, Located, Read, Reported},
    health_keys::{self as keys, CheckKind},
    probes::{BodyMatch, Check, DnsCheck, ExecCheck, HttpCheck, LoginCheck, PatroniCheck, TlsCheck, Trust, UdpCheck},
    reader::{Describe, Key, Table},
};

use CheckKind::{Dns, Exec, Http, Https, Mysql, Patroni, Postgres, Redis, Tls, Udp};

const HTTP: &[CheckKind] = &[Http, Https];
const SERVERS: &[CheckKind] = &[Mysql, Postgres, Redis, Patroni];
const LOGIN: &[CheckKind] = &[Mysql, Postgres, Redis];
const ENCRYPTED: &[CheckKind] = &[Tls, Https, Mysql, Postgres, Redis, Patroni];

/// Which types a key goes with.
static GOES_WITH: [(&dyn Describe, &[CheckKind]); 24] = [
    (&keys::HTTP_PATH, HTTP),
    (&keys::HTTP_METHOD, HTTP),
    (&keys::HTTP_HOST, HTTP),
    (&keys::HTTP_EXPECT, HTTP),
    (&keys::HTTP_BODY, HTTP),
    (&keys::HTTP_BODY_REGEX, HTTP),
    (&keys::HTTP_HEADERS, HTTP),
    (&keys::TLS, SERVERS),
    (&keys::SERVER_NAME, ENCRYPTED),
    (&keys::CA_FILE, ENCRYPTED),
    (&keys::FINGERPRINT, ENCRYPTED),
    (&keys::VERIFY, ENCRYPTED),
    (&keys::EXPIRY, ENCRYPTED),
    (&keys::UDP_SEND, &[Udp]),
    (&keys::UDP_RECEIVE, &[Udp]),
    (&keys::DNS_QUERY, &[Dns]),
    (&keys::DNS_TYPE, &[Dns]),
    (&keys::DNS_RESPONSE, &[Dns]),
    (&keys::DNS_ANSWER, &[Dns]),
    (&keys::COMMAND, &[Exec]),
    (&keys::ARGUMENTS, &[Exec]),
    (&keys::USER, LOGIN),
    (&keys::PASSWORD_FILE, LOGIN),
    (&keys::DATABASE, &[Mysql, Postgres]),
];

/// Whether a key of `[service.health]` goes with this type of check.
pub(super) fn goes_with(key: &str, check: &str) -> bool {
    let kinds = GOES_WITH.iter().find(|(known, _)| known.name() == key).map(|(_, kinds)| *kinds);
    kinds.is_none_or(|kinds| kinds.iter().any(|kind| kind.name() == check))
}

/// The check, once its kind is known; every key that does not go with it is told.
pub(super) fn read(
    findings: &mut Findings,
    table: &Table<'_>,
    kind: &Read<Located<CheckKind>>,
    asks_role: bool,
) -> Read<Check> {
    let read = Reading { table };
    let http = read.http(findings);
    let tls = read.tls(findings);
    let udp = read.udp(findings, kind);
    let dns = read.dns(findings);
    let exec = read.exec(findings, kind);
    let login = read.login(findings, kind);
    let encrypted = table.value(findings, &keys::TLS);
    let kind = kind.as_ref().map_err(|reported| *reported)?;
    read.nothing_else(findings, kind)?;
    let encrypted = || encrypted.map(|encrypted| encrypted.value);
    let tls_if = |tls: Read<TlsCheck>, wanted: bool| tls.map(|tls| wanted.then_some(tls));
    match kind.value {
        CheckKind::None => Ok(Check::None),
        CheckKind::Tcp => Ok(Check::Tcp),
        Tls => Ok(Check::Tls(tls?)),
        Http => Ok(Check::Http(http?)),
        Https => {
            let (http, mut tls) = (http?, tls?);
            tls.server_name = tls.server_name.or_else(|| http.host.as_deref().and_then(name_of));
            Ok(Check::Http(HttpCheck { tls: Some(tls), ..http }))
        }
        Udp => Ok(Check::Udp(udp?)),
        Dns => Ok(Check::Dns(dns?)),
        Exec => Ok(Check::Exec(exec?)),
        Mysql | Postgres | Redis => {
            let login = LoginCheck { tls: tls_if(tls, encrypted()?)?, role: asks_role, ..login? };
            Ok(match kind.value {
                Mysql => Check::Mysql(login),
                Postgres => Check::Postgres(login),
                _ => Check::Redis(login),
            })
        }
        Patroni => Ok(Check::Patroni(PatroniCheck { tls: tls_if(tls, encrypted()?)? })),
    }
}

struct Reading<'t, 'a> {
    table: &'t Table<'a>,
}

impl Reading<'_, '_> {
    fn find<T>(&self, findings: &mut Findings, key: &Key<T>) -> Read<Option<T>> {
        Ok(self.table.find(findings, key)?.map(|found| found.value))
    }

    fn value<T: Clone>(&self, findings: &mut Findings, key: &Key<T>) -> Read<T> {
        Ok(self.table.value(findings, key)?.value)
    }

    fn http(&self, findings: &mut Findings) -> Read<HttpCheck> {
        let path = self.value(findings, &keys::HTTP_PATH);
        let method = self.value(findings, &keys::HTTP_METHOD);
        let host = self.find(findings, &keys::HTTP_HOST);
        let expect = self.value(findings, &keys::HTTP_EXPECT);
        let body = self.find(findings, &keys::HTTP_BODY);
        let regex = self.find(findings, &keys::HTTP_BODY_REGEX);
        let headers = self.value(findings, &keys::HTTP_HEADERS);
        let body = match (body?, regex?) {
            (Some(_), Some(_)) => {
                return Err(self.one_of(findings, &keys::HTTP_BODY, &keys::HTTP_BODY_REGEX));
            }
            (body, regex) => body.map(BodyMatch::Contains).or(regex.map(BodyMatch::Regex)),
        };
        let (path, method, host) = (path?, method?, host?);
        Ok(HttpCheck { method, path, host, expect: expect?, body, headers: headers?, tls: None })
    }

    fn tls(&self, findings: &mut Findings) -> Read<TlsCheck> {
        let server_name = self.find(findings, &keys::SERVER_NAME);
        let ca_file = self.find(findings, &keys::CA_FILE);
        let fingerprint = self.find(findings, &keys::FINGERPRINT);
        let verify = self.value(findings, &keys::VERIFY);
        let expiry_warning = self.value(findings, &keys::EXPIRY);
        let trust = match (verify?, ca_file?, fingerprint?) {
            (true, None, None) => Trust::System,
            (true, Some(file), None) => Trust::CaFile(file),
            (true, None, Some(print)) => Trust::Fingerprint(print),
            (false, None, None) => Trust::Anyone,
            (_, Some(_), Some(_)) => return Err(self.one_of(findings, &keys::CA_FILE, &keys::FINGERPRINT)),
            (false, Some(_), None) => return Err(self.one_of(findings, &keys::VERIFY, &keys::CA_FILE)),
            (false, None, Some(_)) => return Err(self.one_of(findings, &keys::VERIFY, &keys::FINGERPRINT)),
        };
        Ok(TlsCheck { server_name: server_name?, trust, expiry_warning: expiry_warning? })
    }

    fn udp(&self, findings: &mut Findings, kind: &Read<Located<CheckKind>>) -> Read<UdpCheck> {
        let send = self.needed(findings, kind, &keys::UDP_SEND, &[Udp], "send = \"ping\"");
        let receive = self.find(findings, &keys::UDP_RECEIVE);
        Ok(UdpCheck { send: send?.unwrap_or_default(), receive: receive? })
    }

    fn dns(&self, findings: &mut Findings) -> Read<DnsCheck> {
        let name = self.value(findings, &keys::DNS_QUERY);
        let record_type = self.value(findings, &keys::DNS_TYPE);
        let response = self.value(findings, &keys::DNS_RESPONSE);
        let answer = self.find(findings, &keys::DNS_ANSWER);
        Ok(DnsCheck { name: name?, record_type: record_type?.to_owned(), response: response?, answer: answer? })
    }

    fn exec(&self, findings: &mut Findings, kind: &Read<Located<CheckKind>>) -> Read<ExecCheck> {
        let example = "command = \"/usr/local/lib/lb/check\"";
        let command = self.needed(findings, kind, &keys::COMMAND, &[Exec], example);
        let arguments = self.value(findings, &keys::ARGUMENTS);
        Ok(ExecCheck { command: command?.unwrap_or_else(PathBuf::new), arguments: arguments? })
    }

    fn login(&self, findings: &mut Findings, kind: &Read<Located<CheckKind>>) -> Read<LoginCheck> {
        let user = self.needed(findings, kind, &keys::USER, &[Mysql, Postgres], "user = \"lb\"");
        let password_file = self.find(findings, &keys::PASSWORD_FILE);
        let database = self.find(findings, &keys::DATABASE);
        let (user, password_file, database) = (user?, password_file?, database?);
        Ok(LoginCheck { user, password_file, database, tls: None, role: false })
    }

    /// A key that some types cannot do without.
    fn needed<T>(
        &self,
        findings: &mut Findings,
        kind: &Read<Located<CheckKind>>,
        key: &Key<T>,
        by: &[CheckKind],
        example: &str,
    ) -> Read<Option<T>> {
        if let Some(found) = self.find(findings, key)? {
            return Ok(Some(found));
        }
        match (kind, self.table.misspelt(key.name)) {
            (_, Some(reported)) => Err(reported),
            (Ok(kind), None) if by.contains(&kind.value) => {
                let message = format!("a \"{}\" check needs `{}`", kind.value.name(), key.name);
                Err(findings.error(Finding::new(&kind.at, message).help(format!("write it: {example}"))))
            }
            _ => Ok(None),
        }
    }

    fn one_of(&self, findings: &mut Findings, one: &dyn Describe, other: &dyn Describe) -> Reported {
        let at = |key: &dyn Describe| self.table.field(key.name()).map_or_else(|| self.table.at.clone(), |f| f.at);
        let (one_at, other_at) = (at(one), at(other));
        let message = format!("`{}` and `{}` do not go together", one.name(), other.name());
        let finding = Finding::new(&other_at, message).and(&one_at, "the other one");
        findings.error(finding.help(format!("leave out `{}` or `{}`", one.name(), other.name())))
    }

    /// Tells every key that goes with other types only.
    fn nothing_else(&self, findings: &mut Findings, kind: &Located<CheckKind>) -> Read<()> {
        let mut bad = Ok(());
        for (key, kinds) in GOES_WITH.iter().filter(|(_, kinds)| !kinds.contains(&kind.value)) {
            let Some(field) = self.table.field(key.name()) else { continue };
            let words: Vec<String> = kinds.iter().map(|kind| format!("\"{}\"", kind.name())).collect();
            let message = format!("`{}` does not go with a \"{}\" check", key.name(), kind.value.name());
            let help = format!("write type = {}, or leave out `{}`", words.join(" or "), key.name());
            bad = Err(findings.error(Finding::new(&field.at, message).help(help)));
        }
        bad
    }
}

/// The name in a Host header, without its port; `None` where it is an address.
fn name_of(host: &str) -> Option<String> {
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    (!address && !name.contains(':')).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::name_of;

    #[test]
    fn a_host_header_gives_the_name_for_tls_unless_it_is_an_address() {
        assert_eq!(name_of("shop.example").as_deref(), Some("shop.example"));
        assert_eq!(name_of("shop.example:8443").as_deref(), Some("shop.example"));
        for address in ["192.0.2.1", "192.0.2.1:443", "[2001:db8::1]:443", "[2001:db8::1]", "2001:db8::1"] {
            assert_eq!(name_of(address), None, "{address}");
        }
    }
}
