//! The stages of a packet's way, one decision each.

pub mod admit;
pub mod begin;
pub mod family;
pub mod icmp;
pub mod load;
pub mod ports;
pub mod quic;
pub mod refuse;
pub mod select;
pub mod table;
