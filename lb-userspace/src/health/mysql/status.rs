//! What a server's variables and its replication say about its role.

use std::{collections::BTreeMap, time::Duration};

use super::{
    packet::{Connection, garbage},
    rows::{Refused, Row, rows},
};
use crate::{
    core::{Epoch, Role, RoleReport},
    health::failure::{Failure, printable},
};

/// A statement that the server does not know (`ER_PARSE_ERROR`).
const UNKNOWN_STATEMENT: u16 = 1064;
/// Errors that tell of a missing privilege (`ER_SPECIFIC_ACCESS_DENIED_ERROR` and MariaDB's own).
const DENIED: [u16; 2] = [1227, 1045];

/// Asks what is needed.
///
/// # Errors
/// The server hung up, or refuses what every user may ask.
pub async fn ask(connection: &mut Connection, version: &str) -> Result<RoleReport, Failure> {
    let mariadb = version.to_ascii_lowercase().contains("mariadb");
    let sql = if mariadb {
        "SELECT @@global.read_only AS read_only, \
         CONCAT_WS(',', @@global.gtid_binlog_state, @@global.gtid_slave_pos) AS gtid"
    } else {
        "SELECT @@global.read_only AS read_only, @@global.super_read_only AS super_read_only, \
         @@global.gtid_executed AS gtid"
    };
    let variables = rows(connection, sql).await??.into_iter().next().ok_or_else(garbage)?;
    let gtid = text(&variables, &["gtid"]).unwrap_or_default();
    let epoch = if mariadb { domains(gtid) } else { sets(gtid) };
    if !is_on(&variables, "read_only") && !is_on(&variables, "super_read_only") {
        return Ok(RoleReport { epoch, ..RoleReport::new(Role::Primary, "read_only is off") });
    }
    let replication = match rows(connection, "SHOW REPLICA STATUS").await? {
        Err(Refused { code: UNKNOWN_STATEMENT, .. }) => rows(connection, "SHOW SLAVE STATUS").await?,
        other => other,
    };
    let report = match replication {
        Ok(channels) => replica(&channels),
        Err(refused) if DENIED.contains(&refused.code) => {
            let grant = if mariadb { "SLAVE MONITOR" } else { "REPLICATION CLIENT" };
            RoleReport::new(Role::None, format!("read_only is on, but the user may not see replication: grant {grant}"))
        }
        Err(refused) => return Err(refused.into()),
    };
    Ok(RoleReport { epoch, ..report })
}

/// A read-only server, by the state of its channels.
fn replica(channels: &[Row]) -> RoleReport {
    if channels.is_empty() {
        return RoleReport::new(Role::None, "read_only is on, and it replicates from nobody");
    }
    let runs = |channel: &Row, names: &[&str]| text(channel, names).is_some_and(|state| state == "Yes");
    let stopped = channels.iter().find(|channel| !runs(channel, &["replica_sql_running", "slave_sql_running"]));
    if let Some(stopped) = stopped {
        let error = text(stopped, &["last_sql_error"]).filter(|error| !error.is_empty()).unwrap_or("stopped");
        return RoleReport::new(Role::None, format!("replication does not run: {}", printable(error)));
    }
    let receives = channels.iter().all(|channel| runs(channel, &["replica_io_running", "slave_io_running"]));
    let why = if receives { "read_only is on, replication runs" } else { "read_only is on, its primary is not there" };
    // NULL, where it is not known: without a primary.
    let seconds = |channel| text(channel, &["seconds_behind_source", "seconds_behind_master"])?.parse::<u64>().ok();
    let delays: Option<Vec<u64>> = channels.iter().map(seconds).collect();
    let delay = delays.and_then(|delays| delays.into_iter().max()).filter(|_| receives).map(Duration::from_secs);
    RoleReport { delay, ..RoleReport::new(Role::Replica, why) }
}

/// The first of these columns that is there.
fn text<'r>(row: &'r Row, names: &[&str]) -> Option<&'r str> {
    names.iter().find_map(|name| row.get(*name)?.as_deref())
}

