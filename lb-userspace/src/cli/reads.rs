//! Reads that the agent answers.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{
    Exit, Failure,
    args::{Global, Watch},
    output::Printer,
    render,
};
use crate::{
    api::{
        client,
        model::{BackendList, ServiceList, ServiceView, Status},
    },
    config::DeadManPolicy,
    dataplane::kernel::{self, Pins, Silence},
};

/// Exits with [`Exit::Failed`] while the last good configuration runs instead of the agent's own file;
/// with `check`, whenever anything is not as it should be.
pub fn status(global: &Global, printer: &Printer, check: bool, watch: Watch) -> Result<Exit, Failure> {
    let read = || get::<Status>(global, "/v1/status").map_err(|failure| silent(global, failure));
    if watch.every.is_some() {
        return printer.watched(watch, read, render::status);
    }
    let status = read()?;
    let failed = status.config.fallback.is_some() || (check && !status.problems().is_empty());
    printer.print(status, render::status)?;
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

/// What the data path does without the agent, above the failure that it does not answer.
fn silent(global: &Global, failure: Failure) -> Failure {
    let Ok(Silence { policy, generation, over }) = kernel::silence(&global.pin_dir) else { return failure };
    let attached = kernel::attachments(&Pins::new(&global.pin_dir)).unwrap_or_default();
    if failure.exit != Exit::NotReachable || attached.is_empty() {
        return failure;
    }
    let interfaces: Vec<String> = attached.iter().map(|a| format!("{} {}", a.interface, a.mode.name())).collect();
    let since = match (policy, over) {
        (DeadManPolicy::Freeze, _) => String::new(),
        (_, Some(over)) => format!(", for {}", humantime::format_duration(Duration::from_secs(over.as_secs()))),
        (_, None) => ", not yet: the agent gave a sign of life a moment ago".to_owned(),
    };
    let report = format!(
        "xdp       {}\nmaps      generation {generation}\ndead man  {}: {}{since}\n",
        interfaces.join(", "),
        policy.name(),
        policy.effect(),
    );
    Failure { report: Some(report), ..failure }
}

pub fn service_list(global: &Global, printer: &Printer, watch: Watch) -> Result<Exit, Failure> {
    printer.watched(watch, || get::<ServiceList>(global, "/v1/services"), render::service_list)
}

pub fn service_show(global: &Global, printer: &Printer, name: &str, watch: Watch) -> Result<Exit, Failure> {
    let path = format!("/v1/services/{name}");
    printer.watched(watch, || get::<ServiceView>(global, &path), render::service)
}

pub fn backend_list(global: &Global, printer: &Printer, service: Option<&str>, watch: Watch) -> Result<Exit, Failure> {
    let path = match service {
        Some(name) => format!("/v1/backends?service={name}"),
        None => "/v1/backends".to_owned(),
    };
    printer.watched(watch, || get::<BackendList>(global, &path), render::backend_list)
}

/// One question to the agent.
pub fn get<T: DeserializeOwned>(global: &Global, path: &str) -> Result<T, Failure> {
    block_on(client::get(&global.socket, path))?.map_err(|e| Failure::of_client(e, &global.socket))
}

/// Runs `future` on a runtime of its own: the command line needs one thread and one answer.
pub fn block_on<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new("cannot start", e.to_string(), "look at the limits: ulimit -a"))?;
    Ok(runtime.block_on(future))
}
