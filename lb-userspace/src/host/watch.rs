//! Links that come, go and change.

use futures_util::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, packet_core::NetlinkPayload};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{HostError, Link, links::link};

/// How many changes may wait to be read; beyond that the oldest state is not told.
const WAITING: usize = 256;

/// Changes of interfaces as the kernel reports them. After a change from down to up, announce the
/// service addresses of the interface again: the switch behind it may have forgotten them.
#[derive(Debug)]
pub struct LinkEvents {
    changes: mpsc::Receiver<Link>,
    _connection: AbortOnDropHandle<()>,
    _reader: AbortOnDropHandle<()>,
}

impl LinkEvents {
    /// Subscribes; must be called within a tokio runtime.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn subscribe() -> Result<Self, HostError> {
        let (connection, _, mut messages) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
            .map_err(|error| HostError::Kernel { what: "cannot watch interfaces".to_owned(), error })?;
        let (tx, changes) = mpsc::channel(WAITING);
        let reader = async move {
            while let Some((message, _)) = messages.next().await {
                let change = match message.payload {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => link(&message),
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message)) => {
                        Link { up: false, ..link(&message) }
                    }
                    _ => continue,
                };
                if tx.send(change).await.is_err() {
                    return;
                }
            }
        };
        Ok(Self {
            changes,
            _connection: AbortOnDropHandle::new(tokio::spawn(connection)),
            _reader: AbortOnDropHandle::new(tokio::spawn(reader)),
        })
    }

    /// The next change: the interface as it is now, down where it is gone. `None`: the kernel closed the socket.
    pub async fn next(&mut self) -> Option<Link> {
        self.changes.recv().await
    }
}
