//! PostgreSQL: a login, and where it is wanted the role with position and timeline.

use std::{io, net::SocketAddr, pin::Pin, time::Duration};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::{
    Client, Config, Connection, Error, NoTls, SimpleQueryMessage, SimpleQueryRow,
    config::SslMode,
    tls::{ChannelBinding, TlsConnect, TlsStream},
};

use super::{
    failure::{Failure, printable},
    password::password,
    probe::Answer,
    stream::Stream,
    target::Target,
    tcp,
    tls::Tls,
    trace::Trace,
};
use crate::{
    config::{LoginCheck, TlsCheck},
    core::{Epoch, Phase, Role, RoleReport},
};

/// Everything in one answer. A user without any rights may ask all of it. `pg_last_xact_replay_timestamp`
/// grows old on a replica whose primary is idle: it counts only where something is left to replay.
const QUERY: &str = "\
SELECT r.recovery, \
    pg_wal_lsn_diff(CASE WHEN r.recovery THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, '0/0'), \
    CASE WHEN r.recovery THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END, \
    CASE WHEN r.recovery THEN EXISTS (SELECT FROM pg_stat_wal_receiver) END, \
    CASE WHEN r.recovery THEN pg_last_wal_receive_lsn() IS NOT DISTINCT FROM pg_last_wal_replay_lsn() END, \
    CASE WHEN r.recovery \
        THEN floor(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000)::bigint END, \
    current_setting('default_transaction_read_only') \
FROM (SELECT pg_is_in_recovery() AS recovery) AS r";

/// Asks once.
///
/// # Errors
/// The server refuses the login, or is no PostgreSQL.
pub async fn ask(target: Target<'_>, login: &LoginCheck, tls: &Tls, trace: &mut Trace) -> Result<Answer, Failure> {
    let config = config(login)?;
    let stream = Stream::plain(tcp::connect(target).await?);
    match &login.tls {
        None => {
            trace.enter(Phase::Login);
            let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(|e| failed(&e))?;
            exchange(client, connection, login.role, trace).await
        }
        Some(check) => {
            let mut refused = None;
            let encryption = Encryption { target: target.name, check, tls, trace: &mut *trace, failure: &mut refused };
            let connected = config.connect_raw(stream, encryption).await;
            // The library wraps what our own handshake said.
            let (client, connection) = connected.map_err(|error| refused.unwrap_or_else(|| failed(&error)))?;
            exchange(client, connection, login.role, trace).await
        }
    }
}

fn config(login: &LoginCheck) -> Result<Config, Failure> {
    let mut config = Config::new();
    config.application_name("lb-health");
    config.ssl_mode(if login.tls.is_some() { SslMode::Require } else { SslMode::Disable });
    if let Some(user) = &login.user {
        config.user(user);
    }
    if let Some(database) = &login.database {
        config.dbname(database);
    }
    if let Some(password) = password(login)? {
        config.password(password);
    }
    Ok(config)
}

async fn exchange<T>(
    client: Client,
    mut connection: Connection<Stream, T>,
    role: bool,
    trace: &mut Trace,
) -> Result<Answer, Failure>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut answer = Answer::up("L7OK login");
    if role {
        trace.enter(Phase::Query);
        let messages = {
            let query = client.simple_query(QUERY);
            tokio::pin!(query);
            tokio::select! {
                biased;
                messages = &mut query => messages,
                end = &mut connection => match end {
                    Ok(()) => query.await,
                    Err(error) => Err(error),
                },
            }
        };
        let messages = messages.map_err(|error| failed(&error))?;
        let row = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let report = row.and_then(report).ok_or_else(|| Failure::garbage("the question for the role has no answer"))?;
        answer = Answer::up(format!("L7OK {}", report.role.name()));
        answer.role = Some(report);
    }
    // Without its client the connection says goodbye and ends.
    Ok(answer.and_then(async move {
        drop(client);
        let _ = connection.await;
    }))
}

fn report(row: &SimpleQueryRow) -> Option<RoleReport> {
    let flag = |column| Some(row.try_get(column).ok()?? == "t");
    let number = |column| row.try_get(column).ok()??.parse::<u64>().ok();
    let position = number(1);
    if !flag(0)? {
        let timeline = row.try_get(2).ok()??;
        let epoch = u64::from_str_radix(timeline, 16).ok().map(|number| Epoch::of("timeline", number));
        let read_only = row.try_get(6).ok()?? == "on";
        let (role, why) = if read_only {
            (Role::None, "not in recovery, but default_transaction_read_only is on")
        } else {
            (Role::Primary, "not in recovery")
        };
        return Some(RoleReport { position, epoch, ..RoleReport::new(role, why) });
    }
    let (receives, replayed) = (flag(3)?, flag(4)?);
    let why = if receives { "in recovery, receives from a primary" } else { "in recovery, receives from nobody" };
    let delay = match (receives, replayed) {
        (true, true) => Some(0),
        _ => number(5),
    };
    Some(RoleReport { position, delay: delay.map(Duration::from_millis), ..RoleReport::new(Role::Replica, why) })
}

fn failed(error: &Error) -> Failure {
    match error.as_db_error() {
        Some(said) => Failure::refused(format!("{} ({})", said.message(), said.code().code())),
        None => match std::error::Error::source(error) {
            Some(_) => Failure::exchange(error),
            None => Failure::garbage(printable(&error.to_string())),
        },
    }
}

/// TLS as all probes have it, on a connection that the library has asked to be encrypted.
struct Encryption<'a> {
    target: SocketAddr,
    check: &'a TlsCheck,
    tls: &'a Tls,
    trace: &'a mut Trace,
    failure: &'a mut Option<Failure>,
}

impl<'a> TlsConnect<Stream> for Encryption<'a> {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send + 'a>>;

    fn connect(self, stream: Stream) -> Self::Future {
        Box::pin(async move {
            let Self { target, check, tls, trace, failure } = self;
            match stream.encrypt(target, check, tls, trace).await {
                Ok(stream) => {
                    trace.enter(Phase::Login);
                    Ok(stream)
                }
                Err(why) => {
                    *failure = Some(why);
                    Err(io::Error::other("the handshake failed"))
                }
            }
        })
    }
}

impl TlsStream for Stream {
    /// The servers of Debian and others take SCRAM without binding too.
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}
