//! Keeps the XDP program on the configured interfaces while they go, come back and change their names:
//! a card that is plugged in again, a tunnel that is made anew. What the kernel tells is looked at
//! soon, and everything now and then, because it may tell more than anybody reads.

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep},
};

use super::run_loop::Finding;
use crate::{
    api::model::InterfaceStatus,
    config::XdpMode,
    dataplane::kernel::{self, Attachment, Loaded},
    host::{HostError, Link, LinkEvents, Netlink},
};

/// For what could not be done, or was not told.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// An interface that comes is told several times: made, named, switched on.
const SETTLE: Duration = Duration::from_millis(50);

pub struct Interfaces {
    loaded: Loaded,
    netlink: Netlink,
    mode: XdpMode,
    /// As configured, in the order of the file.
    names: Vec<String>,
    known: Vec<InterfaceStatus>,
    /// Addresses that the program was told, by interface.
    told: BTreeMap<u32, [u8; 6]>,
}

impl Interfaces {
    /// `known`: what [`Loaded::attach`] made of these interfaces at the start.
    pub fn new(
        loaded: Loaded,
        netlink: Netlink,
        mode: XdpMode,
        names: Vec<String>,
        known: Vec<InterfaceStatus>,
    ) -> Self {
        Self { loaded, netlink, mode, names, known, told: BTreeMap::new() }
    }

    /// Runs until nobody wants to know any more.
    pub async fn run(mut self, findings: mpsc::Sender<Finding>) {
        let mut events = LinkEvents::subscribe()
            .inspect_err(
                |error| tracing::warn!(%error, "links are not watched: looked at every {LOOK_AGAIN:?} instead"),
            )
            .ok();
        let mut ticks = interval(LOOK_AGAIN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = settled(&mut events) => {}
                () = findings.closed() => return,
            }
            let (now, came) = match self.look().await {
                Ok(seen) => seen,
                Err(error) => {
                    tracing::warn!(%error, "the interfaces cannot be looked at; trying again");
                    continue;
                }
            };
            if now == self.known {
                continue;
            }
            for notice in changes(&self.known, &now) {
                drop(findings.send(notice).await);
            }
            self.known.clone_from(&now);
            drop(findings.send(Finding::Interfaces { now, came }).await);
        }
    }

    /// How it is, after what could be done about it; and whether an interface got the program now.
    async fn look(&mut self) -> Result<(Vec<InterfaceStatus>, bool), HostError> {
        let (mut here, mut states) = (Vec::new(), Vec::new());
        for name in &self.names {
            match self.netlink.link(name).await {
                Ok(link) => here.push(link),
                Err(HostError::NoInterface { .. }) => states.push(missing(name, self.formerly(name))),
                Err(error) => return Err(error),
            }
        }
        let mut came = false;
        for link in self.netlink.below_vlans(&here).await? {
            let (state, attached) = self.keep(&link);
            states.push(state);
            came |= attached;
        }
        // The order of the start, so that an interface that comes back is the same as before.
        let place = |state: &InterfaceStatus| {
            let known = self.known.iter().position(|known| known.name == state.name);
            known.unwrap_or(usize::MAX)
        };
        states.sort_by_key(place);
        Ok((states, came))
    }

    /// The program is on the interface, or is put there.
    fn keep(&mut self, link: &Link) -> (InterfaceStatus, bool) {
        let on_it = kernel::attached(link.ifindex).unwrap_or_default();
        if on_it.iter().any(|(_, id)| *id == self.loaded.program_id) {
            self.tell_address(link);
            let as_it_was = self.known.iter().find(|known| known.name == link.name && known.is_attached());
            let mode = on_it.first().map_or("unknown", |(mode, _)| mode.name());
            let state = as_it_was.cloned().unwrap_or_else(|| status(&link.name, mode, None));
            return (state, false);
        }
        match self.loaded.attach(&link.name, self.mode) {
            Ok(Attachment { mode, note, .. }) => {
                tracing::info!(interface = link.name, mode = mode.name(), "XDP program attached again");
                self.told.insert(link.ifindex, link.mac.unwrap_or_default());
                (status(&link.name, mode.name(), note), true)
            }
            Err(error) => (status(&link.name, NOWHERE, Some(format!("{error:#}"))), false),
        }
    }

    /// Frames leave with the interface's address, which may have changed.
    fn tell_address(&mut self, link: &Link) {
        let mac = link.mac.unwrap_or_default();
        if self.told.get(&link.ifindex) == Some(&mac) {
            return;
        }
        match self.loaded.announce(link.ifindex) {
            Ok(()) => _ = self.told.insert(link.ifindex, mac),
            Err(error) => tracing::warn!(interface = link.name, "its address could not be told: {error:#}"),
        }
    }

    /// What an interface that had the program under this name is called now.
    fn formerly(&self, name: &str) -> Option<String> {
        let attached = kernel::attachments(self.loaded.pins()).ok()?;
        let ifindex = attached.iter().find(|attachment| attachment.interface == name)?.ifindex;
        kernel::interface_name(ifindex)
    }
}

/// In the place of a mode: the program is not there.
pub const NOWHERE: &str = "none";

fn status(name: &str, mode: &str, note: Option<String>) -> InterfaceStatus {
    InterfaceStatus { name: name.to_owned(), xdp_mode: mode.to_owned(), note }
}

fn missing(name: &str, renamed: Option<String>) -> InterfaceStatus {
    let note = match renamed {
        Some(other) => format!(
            "there is no interface of this name any more: it is called {other} now, and the program is still on it. \
             Name it back, or write {other} into the configuration and restart the agent"
        ),
        None => {
            "there is no interface of this name any more; the program is attached as soon as it comes back".to_owned()
        }
    };
    status(name, NOWHERE, Some(note))
}

/// What an operator is told.
fn changes(before: &[InterfaceStatus], now: &[InterfaceStatus]) -> Vec<Finding> {
    let differs = |state: &&InterfaceStatus| !before.contains(state);
    let tell = |state: &InterfaceStatus| {
        let InterfaceStatus { name, xdp_mode, note } = state;
        match (state.is_attached(), note) {
            (true, None) => Finding::Info(format!("{name}: the XDP program is on it again, {xdp_mode}")),
            (true, Some(note)) => Finding::Warning(note.clone()),
            (false, note) => Finding::Warning(format!("{name}: {}", note.clone().unwrap_or_default())),
        }
    };
    now.iter().filter(differs).map(tell).collect()
}

/// Returns some time after a link has changed, and when none has for a moment.
async fn settled(events: &mut Option<LinkEvents>) {
    let Some(links) = events else { std::future::pending().await };
    if links.next().await.is_none() {
        *events = None;
        return;
    }
    // Bounded: a link that changes all the time must not keep the others waiting.
    for _ in 0..10 {
        tokio::select! {
            next = links.next() => if next.is_none() { *events = None; return },
            () = sleep(SETTLE) => return,
        }
    }
}
