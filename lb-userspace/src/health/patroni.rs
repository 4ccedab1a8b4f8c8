//! Patroni's REST API: `GET /primary` is 200 only while the node holds the leader's lock; with any
//! status the body says how the node is (Patroni's manual, "REST API").

use serde::Deserialize;

use super::{
    failure::{Failure, printable},
    http::{self, Ask},
    probe::Answer,
    stream::Stream,
    target::Target,
    tls::Tls,
    trace::Trace,
};
use crate::{
    config::{HttpMethod, PatroniCheck},
    core::{Epoch, Phase, Role, RoleReport},
};

/// What is used of a node's status.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    /// Of PostgreSQL: `running`, `starting`, `stopped`.
    state: String,
    role: String,
    timeline: Option<u64>,
    xlog: Log,
    tags: Tags,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Log {
    /// Of a primary.
    location: Option<u64>,
    /// Of a replica.
    replayed_location: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tags {
    noloadbalance: bool,
}

/// Asks once.
///
/// # Errors
/// The API refuses, or is something else.
pub async fn ask(target: Target<'_>, check: &PatroniCheck, tls: &Tls, trace: &mut Trace) -> Result<Answer, Failure> {
    let stream = Stream::open(target, check.tls.as_ref(), tls, trace).await?;
    let usual_port = if check.tls.is_some() { 443 } else { 80 };
    let ask = Ask { target: target.name, method: HttpMethod::Get, path: "/primary", host: None, usual_port };
    let (head, mut rest) = http::ask(stream, &ask, trace).await?;
    trace.enter(Phase::Body);
    let body = rest.read().await?;
    let code = head.status.as_u16();
    let status: Status = serde_json::from_slice(&body)
        .map_err(|error| Failure::garbage(format!("status {code}, and its body is not Patroni's: {error}")))?;
    Ok(judge(code, &status).and_then(rest.discard()))
}

fn judge(code: u16, status: &Status) -> Answer {
    let state = printable(&status.state);
    if status.state != "running" && status.state != "streaming" {
        return Answer::down(format!(
            "L7STS {code}: PostgreSQL is {}",
            if state.is_empty() { "unknown" } else { &state }
        ));
    }
    let mut answer = Answer::up(format!("L7OK {code} {}", printable(&status.role)));
    let report = match (code, status.role.as_str()) {
        (200, _) => RoleReport {
            position: status.xlog.location,
            epoch: status.timeline.map(|timeline| Epoch::of("timeline", timeline)),
            ..RoleReport::new(Role::Primary, "holds the leader's lock")
        },
        (_, "replica") if status.tags.noloadbalance => {
            RoleReport::new(Role::None, "a replica that is tagged noloadbalance")
        }
        (_, "replica") => RoleReport {
            position: status.xlog.replayed_location,
            ..RoleReport::new(Role::Replica, "Patroni says replica")
        },
        (_, other) => {
            RoleReport::new(Role::None, format!("Patroni says {}, without the leader's lock", printable(other)))
        }
    };
    answer.role = Some(report);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(code: u16, body: &str) -> (bool, Option<RoleReport>) {
        let answer = judge(code, &serde_json::from_str(body).unwrap());
        (answer.up, answer.role)
    }

    #[test]
    fn only_the_holder_of_the_lock_is_primary() {
        let body = r#"{"state": "running", "role": "master", "timeline": 7, "xlog": {"location": 67419584}}"#;
        let (up, report) = role(200, body);
        let report = report.unwrap();
        assert_eq!((up, report.role, report.position), (true, Role::Primary, Some(67_419_584)));
        assert_eq!(report.epoch, Some(Epoch::of("timeline", 7)));
        let (up, report) = role(503, body);
        assert_eq!((up, report.unwrap().role), (true, Role::None), "a primary that lost the lock");
    }

    #[test]
    fn replicas_tell_how_far_they_are_and_whether_they_want_to_be_read() {
        let body = r#"{"state": "running", "role": "replica", "timeline": 7,
            "xlog": {"received_location": 9, "replayed_location": 8, "paused": false}}"#;
        let report = role(503, body).1.unwrap();
        assert_eq!((report.role, report.position), (Role::Replica, Some(8)));
        let tagged = body.replacen('{', r#"{"tags": {"noloadbalance": true},"#, 1);
        assert_eq!(role(503, &tagged).1.unwrap().role, Role::None);
    }

    #[test]
    fn a_node_whose_postgresql_does_not_run_is_down() {
        for state in ["starting", "stopped", "start failed", ""] {
            let (up, report) = role(503, &format!(r#"{{"state": "{state}", "role": "replica"}}"#));
            assert_eq!((up, report), (false, None), "{state}");
        }
    }
}
