//! Runs a kernel and listens to what comes over its serial lines.

use std::{
    io::{BufRead as _, BufReader, Read},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::packages::{KernelPackage, Machine};
use crate::shell;

/// Without acceleration, which not every machine has; no network; a panic ends it.
const ARGUMENTS: &[&str] = &[
    "-accel",
    "tcg,thread=multi",
    "-cpu",
    "max",
    "-smp",
    "2",
    "-m",
    "3G",
    "-no-user-config",
    "-nodefaults",
    "-display",
    "none",
    "-nic",
    "none",
    "-no-reboot",
];
const KERNEL_ARGUMENTS: &str = "console=ttyS0 rdinit=/init panic=-1 oops=panic";

/// A machine that is running; killed when dropped.
pub(super) struct Emulator {
    child: Child,
    lines: mpsc::Receiver<String>,
    deadline: Instant,
    /// What the kernel said.
    pub(super) console: PathBuf,
}

/// Why there are no more lines.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It is off.
    Off,
    /// It took too long.
    TooLate,
}

impl Emulator {
    /// Starts a machine that may run for so long.
    ///
    /// # Errors
    /// The emulator does not start.
    pub(super) fn start(
        machine: &Machine,
        kernel: &KernelPackage,
        image: &Path,
        console: PathBuf,
        patience: Duration,
    ) -> Result<Self> {
        let mut command = machine.qemu();
        command.args(ARGUMENTS).arg("-kernel").arg(&kernel.image).arg("-initrd").arg(image);
        command.args(["-append", KERNEL_ARGUMENTS, "-serial"]).arg(format!("file:{}", console.display()));
        command.args(["-serial", "stdio"]).stdin(Stdio::null()).stdout(Stdio::piped());
        // SAFETY: between fork and exec only a system call is made.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let mut child = command.spawn().with_context(|| format!("cannot start `{}`", shell::line(&command)))?;
        let output = child.stdout.take().context("stdout is piped")?;
        Ok(Self { child, lines: listen(output), deadline: Instant::now() + patience, console })
    }

    /// The next line, or why there is none.
    pub(super) fn line(&self) -> Result<String, End> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(left).map_err(|error| match error {
            RecvTimeoutError::Timeout => End::TooLate,
            RecvTimeoutError::Disconnected => End::Off,
        })
    }
}

impl Emulator {
    /// What it has cost so far; `None` after its end.
    pub(super) fn processor_time(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        // Behind the name, which may have anything in it: fields 14 and 15 are ticks in user and kernel (proc(5)).
        let ticks: u64 =
            stat.rsplit_once(") ")?.1.split(' ').skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
        Some(Duration::from_secs(ticks) / clock_ticks())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have ended by itself: then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A second's, in which the kernel tells times of processes.
fn clock_ticks() -> u32 {
    // SAFETY: asks for a number.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as u32 }
}

/// Lines without their ends, until the output is closed.
fn listen(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (to, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if to.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    lines
}
