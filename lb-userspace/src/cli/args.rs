//! The arguments.

mod changes;
mod values;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::values::{endpoint, interval, service_name, span};
pub use self::{
    changes::{BackendCommand, Decision, ServiceAdd, ServiceCommand, Target, Write},
    values::Endpoint,
};
use crate::telemetry::LogFormat;

/// A layer-4 load balancer: an XDP program forwards, an agent decides.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 3 agent not reachable.
#[derive(Debug, Parser)]
#[command(name = "lb", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The agent's unix socket.
    #[arg(long, global = true, env = "LB_SOCKET", default_value = "/run/lb/lb.sock", value_name = "PATH")]
    pub socket: PathBuf,
    /// Where the BPF maps and links are pinned.
    #[arg(long, global = true, env = "LB_PIN_DIR", default_value = "/sys/fs/bpf/lb", value_name = "DIR")]
    pub pin_dir: PathBuf,
    /// Where the agent keeps what must outlive it.
    #[arg(long, global = true, env = "LB_STATE_DIR", default_value = "/var/lib/lb", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// When to colour; NO_COLOR is respected, and no meaning is in a colour alone.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    /// One JSON document; with --watch, one per line.
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

impl Color {
    pub(super) fn write_global(self) {
        let choice = match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::Always,
            Self::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent: attach the XDP program, check the backends, keep the maps right.
    Run(RunArgs),
    /// The agent and the data path in one look. Exits with 1 while the last good configuration runs
    /// instead of the agent's own file.
    Status {
        /// Exit with 1 if anything is not as it should be: for monitoring.
        #[arg(long, conflicts_with = "every")]
        check: bool,
        #[command(flatten)]
        watch: Watch,
    },
    /// Services.
    #[command(subcommand, visible_alias = "svc")]
    Service(ServiceCommand),
    /// Backends, and what an operator decides about them.
    #[command(subcommand, visible_alias = "be")]
    Backend(BackendCommand),
    /// Counters, read from the pinned maps: also with the agent dead.
    Stats {
        /// Only this service.
        #[arg(value_parser = service_name)]
        service: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// The flow table, read from the pinned maps: also with the agent dead.
    Flows(FlowsArgs),
    /// Failovers: each leaves a receipt with its times, its cause and what became of the flows.
    Events(EventsArgs),
    /// The configuration: one file, or a directory of them.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// On a backend: unpack what balancers send in tunnels (dsr-ipip, dsr-gue, dsr-gre).
    Decap(super::decap::DecapArgs),
    /// What keeps packets from flowing on this balancer or backend, and what to type.
    Doctor(super::doctor::DoctorArgs),
    /// Before an upgrade: what it would meet. After one: the way back.
    Upgrade(super::upgrade::UpgradeArgs),
    /// Collect what somebody who is to help has to know, without secrets, in a file.
    SupportBundle {
        /// A .tar.gz that is not there yet; left out: one in this directory.
        file: Option<PathBuf>,
    },
    /// Print what a shell needs to complete this command line.
    #[command(after_help = "For bash: lb completions bash > /usr/share/bash-completion/completions/lb")]
    Completions { shell: clap_complete::Shell },
    /// Write man pages into a directory.
    #[command(hide = true)]
    Manual { directory: PathBuf },
    /// Take the balancer off this host: XDP programs, maps, service addresses. Ends its traffic.
    Detach {
        /// Stop a running agent first, instead of refusing.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The configuration file, or a directory of `*.toml` files.
    #[arg(short, long, value_name = "PATH")]
    pub config: PathBuf,
    /// Attach here instead of to the file's `interfaces`; may be given several times.
    #[arg(long = "iface", value_name = "IF")]
    pub interfaces: Vec<String>,
    /// Where another XDP program is on an interface: throw it off, instead of refusing to start.
    #[arg(long)]
    pub replace: bool,
    /// Log of the XDP program itself. `debug` costs speed: every packet is told.
    #[arg(long, value_enum, default_value_t)]
    pub datapath_log: DatapathLog,
    /// Format of the agent's log on standard error.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DatapathLog {
    #[default]
    Off,
    Debug,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct EventsArgs {
    #[command(subcommand)]
    pub command: Option<EventsCommand>,
    /// Failovers of this service.
    #[arg(long, value_parser = service_name)]
    pub service: Option<String>,
    /// Show at most so many, the newest.
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub limit: usize,
    #[command(flatten)]
    pub watch: Watch,
}

#[derive(Debug, Subcommand)]
pub enum EventsCommand {
    /// One failover.
    Show {
        /// Its number in the list.
        id: u64,
        #[command(flatten)]
        watch: Watch,
    },
}

#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Flows of this service.
    #[arg(long, value_parser = service_name)]
    pub service: Option<String>,
    /// Flows to this backend.
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = endpoint)]
    pub backend: Option<Endpoint>,
    /// Flows of this client.
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = endpoint)]
    pub client: Option<Endpoint>,
    /// Flows in this state.
    #[arg(long, value_parser = ["opening", "one-way", "both-ways", "established", "closing", "closed"])]
    pub state: Option<String>,
    /// Show at most so many.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub limit: usize,
    #[command(flatten)]
    pub watch: Watch,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Tell every error of a configuration, or sum up what it says.
    Check {
        /// A file, or a directory of them.
        file: PathBuf,
    },
    /// What a configuration would do to the running balancer: services and backends that come, go and
    /// change, flows that are kept, drained or cut, shares that move.
    Diff {
        /// A file or directory; left out: the agent's own.
        file: Option<PathBuf>,
        /// Fail if more live flows than this would be cut.
        #[arg(long, value_name = "N")]
        max_reset: Option<u64>,
        /// Exit with 1 if anything would change.
        #[arg(long)]
        exit_code: bool,
    },
    /// Take a configuration over while traffic runs: all of it, or nothing.
    Apply(ApplyArgs),
    /// The last change stays (after `apply --confirm`).
    Confirm {
        #[command(flatten)]
        write: Write,
    },
    /// The last change is taken back at once (after `apply --confirm`).
    Rollback {
        #[command(flatten)]
        write: Write,
    },
    /// The running configuration, with defaults, and what operators decided over it.
    Show,
    /// A JSON Schema of the file, for editors.
    Schema {
        /// For one file of a directory: nothing of the top level is required.
        #[arg(long)]
        part: bool,
    },
    /// Print a commented configuration to begin with, made of what this machine has.
    Init(InitArgs),
}

