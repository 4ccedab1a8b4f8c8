//! What is configured while rows are measured, for the product and for the textbook balancer alike.

use std::{fmt::Write as _, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use lb_common::abi::{Mode, Scheduler};
use lb_userspace::{
    config::{self, Config},
    core::{Core, Input, OperatorLayer},
    dataplane::Tables,
};

use super::{
    lab,
    stream::{BACKEND_PORT, Kind, SERVICE_PORT},
};

/// Room for flows: twice the largest stream.
pub const FLOWS: u32 = 1 << 21;

/// What is configured. Rows of one setting share their maps, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    pub mode: Mode,
    pub scheduler: Scheduler,
    pub kind: Kind,
    pub services: u32,
    /// How many of these packets are sent to, from the first.
    pub visited: u32,
    /// Further lines at the end of the configuration: of features that rows switch on.
    pub lines: &'static str,
}

impl Setting {
    /// The configuration file. Services have all backends where there is one service, and otherwise
    /// two each.
    pub fn config(&self) -> Result<Config> {
        let text = self.render();
        let loaded = config::parse("the bench's configuration", &text).map_err(|error| anyhow!("{error}"))?;
        Ok(loaded.config)
    }

    fn render(&self) -> String {
        let services = self.services;
        let (room, each) = (services.next_power_of_two().max(64), self.backends_each());
        // As long as a table must be for one service, and short where there are thousands.
        let table = self.table();
        let mut text = format!(
            "interfaces = [\"{}\"]\nmaglev-table-size = {table}\n\
             [limits]\nservices = {room}\nbackends = {}\naddresses = {}\nselection-slots = {}\nflows = {FLOWS}\n",
            lab::INTERFACE,
            (services * each).next_power_of_two().max(256),
            (services + 2 * lab::BACKENDS).next_power_of_two(),
            (services * table * 2).next_power_of_two(),
        );
        for number in 0..services {
            self.service(&mut text, number, each);
        }
        text + self.lines
    }

    /// Slots of each service's table.
    pub fn table(&self) -> u32 {
        if self.services == 1 { 65_537 } else { 251 }
    }

    pub fn backends_each(&self) -> u32 {
        if self.services == 1 { lab::BACKENDS } else { 2 }
    }

    fn service(&self, text: &mut String, number: u32, backends: u32) {
        let v4 = self.kind.v4;
        let listen = SocketAddr::new(lab::service(v4, number), SERVICE_PORT);
        let _ = write!(
            text,
            "\n[[service]]\nname = \"s{number}\"\nlisten = \"{listen}\"\nprotocol = \"{}\"\nmode = \"{}\"\n\
             scheduler = \"{}\"\n[service.health]\ntype = \"none\"\n",
            self.kind.protocol.name(),
            self.mode.name(),
            self.scheduler.name()
        );
        let port = if Mode::is_one_sided(self.mode as u8) { SERVICE_PORT } else { BACKEND_PORT };
        for n in 0..backends {
            let address = SocketAddr::new(lab::backend(v4, (number * backends + n) % lab::BACKENDS), port);
            let _ = writeln!(text, "[[service.backend]]\naddress = \"{address}\"");
        }
    }

    /// A core that knows the configuration and every answer it asks for.
    pub fn core(&self) -> Result<Core> {
        let config = Arc::new(self.config()?);
        let mut core = Core::new(config, OperatorLayer::default(), &Tables::default(), Duration::ZERO);
        for backend in core.wanted_sources() {
            let source = Some(lab::source(backend.is_ipv4()));
            core.handle(Input::Source { backend, source }, Duration::ZERO);
        }
        Ok(core)
    }

    /// What the textbook balancer has to know: the same services, scheduled by Maglev.
    pub fn textbook_tables(&self) -> Result<Tables> {
        let maglev = Self { scheduler: Scheduler::Maglev, lines: "", ..*self };
        let core = maglev.core().context("planning for the textbook balancer")?;
        Ok(core.desired().clone())
    }
}
