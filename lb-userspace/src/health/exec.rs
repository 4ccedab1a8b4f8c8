//! A program as a check: bounded in time, in output and in number.

use std::{io, net::SocketAddr, process::Stdio, time::Duration};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process_group, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
};

use super::{
    failure::{Failure, printable},
    probe::Answer,
};
use crate::config::ExecCheck;

/// Most bytes of a program's output that are kept; the rest is read and thrown away.
const OUTPUT_KEPT: usize = 1024;
/// Descriptors that a program may open, as it would have without the agent's own need for many.
const DESCRIPTORS: u64 = 1024;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the program once. Dropping the future kills its process group.
///
/// # Errors
/// It could not be started: a failure of this host.
pub async fn ask(target: SocketAddr, check: &ExecCheck, timeout: Duration) -> Result<Answer, Failure> {
    let mut group = Group(start(target, check, timeout).map_err(|error| cannot_run(check, &error))?);
    let output = group.0.stdout.take();
    let mut said = Vec::new();
    // Waits for the program, not for the end of its output: a child of its own may hold that open.
    let status = {
        let listen = listen(output, &mut said);
        tokio::pin!(listen);
        let mut listening = true;
        loop {
            tokio::select! {
                biased;
                () = &mut listen, if listening => listening = false,
                status = group.0.wait() => break status.map_err(|error| cannot_run(check, &error))?,
            }
        }
    };
    let words = printable(String::from_utf8_lossy(&said).lines().next().unwrap_or_default());
    let words = if words.is_empty() { String::new() } else { format!(": {words}") };
    Ok(match status.code() {
        Some(0) => Answer::up(format!("L7OK exit 0{words}")),
        Some(code) => Answer::down(format!("L7STS exit {code}{words}")),
        None => Answer::down(format!("L7RSP: the program was ended by a signal{words}")),
    })
}

/// A program and everything it started, killed when it is dropped before it has ended.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // The child was not waited for yet as long as it has an id: so the number is still its own.
        let group = self.0.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(group) = group {
            // It may have ended this moment.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

fn start(target: SocketAddr, check: &ExecCheck, timeout: Duration) -> io::Result<Child> {
    let mut command = Command::new(&check.command);
    command
        .args(&check.arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LB_ADDRESS", target.ip().to_string())
        .env("LB_PORT", target.port().to_string())
        .env("LB_TIMEOUT_MS", timeout.as_millis().to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let hard = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: Some(hard.map_or(DESCRIPTORS, |hard| hard.min(DESCRIPTORS))), maximum: hard };
    let lower = move || setrlimit(Resource::Nofile, limit).map_err(io::Error::from);
    // SAFETY: between fork and exec only setrlimit(2) is called, which is async-signal-safe and
    // touches no memory of ours.
    unsafe { command.pre_exec(lower) };
    command.spawn()
}

async fn listen(output: Option<impl AsyncRead + Unpin>, said: &mut Vec<u8>) {
    let Some(mut output) = output else { return };
    let mut part = [0; 1024];
    while let Ok(len @ 1..) = output.read(&mut part).await {
        let room = OUTPUT_KEPT.saturating_sub(said.len());
        said.extend_from_slice(&part[..len.min(room)]);
    }
}

fn cannot_run(check: &ExecCheck, error: &io::Error) -> Failure {
    Failure::Local(io::Error::new(error.kind(), format!("cannot run {}: {error}", check.command.display())))
}
