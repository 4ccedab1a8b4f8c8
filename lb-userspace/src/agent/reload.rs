//! Taking over a changed configuration file while traffic runs.

use crate::config::Config;

/// Settings that differ and cannot change in a running agent, by their names in the file.
pub fn fixed(old: &Config, new: &Config) -> Vec<&'static str> {
    // Fully spelled out: a new setting must be thought of here.
    let Config {
        interfaces,
        xdp_mode,
        manage_addresses,
        watch_config: _,
        dead_man: _,
        source_ports: _,
        maglev_table_size: _,
        limits,
        services: _,
    } = old;
    let mut fixed = Vec::new();
    if *interfaces != new.interfaces {
        fixed.push("interfaces");
    }
    if *xdp_mode != new.xdp_mode {
        fixed.push("xdp-mode");
    }
    if *manage_addresses != new.manage_addresses {
        fixed.push("manage-addresses");
    }
    if *limits != new.limits {
        fixed.push("limits");
    }
    fixed
}

/// Why a configuration with these [`fixed`] settings cannot be taken over; `None`: there are none.
pub fn refuse(fixed: &[&'static str]) -> Option<String> {
    let names: Vec<String> = fixed.iter().map(|name| format!("`{name}`")).collect();
    (!fixed.is_empty()).then(|| {
        format!(
            "{} cannot change while the agent runs: restart it (traffic goes on meanwhile, and flows are kept)",
            names.join(", ")
        )
    })
}
