//! The command line's end of the socket.

use std::{io, path::Path, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::model::{Document, ErrorView};

/// Longer than the agent takes to say that it is too busy.
const TIMEOUT: Duration = Duration::from_secs(15);
/// A list of 4,096 backends takes about 2 MB.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error("{0}")]
    NotReachable(#[source] io::Error),
    /// The socket's file mode keeps this user out.
    #[error("{0}")]
    NotAllowed(#[source] io::Error),
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    TimedOut,
    /// The connection broke or the answer makes no sense.
    #[error("{0}")]
    Broken(String),
    /// The agent said no.
    #[error("{}: {}", .0.what, .0.why)]
    Refused(ErrorView),
}

/// Reads `path`, such as `/v1/status`.
///
/// # Errors
/// See [`ClientError`].
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, ClientError> {
    exchange(socket, Method::GET, path, Bytes::new()).await
}

/// Sends `body` to `path`.
///
/// # Errors
/// See [`ClientError`].
pub async fn post<T: DeserializeOwned>(socket: &Path, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
    let body = serde_json::to_vec(body).map_err(|e| ClientError::Broken(e.to_string()))?;
    exchange(socket, Method::POST, path, body.into()).await
}

async fn exchange<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<T, ClientError> {
    let (status, answer) = tokio::time::timeout(TIMEOUT, round_trip(socket, method, path, body))
        .await
        .map_err(|_| ClientError::TimedOut)??;
    let broken = |e: serde_json::Error| ClientError::Broken(format!("the answer (HTTP {status}) cannot be read: {e}"));
    if status.is_success() {
        return Ok(serde_json::from_slice::<Document<T>>(&answer).map_err(broken)?.body);
    }
    Err(ClientError::Refused(serde_json::from_slice::<Document<ErrorView>>(&answer).map_err(broken)?.body))
}

async fn round_trip(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), ClientError> {
    let broken = |e: hyper::Error| ClientError::Broken(format!("the connection broke: {e}"));
    let stream = UnixStream::connect(socket).await.map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied => ClientError::NotAllowed(e),
        _ => ClientError::NotReachable(e),
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "lb")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|e| ClientError::Broken(e.to_string()))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), ANSWER_BYTES)
        .collect()
        .await
        .map_err(|e| ClientError::Broken(format!("the answer broke off: {e}")))?
        .to_bytes();
    driver.abort();
    Ok((status, answer))
}
