//! The contract between the data path (`lb-ebpf`) and the agent (`lb-userspace`), and the packet
//! logic that needs no kernel.
//!
//! Byte order: addresses and ports inside ABI types are stored as they stand in the packet
//! (network order), wrapped in [`abi::Address`] and [`abi::Port`]; every other integer is in host
//! order. Nothing here allocates, reads a clock or knows about maps.
#![cfg_attr(not(any(test, feature = "fuzz")), no_std)]

pub mod abi;
pub mod answer;
#[cfg(feature = "bench")]
pub mod bench;
pub mod checksum;
pub mod decap;
pub mod encap;
pub mod family;
pub mod flow;
pub mod fragment;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz_decap;
pub mod hash;
pub mod icmp;
pub mod mss;
pub mod numbers;
pub mod packet;
pub mod parse;
pub mod plain;
pub mod ports;
pub mod quic;
pub mod rescue;
pub mod rewrite;
pub mod sctp;
pub mod verdict;
pub mod vlan;