/// In numbers up to MySQL 8 and MariaDB 11, in words from MariaDB 12 on.
fn is_on(row: &Row, name: &str) -> bool {
    text(row, &[name]).is_some_and(|value| !matches!(value, "0" | "OFF" | "NO_LOCK"))
}

/// MariaDB: `0-1-1234,0-2-1240`: domain, server, and the last number that it has of that server. The
/// last number of the domain alone would not tell which server's it is.
fn domains(state: &str) -> Option<Epoch> {
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for gtid in state.split(',').map(str::trim).filter(|gtid| !gtid.is_empty()) {
        let (server, number) = gtid.rsplit_once('-')?;
        let (_, _) = server.split_once('-')?;
        let last = lines.entry(server.to_owned()).or_default();
        *last = number.parse::<u64>().ok()?.max(*last);
    }
    (!lines.is_empty()).then_some(Epoch(lines))
}

/// MySQL: `uuid:1-5:8,uuid:tag:1-3`: for each source, how many transactions.
fn sets(executed: &str) -> Option<Epoch> {
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for set in executed.split(',').map(str::trim).filter(|set| !set.is_empty()) {
        let mut parts = set.split(':');
        let mut source = parts.next()?.to_owned();
        for part in parts {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (first.parse::<u64>(), last.parse::<u64>()) else {
                source = format!("{}:{part}", source.split(':').next()?);
                continue;
            };
            *lines.entry(source.clone()).or_default() += last.checked_sub(first)?.checked_add(1)?;
        }
    }
    (!lines.is_empty()).then_some(Epoch(lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(columns: &[(&str, Option<&str>)]) -> Row {
        columns.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect()
    }

    #[test]
    fn a_replica_replicates_and_tells_its_delay() {
        let running = [
            ("slave_io_running", Some("Yes")),
            ("slave_sql_running", Some("Yes")),
            ("seconds_behind_master", Some("3")),
        ];
        let report = replica(&[channel(&running)]);
        assert_eq!((report.role, report.delay), (Role::Replica, Some(Duration::from_secs(3))));
        let newer = [
            ("replica_io_running", Some("Connecting")),
            ("replica_sql_running", Some("Yes")),
            ("seconds_behind_source", None),
        ];
        let report = replica(&[channel(&newer)]);
        assert_eq!((report.role, report.delay), (Role::Replica, None));
        let both = replica(&[channel(&running), channel(&newer)]);
        assert_eq!((both.role, both.delay), (Role::Replica, None), "one channel that does not know is enough");
    }

    #[test]
    fn a_server_that_does_not_replicate_has_no_role() {
        let broken = [
            ("slave_io_running", Some("Yes")),
            ("slave_sql_running", Some("No")),
            ("last_sql_error", Some("dup\nkey")),
        ];
        let report = replica(&[channel(&broken)]);
        assert_eq!((report.role, report.why.as_str()), (Role::None, "replication does not run: dup key"));
        assert_eq!(replica(&[]).role, Role::None);
    }

    #[test]
    fn histories_are_told_by_domain_and_by_source() {
        assert_eq!(domains("0-1-1234, 1-2-56,0-1-1200").unwrap().to_string(), "0-1 1234, 1-2 56");
        let (old, split, promoted) = (domains("0-1-100"), domains("0-1-99,0-2-100"), domains("0-1-100,0-2-101"));
        assert!(promoted > old && split.partial_cmp(&old).is_none());
        assert_eq!(domains(""), None);
        assert_eq!(domains("0-1"), None);
        assert_eq!(sets("a:1-5:8,\nb:3").unwrap().to_string(), "a 6, b 1");
        assert_eq!(sets("a:1-5:tag:1-2").unwrap().to_string(), "a 5, a:tag 2");
        assert_eq!(sets("a:5-1"), None);
        assert!(sets("a:1-6,b:3") > sets("a:1-5"));
    }
}
