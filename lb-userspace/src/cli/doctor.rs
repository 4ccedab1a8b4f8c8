//! `lb doctor`: what keeps packets from flowing, and what to type. Needs no agent.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use lb_common::abi::Mode;

use super::{Exit, Failure, args::Global, decap::prefix, output::Printer, reads::block_on, render};
use crate::{
    api::doctor::{Check, Diagnosis},
    config::{self, ReportStyle},
    dataplane::kernel::decap::Prefix,
    doctor::{
        BalancerFacts, BalancerQuestion, Facts,
        backend::{self, Question},
        balancer,
    },
    host::HostError,
};

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// This host is a backend of services with direct server return; otherwise it is a balancer.
    #[arg(long)]
    backend: bool,
    /// A balancer's configuration, before it runs; otherwise what runs is looked at.
    #[arg(short, long, value_name = "PATH", conflicts_with = "backend")]
    config: Option<PathBuf>,
    /// Look at this interface of a balancer; may be given several times.
    #[arg(long = "iface", value_name = "IF", conflicts_with = "backend")]
    interfaces: Vec<String>,
    /// A service's address; otherwise those of `lb decap`. May be given several times.
    #[arg(long = "vip", value_name = "ADDRESS", requires = "backend")]
    vips: Vec<IpAddr>,
    /// The service's mode; otherwise what differs between them is only a warning.
    #[arg(long, value_enum, value_name = "MODE", requires = "backend")]
    mode: Option<DsrMode>,
    /// A balancer's address; may be given several times.
    #[arg(long = "from", value_name = "ADDRESS[/LENGTH]", value_parser = prefix, requires = "backend")]
    balancers: Vec<Prefix>,
    /// A client's address, to look at the way to it; otherwise at the default route.
    #[arg(long = "client", value_name = "ADDRESS", requires = "backend")]
    clients: Vec<IpAddr>,
    /// UDP port of dsr-gue, where it is not 6080.
    #[arg(long, value_name = "PORT", requires = "backend")]
    gue_port: Option<u16>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DsrMode {
    DsrL2,
    DsrIpip,
    DsrGue,
    DsrGre,
}

pub fn doctor(global: &Global, printer: &Printer, arguments: DoctorArgs) -> Result<Exit, Failure> {
    if !arguments.backend {
        return balancer(global, printer, arguments);
    }
    let mode = arguments.mode.map(|mode| match mode {
        DsrMode::DsrL2 => Mode::DsrL2,
        DsrMode::DsrIpip => Mode::DsrIpip,
        DsrMode::DsrGue => Mode::DsrGue,
        DsrMode::DsrGre => Mode::DsrGre,
    });
    let facts = block_on(Facts::gather(&global.pin_dir, &arguments.clients))?.map_err(unseen)?;
    let DoctorArgs { vips, balancers, gue_port, .. } = arguments;
    tell(printer, backend::checks(&facts, &Question { vips, mode, balancers, gue_port }))
}

fn balancer(global: &Global, printer: &Printer, arguments: DoctorArgs) -> Result<Exit, Failure> {
    let loaded = arguments.config.as_deref().map(config::load).transpose().map_err(|refused| Failure {
        report: Some(refused.report(ReportStyle::for_stream(&std::io::stderr()))),
        ..Failure::new("the configuration is refused", "see above", "mend that, then repeat it")
    })?;
    let question = BalancerQuestion {
        pin_dir: &global.pin_dir,
        state_dir: &global.state_dir,
        socket: &global.socket,
        config: loaded.as_ref().map(|loaded| &loaded.config),
        interfaces: arguments.interfaces,
    };
    let facts = block_on(BalancerFacts::gather(&question))?.map_err(unseen)?;
    tell(printer, balancer::checks(&facts))
}

fn unseen(error: HostError) -> Failure {
    Failure::new("cannot look at this host", error.to_string(), "mend that, then repeat it")
}

fn tell(printer: &Printer, checks: Vec<Check>) -> Result<Exit, Failure> {
    let diagnosis = Diagnosis { checks };
    let exit = if diagnosis.failed() { Exit::Failed } else { Exit::Done };
    printer.print(diagnosis, render::diagnosis)?;
    Ok(exit)
}
