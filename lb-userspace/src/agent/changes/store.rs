//! Putting on disk what a change leaves there, before it is put into effect.

use tokio::sync::mpsc;

use super::{
    super::{last_good::Copy, run_loop::Finding, state_file::StateError},
    Places,
};
use crate::core::OperatorLayer;

/// The answer of the disk.
#[derive(Debug)]
pub struct Stored(pub(super) Result<(), StateError>);

pub(super) struct Store {
    pub places: Places,
    pub layer: Option<OperatorLayer>,
    pub good: Option<Copy>,
    pub unconfirmed: Option<Copy>,
}

impl Store {
    /// Writes on a thread of its own; the answer goes to `findings`.
    pub fn begin(self, findings: mpsc::Sender<Finding>) {
        tokio::task::spawn_blocking(move || {
            let result = self.write();
            // The loop is gone only when the agent stops; it is stored all the same.
            drop(findings.blocking_send(Finding::Stored(Stored(result))));
        });
    }

    fn write(&self) -> Result<(), StateError> {
        let Self { places, layer, good, unconfirmed } = self;
        if let Some(layer) = layer {
            places.layer.store(layer)?;
        }
        if let Some(copy) = unconfirmed {
            places.keeper.store_unconfirmed(copy)?;
        }
        if let Some(copy) = good {
            places.keeper.store_good(copy)?;
        }
        Ok(())
    }
}
