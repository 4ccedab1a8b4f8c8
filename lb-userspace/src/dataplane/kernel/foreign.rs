//! Programs that others put on an interface: named, and thrown off only where an operator says so.

use std::{io, os::fd::AsFd as _};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{loaded_links, loaded_programs};

use super::{
    netlink::{self, AttachedMode},
    sys,
};

/// Who is in the way and how to remove it.
pub(super) fn describe(interface: &str, ifindex: u32, mode: AttachedMode, id: u32) -> String {
    let name = loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == id)
        .and_then(|info| info.name_as_str().map(str::to_owned))
        .unwrap_or_default();
    let remedy = match holders(ifindex, id).first() {
        Some(link) => {
            format!(
                "a BPF link holds it: stop its owner, or `bpftool link detach id {link}`; `lb detach` if it is another lb"
            )
        }
        None => {
            let off = if mode == AttachedMode::Generic { "xdpgeneric" } else { "xdp" };
            format!("remove it with `ip link set dev {interface} {off} off`")
        }
    };
    format!(
        "another XDP program is there already: id {id}, name `{name}`, {} mode; {remedy}; or `lb run --replace` takes \
         its place",
        mode.name()
    )
}

/// Takes off what is on the interface. Where a link holds it, the link ends, whoever else has it.
///
/// # Errors
/// The kernel's, or several links could be meant.
pub(super) fn throw_off(ifindex: u32) -> Result<()> {
    for (mode, id) in netlink::attached(ifindex).context("reading what is on the interface")? {
        let links = holders(ifindex, id);
        // An index stands for one interface in each network namespace.
        ensure!(
            links.len() < 2,
            "program {id} is held by several links ({links:?}), and one may be of another network namespace: \
             `bpftool link detach id ID` for the one that is meant"
        );
        match links.first() {
            Some(link) => {
                let link = sys::link_by_id(*link).with_context(|| format!("opening the BPF link {link}"))?;
                sys::detach_link(link.as_fd()).context("ending the BPF link that holds it")?;
            }
            None => netlink::take_off(ifindex, mode).context("taking it off by netlink")?,
        }
        tracing::warn!(ifindex, program = id, mode = mode.name(), "another XDP program was thrown off");
    }
    Ok(())
}

/// Ids of the XDP links that hold a program on an interface of this index.
fn holders(ifindex: u32, program: u32) -> Vec<u32> {
    let on_it = |id: u32| -> io::Result<bool> {
        let info = sys::xdp_link_info(sys::link_by_id(id)?.as_fd())?;
        Ok(info.is_some_and(|info| info.ifindex == ifindex))
    };
    let links = loaded_links().filter_map(Result::ok).filter(|link| link.program_id() == program);
    links.map(|link| link.id()).filter(|id| on_it(*id).unwrap_or(false)).collect()
}
