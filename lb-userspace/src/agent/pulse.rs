//! Signs of life: to the data path, which has a rule for the case that they stop (`dead-man`), and to
//! the service manager, which restarts an agent that hangs. Given by the loop that writes the maps, in
//! each of its rounds, so that they stop when it stops.

use std::time::Duration;

use tokio::time::{Instant, Interval};

use super::{engine::Engine, run_loop::every, service_manager::ServiceManager};
use crate::dataplane::Dataplane;

/// A quarter of the shortest `dead-man-after`.
const BEAT_EVERY: Duration = Duration::from_millis(500);

pub struct Pulse {
    /// Wakes a loop that has nothing to do.
    wakes: Interval,
    due: Instant,
    manager: Option<ServiceManager>,
    failed: bool,
}

impl Pulse {
    pub fn new(manager: Option<ServiceManager>) -> Self {
        Self { wakes: every(BEAT_EVERY), due: Instant::now(), manager, failed: false }
    }

    /// Returns when the loop has to go around once more for [`Pulse::beat`].
    pub async fn wake(&mut self) {
        self.wakes.tick().await;
    }

    /// The rule may have changed: the next [`Pulse::beat`] tells it.
    pub fn hurry(&mut self) {
        self.due = Instant::now();
    }

    /// Gives the signs that are due.
    pub fn beat<D: Dataplane>(&mut self, engine: &mut Engine<D>) {
        let now = Instant::now();
        if now < self.due {
            return;
        }
        self.due = now + BEAT_EVERY;
        let beaten = engine.beat();
        if let Err(error) = &beaten
            && !self.failed
        {
            tracing::error!(%error, "the data path gets no sign of life: it will act as `dead-man` says");
        }
        self.failed = beaten.is_err();
        if let Some(manager) = &self.manager {
            manager.alive();
        }
    }
}
