//! The agent's log: lines for people on a terminal or in a journal, JSON for collectors.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// The variable that chooses what is logged, as in `LB_LOG=debug` or `LB_LOG=info,lb_userspace::health=debug`.
pub const FILTER_VARIABLE: &str = "LB_LOG";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    /// One JSON object per line.
    Json,
    /// To systemd's journal itself, every field as one of its own; not to standard error.
    Journald,
}

/// Begins to log to standard error; with `datapath` also what the XDP program tells of each packet.
///
/// # Errors
/// A log was begun before, or [`FILTER_VARIABLE`] cannot be understood.
pub fn start(format: LogFormat, datapath: bool) -> anyhow::Result<()> {
    let mut filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) => EnvFilter::try_new(&text).map_err(|e| anyhow::anyhow!("{FILTER_VARIABLE}={text}: {e}"))?,
        Err(_) => EnvFilter::new("info"),
    };
    if datapath {
        // The program's crate is `lb`; targets are matched by prefix, so ours has to be named too.
        filter = filter.add_directive("lb=debug".parse()?).add_directive("lb_userspace=info".parse()?);
    }
    if format == LogFormat::Journald {
        let journal = tracing_journald::layer()
            .map_err(|e| anyhow::anyhow!("systemd's journal takes no messages here: {e}; use --log-format text"))?;
        return Ok(tracing_subscriber::registry().with(filter).with(journal).try_init()?);
    }
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    let begun = match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text | LogFormat::Journald => {
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            builder.with_ansi(colour).with_target(false).try_init()
        }
    };
    begun.map_err(|e| anyhow::anyhow!("{e}"))
}
