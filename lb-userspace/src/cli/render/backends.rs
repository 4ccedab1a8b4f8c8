//! Backends: four fields, never one word.

use comfy_table::Cell;

use super::table::{bad, count, duration, good, or_dash, table, text, warned};
use crate::{
    api::model::{BackendList, BackendView, CommandDone},
    cli::args::Format,
};

pub fn backend_list(list: &BackendList, format: Format) -> String {
    if list.backends.is_empty() {
        return "no backends".to_owned();
    }
    backend_table(&list.backends, format)
}

pub fn backend_table(backends: &[BackendView], format: Format) -> String {
    let wide = format == Format::Wide;
    let has_roles = wide && backends.iter().any(|backend| backend.role_detail.is_some());
    let has_agents = wide && backends.iter().any(|backend| backend.agent.is_some());
    let mut headings = vec!["SERVICE", "ADDRESS", ">TIER", ">WEIGHT", "ADMIN", "HEALTH", "ROLE", "EFFECTIVE", ">FLOWS"];
    if wide {
        headings.extend([
            ">REFUSALS",
            ">UNANSWERED",
            ">RESCUED",
            ">ID",
            ">FOR",
            "RESULT",
            "DECIDED BY",
            "AT",
            "UNTIL",
            "WHY",
        ]);
    }
    if has_roles {
        headings.extend([">LAG", "ROLE BECAUSE"]);
    }
    if has_agents {
        headings.push("AGENT SAYS");
    }
    let rows = backends.iter().map(|backend| {
        let mut cells = row(backend, wide);
        cells.extend(if has_roles { role_cells(backend) } else { Vec::new() });
        cells.extend(has_agents.then(|| or_dash(backend.agent.as_ref())));
        cells
    });
    table(&headings, rows.collect())
}

/// What was done and what follows, on one line.
pub fn command_done(done: &CommandDone, _: Format) -> String {
    let CommandDone { service, address, text, published, .. } = done;
    let mut line = format!("{service} {address} {text}");
    for other in &done.others {
        line.push_str(&format!("\n{service} {} {}", other.address, other.text));
    }
    if done.dry_run {
        return line;
    }
    if done.backend.as_ref().is_some_and(|backend| backend.live_flows > 0 && !backend.effective.used) {
        line.push_str(&format!("; follow with: lb backend list {service} --watch"));
    }
    if !published {
        line.push_str("\nThe maps do not say so yet: the agent keeps trying, see: lb status");
    }
    line
}

fn row(backend: &BackendView, wide: bool) -> Vec<Cell> {
    let mut cells = vec![
        text(&backend.service),
        text(backend.address),
        text(backend.tier),
        text(backend.weight),
        admin(backend),
        health(backend),
        or_dash(backend.role.as_ref()),
        effective(backend),
        text(backend.live_flows),
    ];
    if wide {
        cells.extend([
            text(backend.refusals),
            text(backend.unanswered),
            text(backend.rescued),
            or_dash(backend.id),
            text(duration(backend.health.for_millis)),
            text(&backend.health.reason),
            or_dash(backend.admin.by.as_ref()),
            or_dash(backend.admin.at.as_ref()),
            or_dash(backend.admin.until.as_ref()),
            or_dash(backend.admin.reason.as_ref()),
        ]);
    }
    cells
}

fn role_cells(backend: &BackendView) -> Vec<Cell> {
    let detail = backend.role_detail.as_ref();
    let lag = detail.and_then(|detail| match (detail.lag_millis, detail.lag_bytes) {
        (Some(millis), _) => Some(duration(millis)),
        (None, bytes) => bytes.map(|bytes| format!("{bytes} B")),
    });
    vec![or_dash(lag), or_dash(detail.map(|detail| &detail.reason))]
}

fn admin(backend: &BackendView) -> Cell {
    let state = backend.admin.state.as_str();
    if state == "ready" { text(state) } else { warned(state) }
}

fn health(backend: &BackendView) -> Cell {
    match backend.health.state.as_str() {
        "up" => good("up"),
        "down" => bad("down"),
        other => warned(other),
    }
}

fn effective(backend: &BackendView) -> Cell {
    let reason = &backend.effective.reason;
    let left =
        if backend.leaving { format!(", leaving: {} left", count(backend.live_flows, "flow")) } else { String::new() };
    if backend.effective.used {
        good(format!("used ({reason}){left}"))
    } else {
        text(format!("not used ({reason}){left}"))
    }
}
