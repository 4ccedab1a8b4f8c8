//! Receipts of failovers as text.

use super::table::{count, fields, or_dash, table, text, warned};
use crate::{
    api::model::{EventFlows, EventList, EventView, ServiceFrozen},
    cli::args::Format,
};

pub fn events(list: &EventList, format: Format) -> String {
    if list.events.is_empty() {
        return "no failover yet".to_owned();
    }
    let wide = format == Format::Wide;
    let rows = list.events.iter().map(|event| {
        let mut row = vec![
            text(event.id),
            text(&event.detected),
            text(&event.service),
            text(event.backend),
            if event.cause == "down" { warned(&event.cause) } else { text(&event.cause) },
            or_dash(event.switch_micros.map(millis)),
            or_dash(event.serve_micros.map(millis)),
            text(flows(&event.flows)),
            text(if event.back.is_some() { "back" } else { "out" }),
        ];
        if wide {
            row.push(or_dash(event.detect_micros.map(millis)));
            row.push(text(&event.policy));
            row.push(text(&event.reason));
        }
        row
    });
    let mut headings = vec!["ID", "DETECTED", "SERVICE", "BACKEND", "CAUSE", ">SWITCH", ">SERVED", "FLOWS", "NOW"];
    if wide {
        headings.extend([">SINCE GOOD", "POLICY", "REASON"]);
    }
    table(&headings, rows.collect())
}

pub fn event(event: &EventView, _: Format) -> String {
    let none = |what: &str| format!("- ({what})");
    let after = |at: &Option<String>, micros: Option<u64>, from: &str, otherwise: &str| match at {
        Some(at) => {
            let took = micros.map(|micros| format!(", {} after {from}", millis(micros))).unwrap_or_default();
            format!("{at}{took}")
        }
        None => none(otherwise),
    };
    let serving: Vec<String> = event.serving.iter().map(ToString::to_string).collect();
    let told = event.first_bad.is_some();
    let good = if told { "the last answer" } else { "the last good probe" };
    let since = event.detect_micros.map(|micros| format!(", {} after {good}", millis(micros)));
    let first_bad = after(&event.first_bad, event.suspect_micros, "it the maps held it", "no packet told")
        .replace(" after it the", " until the");
    fields(&[
        ("failover", format!("{} of {} {}", event.id, event.service, event.backend)),
        ("cause", format!("{}: {}", event.cause, event.reason)),
        ("last good", event.last_good.clone().unwrap_or_else(|| none("no good probe before"))),
        ("first bad", first_bad),
        ("detected", format!("{}{}", event.detected, since.unwrap_or_default())),
        ("switched", after(&event.switched, event.switch_micros, "that", "the maps do not hold it yet")),
        ("first good", after(&event.first_good, event.serve_micros, "detection", "no new flow since")),
        ("served by", if serving.is_empty() { none("no backend is ready") } else { serving.join(", ") }),
        ("back", event.back.clone().unwrap_or_else(|| none("takes no new flows"))),
        ("policy", event.policy.clone()),
        ("flows", flows(&event.flows)),
        ("witnesses", if told { count(event.witnesses.into(), "client") } else { none("no packet told") }),
        ("clients", if event.flows.clients == 0 { none("none seen") } else { event.flows.clients.to_string() }),
    ])
}

pub fn service_frozen(done: &ServiceFrozen, _: Format) -> String {
    let step = if done.published { "" } else { " (the maps do not say so yet: it is being retried)" };
    format!("{} {}{step}", done.service, done.text)
}

fn flows(flows: &EventFlows) -> String {
    let EventFlows { before, reset, rehomed, kept, left, rescued, .. } = *flows;
    let parts = [(reset, "reset"), (rehomed, "rehomed"), (kept, "kept"), (left, "left"), (rescued, "rescued")];
    let told: Vec<String> =
        parts.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}")).collect();
    let told = if told.is_empty() { String::new() } else { format!(": {}", told.join(", ")) };
    format!("{}{told}", count(before, "flow"))
}

/// `0.42ms`, `12.0ms`, `1.20s`.
fn millis(micros: u64) -> String {
    let millis = micros as f64 / 1000.0;
    match millis {
        ..10.0 => format!("{millis:.2}ms"),
        ..1000.0 => format!("{millis:.1}ms"),
        _ => format!("{:.2}s", millis / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_that_fits() {
        assert_eq!([420, 12_000, 1_200_000].map(millis), ["0.42ms", "12.0ms", "1.20s"]);
    }

    #[test]
    fn flows_are_told_by_what_became_of_them() {
        let told = EventFlows { before: 7, reset: 5, left: 2, ..EventFlows::default() };
        assert_eq!(flows(&told), "7 flows: 5 reset, 2 left");
        assert_eq!(flows(&EventFlows::default()), "0 flows");
    }
}
