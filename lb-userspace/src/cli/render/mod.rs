//! Documents as text for people: aligned columns without borders, numbers to the right.

mod backends;
mod config;
mod decap;
mod doctor;
mod events;
mod services;
mod stats;
mod status;
mod table;

pub use backends::{backend_list, command_done};
pub use config::{applied, config, service_done, settled};
pub use decap::{decap_off, decap_status};
pub use doctor::diagnosis;
pub use events::{event, events, service_frozen};
pub use services::{service, service_list};
pub use stats::{flow_list, stats};
pub use status::{bundle, detached, status};
pub use table::count;
