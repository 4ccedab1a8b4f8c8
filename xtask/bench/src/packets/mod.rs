//! What packets cost: `cargo xtask bench packets`, in the kernel by itself and through the driver.
//!
//! ```text
//! rows -> setting (a configuration) -> bench (ours and the textbook balancer, filled alike)
//!      -> lanes (one program, one stream each) -> rounds -> results
//! driver: the same flows as live frames over veth
//! ```

mod bench;
mod driver;
mod frame;
mod lab;
mod lane;
mod measure;
mod object;
mod ours;
mod rows;
mod setting;
mod sink;
mod steps;
mod stream;
mod textbook;

pub use bench::{Bench, Flows};
pub use driver::{DriverEffort, DriverRow, ROWS as DRIVER_ROWS, driver};
pub use lab::{inside, pin_to};
pub use lane::{Lane, Lanes, Which};
pub use measure::{Effort, Measured, last_cpu, measure};
pub use object::{Capacity, Harness, Object, PROGRAMS, Ran};
pub use ours::{Counted, Ours, ProgramSize};
pub use rows::{Case, Row, rows};
pub use setting::Setting;
pub use sink::Sink;
pub use steps::steps;
pub use stream::{Kind, udp_order};
