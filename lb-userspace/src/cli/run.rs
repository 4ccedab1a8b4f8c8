//! `lb run`: the agent.

use super::{
    Exit, Failure,
    args::{DatapathLog, Global, RunArgs},
};
use crate::{
    agent::{
        lock::LockError,
        start::{self, Options},
    },
    api::SocketError,
    config::{ConfigError, ReportStyle},
    host::MissingRights,
    telemetry,
};

pub fn run(global: &Global, arguments: RunArgs) -> Result<Exit, Failure> {
    let datapath_log = arguments.datapath_log == DatapathLog::Debug;
    telemetry::start(arguments.log_format, datapath_log)
        .map_err(|e| Failure::new("the log cannot be started", e.to_string(), "set LB_LOG to info, debug or trace"))?;
    let options = Options {
        config: arguments.config,
        interfaces: arguments.interfaces,
        socket: global.socket.clone(),
        pin_dir: global.pin_dir.clone(),
        state_dir: global.state_dir.clone(),
        replace: arguments.replace,
        datapath_log,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("lb").build();
    let runtime = runtime.map_err(|e| Failure::new("cannot start", e.to_string(), "look at the limits: ulimit -a"))?;
    match runtime.block_on(start::run(&options)) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => explain(error, &options),
    }
}

/// Where another agent is in the way.
const ANOTHER: &str =
    "see what it does: lb status; stop it, or give this one its own --state-dir, --pin-dir and --socket";

/// Errors that say everything themselves are shown as they are; the others get their three lines.
fn explain(error: anyhow::Error, options: &Options) -> Result<Exit, Failure> {
    if let Some(refused) = error.downcast_ref::<ConfigError>() {
        eprint!("{}", refused.report(ReportStyle::for_stream(&std::io::stderr())));
        return Ok(Exit::Failed);
    }
    if let Some(missing) = error.downcast_ref::<MissingRights>() {
        eprintln!("{missing}");
        return Ok(Exit::Failed);
    }
    let next = match error.downcast_ref::<SocketError>() {
        Some(SocketError::InUse { .. }) => ANOTHER.to_owned(),
        _ if matches!(error.downcast_ref(), Some(LockError::Held { .. })) => ANOTHER.to_owned(),
        _ => format!("mend that, then: lb run --config {}", options.config.display()),
    };
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    Err(Failure::new("the agent cannot start", causes.join(": "), next))
}
