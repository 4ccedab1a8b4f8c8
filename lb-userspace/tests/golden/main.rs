//! Golden packets: a frame in, and out come the verdict, the whole frame and every counter. The real
//! program runs in the real kernel (BPF_PROG_TEST_RUN), with the host's own routing and neighbour
//! tables of a network namespace that ends with the test.

mod agent;
mod counters;
mod decap;
#[path = "../../../lb-common/tests/frames/mod.rs"]
mod frames;
mod lab;
mod pool;

mod clients;
mod dead_man;
mod denied;
mod dsr;
mod ending;
mod errors;
mod family;
mod family_errors;
mod flows;
mod forward;
mod fragment;
mod full;
mod hops;
mod host;
mod icmp;
mod icmp_wire;
mod jumbo;
mod killed;
mod migrated;
mod mss;
mod mutated;
mod owner;
mod passed;
mod ports;
mod quic;
mod reconcile;
mod refused;
mod reload;
mod rescue;

mod scale;
mod schedule;
mod schedulers;
mod sctp;
mod shares;
mod table;
mod timeouts;
mod too_big;
mod tracked;
mod tracked_scale;
mod tunnel;
mod tunnel_errors;
mod upgrade;
mod vlan;
