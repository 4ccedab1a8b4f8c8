//! The configuration, what another one would do, and what was done about it.

use comfy_table::Cell;

use super::table::{count, table, text};
use crate::{
    api::model::{Applied, ConfigView, FlowImpactView, ImpactView, ServiceDone, ServiceImpactView, Settled},
    cli::args::Format,
};

/// Backends shown of one service in the narrow table.
const BACKENDS: usize = 20;

pub fn config(view: &ConfigView, _: Format) -> String {
    let status = &view.status;
    let mut head = format!(
        "# Runs since {} (by {}), from {}; revision {}.\n",
        status.taken, status.by, status.source, status.revision
    );
    if let Some(failed) = &status.fallback {
        head.push_str(&format!("# This is the last good copy: {}\n", failed.error));
    }
    if let Some(pending) = &status.unconfirmed {
        head.push_str(&format!("# Unconfirmed: back to {} at {}.\n", pending.previous, pending.until));
    }
    for decision in &status.without_effect {
        let backend = decision.backend.map(|backend| format!(" {backend}")).unwrap_or_default();
        let why = decision.no_effect.as_deref().unwrap_or_default();
        head.push_str(&format!("# Without effect: {}{backend} {}: {why}\n", decision.service, decision.what));
    }
    format!("{head}\n{}", view.toml)
}

pub fn applied(done: &Applied, format: Format) -> String {
    let mut out = impact(&done.impact, format);
    for warning in &done.warnings {
        out.push_str(&format!("\nwarning: {warning}"));
    }
    if !done.needs_restart.is_empty() {
        out.push_str(&format!("\nOnly at a restart: {}", done.needs_restart.join(", ")));
    }
    if !done.applied {
        out.push_str("\nNothing was changed.");
        return out;
    }
    out.push_str(&format!("\n{} runs now, revision {}.", done.source, done.revision));
    if let Some(until) = &done.confirm_until {
        out.push_str(&format!("\nIt is taken back at {until} unless: lb config confirm"));
    }
    out.push_str(unpublished(done.published));
    out
}

pub fn service_done(done: &ServiceDone, _: Format) -> String {
    format!("{} {}{}", done.service, done.text, unpublished(done.published || done.dry_run))
}

pub fn settled(done: &Settled, _: Format) -> String {
    format!("{}: {} runs, revision {}", done.what, done.source, done.revision)
}

fn unpublished(published: bool) -> &'static str {
    if published { "" } else { "\nThe maps do not say so yet: the agent keeps trying, see: lb status" }
}

fn impact(impact: &ImpactView, format: Format) -> String {
    if impact.services.is_empty() {
        return format!("nothing changes; flows: {}", flows(impact.flows));
    }
    let mut rows = Vec::new();
    for service in &impact.services {
        rows.push(service_row(service));
        let shown = if format == Format::Wide { service.backends.len() } else { BACKENDS };
        rows.extend(service.backends.iter().take(shown).map(|backend| {
            vec![
                text(sign(&backend.presence)),
                text(format!("  {}", backend.address)),
                text(backend.changes.join(", ")),
                text(format!("{} -> {}", percent(backend.share_before), percent(backend.share_after))),
                text(""),
                text(flows(backend.flows)),
            ]
        }));
        if service.backends.len() > shown {
            let more = count((service.backends.len() - shown) as u64, "backend");
            rows.push(vec![text(""), text(format!("  and {more} (-o wide)"))]);
        }
    }
    let all = table(&["", "WHAT", "CHANGES", ">SHARE", ">MOVES", "FLOWS"], rows);
    format!("{all}\n\nAll flows: {}", flows(impact.flows))
}

fn service_row(service: &ServiceImpactView) -> Vec<Cell> {
    vec![
        text(sign(&service.presence)),
        text(&service.name),
        text(service.changes.join(", ")),
        text(""),
        text(percent(service.moved)),
        text(flows(service.flows)),
    ]
}

fn sign(presence: &str) -> &'static str {
    match presence {
        "added" => "+",
        "removed" => "-",
        "changed" => "~",
        _ => " ",
    }
}

fn flows(flows: FlowImpactView) -> String {
    let FlowImpactView { kept, drained, rehomed, reset } = flows;
    format!("{kept} kept, {drained} drained, {rehomed} rehomed, {reset} cut")
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}
