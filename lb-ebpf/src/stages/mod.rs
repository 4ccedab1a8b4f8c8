//! The stages of a packet's way, one decision each.

pub mod admit;
pub mod begin;
pub mod clients;
pub mod dead_man;
pub mod ending;
pub mod errors;
pub mod family;
pub mod family_error;
pub mod fragment;
pub mod hashed;
pub mod icmp;
pub mod knock;
pub mod load;
pub mod mss;
pub mod owner;
pub mod ports;
pub mod quic;
pub mod refuse;
pub mod rescue;
pub mod select;
pub mod table;
pub mod tagged;
pub mod too_big;
pub mod tunnel_error;
pub mod unusual;
