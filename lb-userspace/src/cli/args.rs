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
    /// The agent and the data path in one look.
    Status {
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
    /// The configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// On a backend: unpack what balancers send in tunnels (dsr-ipip, dsr-gue).
    Decap(super::decap::DecapArgs),
    /// What keeps packets from flowing, and what to type.
    Doctor(super::doctor::DoctorArgs),
    /// Take the balancer off this host: XDP programs, maps, service addresses. Ends its traffic.
    Detach {
        /// Stop a running agent first, instead of refusing.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Attach here instead of to the file's `interfaces`; may be given several times.
    #[arg(long = "iface", value_name = "IF")]
    pub interfaces: Vec<String>,
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
    /// Remove a backend: no new flows; it is forgotten when its flows are over.
    Remove(Target),
    /// No new flows; existing ones finish.
    Drain(Target),
    /// Back to normal.
    Ready(Target),
    /// No new flows and no probes; existing flows finish.
    Maintenance(Target),
    /// Change a backend's share of new flows.
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
    /// listens on every port.
    #[arg(value_parser = backend)]
    pub address: SocketAddr,
    /// Do it although the service is left without a ready backend.
    #[arg(long)]
    pub force: bool,
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
    /// Tell every error of a configuration file, or sum up what it says.
    Check { file: PathBuf },
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
