//! Putting on disk what a change leaves there: before it is put into effect, or for commands, that are to be
//! quick, at the same time. Nobody gets an answer before the disk has it.

use tokio::sync::mpsc;

use super::{
    super::{last_good::Copy, layer::LayerFile, run_loop::Finding, state_file::StateError},
    Places,
};
use crate::core::OperatorLayer;

/// The answer of the disk.
#[derive(Debug)]
pub enum Stored {
    /// There is room for it, and the disk has still to be waited for: told of commands, before the other one.
    Begun,
    Done(Result<(), StateError>),
}

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
            drop(findings.blocking_send(Finding::Stored(Stored::Done(result))));
        });
    }

    /// The same for a layer alone; tells before it waits for the disk.
    pub fn begin_layer(file: LayerFile, layer: OperatorLayer, findings: mpsc::Sender<Finding>) {
        tokio::task::spawn_blocking(move || {
            let result = file.write_beside(&layer).and_then(|beside| {
                // As above.
                drop(findings.blocking_send(Finding::Stored(Stored::Begun)));
                beside.put()
            });
            drop(findings.blocking_send(Finding::Stored(Stored::Done(result))));
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
