//! Golden packets: a frame in, and out come the verdict, the whole frame and every counter. The real
//! program runs in the real kernel (BPF_PROG_TEST_RUN), with the host's own routing and neighbour
//! tables of a network namespace that ends with the test.

mod counters;
#[path = "../../../lb-common/tests/frames/mod.rs"]
mod frames;
mod lab;

mod dsr;
mod flows;
mod forward;
mod passed;
mod ports;
mod reconcile;
mod refused;
mod scale;
mod schedule;
mod schedulers;
mod table;
mod tunnel;
