//! A connection of a probe's own.

use std::{io, net::SocketAddr};

use tokio::net::{TcpSocket, TcpStream};

use super::failure::Failure;

/// Connects to `target`; every probe makes its own connection and drops it.
///
/// Lingering is off, so that dropping the connection sends a reset instead of a FIN (HAProxy's
/// checks do the same). The side that closes first would keep the port in TIME_WAIT for a minute,
/// and 300 backends asked 20 times a second would use up every ephemeral port in five seconds. The
/// price: a server may log a reset connection. The handshake is complete before the reset leaves, so
/// the server did accept.
pub async fn connect(target: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = open(target).await.map_err(Failure::connect)?;
    refuse_self_connection(&stream).map_err(Failure::connect)?;
    Ok(stream)
}

async fn open(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_zero_linger()?;
    socket.set_nodelay(true)?;
    socket.connect(target).await
}

/// With nobody listening on a local port in the ephemeral range, the kernel may pick that port as
/// source too, and the socket connects to itself.
fn refuse_self_connection(stream: &TcpStream) -> io::Result<()> {
    // A server that resets at once leaves no peer address; it did accept.
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(local), Ok(peer)) if local == peer => Err(io::Error::from_raw_os_error(libc::ECONNREFUSED)),
        _ => Ok(()),
    }
}
