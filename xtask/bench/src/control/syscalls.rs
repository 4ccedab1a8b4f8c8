//! How many system calls a process makes: the kernel counts them (`perf_event_open(2)` on the tracepoint
//! `raw_syscalls:sys_enter`), which costs the process next to nothing.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::fd::{FromRawFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use xtask::shell;

const TRACEPOINT: &str = "events/raw_syscalls/sys_enter/id";
/// Where the tracing file system usually is.
const TRACING: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// `PERF_TYPE_TRACEPOINT`.
const OF_TRACEPOINT: u64 = 2;
/// `PERF_ATTR_SIZE_VER0`: bytes of the first `struct perf_event_attr`.
const ATTRIBUTES: u64 = 64;
/// The bit `inherit`: threads that are started later count too.
const INHERIT: u64 = 1 << 1;

/// Counts one process, all threads.
pub struct Syscalls(Vec<File>);

impl Syscalls {
    /// Begins at 0 now. `tracepoint`: see [`tracepoint`].
    ///
    /// # Errors
    /// The process is gone, or the kernel refuses.
    pub fn of(pid: u32, tracepoint: u64) -> Result<Self> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("threads of process {pid}"))?;
        let mut counters = Vec::new();
        for task in tasks {
            let name = task?.file_name();
            let thread: i32 = name.to_string_lossy().parse().with_context(|| format!("a thread's id: {name:?}"))?;
            match open(thread, tracepoint) {
                Ok(counter) => counters.push(counter),
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err(error).context("counting system calls"),
            }
        }
        Ok(Self(counters))
    }

    /// So far.
    ///
    /// # Errors
    /// The kernel's.
    pub fn count(&mut self) -> Result<u64> {
        let mut sum = 0;
        for counter in &mut self.0 {
            let mut number = [0; 8];
            counter.read_exact(&mut number).context("reading a count of system calls")?;
            sum += u64::from_ne_bytes(number);
        }
        Ok(sum)
    }
}

/// The kernel's number of the tracepoint. The tracing file system is mounted for a moment where it is not.
///
/// # Errors
/// The kernel has none, or it cannot be mounted.
pub fn tracepoint(scratch: &Path) -> Result<u64> {
    let known = TRACING.iter().find_map(|root| fs::read_to_string(Path::new(root).join(TRACEPOINT)).ok());
    let text = match known {
        Some(text) => text,
        None => {
            let root = scratch.join("tracing");
            fs::create_dir_all(&root)?;
            shell::output(shell::tool("mount").args(["-t", "tracefs", "tracefs"]).arg(&root))?;
            let text = fs::read_to_string(root.join(TRACEPOINT));
            shell::output(shell::tool("umount").arg(&root))?;
            text.context("the kernel does not trace system calls (CONFIG_FTRACE_SYSCALLS)")?
        }
    };
    text.trim().parse().with_context(|| format!("the number of a tracepoint: {text:?}"))
}

fn open(thread: i32, tracepoint: u64) -> io::Result<File> {
    // type and size, config, sample_period, sample_type, read_format, flags, and two that do not matter.
    let attributes: [u64; 8] = [OF_TRACEPOINT | ATTRIBUTES << 32, tracepoint, 0, 0, 0, INHERIT, 0, 0];
    // SAFETY: the attributes are as long as they say; the rest is numbers.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), thread, -1, -1, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor and nobody else knows it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_count_is_that_of_the_calls_that_were_made() {
        let scratch = std::env::temp_dir().join(format!("lb-bench-tracing-{}", std::process::id()));
        let tracepoint = tracepoint(&scratch).unwrap();
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        let mut counter = Syscalls(vec![open(thread, tracepoint).unwrap()]);
        let before = counter.count().unwrap();
        for _ in 0..1000 {
            std::hint::black_box(rustix::process::getppid());
        }
        let made = counter.count().unwrap() - before;
        fs::remove_dir_all(scratch).unwrap_or_default();
        assert!((1000..1010).contains(&made), "{made}");
    }
}
