//! What `lb decap` prints.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::model::{Kind, Traffic};

/// What strips tunnels on this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecapStatus {
    pub interfaces: Vec<DecapInterface>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecapInterface {
    pub interface: String,
    /// `native`, `generic` or `offloaded`; absent: the program is gone, and only pins are left.
    pub mode: Option<String>,
    pub program_id: Option<u32>,
    /// Prefixes that tunnels may come from.
    pub balancers: Vec<String>,
    /// Addresses that tunnels may end at; empty: any.
    pub to: Vec<IpAddr>,
    /// Absent: IP in IP and GRE only.
    pub gue_port: Option<u16>,
    /// Stripped for each service address.
    pub vips: Vec<DecapVip>,
    pub outcomes: Vec<DecapOutcome>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecapVip {
    pub address: IpAddr,
    /// Whole frames as they came in.
    pub stripped: Traffic,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecapOutcome {
    pub outcome: String,
    /// `stripped`, `passed` or `dropped`.
    pub fate: String,
    pub packets: u64,
    pub bytes: u64,
    pub meaning: String,
}

/// What `lb decap off` did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecapOff {
    /// Interfaces that had the program.
    pub interfaces: Vec<String>,
}

impl Kind for DecapStatus {
    const KIND: &'static str = "DecapStatus";
}

impl Kind for DecapOff {
    const KIND: &'static str = "DecapOff";
}