#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// A file or directory; left out: the agent reads its own again. The agent's own file is not
    /// changed.
    pub file: Option<PathBuf>,
    /// Refuse if more live flows than this would be cut.
    #[arg(long, value_name = "N")]
    pub max_reset: Option<u64>,
    /// Take it back after this time unless `lb config confirm` comes before (60s).
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub confirm: Option<Duration>,
    #[command(flatten)]
    pub write: Write,
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where packets come in; may be given several times. Left out: the most likely one.
    #[arg(long = "iface", value_name = "IF")]
    pub interfaces: Vec<String>,
    /// The first service's address, as in 203.0.113.10:80.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub vip: Option<SocketAddr>,
    /// A backend of it; may be given several times.
    #[arg(long = "backend", value_name = "ADDRESS:PORT", requires = "vip")]
    pub backends: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Watch {
    /// Print again and again, every so often (500ms, 2s, 1m; 2s when not said).
    #[arg(
        short = 'w',
        long = "watch",
        value_name = "INTERVAL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2s",
        value_parser = interval
    )]
    pub every: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_watch_does_not_swallow_the_next_argument() {
        let cli = Cli::try_parse_from(["lb", "backend", "list", "--watch", "web"]).unwrap();
        let Command::Backend(BackendCommand::List { service, watch }) = cli.command else { panic!("{cli:?}") };
        assert_eq!((service.as_deref(), watch.every), (Some("web"), Some(Duration::from_secs(2))));
    }

    #[test]
    fn interfaces_may_be_given_instead_of_the_files() {
        let cli = Cli::try_parse_from(["lb", "run", "--iface", "eth0", "--config", "f", "--iface", "eth1"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("{cli:?}") };
        assert_eq!(run.interfaces, ["eth0", "eth1"]);
    }

    #[test]
    fn global_options_may_stand_behind_the_command() {
        let cli = Cli::try_parse_from(["lb", "status", "-o", "json", "--socket", "/tmp/s", "-w=500ms"]).unwrap();
        assert_eq!((cli.global.output, cli.global.socket), (Format::Json, PathBuf::from("/tmp/s")));
    }

    #[test]
    fn a_weight_follows_any_number_of_backends() {
        let cli = Cli::try_parse_from(["lb", "backend", "weight", "web", "10.0.0.1:80", "10.0.0.2:80", "7"]).unwrap();
        let Command::Backend(BackendCommand::Weight { target, weight }) = cli.command else { panic!("{cli:?}") };
        assert_eq!((target.addresses.len(), weight), (2, 7));
        assert!(Cli::try_parse_from(["lb", "backend", "weight", "web", "7"]).is_err());
        assert!(Cli::try_parse_from(["lb", "backend", "drain", "web"]).is_err());
    }
}
