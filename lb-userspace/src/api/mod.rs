//! The agent's socket: HTTP and JSON over a unix socket, its server, its client, and the types both
//! speak.
//!
//! Every path is in `operations`, from which the routes and the OpenAPI document (`/v1/openapi.json`)
//! are made. Reads are GET, for whoever may open the socket. Changes are POST, for root and the agent's
//! own user; each takes `dry_run=true`, and a revision to compare with (`If-Match`, or `revision=`).

mod authority;
pub mod client;
mod connections;
pub mod decap;
pub mod doctor;
pub mod model;
mod openapi;
mod operations;
mod request;
mod server;
mod socket;
mod view;

pub use authority::Peer;
pub use openapi::document as openapi;
pub use request::{Handle, PrintConfig, Refusal, Reply, Request, Task, WriteOptions};
pub use server::serve;
pub use socket::{ApiSocket, SocketError};
pub use view::{backend_view, service_view};
