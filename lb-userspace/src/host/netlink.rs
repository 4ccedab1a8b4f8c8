//! The connection to the kernel's routing socket. What can be asked over it stands in `links`,
//! `addresses`, `routes` and `neighbours`.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use super::HostError;

/// A connection to rtnetlink (`man 7 rtnetlink`) in the network namespace of the thread that opened
/// it. Clones share it; it closes with the last one.
#[derive(Clone, Debug)]
pub struct Netlink {
    pub(super) handle: rtnetlink::Handle,
    _connection: Arc<AbortOnDropHandle<()>>,
}

impl Netlink {
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The socket could not be opened.
    pub fn open() -> Result<Self, HostError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|error| HostError::Kernel { what: "cannot open a netlink socket".to_owned(), error })?;
        let connection = Arc::new(AbortOnDropHandle::new(tokio::spawn(connection)));
        Ok(Self { handle, _connection: connection })
    }
}
