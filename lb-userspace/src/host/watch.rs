//! What comes, goes and changes: links, and the ways of packets.

use futures_util::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, packet_core::NetlinkPayload};
use tokio::sync::{mpsc, watch};
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

/// What tells of changed ways. Their own messages are not read: that there was one says that the kernel
/// is to be asked again.
const WAYS: [MulticastGroup; 5] = [
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
];

/// Changes of routes, routing rules and next hops. However many there were, they are one event until
/// it is taken.
#[derive(Debug)]
pub struct RouteEvents {
    changes: watch::Receiver<()>,
    _connection: AbortOnDropHandle<()>,
    _reader: AbortOnDropHandle<()>,
}

impl RouteEvents {
    /// Subscribes; must be called within a tokio runtime.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn subscribe() -> Result<Self, HostError> {
        let (connection, _, mut messages) = rtnetlink::new_multicast_connection(&WAYS)
            .map_err(|error| HostError::Kernel { what: "cannot watch routes".to_owned(), error })?;
        let (tx, changes) = watch::channel(());
        let reader = async move {
            // Also where the kernel had no room for some: it says so in a message.
            while messages.next().await.is_some() {
                if tx.send(()).is_err() {
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

    /// Waits for a change since the last one. `None`: the kernel closed the socket.
    pub async fn next(&mut self) -> Option<()> {
        self.changes.changed().await.ok()
    }
}
