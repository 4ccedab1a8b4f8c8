//! Waiting for the flows of backends that are drained.

use std::{
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{Exit, Failure, args::Global, output::Printer, reads::get, render};
use crate::api::model::{BackendList, CommandDone};

/// Between two looks: flows are counted once a second.
const LOOK: Duration = Duration::from_millis(500);
/// For so long a count may be of a walk before the drain.
const COUNTED: Duration = Duration::from_secs(2);
/// After the time of the drain, for the flows that are ended then: three questions, and the ten seconds for
/// which a closed connection is remembered.
const GRACE: Duration = Duration::from_secs(25);

/// Prints what was done once no flow is left; until then it tells on standard error how many are.
///
/// # Errors
/// Flows are left although the time of the drain is over, or the agent does not answer.
pub fn wait(
    global: &Global,
    printer: &Printer,
    done: CommandDone,
    service: &str,
    backends: &[SocketAddr],
    drain_seconds: Option<u64>,
) -> Result<Exit, Failure> {
    let began = Instant::now();
    let path = format!("/v1/backends?service={service}");
    let mut told = None;
    loop {
        let list: BackendList = get(global, &path)?;
        let mine = list.backends.iter().filter(|backend| backends.contains(&backend.address));
        let left: u64 = mine.map(|backend| backend.live_flows).sum();
        if left == 0 && began.elapsed() >= COUNTED {
            break;
        }
        if told.replace(left) != Some(left) {
            anstream::eprintln!("{} left", render::count(left, "flow"));
        }
        if drain_seconds.is_some_and(|seconds| began.elapsed() > Duration::from_secs(seconds) + GRACE) {
            let why = format!(
                "{} left, which `on-drain-timeout` keeps or nobody could be told of",
                render::count(left, "flow")
            );
            return Err(Failure::new("the drain is not over", why, format!("lb flows --service {service}")));
        }
        sleep(LOOK);
    }
    printer.print(CommandDone { text: "is drained: no flows left".to_owned(), ..done }, render::command_done)?;
    Ok(Exit::Done)
}
