//! `lb decap`: the backend's end of tunnels, on hosts without tunnel devices. Needs no agent.

use std::net::IpAddr;

use clap::{Args, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Exit, Failure,
    args::{Global, Watch},
    output::Printer,
    reads::block_on,
    render,
};
use crate::{
    api::{
        decap::{DecapInterface, DecapOff, DecapOutcome, DecapStatus, DecapVip},
        model::Traffic,
    },
    config::{Tunnel, XdpMode, why_unusable},
    dataplane::kernel::{
        Attachment,
        decap::{self, Prefix, Rules, Stripping},
    },
    host,
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct DecapArgs {
    #[command(flatten)]
    on: OnArgs,
    #[command(subcommand)]
    command: Option<DecapCommand>,
}

#[derive(Debug, Args)]
struct OnArgs {
    /// Where tunnels come in.
    #[arg(long = "iface", value_name = "IF", required = true)]
    interface: Option<String>,
    /// A service's address that this host has; may be given several times.
    #[arg(long = "vip", value_name = "ADDRESS", required = true)]
    vips: Vec<IpAddr>,
    /// A balancer's address, or the prefix of its `tunnel-source-entropy`; may be given several times.
    #[arg(long = "from", value_name = "ADDRESS[/LENGTH]", required = true, value_parser = prefix)]
    balancers: Vec<Prefix>,
    /// An address of this host that tunnels end at; may be given several times. Without it, any.
    #[arg(long = "to", value_name = "ADDRESS")]
    own: Vec<IpAddr>,
    /// UDP port of dsr-gue; 0: no GUE.
    #[arg(long, default_value_t = Tunnel::GUE_PORT, value_name = "PORT")]
    gue_port: u16,
    /// In the driver, or in the kernel's receive path where the driver cannot.
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    xdp_mode: Mode,
    /// Return at once; tunnels are stripped until `lb decap off`.
    #[arg(long)]
    background: bool,
}

#[derive(Debug, Subcommand)]
enum DecapCommand {
    /// Stop stripping.
    Off {
        /// Only here; otherwise wherever it was switched on.
        #[arg(long = "iface", value_name = "IF")]
        interface: Option<String>,
    },
    /// What is stripped, from whom, and how much.
    Status {
        #[command(flatten)]
        watch: Watch,
    },
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Mode {
    #[default]
    Auto,
    Native,
    Generic,
}

pub fn decap(global: &Global, printer: &Printer, arguments: DecapArgs) -> Result<Exit, Failure> {
    match arguments.command {
        Some(DecapCommand::Off { interface }) => off(global, printer, interface),
        Some(DecapCommand::Status { watch }) => printer.watched(watch, || status(global), render::decap_status),
        None => on(global, arguments.on),
    }
}

fn on(global: &Global, arguments: OnArgs) -> Result<Exit, Failure> {
    if let Err(missing) = host::check_rights() {
        eprintln!("{missing}");
        return Ok(Exit::Failed);
    }
    let OnArgs { interface, vips, balancers, own, gue_port, xdp_mode, background } = arguments;
    let interface = interface.unwrap_or_default();
    for (address, option) in vips.iter().map(|vip| (vip, "--vip")).chain(own.iter().map(|own| (own, "--to"))) {
        if let Some(why) = why_unusable(*address) {
            return Err(Failure::new(format!("{option} {address} cannot be"), why, "lb decap --help"));
        }
    }
    let rules = Rules { vips, balancers, own, gue_port: Some(gue_port).filter(|port| *port != 0) };
    let mode = match xdp_mode {
        Mode::Auto => XdpMode::Auto,
        Mode::Native => XdpMode::Native,
        Mode::Generic => XdpMode::Generic,
    };
    block_on(async {
        // From here on signals wait, so that none ends it with the program half in place.
        let signals = signal(SignalKind::interrupt()).and_then(|i| Ok((i, signal(SignalKind::terminate())?)));
        let (mut interrupt, mut terminate) =
            signals.map_err(|e| Failure::new("cannot wait for signals", e.to_string(), "lb decap --background"))?;
        let attached = decap::attach(&global.pin_dir, &interface, mode, &rules)
            .map_err(|e| Failure::new("cannot strip tunnels", format!("{e:#}"), "mend that, then repeat it"))?;
        tell(&attached, &rules);
        if background {
            return Ok(Exit::Done);
        }
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        take_off(global, &interface).map(|_| Exit::Done)
    })?
}

fn tell(attached: &Attachment, rules: &Rules) {
    let list = |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let from: Vec<String> = rules.balancers.iter().map(ToString::to_string).collect();
    let kinds = rules
        .gue_port
        .map_or_else(|| "IP in IP and GRE".to_owned(), |port| format!("IP in IP, GRE and GUE (port {port})"));
    eprintln!(
        "{}: {kinds} from {} is stripped for {} ({} mode)",
        attached.interface,
        from.join(", "),
        list(&rules.vips),
        attached.mode.name()
    );
    if let Some(note) = &attached.note {
        eprintln!("{note}");
    }
}

fn off(global: &Global, printer: &Printer, interface: Option<String>) -> Result<Exit, Failure> {
    let interfaces = match interface {
        Some(interface) => vec![interface],
        None => states(global)?.into_iter().map(|state| state.interface).collect(),
    };
    let mut taken = Vec::new();
    for interface in interfaces {
        taken.extend(take_off(global, &interface)?);
    }
    printer.print(DecapOff { interfaces: taken }, render::decap_off)?;
    Ok(Exit::Done)
}

fn take_off(global: &Global, interface: &str) -> Result<Vec<String>, Failure> {
    let done = decap::off(&global.pin_dir, interface).map_err(|e| {
        let next = format!("repeat it with sudo: sudo lb decap off --iface {interface}");
        Failure::new(format!("cannot stop stripping on {interface}"), format!("{e:#}"), next)
    })?;
    Ok(done.interfaces)
}

fn status(global: &Global) -> Result<DecapStatus, Failure> {
    Ok(DecapStatus { interfaces: states(global)?.into_iter().map(view).collect() })
}

fn states(global: &Global) -> Result<Vec<Stripping>, Failure> {
    decap::read(&global.pin_dir)
        .map_err(|e| Failure::new("cannot read what is stripped", format!("{e:#}"), "repeat it with sudo"))
}

fn view(state: Stripping) -> DecapInterface {
    let vips = state.vips.iter().map(|(address, counted)| DecapVip {
        address: *address,
        stripped: Traffic { packets: counted.packets, bytes: counted.bytes },
    });
    let outcomes = state.outcomes.iter().map(|(outcome, counted)| DecapOutcome {
        outcome: outcome.name().to_owned(),
        fate: outcome.fate().name().to_owned(),
        packets: counted.packets,
        bytes: counted.bytes,
        meaning: outcome.meaning().to_owned(),
    });
    DecapInterface {
        mode: state.attachment.as_ref().map(|attached| attached.mode.name().to_owned()),
        program_id: state.attachment.as_ref().map(|attached| attached.program_id),
        balancers: state.rules.balancers.iter().map(ToString::to_string).collect(),
        to: state.rules.own.clone(),
        gue_port: state.rules.gue_port,
        vips: vips.collect(),
        outcomes: outcomes.collect(),
        interface: state.interface,
    }
}

pub(super) fn prefix(text: &str) -> Result<Prefix, String> {
    let wrong = || "an IP address, or one with the length of a prefix, as in 10.0.0.0/16".to_owned();
    let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Ok(bits), |length| length.parse().map_err(|_| wrong()))?;
    if length > bits {
        return Err(format!("a prefix of this family has at most {bits} bits"));
    }
    Ok(Prefix { address, length })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn switching_on_needs_interface_address_and_balancer_and_other_commands_none_of_them() {
        assert!(parse("lb decap --iface eth0 --vip 203.0.113.10 --from 192.0.2.1").is_ok());
        for missing in
            ["--vip 203.0.113.10 --from 192.0.2.1", "--iface e --from 192.0.2.1", "--iface e --vip 203.0.113.1"]
        {
            assert!(parse(&format!("lb decap {missing}")).is_err(), "{missing}");
        }
        assert!(parse("lb decap off").is_ok() && parse("lb decap off --iface eth0").is_ok());
        assert!(parse("lb decap status -o json").is_ok());
        assert!(parse("lb decap --iface eth0 off").is_err());
    }

    #[test]
    fn a_balancer_is_an_address_or_a_prefix() {
        let of = |address: &str, length| Ok(Prefix { address: address.parse().unwrap(), length });
        assert_eq!(prefix("192.0.2.1"), of("192.0.2.1", 32));
        assert_eq!(prefix("10.0.0.0/16"), of("10.0.0.0", 16));
        assert_eq!(prefix("2001:db8::/96"), of("2001:db8::", 96));
        assert_eq!(prefix("0.0.0.0/0"), of("0.0.0.0", 0));
        for wrong in ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "host", "10.0.0/8", "::/129"] {
            assert!(prefix(wrong).is_err(), "{wrong}");
        }
    }
}
