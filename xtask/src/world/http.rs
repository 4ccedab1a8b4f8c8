//! The little HTTP that worlds need: a client that opens one connection per request, and a server
//! for machines without nginx.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// An answer of status 200 has this body.
pub type Body = String;

/// Connections that wait for a server: as many as the standard library has it.
const BACKLOG: i32 = 128;

/// Largest answer that [`get`] reads.
const LARGEST: u64 = 1 << 20;

/// `GET path` over a connection of its own.
///
/// # Errors
/// Not connected, answered or closed within the timeout, reset on the way, or another status than
/// 200 (`InvalidData`).
pub fn get(server: SocketAddr, path: &str, timeout: Duration) -> io::Result<Body> {
    let deadline = Instant::now() + timeout;
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_nodelay(true)?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LARGEST).read_to_end(&mut answer)?;
    body_of_200(&answer).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))
}

fn body_of_200(answer: &[u8]) -> Result<Body, String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("no whole answer: {text:?}"))?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(format!("answered {status:?}"));
    }
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    if length.and_then(|length| length.parse().ok()) != Some(body.len()) {
        return Err(format!("a body of {} bytes, announced was {length:?}", body.len()));
    }
    Ok(body.to_owned())
}

/// Answers every GET with the name, until the process ends. IPv4 and IPv6, one thread per connection.
///
/// # Errors
/// The port is taken.
pub fn serve(name: &str, port: u16) -> io::Result<()> {
    serve_slowly(name, port, BACKLOG, Duration::ZERO)
}

/// The same with a queue of `backlog` connections that were not accepted yet, of which one is accepted every
/// `pause` at most.
///
/// # Errors
/// The port is taken.
pub fn serve_slowly(name: &str, port: u16, backlog: i32, pause: Duration) -> io::Result<()> {
    let listener = TcpListener::bind((IpAddr::V6(Ipv6Addr::UNSPECIFIED), port))?;
    rustix::net::listen(&listener, backlog)?;
    for stream in listener.incoming() {
        thread::sleep(pause);
        // A client that went away is no reason to stop.
        let Ok(stream) = stream else { continue };
        let body = format!("{name}\n");
        thread::spawn(move || answer(stream, &body));
    }
    Ok(())
}

fn answer(stream: TcpStream, body: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut lines = BufReader::new(stream.try_clone()?).take(16_384).lines();
    while let Some(line) = lines.next().transpose()? {
        if line.is_empty() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            return (&stream).write_all(format!("{head}{body}").as_bytes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_understands_the_server() {
        let free = TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
        thread::spawn(move || serve("web1", free.port()));
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match get(free, "/", Duration::from_secs(1)) {
                Ok(body) => break assert_eq!(body, "web1\n"),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }

    #[test]
    fn half_an_answer_and_another_status_are_errors() {
        assert_eq!(body_of_200(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), Ok("hi".to_owned()));
        assert!(body_of_200(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi").is_err());
        assert!(body_of_200(b"HTTP/1.1 200 OK\r\nContent-Le").is_err());
        assert!(body_of_200(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nhi").is_err());
    }
}
