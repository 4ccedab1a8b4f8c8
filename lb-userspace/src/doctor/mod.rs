//! Looks for what keeps packets from flowing, and says what to type.
//!
//! ```text
//! Facts::gather   what this host is like
//! backend::checks facts -> list of checks (pure)
//! ```

pub mod backend;
mod facts;

pub use facts::Facts;
