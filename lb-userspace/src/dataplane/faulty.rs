//! A test double that fails: it wraps any data plane, and its faults repeat with their seed.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{Dataplane, DataplaneError, FlowCensus, Op, Tables};
use crate::config::DeadMan;

/// Fails by chance: an operation before, within or after it took effect, a read, a walk.
#[derive(Clone, Debug)]
pub struct FaultyDataplane<D> {
    inner: D,
    random: StdRng,
    /// Chance of each call to fail, 0.0 to 1.0.
    pub chance: f64,
    /// Writes, reads and walks that failed so far.
    pub faults: u64,
}

impl<D: Dataplane> FaultyDataplane<D> {
    pub fn new(inner: D, seed: u64, chance: f64) -> Self {
        Self { inner, random: StdRng::seed_from_u64(seed), chance, faults: 0 }
    }

    pub fn inner(&self) -> &D {
        &self.inner
    }

    pub fn inner_mut(&mut self) -> &mut D {
        &mut self.inner
    }

    fn fails(&mut self) -> bool {
        self.random.random_bool(self.chance)
    }

    fn fault<T>(&mut self, what: &str) -> Result<T, DataplaneError> {
        self.faults += 1;
        Err(error(what))
    }
}

fn error(what: &str) -> DataplaneError {
    DataplaneError::Kernel { what: what.to_owned(), source: std::io::Error::other("a fault made by the test") }
}

impl<D: Dataplane> Dataplane for FaultyDataplane<D> {
    fn apply(&mut self, op: &Op) -> Result<(), DataplaneError> {
        if self.fails() {
            return self.fault("write, not carried out");
        }
        if let Op::WriteSelection { base, slots } = op
            && self.fails()
        {
            // Many elements, one system call each or one batch that broke off.
            let written = self.random.random_range(0..=slots.len());
            self.inner.apply(&Op::WriteSelection { base: *base, slots: slots[..written].to_vec() })?;
            return self.fault("write, cut short");
        }
        self.inner.apply(op)?;
        if self.fails() {
            return self.fault("write, carried out all the same");
        }
        Ok(())
    }

    fn read(&mut self) -> Result<Tables, DataplaneError> {
        if self.fails() {
            return self.fault("read");
        }
        self.inner.read()
    }

    fn sweep(&mut self) -> Result<FlowCensus, DataplaneError> {
        if self.fails() {
            return self.fault("walk over the flow table");
        }
        self.inner.sweep()
    }

    fn beat(&mut self, rule: &DeadMan) -> Result<(), DataplaneError> {
        if self.fails() {
            return Err(error("sign of life"));
        }
        self.inner.beat(rule)
    }
}
