//! The data path's loading, pinning, attaching and maps, against the running kernel. Needs root.

mod attach;
mod flows;
mod load;
mod many;
mod observe;
mod ports;
mod service_lines;
mod support;
mod tables;
mod verifier;
