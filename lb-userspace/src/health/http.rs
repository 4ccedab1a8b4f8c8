//! One HTTP/1.1 question: GET, the head of the answer, nothing kept.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{Builder, Connection, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::failure::Failure;

/// Longest response head that is read (bytes).
const HEAD_LIMIT: usize = 16 * 1024;

/// Most bytes of the body that are read and thrown away before the connection is cut.
const BODY_LIMIT: usize = 64 * 1024;

type Question = Request<Empty<Bytes>>;

/// The part of an answer that nobody waits for.
pub struct Leftover {
    body: Incoming,
    connection: Connection<TokioIo<TcpStream>, Empty<Bytes>>,
    // While it lives, hyper keeps the connection open for the body.
    sender: SendRequest<Empty<Bytes>>,
}

impl Leftover {
    /// Reads the rest, up to a limit: most servers finish their answer and close before the reset.
    pub async fn discard(self) {
        let Self { mut body, connection, sender } = self;
        let read = async {
            let mut left = BODY_LIMIT;
            while let Some(Ok(frame)) = body.frame().await {
                match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                    Some(rest) => left = rest,
                    None => break,
                }
            }
        };
        tokio::select! {
            () = read => {}
            _ = connection => {}
        }
        drop(sender);
    }
}

/// Asks for `path` on a fresh connection and returns once the head of the answer is there.
pub async fn get(
    stream: TcpStream,
    target: SocketAddr,
    path: &str,
    host: Option<&str>,
) -> Result<(StatusCode, Leftover), Failure> {
    let question = question(target, path, host)?;
    let (mut sender, mut connection) = Builder::new()
        .max_buf_size(HEAD_LIMIT)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Failure::exchange(&error))?;
    let answer = {
        let answer = sender.send_request(question);
        tokio::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            end = &mut connection => match end {
                // The answer was handed over just before the connection ended.
                Ok(()) => answer.await,
                Err(error) => Err(error),
            },
        }
    };
    let (head, body) = answer.map_err(|error| Failure::exchange(&error))?.into_parts();
    Ok((head.status, Leftover { body, connection, sender }))
}

fn question(target: SocketAddr, path: &str, host: Option<&str>) -> Result<Question, Failure> {
    Request::get(path)
        .header(header::HOST, host.map_or_else(|| default_host(target), str::to_owned))
        .header(header::USER_AGENT, "lb-health")
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| Failure::Backend(format!("L7RSP: cannot ask for `{path}`: {error}")))
}

/// The port is left out where it is HTTP's own (RFC 9110, 4.2.3).
fn default_host(target: SocketAddr) -> String {
    match (target.port(), target) {
        (80, SocketAddr::V4(target)) => target.ip().to_string(),
        (80, SocketAddr::V6(target)) => format!("[{}]", target.ip()),
        _ => target.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_header_names_the_target_as_a_browser_would() {
        let host = |target: &str| default_host(target.parse().unwrap());
        assert_eq!(host("192.0.2.1:80"), "192.0.2.1");
        assert_eq!(host("192.0.2.1:8080"), "192.0.2.1:8080");
        assert_eq!(host("[2001:db8::1]:80"), "[2001:db8::1]");
        assert_eq!(host("[2001:db8::1]:8080"), "[2001:db8::1]:8080");
    }

    #[test]
    fn a_path_that_no_request_can_carry_is_a_failure_not_a_panic() {
        assert!(matches!(question("192.0.2.1:80".parse().unwrap(), "/a b", None), Err(Failure::Backend(_))));
    }
}
