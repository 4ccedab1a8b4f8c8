//! MySQL and MariaDB: a login, and where it is wanted the role with lag and GTID.
//!
//! Every probe logs in and says goodbye: a server counts connections that end in the middle of the
//! handshake, and blocks the host that makes too many (`max_connect_errors`).

mod auth;
mod packet;
mod rows;
mod status;

use self::{
    auth::{Greeting, Scramble},
    packet::{Connection, Reader},
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
use crate::{config::LoginCheck, core::Phase};

/// What the client can (MySQL's manual, "Capabilities Flags"): long passwords and flags, protocol
/// 4.1, transactions, secure connection, authentication by plugin.
const CAPABILITIES: u32 = 0x1 | 0x4 | 0x200 | 0x2000 | 0x8000 | 0x8_0000;
const WITH_DATABASE: u32 = 0x8;
const WITH_TLS: u32 = 0x800;
/// utf8mb4, known by every server since 5.5.3.
const CHARSET: u8 = 45;
const PACKET_MAX: u32 = 1 << 24;

/// Asks once.
///
/// # Errors
/// The server refuses the login, or is no MySQL.
pub async fn ask(target: Target<'_>, login: &LoginCheck, tls: &Tls, trace: &mut Trace) -> Result<Answer, Failure> {
    let password = password(login)?.unwrap_or_default();
    let mut connection = Connection::new(Stream::plain(tcp::connect(target).await?));
    trace.enter(Phase::FirstByte);
    let first = connection.receive().await?;
    let greeting = Greeting::read(&first)?;
    let mut capabilities = CAPABILITIES;
    if login.database.is_some() {
        capabilities |= WITH_DATABASE;
    }
    if let Some(check) = &login.tls {
        if greeting.capabilities & WITH_TLS == 0 {
            return Err(Failure::Backend("L6RSP: the server does not offer TLS".to_owned()));
        }
        capabilities |= WITH_TLS;
        connection.send(&hello(capabilities)).await?;
        connection = connection.encrypt(target.name, check, tls, trace).await?;
    }
    trace.enter(Phase::Login);
    log_in(&mut connection, &greeting, login, &password, capabilities).await?;
    let version = printable(&greeting.version);
    let mut answer = Answer::up(format!("L7OK {version}"));
    if login.role {
        trace.enter(Phase::Query);
        let report = status::ask(&mut connection, &greeting.version).await?;
        answer = Answer::up(format!("L7OK {version} {}", report.role.name()));
        answer.role = Some(report);
    }
    Ok(answer.and_then(connection.close()))
}

/// The head of the login, which alone asks for TLS.
fn hello(capabilities: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&capabilities.to_le_bytes());
    bytes.extend_from_slice(&PACKET_MAX.to_le_bytes());
    bytes.push(CHARSET);
    bytes.extend_from_slice(&[0; 23]);
    bytes
}

async fn log_in(
    connection: &mut Connection,
    greeting: &Greeting,
    login: &LoginCheck,
    password: &str,
    capabilities: u32,
) -> Result<(), Failure> {
    // A plugin that is not known here is offered the usual one: the server then names the user's.
    let scramble = Scramble::of(&greeting.plugin).unwrap_or(Scramble::Native);
    let proof = scramble.proof(password, &greeting.nonce);
    let mut bytes = hello(capabilities);
    bytes.extend_from_slice(login.user.as_deref().unwrap_or_default().as_bytes());
    bytes.push(0);
    bytes.push(u8::try_from(proof.len()).unwrap_or(0));
    bytes.extend_from_slice(&proof);
    if let Some(database) = &login.database {
        bytes.extend_from_slice(database.as_bytes());
        bytes.push(0);
    }
    bytes.extend_from_slice(scramble.plugin().as_bytes());
    bytes.push(0);
    connection.send(&bytes).await?;
    // At most: another plugin, its result, the password, the end.
    for _ in 0..4 {
        let reply = connection.receive().await?;
        let mut reader = Reader::new(&reply);
        match reader.byte() {
            Some(0x00) => return Ok(()),
            Some(0xff) => return Err(rows::refusal(&reply)),
            Some(0xfe) => {
                let plugin = reader.text_to_zero().unwrap_or_default();
                let nonce = reader.rest();
                let scramble = Scramble::of(&plugin).ok_or_else(|| auth::unknown(&plugin))?;
                let proof = scramble.proof(password, nonce.strip_suffix(&[0]).unwrap_or(nonce));
                connection.send(&proof).await?;
            }
            Some(0x01) => match reader.byte() {
                Some(auth::FAST_DONE) => {}
                Some(auth::FULL_NEEDED) if connection.is_encrypted() => {
                    connection.send(&[password.as_bytes(), &[0]].concat()).await?;
                }
                Some(auth::FULL_NEEDED) => return Err(Failure::Backend(auth::NEEDS_TLS.to_owned())),
                _ => return Err(packet::garbage()),
            },
            _ => return Err(packet::garbage()),
        }
    }
    Err(packet::garbage())
}
