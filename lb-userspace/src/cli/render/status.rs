//! The agent and the data path in one look, and what a detach took away.

use super::{
    services::used_of,
    table::{duration, fields, or_dash, table, text},
};
use crate::{
    api::model::{Bundle, DataPathStatus, DeadManStatus, Detached, NoticeView, Status, WaysStatus},
    cli::args::Format,
};

/// Notices shown in the narrow table.
const NOTICES: usize = 10;

pub fn status(status: &Status, format: Format) -> String {
    let agent = &status.agent;
    let mut pairs = vec![(
        "agent",
        format!("{} running as pid {} for {}", agent.version, agent.pid, duration(agent.uptime_seconds * 1000)),
    )];
    pairs.extend(configuration(status));
    if let Some(failed) = &status.reload_failed {
        pairs.push((
            "reload",
            format!("\x1b[1;31mfailed\x1b[0m at {}, the old configuration stays: {}", failed.at, failed.error),
        ));
    }
    pairs.extend(data_path(&status.data_path));
    pairs.extend(status.data_path.ways.as_ref().map(|ways| ("checks", checks(ways))));
    for service in &status.services {
        if let Some(left) = service.frozen_millis {
            let (name, left) = (&service.name, duration(left));
            pairs.push(("frozen", format!("\x1b[33m{name}\x1b[0m for {left} at most: lb service thaw {name}")));
        }
    }
    if let Some(change) = &status.last_change {
        let millis = change.detect_to_written_micros as f64 / 1000.0;
        let backend = change.backend.map(|b| format!(" {b}")).unwrap_or_default();
        let text = format!("{}{backend} {} at {}", change.service, change.text, change.at);
        pairs.push(("probes", format!("{text}, {millis:.2} ms from probe to maps")));
    }
    let mut out = fields(&pairs);
    out.push_str("\n\n");
    out.push_str(&services(status));
    let shown = if format == Format::Wide { status.notices.len() } else { NOTICES.min(status.notices.len()) };
    if shown > 0 {
        out.push_str("\n\n");
        out.push_str(&notices(&status.notices[status.notices.len() - shown..]));
    }
    out
}

/// Checks on the way of clients' packets.
fn checks(ways: &WaysStatus) -> String {
    let WaysStatus { backends, interfaces, sent, answered, dropped, problem } = ways;
    let over = if interfaces.is_empty() { "nowhere".to_owned() } else { interfaces.join(", ") };
    let mut text =
        format!("{backends} backends by the addresses of services, over {over}: {sent} packets, {answered} back");
    if *dropped > 0 {
        text.push_str(&format!(", \x1b[1;31m{dropped} not sent\x1b[0m"));
    }
    if let Some(why) = problem {
        text.push_str(&format!("; \x1b[1;31masked at their own addresses instead\x1b[0m: {why}"));
    }
    text
}

/// Where the configuration comes from, and whatever is remarkable about it.
fn configuration(status: &Status) -> Vec<(&'static str, String)> {
    let config = &status.config;
    let mut pairs = vec![(
        "config",
        format!("{}, revision {}, taken over at {} ({})", config.source, config.revision, config.taken, config.by),
    )];
    if let Some(failed) = &config.fallback {
        let text = format!(
            "\x1b[1;31mthe last good copy runs\x1b[0m since {}, not {}: {}",
            failed.at, status.agent.config, failed.error
        );
        pairs.push(("fallback", text));
    }
    if let Some(pending) = &config.unconfirmed {
        let text = format!(
            "\x1b[33munconfirmed\x1b[0m: back to {} at {} unless: lb config confirm",
            pending.previous, pending.until
        );
        pairs.push(("change", text));
    }
    for decision in &config.without_effect {
        let backend = decision.backend.map(|backend| format!(" {backend}")).unwrap_or_default();
        let why = decision.no_effect.as_deref().unwrap_or_default();
        let text = format!("{}{backend} {} (by {}) has no effect: {why}", decision.service, decision.what, decision.by);
        pairs.push(("layer", text));
    }
    pairs
}

pub fn bundle(bundle: &Bundle, _: Format) -> String {
    let Bundle { path, bytes, parts, missing } = bundle;
    let kib = bytes.div_ceil(1024);
    let missing = if missing.is_empty() { String::new() } else { format!("\nnot to be had: {}", missing.join(", ")) };
    format!("{path}: {parts} files, {kib} KiB. Look through it before you pass it on.{missing}")
}

pub fn detached(detached: &Detached, _: Format) -> String {
    if detached.done.is_empty() { "nothing was attached".to_owned() } else { detached.done.join("\n") }
}

fn data_path(path: &DataPathStatus) -> Vec<(&'static str, String)> {
    let step = match &path.last_error {
        _ if path.in_step => "\x1b[32min step\x1b[0m".to_owned(),
        Some(failed) => format!("\x1b[1;31mout of step\x1b[0m since {}: {}", failed.at, failed.error),
        None => "\x1b[33mout of step\x1b[0m".to_owned(),
    };
    let interfaces: Vec<String> = path
        .interfaces
        .iter()
        .map(|i| {
            let note = i.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
            format!("{} {}{note}", i.name, i.xdp_mode)
        })
        .collect();
    vec![
        ("maps", format!("generation {}, {step}", path.generation)),
        ("xdp", interfaces.join(", ")),
        ("flows", format!("{} of {}", path.live_flows, path.flow_capacity)),
        ("dead man", dead_man(&path.dead_man)),
    ]
}

fn dead_man(rule: &DeadManStatus) -> String {
    match rule.policy.as_str() {
        "freeze" => "freeze: without the agent everything goes on as last decided".to_owned(),
        policy => format!("{policy}: new flows, when the agent has been silent for {} s", rule.after_seconds),
    }
}

fn services(status: &Status) -> String {
    let rows = status.services.iter().map(|service| {
        vec![
            text(&service.name),
            text(service.listen),
            text(&service.protocol),
            used_of(service.used, service.backends),
            or_dash(service.active_tier),
            text(service.live_flows),
        ]
    });
    table(&["SERVICE", "LISTEN", "PROTOCOL", "USED", ">TIER", ">FLOWS"], rows.collect())
}

fn notices(notices: &[NoticeView]) -> String {
    let rows = notices.iter().map(|notice| {
        let subject = [notice.service.clone(), notice.backend.map(|b| b.to_string())];
        vec![
            text(&notice.at),
            text(&notice.level),
            text(subject.into_iter().flatten().collect::<Vec<_>>().join(" ")),
            text(&notice.text),
        ]
    });
    table(&["TIME", "LEVEL", "ABOUT", "WHAT"], rows.collect())
}
