//! What can go wrong on the host, in words that say what to do.

use std::{io, path::PathBuf};

/// A failed change of, or question to, the host. The text is complete: it has the kernel's words.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("there is no interface `{name}`: {advice}")]
    NoInterface { name: String, advice: String },
    /// The kernel refused.
    #[error("{what}: {error}")]
    Kernel { what: String, error: io::Error },
    #[error("cannot {verb} {}: {error}", path.display())]
    File { verb: &'static str, path: PathBuf, error: io::Error },
    /// IPv6 is not there, or switched off on the interface.
    #[error("{0}")]
    NoIpv6(String),
    /// Too few ephemeral ports would be left for the host's own connections.
    #[error("{0}")]
    Ports(String),
    #[error(
        "cannot read the record of changes {}: {why}. It says what to undo at detach; if nothing of \
         this host is to be undone, remove the file", path.display()
    )]
    Record { path: PathBuf, why: String },
    /// What was changed belongs to another network namespace that still exists.
    #[error(
        "{} tells of changes in another network namespace, {}: run this there \
         (`nsenter --net={} lb ...`), or use another --state-dir here",
        record.display(), namespace.display(), namespace.display()
    )]
    OtherNamespace { record: PathBuf, namespace: PathBuf },
}

impl HostError {
    /// For `map_err` on a netlink request.
    pub(super) fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let what = what.into();
        move |error| Self::Kernel { what, error: to_io(error) }
    }

    /// For `map_err` on a file operation.
    pub(super) fn file(verb: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { verb, path, error }
    }
}

/// The kernel's error number where there is one.
pub(super) fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
