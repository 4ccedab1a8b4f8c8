//! `lb detach`: takes the balancer off this host. Works with the agent dead; with one alive it
//! refuses, because that agent would put everything back.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{Exit, Failure, args::Global, output::Printer, reads::block_on, render};
use crate::{
    agent::lock::{self, Holder},
    api::{
        client,
        model::{Detached, Stopping},
    },
    dataplane::kernel,
    host::{Host, HostRecord, Undone},
};

/// Time for a running agent to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub fn detach(global: &Global, printer: &Printer, force: bool) -> Result<Exit, Failure> {
    let stopped_pid = nobody_runs(global, force, "detached", "lb detach")?;
    // Before anything is taken off that could not be taken back as a whole.
    HostRecord::load(&global.state_dir)
        .map_err(|e| Failure::new("nothing was detached", e.to_string(), "do that, then: lb detach"))?;
    let (interfaces, pins) = remove_data_path(&global.pin_dir)?;
    let undone = block_on(release(&global.state_dir, &interfaces))??;
    let Undone { done: host_done, left, failed } = undone;
    let mut done = Vec::new();
    done.extend(stopped_pid.map(|pid| format!("stopped the agent, pid {pid}")));
    done.extend(interfaces.iter().map(|interface| format!("took the XDP program off {interface}")));
    if pins > 0 {
        done.push(format!("removed {pins} pins under {}", global.pin_dir.display()));
    }
    done.extend(host_done);
    done.extend(left.into_iter().map(|text| format!("left as it is: {text}")));
    printer.print(Detached { stopped_pid, interfaces, done }, render::detached)?;
    if failed.is_empty() {
        return Ok(Exit::Done);
    }
    let why: Vec<String> = failed.iter().map(ToString::to_string).collect();
    Err(Failure::new("not everything could be taken back", why.join("; "), "mend that, then again: lb detach"))
}

/// Makes sure that no agent runs; with `force` by stopping it. Gives its pid.
pub(super) fn nobody_runs(global: &Global, force: bool, what: &str, command: &str) -> Result<Option<u32>, Failure> {
    match running(global)? {
        None => Ok(None),
        Some(_) if force => stop(global).map(Some),
        Some(Holder { pid }) => {
            let (who, kill) = match pid {
                Some(pid) => (format!(" (pid {pid})"), format!("kill {pid}, then {command}; or at once: ")),
                None => (String::new(), String::new()),
            };
            Err(Failure::new(
                format!("an agent is running{who}: nothing was {what}"),
                "it would put back what is taken off",
                format!("{kill}{command} --force"),
            ))
        }
    }
}

fn running(global: &Global) -> Result<Option<Holder>, Failure> {
    lock::holder(&global.state_dir, &global.pin_dir)
        .map_err(|e| Failure::new("cannot tell whether an agent is running", e.to_string(), "repeat it with sudo"))
}

/// Asks the agent to stop and waits until it has. Returns its pid.
fn stop(global: &Global) -> Result<u32, Failure> {
    let Stopping { pid } = block_on(client::post(&global.socket, "/v1/stop", &()))?.map_err(|e| Failure {
        next: "stop the agent, then: lb detach".to_owned(),
        ..Failure::of_client(e, &global.socket)
    })?;
    let asked = Instant::now();
    while running(global)?.is_some() {
        if asked.elapsed() > STOP_TIMEOUT {
            return Err(Failure::new(
                format!("the agent (pid {pid}) does not end"),
                format!("it was asked to {} s ago", STOP_TIMEOUT.as_secs()),
                format!("kill -9 {pid}, then lb detach"),
            ));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(pid)
}

/// First, so that no packet meets a program whose host is no longer ready for it.
fn remove_data_path(pin_dir: &Path) -> Result<(Vec<String>, usize), Failure> {
    kernel::probe_ways::sweep();
    let detached = kernel::detach(pin_dir).map_err(|e| {
        Failure::new("cannot take the data path off", format!("{e:#}"), "repeat it with sudo: sudo lb detach")
    })?;
    Ok((detached.interfaces, detached.pins))
}

async fn release(state_dir: &Path, interfaces: &[String]) -> Result<Undone, Failure> {
    let failed = |e: crate::host::HostError| {
        Failure::new("cannot take back the changes of the host", e.to_string(), "mend that, then again: lb detach")
    };
    let mut host = Host::open(state_dir).map_err(failed)?;
    let undone = host.release().await;
    let attached: Vec<String> = host.record().changes().attached.iter().cloned().collect();
    for interface in attached.iter().chain(interfaces) {
        host.record().forget_attached(interface).map_err(failed)?;
    }
    Ok(undone)
}
