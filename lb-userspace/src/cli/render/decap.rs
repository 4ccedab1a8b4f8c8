//! What strips tunnels.

use super::table::{bytes, fields, good, table, text, warned};
use crate::{
    api::decap::{DecapInterface, DecapOff, DecapOutcome, DecapStatus},
    cli::args::Format,
};

pub fn decap_status(status: &DecapStatus, format: Format) -> String {
    if status.interfaces.is_empty() {
        return "no tunnels are stripped here; lb decap --iface IF --vip ADDRESS --from BALANCER begins it".to_owned();
    }
    status.interfaces.iter().map(|interface| one(interface, format)).collect::<Vec<_>>().join("\n\n")
}

pub fn decap_off(off: &DecapOff, _: Format) -> String {
    if off.interfaces.is_empty() {
        return "no tunnels were stripped".to_owned();
    }
    format!("tunnels are no longer stripped on {}", off.interfaces.join(", "))
}

fn one(interface: &DecapInterface, format: Format) -> String {
    let list = |words: &[String]| words.join(", ");
    let mode = match &interface.mode {
        Some(mode) => format!("{mode} mode"),
        None => format!("the program is gone: lb decap off --iface {}", interface.interface),
    };
    let mut pairs = vec![
        ("interface", format!("{}, {mode}", interface.interface)),
        ("from", list(&interface.balancers)),
        (
            "gue port",
            interface.gue_port.map_or_else(|| "none: IP in IP and GRE only".to_owned(), |port| port.to_string()),
        ),
    ];
    if !interface.to.is_empty() {
        pairs.push(("to", list(&interface.to.iter().map(ToString::to_string).collect::<Vec<_>>())));
    }
    let vips = interface.vips.iter();
    let vips = vips.map(|vip| vec![text(vip.address), text(vip.stripped.packets), text(bytes(vip.stripped.bytes))]);
    let vips = table(&["ADDRESS", ">STRIPPED PACKETS", ">STRIPPED BYTES"], vips.collect());
    [fields(&pairs), vips, outcomes(&interface.outcomes, format)].join("\n\n")
}

/// In the narrow table only those that were reached.
fn outcomes(outcomes: &[DecapOutcome], format: Format) -> String {
    let shown = outcomes.iter().filter(|outcome| format == Format::Wide || outcome.packets > 0);
    let rows: Vec<_> = shown
        .map(|outcome| {
            let fate = match outcome.fate.as_str() {
                "stripped" => good(&outcome.fate),
                "dropped" => warned(&outcome.fate),
                _ => text(&outcome.fate),
            };
            let numbers = [text(outcome.packets), text(bytes(outcome.bytes))];
            [vec![text(&outcome.outcome), fate], numbers.into(), vec![text(&outcome.meaning)]].concat()
        })
        .collect();
    if rows.is_empty() {
        return "no packets yet".to_owned();
    }
    table(&["OUTCOME", "FATE", ">PACKETS", ">BYTES", "MEANING"], rows)
}
