//! The host, asked and changed by one task: routes, neighbours, addresses, settings.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use tokio::sync::mpsc;

use super::{run_loop::Finding, vlan_sync::VlanSync};
use crate::{
    config::Config,
    host::{Host, Link, LinkEvents, Netlink, Sharing, routes},
};

/// One thing to do.
#[derive(Debug)]
pub enum HostJob {
    Sources(Vec<IpAddr>),
    Prepare(Arc<Config>),
    Place(Arc<Config>),
    Prune,
    Warm(BTreeSet<IpAddr>),
    Resolve { ifindex: u32, next_hop: IpAddr },
}

/// Does jobs until the last sender is gone. When a link changes, tells the data path of VLANs, and
/// announces addresses again if it came up.
pub async fn run(
    mut host: Host,
    mut vlans: VlanSync,
    mut jobs: mpsc::Receiver<HostJob>,
    findings: mpsc::Sender<Finding>,
) {
    let mut links = Links::watch();
    loop {
        let look_at_vlans = tokio::select! {
            job = jobs.recv() => match job {
                Some(job) => {
                    let regular = matches!(job, HostJob::Place(_));
                    do_job(&mut host, job, &findings).await;
                    regular
                }
                None => return,
            },
            (link, came_up) = links.changed() => {
                if came_up {
                    host.announce_again(&link);
                }
                link.vlan.is_some()
            }
        };
        if look_at_vlans {
            for warning in vlans.run(&host.netlink()).await {
                drop(findings.send(Finding::Warning(warning)).await);
            }
        }
    }
}

/// The host's source address towards each backend; those that could not be asked are left out.
pub async fn sources(
    netlink: &Netlink,
    backends: Vec<IpAddr>,
    excluded: &BTreeSet<IpAddr>,
) -> Vec<(IpAddr, Option<IpAddr>)> {
    let mut found = Vec::with_capacity(backends.len());
    for backend in backends {
        match netlink.source_for(backend, excluded).await {
            Ok(source) => found.push((backend, source)),
            Err(error) => tracing::warn!(%error, "no news of the source address towards {backend}"),
        }
    }
    found
}

/// Makes the kernel resolve the next hop towards each backend. Of many backends only one of a small network
/// is asked about, where a router is on the way: packets to others ask for what is still missing.
pub async fn warm(netlink: &Netlink, backends: impl IntoIterator<Item = IpAddr>, excluded: &BTreeSet<IpAddr>) {
    let mut hops = BTreeSet::new();
    let ask = |backend| netlink.route_to(backend, excluded);
    for (backend, route) in routes(backends, Sharing::Router, &BTreeSet::new(), ask).await {
        match route {
            Ok(Some(route)) if !route.local => {
                hops.insert((route.ifindex, route.next_hop));
            }
            // This host itself, or no route: core and status say so.
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "no route to {backend}"),
        }
    }
    for (ifindex, next_hop) in hops {
        resolve(netlink, ifindex, next_hop).await;
    }
}

async fn do_job(host: &mut Host, job: HostJob, findings: &mpsc::Sender<Finding>) {
    let netlink = host.netlink();
    match job {
        HostJob::Sources(backends) => {
            let found = sources(&netlink, backends, &host.managed_addresses()).await;
            drop(findings.send(Finding::Sources(found)).await);
        }
        HostJob::Prepare(config) => {
            let result = host.ready(&config).await.map(|prepared| prepared.warnings);
            for warning in result.iter().flatten() {
                drop(findings.send(Finding::LoggedWarning(warning.clone())).await);
            }
            let result = result.map(drop).map_err(|error| error.to_string());
            drop(findings.send(Finding::Prepared { config, result }).await);
        }
        HostJob::Place(config) => {
            if let Err(error) = host.place(&config).await {
                let text = format!("service addresses are missing on this host: {error}; trying again");
                drop(findings.send(Finding::Warning(text)).await);
            }
        }
        HostJob::Prune => {
            let undone = host.prune().await;
            for done in undone.done {
                drop(findings.send(Finding::Info(done)).await);
            }
            for error in undone.failed {
                drop(findings.send(Finding::Warning(error.to_string())).await);
            }
        }
        HostJob::Warm(backends) => warm(&netlink, backends, &host.managed_addresses()).await,
        HostJob::Resolve { ifindex, next_hop } => resolve(&netlink, ifindex, next_hop).await,
    }
}

async fn resolve(netlink: &Netlink, ifindex: u32, next_hop: IpAddr) {
    if let Err(error) = netlink.resolve(ifindex, next_hop).await {
        tracing::debug!(%error, "a next hop could not be asked for");
    }
}

/// Changes of links, as far as the kernel tells them.
struct Links {
    events: Option<LinkEvents>,
    up: BTreeSet<u32>,
}

impl Links {
    fn watch() -> Self {
        let events = LinkEvents::subscribe()
            .inspect_err(|error| tracing::warn!(%error, "links are not watched: no announcements after one came up"))
            .ok();
        Self { events, up: BTreeSet::new() }
    }

    /// The next link that changed, and whether it was down and is up. Never returns when links are not
    /// watched.
    async fn changed(&mut self) -> (Link, bool) {
        loop {
            let Some(events) = &mut self.events else { std::future::pending().await };
            match events.next().await {
                Some(link) => {
                    let came_up = link.up && self.up.insert(link.ifindex);
                    if !link.up {
                        self.up.remove(&link.ifindex);
                    }
                    return (link, came_up);
                }
                None => self.events = None,
            }
        }
    }
}
