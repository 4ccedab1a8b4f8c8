//! One network namespace: a host of its own, as far as the network is concerned.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::shell;

/// Where iproute2 keeps namespaces by name.
pub const FOLDER: &str = "/run/netns";

/// Removed when dropped, with every process in it that is still alive.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// # Errors
    /// There is a namespace of this name, or the kernel refused.
    pub fn create(name: &str) -> Result<Self> {
        shell::output(shell::tool("ip").args(["netns", "add", name]))?;
        let opened = File::open(Path::new(FOLDER).join(name));
        let file = opened.inspect_err(|_| remove(name)).with_context(|| format!("cannot open namespace {name}"))?;
        let namespace = Self { name: name.to_owned(), file };
        namespace.ip(&["link set lo up"])?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run in this namespace. It sees the mounts of its parent, unlike with
    /// `ip netns exec`, pinned maps included, and gets its own process group: Ctrl-C at the
    /// terminal is for its parent to handle.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let program = program.as_ref();
        let found = program.to_str().and_then(shell::find);
        let mut command = Command::new(found.unwrap_or_else(|| program.into()));
        let fd = self.file.as_raw_fd();
        command.process_group(0);
        // SAFETY: between fork and exec only a system call is made. The descriptor is open in the
        // child: it is closed by exec, and the namespace outlives the borrow by `spawn`'s callers.
        unsafe {
            command.pre_exec(move || {
                let fd = BorrowedFd::borrow_raw(fd);
                Ok(move_into_link_name_space(fd, Some(LinkNameSpaceType::Network))?)
            });
        }
        command
    }

    /// Runs a program to its end and returns its standard output.
    ///
    /// # Errors
    /// It failed; its standard error is part of the error.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        shell::output(self.command(program).args(args))
    }

    /// Carries out lines of `ip -batch`, all in one process.
    ///
    /// # Errors
    /// The first line that failed.
    pub fn ip<S: AsRef<str>>(&self, lines: &[S]) -> Result<()> {
        use std::{io::Write as _, process::Stdio};
        let mut command = shell::tool("ip");
        command.args(["-netns", &self.name, "-batch", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start ip: is iproute2 installed?")?;
        let mut text = lines.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("\n");
        text.push('\n');
        child.stdin.take().expect("piped").write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip in {}: {}\nof:\n{text}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Runs the function on a thread in this namespace: sockets that it opens belong to this host.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.join_thread();
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into this namespace for good.
    pub fn join_thread(&self) {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .unwrap_or_else(|error| panic!("cannot enter namespace {}: {error}", self.name));
    }

    /// Sets a network sysctl, such as `net.ipv4.ip_forward`.
    ///
    /// # Errors
    /// There is none of this name, or the kernel refused the value.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = sysctl_path(key);
        self.enter(|| fs::write(&path, value)).with_context(|| format!("cannot set {key} in {}", self.name))
    }

    /// # Errors
    /// There is none of this name.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let path = sysctl_path(key);
        let value = self.enter(|| fs::read_to_string(&path));
        Ok(value.with_context(|| format!("cannot read {key} in {}", self.name))?.trim().to_owned())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Ends what lives in the namespace and removes it.
pub(super) fn remove(name: &str) {
    let own = std::process::id().to_string();
    let living = shell::output(shell::tool("ip").args(["netns", "pids", name])).unwrap_or_default();
    for pid in living.lines().map(str::trim).filter(|pid| *pid != own) {
        if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            // Gone already: fine.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    if let Err(error) = shell::output(shell::tool("ip").args(["netns", "del", name])) {
        eprintln!("namespace {name} is left behind: {error:#}");
    }
}

/// Slashes within a name (interfaces with dots) are not supported: worlds have none.
fn sysctl_path(key: &str) -> String {
    format!("/proc/sys/{}", key.replace('.', "/"))
}
