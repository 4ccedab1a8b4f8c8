//! Opening the pinned maps, also from a process that did not load them.

use std::{io, os::fd::AsFd as _};

use aya::{
    Pod as AyaPod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
};
use bytemuck::Pod;

use super::{mmap::SharedArray, pins::Pins, sys};
use crate::dataplane::DataplaneError;

/// An aya hash map that knows its capacity.
pub(super) struct Table<K, V> {
    pub map: HashMap<MapData, K, V>,
    pub capacity: u32,
    pub handle: MapData,
}

impl<K: AyaPod + Pod, V: AyaPod + Pod> Table<K, V> {
    pub fn open(pins: &Pins, name: &str) -> Result<Self, DataplaneError> {
        let (handle, capacity) = open(pins, name)?;
        let data = open(pins, name)?.0;
        let map = HashMap::try_from(Map::HashMap(data)).map_err(|error| kernel(name, error))?;
        Ok(Self { map, capacity, handle })
    }

    pub fn read_all(&self) -> io::Result<Vec<(K, V)>> {
        sys::read_all(self.handle.fd().as_fd(), self.capacity)
    }
}

/// An aya array that knows its capacity.
pub(super) struct List<V: AyaPod> {
    pub map: Array<MapData, V>,
    pub handle: MapData,
}

impl<V: AyaPod + Pod> List<V> {
    pub fn open(pins: &Pins, name: &str) -> Result<Self, DataplaneError> {
        let handle = open(pins, name)?.0;
        let data = open(pins, name)?.0;
        let map = Array::try_from(Map::Array(data)).map_err(|error| kernel(name, error))?;
        Ok(Self { map, handle })
    }

    pub fn read_all(&self) -> io::Result<Vec<(u32, V)>> {
        sys::read_all(self.handle.fd().as_fd(), self.map.len())
    }
}

pub(super) fn open_per_cpu<V: AyaPod>(pins: &Pins, name: &str) -> Result<PerCpuArray<MapData, V>, DataplaneError> {
    let data = open(pins, name)?.0;
    PerCpuArray::try_from(Map::PerCpuArray(data)).map_err(|error| kernel(name, error))
}

pub(super) fn open_shared<T: Pod>(pins: &Pins, name: &str) -> Result<SharedArray<T>, DataplaneError> {
    let data = open(pins, name)?.0;
    SharedArray::map(&data).map_err(|source| DataplaneError::Kernel {
        what: format!("mapping {} into memory", pins.map(name).display()),
        source,
    })
}

/// A pinned map and its capacity.
pub(super) fn open(pins: &Pins, name: &str) -> Result<(MapData, u32), DataplaneError> {
    let path = pins.map(name);
    let failed = |error: MapError| {
        let what = format!("opening the pinned map {}; `lb run` makes it, as root", path.display());
        DataplaneError::Kernel { what, source: io_error(error) }
    };
    let data = MapData::from_pin(&path).map_err(failed)?;
    let capacity = data.info().map_err(failed)?.max_entries();
    Ok((data, capacity))
}

/// How many values an element of a map per CPU has.
pub(super) fn cpus() -> Result<usize, DataplaneError> {
    aya::util::nr_cpus().map_err(|(_, source)| DataplaneError::Kernel { what: "counting CPUs".into(), source })
}

/// An aya error as the contract's error.
pub(super) fn kernel(what: impl Into<String>, error: MapError) -> DataplaneError {
    DataplaneError::Kernel { what: what.into(), source: io_error(error) }
}

pub(super) fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::KeyNotFound => io::ErrorKind::NotFound.into(),
        other => io::Error::other(other),
    }
}
