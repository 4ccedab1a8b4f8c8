//! Processor time of processes, by the scheduler's own sums.

use std::{fs, time::Duration};

/// Processor time so far of all threads of these processes, of the calling thread, and of the kernel's
/// thread that works off what the network has left over on this CPU. Processes that are gone count as
/// nothing.
pub fn used(pids: &[u32], cpu: usize) -> Duration {
    of_processes(pids) + of_this_cpu(cpu)
}

/// Of these processes alone.
pub fn of_processes(pids: &[u32]) -> Duration {
    Duration::from_nanos(pids.iter().map(|pid| process(&format!("/proc/{pid}"))).sum())
}

fn of_this_cpu(cpu: usize) -> Duration {
    let mut nanoseconds = runtime("/proc/thread-self/schedstat");
    nanoseconds += ksoftirqd(cpu).map_or(0, |pid| process(&format!("/proc/{pid}")));
    Duration::from_nanos(nanoseconds)
}

/// Nanoseconds on a CPU of all threads of the process with this folder in `/proc`; 0 when it is gone.
pub fn process(folder: &str) -> u64 {
    let Ok(threads) = fs::read_dir(format!("{folder}/task")) else { return 0 };
    threads.flatten().map(|thread| runtime(&thread.path().join("schedstat").display().to_string())).sum()
}

/// The first number: nanoseconds on a CPU (Documentation/scheduler/sched-stats.rst).
fn runtime(path: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Kernel threads are started one after the other, in the first moments of the machine.
fn ksoftirqd(cpu: usize) -> Option<u32> {
    let name = format!("ksoftirqd/{cpu}");
    let is_it = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
    (2..4096).find(is_it)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn time_that_this_thread_burns_is_counted() {
        let (before, begun) = (used(&[], 0), Instant::now());
        while begun.elapsed() < Duration::from_millis(30) {
            std::hint::black_box(0);
        }
        assert!(used(&[], 0) - before > Duration::from_millis(1));
    }

    #[test]
    fn a_process_that_is_gone_counts_as_nothing() {
        assert_eq!(process("/proc/4294967295"), 0);
    }
}
