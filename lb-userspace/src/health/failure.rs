//! Whose fault a failed system call is, and its words.

use std::{error::Error, io};

/// What stopped a probe.
#[derive(Debug)]
pub enum Failure {
    /// Something on this host is short; the backend was not asked.
    Local(io::Error),
    /// The result string of a failed probe.
    Backend(String),
}

impl Failure {
    /// A failed connection attempt.
    pub fn connect(error: io::Error) -> Self {
        if is_local(&error) {
            return Self::Local(error);
        }
        if error.kind() == io::ErrorKind::TimedOut {
            return Self::Backend("L4TOUT".to_owned());
        }
        Self::Backend(format!("L4CON: {}", kernel_words(&error)))
    }

    /// A failed exchange on a connection that stood.
    pub fn exchange(error: &(dyn Error + 'static)) -> Self {
        Self::Backend(format!("L7RSP: {}", innermost_words(error)))
    }

    /// An answer that makes no sense.
    pub fn garbage(what: impl std::fmt::Display) -> Self {
        Self::Backend(format!("L7RSP: {what}"))
    }

    /// An answer that makes sense and says no.
    pub fn refused(what: impl std::fmt::Display) -> Self {
        Self::Backend(format!("L7STS: {}", printable(&what.to_string())))
    }
}

/// Words of a server, on one line of bearable length and without anything that a terminal obeys.
pub fn printable(words: &str) -> String {
    const LONGEST: usize = 200;
    words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect::<String>().trim().to_owned()
}

/// Whether the host lacked descriptors, memory, ports or an address of its own.
fn is_local(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EADDRNOTAVAIL
                | libc::EADDRINUSE
                | libc::EAGAIN
                | libc::EAFNOSUPPORT
        )
    )
}

/// The kernel's words without Rust's ` (os error N)`.
pub fn kernel_words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// The words of the cause at the bottom of the chain: the outer ones say only where it came through.
fn innermost_words(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    match innermost.downcast_ref::<io::Error>() {
        Some(error) => kernel_words(error),
        None => innermost.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect_result(errno: i32) -> Option<String> {
        match Failure::connect(io::Error::from_raw_os_error(errno)) {
            Failure::Local(_) => None,
            Failure::Backend(result) => Some(result),
        }
    }

    #[test]
    fn refusals_carry_the_kernels_words() {
        assert_eq!(connect_result(libc::ECONNREFUSED).as_deref(), Some("L4CON: Connection refused"));
        assert_eq!(connect_result(libc::EHOSTUNREACH).as_deref(), Some("L4CON: No route to host"));
        assert_eq!(connect_result(libc::ENETUNREACH).as_deref(), Some("L4CON: Network is unreachable"));
    }

    #[test]
    fn the_kernels_own_timeout_is_a_timeout() {
        assert_eq!(connect_result(libc::ETIMEDOUT).as_deref(), Some("L4TOUT"));
    }

    #[test]
    fn shortages_of_this_host_are_not_held_against_the_backend() {
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL] {
            assert_eq!(connect_result(errno), None, "errno {errno}");
        }
    }
}
