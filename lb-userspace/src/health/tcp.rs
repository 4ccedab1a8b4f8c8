//! A connection of a probe's own.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use super::{failure::Failure, target::Target};

/// Connects to `target`; every probe makes its own connection and drops it.
///
/// Lingering is off, so that dropping the connection sends a reset instead of a FIN (HAProxy's
/// checks do the same). The side that closes first would keep the port in TIME_WAIT for a minute,
/// and 300 backends asked 20 times a second would use up every ephemeral port in five seconds. The
/// price: a server may log a reset connection. The handshake is complete before the reset leaves, so
/// the server did accept.
pub async fn connect(target: Target<'_>) -> Result<TcpStream, Failure> {
    let socket = socket(target).map_err(Failure::Local)?;
    let stream = socket.connect(target.address).await.map_err(Failure::connect)?;
    target.answered(&stream);
    refuse_self_connection(&stream, target.address).map_err(Failure::connect)?;
    Ok(stream)
}

fn socket(target: Target<'_>) -> io::Result<TcpSocket> {
    let v4 = target.address.is_ipv4();
    let socket = if v4 { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_zero_linger()?;
    socket.set_nodelay(true)?;
    if let Some(mark) = target.mark {
        // Backends of one service answer from one address: a port of its own tells the probe's answers
        // from others'. A port that is bound is nobody else's.
        socket.bind(any(v4))?;
        if mark.is_tunnel() {
            SockRef::from(&socket).set_tcp_mss(TUNNEL_MSS)?;
        }
    }
    target.prepare(&socket)?;
    Ok(socket)
}

/// Any address and any port.
pub fn any(v4: bool) -> SocketAddr {
    if v4 { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() }
}

/// What fits a link of 1280 bytes, the least that IPv6 knows, with IPv6 and UDP around it.
const TUNNEL_MSS: u32 = 1280 - 40 - 20 - 48;

/// With nobody listening on a local port in the ephemeral range, the kernel may pick that port as
/// source too, and the socket connects to itself.
fn refuse_self_connection(stream: &TcpStream, peer: SocketAddr) -> io::Result<()> {
    match stream.local_addr() {
        Ok(local) if local == peer => Err(io::Error::from_raw_os_error(libc::ECONNREFUSED)),
        _ => Ok(()),
    }
}
