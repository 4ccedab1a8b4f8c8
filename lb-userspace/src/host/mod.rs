//! Everything the agent does to, or asks of, the host outside BPF. Linux only.
//!
//! What the agent calls:
//!
//! ```no_run
//! # async fn example(config: lb_userspace::config::Config) -> anyhow::Result<()> {
//! use std::path::Path;
//! use lb_userspace::host::{self, Host};
//!
//! host::check_rights()?;                                  // or says what to type
//! host::ensure_bpffs(Path::new(host::BPFFS))?;
//!
//! let mut host = Host::open(Path::new("/var/lib/lb"))?;
//! let prepared = host.ready(&config).await?;              // before services are published
//! for link in &prepared.links {
//!     host.record().note_attached(&link.name)?;           // before attaching to link.ifindex
//! }
//! let netlink = host.netlink();                           // cheap to clone, for other tasks
//! let route = netlink.route_to("10.0.0.11".parse()?, &host.managed_addresses()).await?;
//! if let Some(route) = route {
//!     netlink.resolve(route.ifindex, route.next_hop).await?; // now, and every 20 s or so
//! }
//!
//! host.place(&config).await?;                             // when the program is attached, the maps right
//! host.ready(&config).await?;                             // after every change of the configuration
//! host.place(&config).await?;                             // when the maps follow it
//! host.prune().await;                                     // when they have let go of what was before
//!
//! let undone = host.release().await;                      // lb detach, also without the agent
//! # Ok(()) }
//! ```
//!
//! An agent that only stops does not release: packets keep flowing (invariant 1), and they need the
//! addresses and settings.
//!
//! All netlink work happens in the network namespace of the thread that called [`Host::open`].

mod addresses;
mod announce;
mod boot;
mod bpffs;
mod error;
mod frames;
mod links;
mod namespace;
mod neighbours;
mod netdev;
mod netlink;
mod offload;
mod ports;
mod prepare;
mod record;
mod rights;
mod routes;
mod sysctl;
mod undo;
mod variety;
mod vlans;
mod watch;

pub use addresses::{Added, HostAddress};
pub use announce::announce;
pub use bpffs::{BPFFS, Bpffs, NoBpffs, ensure_bpffs, is_bpffs};
pub use error::HostError;
pub use frames::{ArpForm, gratuitous_arp, unsolicited_advertisement};
pub use links::{Link, VlanOf};
pub use netdev::{XdpAbility, xdp_ability};
pub use netlink::Netlink;
pub use offload::{Queues, joins_segments, queues, strips_vlan_tags};
pub use ports::PortSet;
pub use prepare::{Host, PlacedAddress, Prepared};
pub use record::{AddedAddress, ChangedSysctl, Changes, HostRecord};
pub use rights::{MissingRights, Right, check as check_rights};
pub use routes::Route;
pub use sysctl::Sysctl;
pub use undo::Undone;
pub use vlans::VlanDevice;
pub use watch::{LinkEvents, RouteEvents};
