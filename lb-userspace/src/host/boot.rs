//! Which boot of the kernel this is: what the agent changed on the host is gone after the next one.

use std::{fs, time::SystemTime};

use super::HostError;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const MOUNTS: &str = "/proc/self/mountinfo";
/// Seconds by which two readings of one boot's time may differ: the clock is read twice, and is slewed.
const SLACK: u64 = 5;

/// A boot, as it is seen from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Boot {
    pub id: String,
    /// A container's manager shows a number of its own in the place of the kernel's, and not to each process
    /// in the container: systemd gives its units a `/proc` that has the kernel's.
    pub hidden: bool,
    /// Seconds since 1970; 0: not known.
    pub began: u64,
}

impl Boot {
    /// # Errors
    /// There is no `/proc`.
    pub fn current() -> Result<Self, HostError> {
        let id = fs::read_to_string(BOOT_ID).map_err(HostError::file("read", BOOT_ID))?;
        let mounts = fs::read_to_string(MOUNTS).map_err(HostError::file("read", MOUNTS))?;
        Ok(Self { id: id.trim().to_owned(), hidden: is_hidden(&mounts), began: began() })
    }

    /// Whether both are views of one boot. The kernel's numbers tell that by themselves. Where one of them is
    /// not the kernel's, two boots cannot have begun in the same seconds.
    pub fn is(&self, other: &Self) -> bool {
        let together = self.began != 0 && other.began != 0 && self.began.abs_diff(other.began) <= SLACK;
        self.id == other.id || (self.hidden || other.hidden) && together
    }
}

/// Whether something is mounted over the kernel's number; the mount point is the fifth word (proc(5)).
fn is_hidden(mounts: &str) -> bool {
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(BOOT_ID))
}

fn began() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    now.saturating_sub(up())
}

/// Seconds since the boot, sleep included. Not from `/proc/uptime`, which containers change too.
fn up() -> u64 {
    // SAFETY: all zero is a valid time.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(id: &str, hidden: bool, began: u64) -> Boot {
        Boot { id: id.to_owned(), hidden, began }
    }

    #[test]
    fn the_kernels_number_tells_one_boot_from_another_whatever_the_clock_says() {
        assert!(boot("a", false, 1000).is(&boot("a", false, 90_000)));
        assert!(!boot("a", false, 1000).is(&boot("b", false, 1000)));
    }

    #[test]
    fn in_a_container_with_a_number_of_its_own_the_time_tells() {
        for (hidden, shown) in [(true, false), (false, true), (true, true)] {
            assert!(boot("a", hidden, 1000).is(&boot("b", shown, 1003)));
            assert!(!boot("a", hidden, 1000).is(&boot("b", shown, 1060)));
            assert!(!boot("a", hidden, 0).is(&boot("b", shown, 0)), "records of before have no time");
        }
    }

    #[test]
    fn a_number_that_is_mounted_over_is_seen() {
        let plain = "22 1 0:20 / /proc rw,nosuid - proc proc rw";
        let over = "77 22 0:31 /x /proc/sys/kernel/random/boot_id ro,nosuid - tmpfs tmpfs rw";
        assert!(!is_hidden(plain));
        assert!(is_hidden(&format!("{plain}\n{over}")));
    }

    #[test]
    fn two_looks_at_this_boot_are_one() {
        let (first, second) = (Boot::current().unwrap(), Boot::current().unwrap());
        assert!(first.is(&second) && !first.id.is_empty() && first.began > 0);
    }
}
