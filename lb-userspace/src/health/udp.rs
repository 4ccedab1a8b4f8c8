//! One datagram and its answer.

use std::io;

use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;

use super::{
    failure::{Failure, kernel_words},
    probe::Answer,
    target::Target,
    tcp,
    trace::Trace,
    web::contains,
};
use crate::{config::UdpCheck, core::Phase};

/// Largest datagram that is looked at.
const ANSWER_MAX: usize = 4096;

/// Sends the check's bytes and waits for an answer that has the expected ones in it; others are
/// passed over, because they may belong to an earlier probe's question.
///
/// # Errors
/// The target's host or port refuses.
pub async fn ask(target: Target<'_>, check: &UdpCheck, trace: &mut Trace) -> Result<Answer, Failure> {
    let socket = send(target, &check.send, trace).await?;
    let mut answer = [0; ANSWER_MAX];
    let mut others = 0;
    loop {
        let len = receive(&socket, target, &mut answer).await?;
        match &check.receive {
            Some(expected) if !contains(&answer[..len], expected) => others += 1,
            _ => return Ok(Answer::up(format!("L7OK {len} bytes"))),
        }
        if others == 16 {
            return Err(Failure::garbage("16 answers, and in none of them what is expected"));
        }
    }
}

/// A socket that has sent these bytes, and hears only the target.
///
/// # Errors
/// As [`ask`].
pub async fn send(target: Target<'_>, bytes: &[u8], trace: &mut Trace) -> Result<UdpSocket, Failure> {
    let socket = async {
        let socket = bind(target)?;
        target.prepare(&socket)?;
        socket.connect(target.peer()).await?;
        Ok(socket)
    };
    let socket = socket.await.map_err(Failure::connect)?;
    socket.send(bytes).await.map_err(Failure::connect)?;
    trace.enter(Phase::FirstByte);
    Ok(socket)
}

fn bind(target: Target<'_>) -> io::Result<UdpSocket> {
    let any = tcp::any(target.peer().is_ipv4());
    let socket = Socket::new(Domain::for_address(any), Type::DGRAM.nonblocking().cloexec(), None)?;
    if target.is_dual() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&any.into())?;
    UdpSocket::from_std(socket.into())
}

/// The next datagram.
///
/// # Errors
/// An ICMP message says that there is nobody.
pub async fn receive(socket: &UdpSocket, target: Target<'_>, into: &mut [u8]) -> Result<usize, Failure> {
    let received = socket.recv(into).await.map_err(|error: io::Error| match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH) => Failure::connect(error),
        _ => Failure::garbage(kernel_words(&error)),
    })?;
    target.answered(socket);
    Ok(received)
}
