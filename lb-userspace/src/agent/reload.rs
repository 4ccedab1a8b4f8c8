//! Taking over a changed configuration file while traffic runs.

use crate::config::Config;

/// Why `new` cannot follow `old` in a running agent; `None` when it can. Everything is looked at
/// before anything is done.
pub fn refuse(old: &Config, new: &Config) -> Option<String> {
    // Fully spelled out: a new setting must be thought of here.
    let Config {
        interfaces,
        xdp_mode,
        manage_addresses,
        watch_config: _,
        source_ports: _,
        maglev_table_size: _,
        limits,
        services: _,
    } = old;
    let mut fixed = Vec::new();
    if *interfaces != new.interfaces {
        fixed.push("`interfaces`");
    }
    if *xdp_mode != new.xdp_mode {
        fixed.push("`xdp-mode`");
    }
    if *manage_addresses != new.manage_addresses {
        fixed.push("`manage-addresses`");
    }
    if *limits != new.limits {
        fixed.push("`limits`");
    }
    if fixed.is_empty() {
        return None;
    }
    Some(format!("{} cannot change while the agent runs: restart it (traffic goes on meanwhile)", fixed.join(", ")))
}
