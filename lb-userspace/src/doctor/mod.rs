//! Looks for what keeps packets from flowing, and says what to type.
//!
//! ```text
//! Facts::gather           what this host is like, as a backend    backend::checks   facts -> list of checks (pure)
//! BalancerFacts::gather   the same, as a balancer                 balancer::checks
//! ```

pub mod backend;
pub mod balancer;
mod balancer_facts;
mod facts;
mod told;

pub use balancer_facts::{AgentFacts, BackendFacts, BalancerFacts, BalancerQuestion, InterfaceFacts};
pub use facts::Facts;
