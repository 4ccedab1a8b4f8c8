//! What operators decide about services and backends.

use std::{net::SocketAddr, time::Duration};

use clap::{Args, Subcommand};

use super::{
    Watch,
    values::{backend, service_name, setting, span},
};

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
