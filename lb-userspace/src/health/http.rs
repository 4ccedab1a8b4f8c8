//! One HTTP/1.1 question: a request, the head of the answer, and as much of its body as is wanted.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{Builder, Connection, SendRequest},
    header,
    http::HeaderMap,
};
use hyper_util::rt::TokioIo;

use super::{failure::Failure, stream::Stream, trace::Trace};
use crate::config::HttpMethod;

/// Longest response head that is read (bytes).
const HEAD_LIMIT: usize = 16 * 1024;

/// Most bytes of the body that are looked at, or read and thrown away before the connection is cut.
const BODY_LIMIT: usize = 64 * 1024;

type Question = Request<Empty<Bytes>>;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub target: SocketAddr,
    pub method: HttpMethod,
    pub path: &'a str,
    /// The Host header; `None`: the target.
    pub host: Option<&'a str>,
    /// The port that is left out of the Host header.
    pub usual_port: u16,
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
}

/// The part of an answer that nobody waits for yet.
pub struct Rest {
    body: Incoming,
    connection: Connection<TokioIo<Stream>, Empty<Bytes>>,
    // While it lives, hyper keeps the connection open for the body.
    sender: SendRequest<Empty<Bytes>>,
}

impl Rest {
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

    /// The body, up to a limit; what is beyond it is not looked at.
    ///
    /// # Errors
    /// The server hung up in the middle.
    pub async fn read(&mut self) -> Result<Vec<u8>, Failure> {
        let Self { body, connection, .. } = self;
        let mut bytes = Vec::new();
        while bytes.len() < BODY_LIMIT {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                end = &mut *connection => match end {
                    // The last part was handed over just before the connection ended.
                    Ok(()) => body.frame().await,
                    Err(error) => return Err(Failure::exchange(&error)),
                },
            };
            match frame {
                None => break,
                Some(Ok(frame)) => bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
                Some(Err(error)) => return Err(Failure::exchange(&error)),
            }
        }
        bytes.truncate(BODY_LIMIT);
        Ok(bytes)
    }
}

/// Asks on a fresh connection and returns once the head of the answer is there.
///
/// # Errors
/// The answer is no HTTP, or the server hung up.
pub async fn ask(stream: Stream, ask: &Ask<'_>, trace: &mut Trace) -> Result<(Head, Rest), Failure> {
    let question = question(ask)?;
    trace.exchange(&stream.stamps);
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
    trace.answered();
    Ok((Head { status: head.status, headers: head.headers }, Rest { body, connection, sender }))
}

fn question(ask: &Ask<'_>) -> Result<Question, Failure> {
    Request::builder()
        .method(ask.method.name())
        .uri(ask.path)
        .header(header::HOST, ask.host.map_or_else(|| default_host(ask.target, ask.usual_port), str::to_owned))
        .header(header::USER_AGENT, "lb-health")
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| Failure::Backend(format!("L7RSP: cannot ask for `{}`: {error}", ask.path)))
}

/// The port is left out where it is the protocol's own (RFC 9110, 4.2.3).
fn default_host(target: SocketAddr, usual_port: u16) -> String {
    match target {
        SocketAddr::V4(target) if target.port() == usual_port => target.ip().to_string(),
        SocketAddr::V6(target) if target.port() == usual_port => format!("[{}]", target.ip()),
        target => target.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_header_names_the_target_as_a_browser_would() {
        let host = |target: &str| default_host(target.parse().unwrap(), 80);
        assert_eq!(host("192.0.2.1:80"), "192.0.2.1");
        assert_eq!(host("192.0.2.1:8080"), "192.0.2.1:8080");
        assert_eq!(host("[2001:db8::1]:80"), "[2001:db8::1]");
        assert_eq!(host("[2001:db8::1]:8080"), "[2001:db8::1]:8080");
    }

    #[test]
    fn a_path_that_no_request_can_carry_is_a_failure_not_a_panic() {
        let target = "192.0.2.1:80".parse().unwrap();
        let ask = Ask { target, method: HttpMethod::Get, path: "/a b", host: None, usual_port: 80 };
        assert!(matches!(question(&ask), Err(Failure::Backend(_))));
    }
}
