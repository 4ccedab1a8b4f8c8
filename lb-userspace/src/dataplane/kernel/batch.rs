//! Many elements of a map in one system call (`BPF_MAP_UPDATE_BATCH` and its like: Linux 5.6, arrays per CPU
//! 5.13), which aya does not offer. The kernel takes them one after the other, each as a whole: what a
//! packet sees is what it would see of as many single calls.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd};
use bytemuck::Pod;

use super::sys::{bpf, zeroed_attr};

/// Elements of one call: the kernel copies each by itself, but it may not be interrupted for long.
const MOST: usize = 4096;
/// The kernel's own number for "this kind of map cannot do that", which has no place in libc.
const ENOTSUPP: i32 = 524;

/// Why a batch was not carried out.
#[derive(Debug)]
pub(super) enum Refused {
    /// This kernel has no batches for this map; nothing was done.
    Unknown,
    /// At the element of this index; those before were done.
    At(usize, io::Error),
}

/// Writes `values`, in their order.
///
/// # Errors
/// See [`Refused`].
pub(super) fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> Result<(), Refused> {
    assert_eq!(keys.len(), values.len());
    for (n, (keys, values)) in keys.chunks(MOST).zip(values.chunks(MOST)).enumerate() {
        let mut attr = zeroed_attr();
        attr.batch.values = values.as_ptr() as u64;
        run(bpf_cmd::BPF_MAP_UPDATE_BATCH, attr, map, keys).map_err(|refused| refused.after(n * MOST))?;
    }
    Ok(())
}

/// Sets elements of an array per CPU to zeros on every CPU; `bytes`: of one element, on all of them.
///
/// # Errors
/// See [`Refused`].
pub(super) fn zero(map: BorrowedFd<'_>, indices: &[u32], bytes: usize) -> Result<(), Refused> {
    let zeros = vec![0u8; bytes * indices.len().min(MOST)];
    for (n, indices) in indices.chunks(MOST).enumerate() {
        let mut attr = zeroed_attr();
        attr.batch.values = zeros.as_ptr() as u64;
        run(bpf_cmd::BPF_MAP_UPDATE_BATCH, attr, map, indices).map_err(|refused| refused.after(n * MOST))?;
    }
    Ok(())
}

/// Tells the elements of an array per CPU from the first on, `len` of them: the index, and the values of all
/// `cpus`. `V`: of a multiple of eight bytes, as the kernel lays values out.
///
/// # Errors
/// See [`Refused`].
pub(super) fn read_per_cpu<V: Pod>(
    map: BorrowedFd<'_>,
    len: u32,
    cpus: usize,
    mut tell: impl FnMut(u32, &[V]),
) -> Result<(), Refused> {
    const { assert!(size_of::<V>().is_multiple_of(8)) };
    let most = len.min(MOST as u32);
    let (mut indices, mut values) = (vec![0u32; most as usize], vec![V::zeroed(); most as usize * cpus]);
    let (mut done, mut last) = (0, 0u32);
    while done < len {
        let mut attr = zeroed_attr();
        let before = last;
        attr.batch.in_batch = if done == 0 { 0 } else { &raw const before as u64 };
        attr.batch.out_batch = &raw mut last as u64;
        attr.batch.keys = indices.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = most.min(len - done);
        attr.batch.map_fd = map.as_raw_fd() as u32;
        let read = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
        // SAFETY: plain integers; the kernel wrote the number of elements that were read back.
        let count = unsafe { attr.batch.count };
        match read {
            Ok(_) => {}
            // After the last one; those before it were read.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(_) if done == 0 => return Err(Refused::Unknown),
            Err(error) => return Err(Refused::At(done as usize, error)),
        }
        let read = indices.iter().zip(values.chunks_exact(cpus)).take(count as usize);
        read.for_each(|(index, values)| tell(*index, values));
        if count == 0 {
            break;
        }
        done += count;
    }
    Ok(())
}

/// Deletes what is there of these.
///
/// # Errors
/// See [`Refused`].
pub(super) fn delete<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> Result<(), Refused> {
    let mut done = 0;
    while done < keys.len() {
        let now = &keys[done..keys.len().min(done + MOST)];
        match run(bpf_cmd::BPF_MAP_DELETE_BATCH, zeroed_attr(), map, now) {
            Ok(()) => done += now.len(),
            // It is not there, which is as good. The kernel stops at it all the same.
            Err(Refused::At(at, error)) if error.raw_os_error() == Some(libc::ENOENT) => done += at + 1,
            Err(refused) => return Err(refused.after(done)),
        }
    }
    Ok(())
}

/// One call over all of `keys`; `attr` names the values, as many as keys.
fn run<K: Pod>(command: bpf_cmd, mut attr: bpf_attr, map: BorrowedFd<'_>, keys: &[K]) -> Result<(), Refused> {
    attr.batch.keys = keys.as_ptr() as u64;
    attr.batch.count = keys.len() as u32;
    attr.batch.map_fd = map.as_raw_fd() as u32;
    let Err(error) = bpf(command, &mut attr) else { return Ok(()) };
    // SAFETY: plain integers; the kernel wrote the number of elements that were done back.
    let done = unsafe { attr.batch.count } as usize;
    let unknown = matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL));
    // A kernel that does not know the command has not touched the count.
    if unknown && (done == 0 || done == keys.len()) { Err(Refused::Unknown) } else { Err(Refused::At(done, error)) }
}

impl Refused {
    /// In terms of all elements, where so many were done by earlier calls.
    fn after(self, earlier: usize) -> Self {
        match self {
            Self::Unknown if earlier == 0 => Self::Unknown,
            Self::Unknown => Self::At(earlier, io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
            Self::At(at, error) => Self::At(earlier + at, error),
        }
    }
}
