//! The content of one map, from a layout to another one: while the program of the one still works on it, and
//! until that of the other does. Values may have grown at their end: what is new there is zero. Numbers of
//! elements stay.
//!
//! ```text
//! copy       once, before the other program is on any interface
//! catch_up   just before it is, when the data path begins no flows
//! finish     when it is on all of them: what was counted meanwhile
//! ```

use std::{collections::BTreeSet, os::fd::AsFd as _, sync::atomic::Ordering};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, MapInfo, MapType};
use lb_common::abi::{limits::PORT_POOL_WORDS, names};

use super::{counters::Adder, mmap::RawArray, sys};

/// Elements of a map per CPU are rounded up to so many bytes.
const PER_CPU_STEP: usize = 8;

pub(super) struct Transfer {
    pub(super) name: &'static str,
    from: Map,
    to: Map,
    /// What `from` held at the last copy, by rising index: of counters, loads and ports, elements that were
    /// not zero.
    before: Vec<(u32, Vec<u8>)>,
}

struct Map {
    data: MapData,
    info: MapInfo,
    kind: MapType,
}

impl Map {
    fn new(data: MapData) -> Result<Self> {
        let info = data.info()?;
        let kind = info.map_type()?;
        Ok(Self { data, info, kind })
    }

    fn value_size(&self) -> usize {
        self.info.value_size() as usize
    }

    /// Bytes of an element as the kernel gives it.
    fn bytes(&self) -> Result<usize> {
        let size = self.value_size();
        if self.kind != MapType::PerCpuArray {
            return Ok(size);
        }
        Ok(size.next_multiple_of(PER_CPU_STEP) * cpus()?)
    }

    fn element(&self, index: u32, value: &mut [u8]) -> Result<()> {
        sys::array_element(self.data.fd().as_fd(), index, value).with_context(|| format!("reading element {index}"))
    }
}

impl Transfer {
    /// # Errors
    /// The kernel does not tell what the maps are.
    pub(super) fn new(name: &'static str, from: MapData, to: MapData) -> Result<Self> {
        Ok(Self { name, from: Map::new(from)?, to: Map::new(to)?, before: Vec::new() })
    }

    /// Makes `to` hold what `from` holds; what it held before is gone.
    ///
    /// # Errors
    /// A map could not be read or written.
    pub(super) fn copy(&mut self) -> Result<()> {
        match self.from.kind {
            MapType::Array | MapType::PerCpuArray if !self.forgotten() => self.copy_elements(),
            MapType::Hash | MapType::LruHash => self.copy_entries(),
            // Records that are read once.
            _ => Ok(()),
        }
        .with_context(|| format!("taking over the map {}", self.name))
    }

    /// Ports that were taken since they were copied are taken.
    ///
    /// # Errors
    /// A map could not be mapped into memory.
    pub(super) fn catch_up(&mut self) -> Result<()> {
        if self.name != names::PORT_POOLS {
            return Ok(());
        }
        let (from, to) = (RawArray::map(&self.from.data)?, RawArray::map(&self.to.data)?);
        let mut before = self.before.iter().peekable();
        for pool in 0..from.len().min(to.len()) {
            let (Some(from), Some(to)) = (from.words(pool), to.words(pool)) else { continue };
            let before = before.next_if(|(known, _)| *known == pool).map(|(_, bytes)| bytes.as_slice());
            for (word, (from, to)) in from.iter().zip(to).take(PORT_POOL_WORDS).enumerate() {
                let taken = from.load(Ordering::Acquire) & !word_of(before, word);
                if taken != 0 {
                    to.fetch_or(taken, Ordering::AcqRel);
                }
            }
        }
        Ok(())
    }

    /// Adds what was counted in `from` since it was copied, and by nobody any more.
    ///
    /// # Errors
    /// A map could not be read, or not be added to.
    pub(super) fn finish(&mut self) -> Result<()> {
        let done = match self.name {
            names::SERVICE_STATS | names::BACKEND_STATS | names::VERDICT_STATS | names::HANDSHAKES => {
                self.add_counters()
            }
            names::BACKEND_LOAD => self.add_loads(),
            _ => Ok(()),
        };
        done.with_context(|| format!("adding what was counted meanwhile in the map {}", self.name))
    }

    /// Places in it follow from its capacity, and nothing in it lasts.
    fn forgotten(&self) -> bool {
        self.name == names::KNOCKS && self.from.info.max_entries() != self.to.info.max_entries()
    }

    fn keeps_before(&self) -> bool {
        self.from.kind == MapType::PerCpuArray || [names::BACKEND_LOAD, names::PORT_POOLS].contains(&self.name)
    }

    fn copy_elements(&mut self) -> Result<()> {
        let (mut old, mut new, mut there) =
            (vec![0; self.from.bytes()?], vec![0; self.to.bytes()?], vec![0; self.to.bytes()?]);
        let keep = self.keeps_before();
        self.before.clear();
        for index in 0..self.to.info.max_entries() {
            old.fill(0);
            if index < self.from.info.max_entries() {
                self.from.element(index, &mut old)?;
            }
            self.refit(&old, &mut new);
            self.to.element(index, &mut there)?;
            if new != there {
                sys::set_array_element(self.to.data.fd().as_fd(), index, &mut new)?;
            }
            if keep && old.iter().any(|byte| *byte != 0) {
                self.before.push((index, old.clone()));
            }
        }
        Ok(())
    }

