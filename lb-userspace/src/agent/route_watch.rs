//! Whether the ways to backends vary, followed while routes and rules come and go.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::run_loop::Finding;
use crate::host::{Netlink, RouteEvents};

/// From the first sign of a change to the look at what has become of it: changes come in crowds.
const CROWD: Duration = Duration::from_millis(100);
/// Between two looks at least this many times what the last one took: a router that hears a whole
/// table's changes leaves most of its time to others.
const REST_TIMES: u32 = 10;

/// Tells what it finds for the backends that were named last: whenever they are named, and when the
/// host's routes, rules or next hops have changed. Ends when nobody names or listens any more.
pub(super) async fn run(
    netlink: Netlink,
    mut backends: watch::Receiver<BTreeSet<IpAddr>>,
    findings: mpsc::Sender<Finding>,
) {
    let mut changes = RouteEvents::subscribe()
        .inspect_err(|error| tracing::warn!(%error, "routes are not watched: changes are seen within 30 s"))
        .ok();
    let mut rested = Instant::now();
    loop {
        tokio::select! {
            named = backends.changed() => if named.is_err() {
                return;
            },
            () = changed(&mut changes) => {}
        }
        sleep_until((Instant::now() + CROWD).max(rested)).await;
        let began = Instant::now();
        let asked = backends.borrow_and_update().clone();
        match netlink.routes_vary(asked).await {
            Ok(vary) => {
                if findings.send(Finding::RoutesVary(vary)).await.is_err() {
                    return;
                }
            }
            // As it was; named again within 30 s.
            Err(error) => tracing::warn!(%error, "no news of whether routes vary"),
        }
        let ended = Instant::now();
        rested = ended + (ended - began) * REST_TIMES;
    }
}

/// Never returns when routes are not watched.
async fn changed(changes: &mut Option<RouteEvents>) {
    if let Some(events) = changes
        && events.next().await.is_some()
    {
        return;
    }
    *changes = None;
    std::future::pending().await
}
