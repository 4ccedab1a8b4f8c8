//! The arguments.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    /// On a backend: unpack what balancers send in tunnels (dsr-ipip, dsr-gue).
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

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// All services.
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// One service with its backends.
    Show {
        #[arg(value_parser = service_name)]
        name: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Add a service beside those of the configuration file, or bring a removed one back.
    Add(ServiceAdd),
    /// Remove a service: no new flows; it is forgotten when its flows are over.
    Remove {
        #[arg(value_parser = service_name)]
        name: String,
        /// Do it although it has ready backends.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        decision: Decision,
        #[command(flatten)]
        write: Write,
    },
    /// Let new connections wait for a moment, during a planned switchover: their first packets are
    /// dropped, so that clients try again; others go on. Ends by itself, also without an agent.
    Freeze {
        #[arg(value_parser = service_name)]
        name: String,
        /// For how long at most (500ms, 5s; up to 1m).
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "5s")]
        max: Duration,
        #[command(flatten)]
        write: Write,
    },
    /// Let connections begin again.
    Thaw {
        #[arg(value_parser = service_name)]
        name: String,
        #[command(flatten)]
        write: Write,
    },
}

#[derive(Debug, Args)]
pub struct ServiceAdd {
    #[arg(value_parser = service_name)]
    pub name: String,
    /// What clients connect to, as in 203.0.113.10:80. Left out: a removed service of the file comes
    /// back as the file has it.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// A backend; may be given several times.
    #[arg(long = "backend", value_name = "ADDRESS:PORT", value_parser = backend, requires = "listen")]
    pub backends: Vec<SocketAddr>,
    /// Another setting of the service, as in the file: --set mode=nat; several times.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting, requires = "listen")]
    pub settings: Vec<(String, String)>,
    /// A setting of its health check, as in the file: --check type=http --check path=/healthz.
    #[arg(long = "check", value_name = "KEY=VALUE", value_parser = setting, requires = "listen")]
    pub checks: Vec<(String, String)>,
    #[command(flatten)]
    pub decision: Decision,
    #[command(flatten)]
    pub write: Write,
}

/// Why, and until when.
#[derive(Clone, Debug, Default, Args)]
pub struct Decision {
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// The decision ends by itself after this time (10m, 2h, 1d).
    #[arg(long = "for", value_name = "TIME", value_parser = span)]
    pub lasts: Option<Duration>,
}

/// How a write is meant.
#[derive(Clone, Debug, Default, Args)]
pub struct Write {
    /// Only say what would be.
    #[arg(long)]
    pub dry_run: bool,
    /// Only if the configuration is at this revision (`lb status` tells it): nobody else was first.
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// Backends of all services, or of one.
    #[command(visible_alias = "ls")]
    List {
        #[arg(value_parser = service_name)]
        service: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// Add a backend to a service, beside those of the configuration file.
    Add {
        #[command(flatten)]
        target: Target,
        /// Share of new flows, for schedulers with weights.
        #[arg(long)]
        weight: Option<u16>,
        /// Failover order: 0 serves first.
        #[arg(long)]
        tier: Option<u8>,
    },
    /// Remove backends: no new flows; they are forgotten when their flows are over.
    Remove(Target),
    /// No new flows; existing ones finish.
    Drain {
        #[command(flatten)]
        target: Target,
        /// Flows that are left after this time get what the service's `on-drain-timeout` says (30s, 10m).
        #[arg(long, value_name = "TIME", value_parser = span)]
        timeout: Option<Duration>,
        /// Wait until no flow is left, and tell how many are.
        #[arg(long)]
        wait: bool,
    },
    /// Back to normal.
    Ready(Target),
    /// No new flows and no probes; existing flows finish.
    Maintenance(Target),
    /// Change the share of new flows.
    Weight {
        #[command(flatten)]
        target: Target,
        /// 0: no new flows.
        #[arg(value_name = "N")]
        weight: u16,
    },
}

#[derive(Clone, Debug, Args)]
pub struct Target {
    #[arg(value_parser = service_name)]
    pub service: String,
    /// Address and port, as in 10.0.0.11:8080 or [2001:db8::11]:8080; no port where the service
    /// listens on every port. Several: all are changed, or none.
    #[arg(value_name = "ADDRESS", value_parser = backend, required = true, num_args = 1..)]
    pub addresses: Vec<SocketAddr>,
    /// Do it although the service, or the tier that serves, is left without a ready backend.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub decision: Decision,
    #[command(flatten)]
    pub write: Write,
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

/// An address, with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: Option<u16>,
}

impl Endpoint {
    pub fn matches(&self, other: SocketAddr) -> bool {
        self.address == other.ip() && self.port.is_none_or(|port| port == other.port())
    }
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

fn interval(text: &str) -> Result<Duration, String> {
    let every = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if every < Duration::from_millis(100) {
        return Err("at least 100ms".to_owned());
    }
    Ok(every)
}

/// At least a second: decisions and confirmations are kept in whole ones.
fn span(text: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if span < Duration::from_secs(1) { Err("at least 1s".to_owned()) } else { Ok(span) }
}

/// `mode=nat`: the value as it is, or as a text in TOML.
fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, as in mode=nat")?;
    if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Err("a key is made of letters, digits and `-`".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn service_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || !text.chars().all(fits) {
        return Err("a service's name is made of letters, digits, `-`, `_` and `.`".to_owned());
    }
    Ok(text.to_owned())
}

/// As in the configuration file: a backend without a port is one of a service on every port.
fn backend(text: &str) -> Result<SocketAddr, String> {
    let Endpoint { address, port } = endpoint(text)
        .map_err(|_| "an IP address and a port, as in 10.0.0.11:8080 or [2001:db8::11]:8080".to_owned())?;
    Ok(SocketAddr::new(address, port.unwrap_or(0)))
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    if let Ok(whole) = text.parse::<SocketAddr>() {
        return Ok(Endpoint { address: whole.ip(), port: Some(whole.port()) });
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().map_err(|_| "an IP address, or one with a port".to_owned())?;
    Ok(Endpoint { address, port: None })
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

    #[test]
    fn an_endpoint_has_a_port_or_not() {
        assert_eq!(endpoint("10.0.0.1").unwrap(), Endpoint { address: [10, 0, 0, 1].into(), port: None });
        assert_eq!(endpoint("[2001:db8::1]:80").unwrap().port, Some(80));
        assert_eq!(endpoint("2001:db8::1").unwrap().port, None);
        assert!(endpoint("example.com").is_err());
        assert_eq!(backend("10.0.0.1"), Ok(([10, 0, 0, 1], 0).into()), "of a service on every port");
        assert_eq!(backend("10.0.0.1:80"), Ok(([10, 0, 0, 1], 80).into()));
        assert!(backend("web1:80").unwrap_err().contains("10.0.0.11:8080"));
    }
}
