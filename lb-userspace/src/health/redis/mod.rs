//! Redis and Valkey: AUTH, PING, and ROLE where it is wanted.

mod resp;

use self::resp::{Connection, Reply};
use super::{
    failure::{Failure, printable},
    password::password,
    probe::Answer,
    stream::Stream,
    target::Target,
    tls::Tls,
    trace::Trace,
};
use crate::{
    config::LoginCheck,
    core::{Phase, Role, RoleReport},
};

/// Asks once.
///
/// # Errors
/// The server refuses, or answers something else than Redis.
pub async fn ask(target: Target<'_>, login: &LoginCheck, tls: &Tls, trace: &mut Trace) -> Result<Answer, Failure> {
    let password = password(login)?;
    let stream = Stream::open(target, login.tls.as_ref(), tls, trace).await?;
    let mut connection = Connection::new(stream);
    trace.enter(Phase::Login);
    if let Some(password) = &password {
        let reply = match &login.user {
            Some(user) => connection.command(&["AUTH", user, password]).await?,
            None => connection.command(&["AUTH", password]).await?,
        };
        expect(&reply, "OK")?;
    }
    trace.enter(Phase::Query);
    let reply = connection.command(&["PING"]).await?;
    expect(&reply, "PONG")?;
    let mut answer = Answer::up("L7OK PONG");
    if login.role {
        let reply = connection.command(&["ROLE"]).await?;
        if let Reply::Error(words) = &reply {
            return Err(Failure::refused(words));
        }
        let report = role(&reply).ok_or_else(|| Failure::garbage("ROLE is answered by something else than a role"))?;
        answer = Answer::up(format!("L7OK {}", report.role.name()));
        answer.role = Some(report);
    }
    Ok(answer.and_then(connection.close()))
}

fn expect(reply: &Reply, word: &str) -> Result<(), Failure> {
    match reply {
        Reply::Text(text) if text == word => Ok(()),
        Reply::Error(words) => Err(Failure::refused(words)),
        other => Err(Failure::garbage(format!("{word} is expected, not {}", printable(&format!("{other:?}"))))),
    }
}

/// What ROLE says. A replica is fit to be read while its link to the master stands.
fn role(reply: &Reply) -> Option<RoleReport> {
    let Reply::Array(parts) = reply else { return None };
    match (parts.first()?.text()?, &parts[1..]) {
        ("master", [offset, ..]) => {
            let position = offset.number().and_then(|offset| u64::try_from(offset).ok());
            Some(RoleReport { position, ..RoleReport::new(Role::Primary, "ROLE says master") })
        }
        ("slave", [host, port, state, offset, ..]) => {
            let (host, port, state) = (printable(host.text()?), port.number()?, state.text()?);
            let why = format!("replica of {host}:{port}, {}", printable(state));
            // "sync": it has thrown its data away and is loading the master's.
            let role = if state == "sync" { Role::None } else { Role::Replica };
            let position = offset.number().and_then(|offset| u64::try_from(offset).ok());
            Some(RoleReport { position, ..RoleReport::new(role, why) })
        }
        (other, _) => Some(RoleReport::new(Role::None, format!("ROLE says {}", printable(other)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Reply {
        Reply::Text(text.to_owned())
    }

    #[test]
    fn roles_are_read_with_their_offsets() {
        let master = role(&Reply::Array(vec![text("master"), Reply::Number(3129), Reply::Array(Vec::new())])).unwrap();
        assert_eq!((master.role, master.position), (Role::Primary, Some(3129)));
        let slave = |state: &str, offset| {
            let parts = vec![text("slave"), text("10.0.0.1"), Reply::Number(6379), text(state), Reply::Number(offset)];
            role(&Reply::Array(parts)).unwrap()
        };
        assert_eq!((slave("connected", 7).role, slave("connected", 7).position), (Role::Replica, Some(7)));
        assert_eq!((slave("connect", -1).role, slave("connect", -1).position), (Role::Replica, None));
        assert_eq!(slave("sync", 0).role, Role::None);
        assert_eq!(role(&Reply::Array(vec![text("sentinel")])).unwrap().role, Role::None);
        for garbage in [Reply::Number(1), Reply::Array(Vec::new()), Reply::Array(vec![text("master")])] {
            assert!(role(&garbage).is_none_or(|report| report.role == Role::None), "{garbage:?}");
        }
    }
}
