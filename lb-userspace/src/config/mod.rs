//! The configuration file: parsed once into a [`Config`] that needs no further checks.

mod model;

pub use model::{Backend, Check, Config, Health, Limits, PortRange, Service, StatusRange, XdpMode};
