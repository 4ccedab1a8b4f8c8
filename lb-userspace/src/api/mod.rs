//! The agent's socket: HTTP and JSON over a unix socket, its server, its client, and the types both
//! speak.
//!
//! ```text
//! GET  /v1/status
//! GET  /v1/services          GET /v1/services/{name}
//! GET  /v1/backends          GET /v1/backends?service=NAME
//! POST /v1/commands          a change an operator asks for   (root, or the agent's own user)
//! POST /v1/stop              ends the agent, not the traffic (root, or the agent's own user)
//! ```

mod authority;
pub mod client;
mod connections;
pub mod decap;
pub mod doctor;
pub mod model;
mod request;
mod server;
mod socket;
mod view;

pub use authority::Peer;
pub use request::{Handle, Refusal, Request};
pub use server::serve;
pub use socket::{ApiSocket, SocketError};
pub use view::service_view;
