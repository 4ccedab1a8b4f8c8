//! The real agent in its namespace, from outside: started, told, measured.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::world::{Balancer, Launch, World, balancer};

pub struct Agent<'w> {
    pub balancer: Balancer<'w>,
    world: &'w World,
    program: &'w Path,
}

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub now: u64,
    pub most: u64,
}

impl<'w> Agent<'w> {
    /// Starts it; its maps are not there yet.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(world: &'w World, program: &'w Path, config: &str) -> Result<Self> {
        let log = world.folder().join("lb.log");
        let launch = Launch { program, config, arguments: &[], log: &log };
        Ok(Self { balancer: Balancer::start(world, &launch)?, world, program })
    }

    /// # Errors
    /// The kernel does not tell.
    pub fn memory(&mut self) -> Result<Memory> {
        let path = format!("/proc/{}/status", self.balancer.agent().pid());
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let bytes = |key: &str| -> Result<u64> {
            let line =
                text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("{path}: {key}"))?;
            Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
        };
        Ok(Memory { now: bytes("VmRSS:")?, most: bytes("VmHWM:")? })
    }

    /// Processor time of all its threads so far.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn cpu(&mut self) -> Result<Duration> {
        let folder = format!("/proc/{}/task", self.balancer.agent().pid());
        let mut nanos = 0;
        for task in fs::read_dir(&folder).with_context(|| format!("reading {folder}"))? {
            // One that has ended meanwhile is not there any more.
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            nanos += text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Sends a command; the answer is to be read by [`Asked::answer`].
    ///
    /// # Errors
    /// The agent does not listen.
    pub fn ask(&self, change: Value) -> Result<Asked> {
        let body = change.to_string();
        let mut stream = UnixStream::connect(self.world.folder().join("lb.sock")).context("the agent's socket")?;
        stream.set_read_timeout(Some(Duration::from_secs(15)))?;
        let head = "POST /v1/commands HTTP/1.1\r\nHost: lb\r\nContent-Type: application/json\r\nConnection: close\r\n";
        let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes())?;
        Ok(Asked(stream))
    }

    /// Ends it and takes everything off the kernel and the disk.
    ///
    /// # Errors
    /// It does not end, or something stays.
    pub fn end(mut self) -> Result<()> {
        let status = self.balancer.stop()?;
        ensure!(status.success(), "the agent ended with {status}; its log ends:\n{}", self.balancer.agent().log_tail());
        let mut detach = balancer::cli(self.world, self.program, &["detach"]);
        xtask::shell::output(&mut detach)?;
        let state = self.world.folder().join("state");
        fs::remove_dir_all(&state).with_context(|| format!("removing {}", state.display()))
    }
}

/// One command on its way.
pub struct Asked(UnixStream);

impl Asked {
    /// Waits for the answer.
    ///
    /// # Errors
    /// The agent refused.
    pub fn answer(mut self) -> Result<()> {
        let mut answer = String::new();
        self.0.read_to_string(&mut answer).context("reading the agent's answer")?;
        if !answer.starts_with("HTTP/1.1 200 ") {
            bail!("the agent refused: {answer}");
        }
        Ok(())
    }
}

/// A backend more, or one less.
pub fn change(command: &str, service: &str, address: std::net::SocketAddr) -> Value {
    json!({ "command": command, "service": service, "address": address })
}
