//! `lb doctor`: what keeps packets from flowing, and what to type. Needs no agent.

use std::net::IpAddr;

use clap::{Args, ValueEnum};
use lb_common::abi::Mode;

use super::{Exit, Failure, args::Global, decap::prefix, output::Printer, reads::block_on, render};
use crate::{
    api::doctor::Diagnosis,
    dataplane::kernel::decap::Prefix,
    doctor::{
        Facts,
        backend::{self, Question},
    },
};

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// This host is a backend of services with direct server return.
    #[arg(long, required = true)]
    backend: bool,
    /// A service's address; otherwise those of `lb decap`. May be given several times.
    #[arg(long = "vip", value_name = "ADDRESS")]
    vips: Vec<IpAddr>,
    /// The service's mode; otherwise what differs between them is only a warning.
    #[arg(long, value_enum, value_name = "MODE")]
    mode: Option<DsrMode>,
    /// A balancer's address; may be given several times.
    #[arg(long = "from", value_name = "ADDRESS[/LENGTH]", value_parser = prefix)]
    balancers: Vec<Prefix>,
    /// A client's address, to look at the way to it; otherwise at the default route.
    #[arg(long = "client", value_name = "ADDRESS")]
    clients: Vec<IpAddr>,
    /// UDP port of dsr-gue, where it is not 6080.
    #[arg(long, value_name = "PORT")]
    gue_port: Option<u16>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DsrMode {
    DsrL2,
    DsrIpip,
    DsrGue,
}

pub fn doctor(global: &Global, printer: &Printer, arguments: DoctorArgs) -> Result<Exit, Failure> {
    let mode = arguments.mode.map(|mode| match mode {
        DsrMode::DsrL2 => Mode::DsrL2,
        DsrMode::DsrIpip => Mode::DsrIpip,
        DsrMode::DsrGue => Mode::DsrGue,
    });
    let facts = block_on(Facts::gather(&global.pin_dir, &arguments.clients))?
        .map_err(|e| Failure::new("cannot look at this host", e.to_string(), "mend that, then repeat it"))?;
    let DoctorArgs { vips, balancers, gue_port, .. } = arguments;
    let diagnosis = Diagnosis { checks: backend::checks(&facts, &Question { vips, mode, balancers, gue_port }) };
    let exit = if diagnosis.failed() { Exit::Failed } else { Exit::Done };
    printer.print(diagnosis, render::diagnosis)?;
    Ok(exit)
}
