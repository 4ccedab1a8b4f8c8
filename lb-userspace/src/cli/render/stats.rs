//! Counters and flows.

use super::table::{bytes, count, duration, or_dash, table, text, warned};
use crate::{
    api::model::{FlowList, FlowView, ServiceStats, StatsView, Traffic, VerdictStats},
    cli::args::Format,
};

const DEAD_AGENT: &str = "no agent answers: services are named by their address";

pub fn stats(stats: &StatsView, format: Format) -> String {
    let mut parts = Vec::new();
    if !stats.agent_alive {
        parts.push(DEAD_AGENT.to_owned());
    }
    if stats.services.is_empty() {
        parts.push("no services".to_owned());
    } else {
        parts.push(services(&stats.services));
        parts.push(backends(&stats.services, format));
    }
    parts.push(verdicts(&stats.verdicts, format));
    parts.join("\n\n")
}

pub fn flow_list(list: &FlowList, format: Format) -> String {
    let mut out = String::new();
    if !list.agent_alive {
        out.push_str(DEAD_AGENT);
        out.push_str("\n\n");
    }
    if list.matched == 0 {
        out.push_str("no flows");
        return out;
    }
    if list.flows.is_empty() {
        out.push_str(&count(list.matched, "flow"));
        return out;
    }
    let wide = format == Format::Wide;
    let mut headings = vec!["SERVICE", "PROTOCOL", "CLIENT", "LISTEN", "BACKEND", "STATE", ">IDLE"];
    if wide {
        headings.extend(["MODE", "SOURCE"]);
    }
    out.push_str(&table(&headings, list.flows.iter().map(|flow| flow_row(flow, wide)).collect()));
    let shown = list.flows.len() as u64;
    if shown < list.matched {
        out.push_str(&format!("\n\n{shown} of {} flows; more with: --limit {}", list.matched, list.matched));
    }
    out
}

fn services(services: &[ServiceStats]) -> String {
    let rows = services.iter().map(|service| {
        let mut cells = vec![text(&service.name), text(service.listen), text(&service.protocol), text(service.flows)];
        cells.extend(traffic(service.forward));
        cells.extend(traffic(service.reply));
        cells.extend([text(service.refused), text(service.dropped), text(service.rescued)]);
        cells
    });
    let headings = [
        "SERVICE",
        "LISTEN",
        "PROTOCOL",
        ">FLOWS",
        ">PACKETS IN",
        ">BYTES IN",
        ">PACKETS OUT",
        ">BYTES OUT",
        ">REFUSED",
        ">DROPPED",
        ">RESCUED",
    ];
    table(&headings, rows.collect())
}

fn backends(services: &[ServiceStats], format: Format) -> String {
    let wide = format == Format::Wide;
    let mut headings = vec![
        "SERVICE",
        "BACKEND",
        "STATE",
        ">FLOWS",
        ">SHARE",
        ">PACKETS TO",
        ">BYTES TO",
        ">PACKETS FROM",
        ">BYTES FROM",
    ];
    if wide {
        headings.extend([">ENDED", ">RESET", ">MOVED", ">REFUSALS", ">UNANSWERED", ">RESCUED", ">ID"]);
    }
    let mut rows = Vec::new();
    for service in services {
        let all: u64 = service.backends.iter().map(|backend| backend.flows).sum();
        for backend in &service.backends {
            let state = if backend.state == "live" { text(&backend.state) } else { warned(&backend.state) };
            let share = (all > 0).then(|| format!("{:.1}%", backend.flows as f64 * 100.0 / all as f64));
            let mut cells =
                vec![text(&service.name), text(backend.address), state, text(backend.flows), or_dash(share)];
            cells.extend(traffic(backend.forward));
            cells.extend(traffic(backend.reply));
            if wide {
                cells.extend([text(backend.ended), text(backend.reset), text(backend.moved)]);
                cells.extend([text(backend.refusals), text(backend.unanswered), text(backend.rescued)]);
                cells.push(text(backend.id));
            }
            rows.push(cells);
        }
    }
    table(&headings, rows)
}

/// In the narrow table only the verdicts that were reached.
fn verdicts(verdicts: &[VerdictStats], format: Format) -> String {
    let shown = verdicts.iter().filter(|verdict| format == Format::Wide || verdict.packets > 0);
    let rows: Vec<_> = shown
        .map(|verdict| {
            let mut cells = vec![text(&verdict.reason), text(&verdict.action)];
            cells.extend(traffic(Traffic { packets: verdict.packets, bytes: verdict.bytes }));
            cells.push(text(&verdict.meaning));
            cells
        })
        .collect();
    if rows.is_empty() {
        return "no packets yet".to_owned();
    }
    table(&["VERDICT", "ACTION", ">PACKETS", ">BYTES", "MEANING"], rows)
}

fn traffic(traffic: Traffic) -> [comfy_table::Cell; 2] {
    [text(traffic.packets), text(bytes(traffic.bytes))]
}

fn flow_row(flow: &FlowView, wide: bool) -> Vec<comfy_table::Cell> {
    let mut cells = vec![
        text(&flow.service),
        text(&flow.protocol),
        text(flow.client),
        or_dash(flow.listen),
        or_dash(flow.backend),
        text(&flow.state),
        text(duration(flow.idle_millis)),
    ];
    if wide {
        cells.extend([text(&flow.mode), text(flow.source)]);
    }
    cells
}
