//! The sink of live frames, and the pace at which they arrive there.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Map, MapData, PerCpuArray};

use super::{lab, object::Object, stream::Kind};

/// From one reading of the sink to the next.
const WINDOW: Duration = Duration::from_millis(5);

/// Runs until one is seen: on a busy machine the watcher may sleep through a short one.
const ATTEMPTS: u32 = 5;

pub struct Sink(PerCpuArray<MapData, u64>);

impl Sink {
    /// # Errors
    /// The kernel's.
    pub fn open(object: &Object) -> Result<Self> {
        let data = MapData::from_id(object.sink_id()?).context("opening the sink")?;
        Ok(Self(PerCpuArray::try_from(Map::PerCpuArray(data))?))
    }

    /// Generates frames of the stream that the object was set to, and watches them arrive. Gives the
    /// nanoseconds a frame in the best window, and how many arrived. `ifindex`: any interface of this
    /// thread's namespace.
    ///
    /// # Errors
    /// The kernel refuses, or nothing arrives.
    pub fn run(&self, object: &mut Object, kind: Kind, ifindex: u32, frames: u32) -> Result<(f64, u64)> {
        for _ in 0..ATTEMPTS {
            if let (Some(best), delivered) = self.attempt(object, kind, ifindex, frames)? {
                return Ok((best, delivered));
            }
        }
        bail!("the machine is too busy: no window of {WINDOW:?} was seen in {ATTEMPTS} runs of {frames} frames")
    }

    fn attempt(&self, object: &mut Object, kind: Kind, ifindex: u32, frames: u32) -> Result<(Option<f64>, u64)> {
        let before = self.counted()?;
        let done = AtomicBool::new(false);
        let (sent, best) = thread::scope(|scope| {
            let sampler = scope.spawn(|| self.best_window(&done));
            let sent = object.generate(kind, ifindex, frames);
            done.store(true, Ordering::Release);
            let best = sampler.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (sent, best)
        });
        sent?;
        let delivered = self.counted()? - before;
        ensure!(delivered > 0, "no frame arrived");
        Ok((best?, delivered))
    }

    /// Nanoseconds a frame in the best window until `done`.
    fn best_window(&self, done: &AtomicBool) -> Result<Option<f64>> {
        // Another CPU than the generator's, where there is one.
        lab::pin_to(0)?;
        let mut best: Option<f64> = None;
        let (mut last, mut since) = (self.counted()?, Instant::now());
        while !done.load(Ordering::Acquire) {
            thread::sleep(WINDOW);
            let (now, count) = (Instant::now(), self.counted()?);
            let (frames, took) = (count - last, now - since);
            (last, since) = (count, now);
            // Short of that the generator stood still, or had not begun.
            if frames > 1000 {
                let each = took.as_nanos() as f64 / frames as f64;
                best = Some(best.map_or(each, |best| best.min(each)));
            }
        }
        Ok(best)
    }

    fn counted(&self) -> Result<u64> {
        Ok(self.0.get(&0, 0).context("reading the sink")?.iter().sum())
    }
}
