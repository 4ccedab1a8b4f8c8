//! Accepting connections: at most so many, none of them slow or large.

use std::{sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::Peer;

/// Connections at a time; more wait in the listen queue.
const CONNECTIONS: usize = 64;
/// Time for a whole request head, also between two requests of one connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request head.
const HEAD_BYTES: usize = 16 * 1024;
/// Pause after the kernel refused a connection, as when it is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for requests under way when the server stops.
const GRACE: Duration = Duration::from_secs(2);

/// Serves `router` until `stop`; each request carries the [`Peer`] of its connection as extension.
pub(super) async fn accept(listener: &UnixListener, router: Router, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let Ok(place) = place else { break };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let (router, stop) = (router.clone(), stop.clone());
                connections.spawn(async move {
                    serve_one(stream, router, stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the API cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    let finished = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    if finished.is_err() {
        tracing::debug!("API connections were cut at stop");
    }
}

async fn serve_one(stream: UnixStream, router: Router, stop: CancellationToken) {
    let peer = match stream.peer_cred() {
        Ok(cred) => Peer::from(cred),
        Err(error) => {
            tracing::warn!(%error, "a connection to the API has no credentials");
            return;
        }
    };
    let service = TowerToHyperService::new(router.layer(Extension(peer)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an API connection ended early");
    }
}