    /// The bytes of one element as the other map has them.
    fn refit(&self, old: &[u8], new: &mut [u8]) {
        let (from, to) = (self.from.value_size(), self.to.value_size());
        let common = from.min(to);
        new.fill(0);
        let parts = old.chunks_exact(from.next_multiple_of(PER_CPU_STEP).min(old.len()));
        for (old, new) in parts.zip(new.chunks_exact_mut(to.next_multiple_of(PER_CPU_STEP).min(new.len()))) {
            new[..common].copy_from_slice(&old[..common]);
        }
    }

    fn copy_entries(&self) -> Result<()> {
        let (from, to) = (self.from.data.fd().as_fd(), self.to.data.fd().as_fd());
        let (mut value, mut new) = (vec![0; self.from.value_size()], vec![0; self.to.value_size()]);
        let keys = keys(&self.from)?;
        for key in self::keys(&self.to)?.iter().filter(|key| !keys.contains(*key)) {
            drop(sys::remove_entry(to, key));
        }
        for key in &keys {
            // Gone meanwhile.
            if sys::entry(from, key, &mut value).is_err() {
                continue;
            }
            let common = value.len().min(new.len());
            new.fill(0);
            new[..common].copy_from_slice(&value[..common]);
            sys::set_entry(to, key, &mut new)?;
        }
        Ok(())
    }

    fn add_counters(&mut self) -> Result<()> {
        let counters = self.from.value_size().min(self.to.value_size()) / 8;
        let stride = self.from.value_size().next_multiple_of(PER_CPU_STEP);
        let mut changes = vec![Vec::new(); cpus()?];
        let mut now = vec![0; self.from.bytes()?];
        let zero = vec![0; now.len()];
        let mut before = self.before.iter().peekable();
        for index in 0..self.from.info.max_entries().min(self.to.info.max_entries()) {
            self.from.element(index, &mut now)?;
            let was = before.next_if(|(known, _)| *known == index).map_or(&zero, |(_, bytes)| bytes);
            for (cpu, changes) in changes.iter_mut().enumerate() {
                let part = cpu * stride..(cpu + 1) * stride;
                let differences = differences(&was[part.clone()], &now[part], counters);
                if differences.iter().any(|difference| *difference != 0) {
                    changes.push((index, differences));
                }
            }
        }
        if changes.iter().all(Vec::is_empty) {
            return Ok(());
        }
        Adder::new(self.to.data.fd().as_fd(), counters)?.add(&changes)
    }

    fn add_loads(&mut self) -> Result<()> {
        let (from, to) = (RawArray::map(&self.from.data)?, RawArray::map(&self.to.data)?);
        let mut before = self.before.iter().peekable();
        for index in 0..from.len().min(to.len()) {
            let (Some([now]), Some([load])) = (from.words(index), to.words(index)) else { continue };
            let before = before.next_if(|(known, _)| *known == index).map(|(_, bytes)| bytes.as_slice());
            // A negative difference is one that wraps, and so does the sum.
            let more = now.load(Ordering::Relaxed).wrapping_sub(word_of(before, 0));
            load.fetch_add(more, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Every value of a hash map.
///
/// # Errors
/// The kernel's.
pub(super) fn each_entry(data: &MapData, mut each: impl FnMut(&[u8])) -> Result<()> {
    let copy = MapData::from_fd(data.fd().as_fd().try_clone_to_owned()?)?;
    let map = Map::new(copy)?;
    let mut value = vec![0; map.value_size()];
    for key in keys(&map)? {
        if sys::entry(map.data.fd().as_fd(), &key, &mut value).is_ok() {
            each(&value);
        }
    }
    Ok(())
}

/// Entries of a hash map.
///
/// # Errors
/// The kernel's.
pub(super) fn entries(data: MapData) -> Result<usize> {
    Ok(keys(&Map::new(data)?)?.len())
}

fn keys(map: &Map) -> Result<BTreeSet<Vec<u8>>> {
    let fd = map.data.fd().as_fd();
    let mut keys = BTreeSet::new();
    let mut last: Option<Vec<u8>> = None;
    let mut next = vec![0; map.info.key_size() as usize];
    // One that is removed meanwhile makes the walk begin again: it ends all the same.
    for _ in 0..u64::from(map.info.max_entries()) * 4 + 1 {
        if !sys::next_key(fd, last.as_deref(), &mut next)? {
            break;
        }
        keys.insert(next.clone());
        last = Some(next.clone());
    }
    Ok(keys)
}

fn word_of(bytes: Option<&[u8]>, word: usize) -> u64 {
    let bytes = bytes.and_then(|bytes| bytes.get(word * 8..word * 8 + 8));
    bytes.map_or(0, |bytes| u64::from_ne_bytes(bytes.try_into().unwrap_or_default()))
}

fn differences(before: &[u8], now: &[u8], counters: usize) -> Vec<u64> {
    let word = |bytes: &[u8], at: usize| word_of(Some(bytes), at);
    (0..counters).map(|at| word(now, at).wrapping_sub(word(before, at))).collect()
}

fn cpus() -> Result<usize> {
    Ok(aya::util::nr_cpus().map_err(|(_, error)| error)?)
}
