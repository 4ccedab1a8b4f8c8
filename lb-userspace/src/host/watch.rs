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
                if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) = message.payload
                    && tx.send(link(&message)).await.is_err()
                {
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

    /// The next change: the interface as it is now. `None`: the kernel closed the socket.
    pub async fn next(&mut self) -> Option<Link> {
        self.changes.recv().await
    }
}
