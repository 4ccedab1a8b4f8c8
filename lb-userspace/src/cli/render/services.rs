//! Services.

use comfy_table::Cell;

use super::{
    backends::backend_table,
    table::{bad, duration, fields, good, or_dash, table, text},
};
use crate::{
    api::model::{ServiceList, ServiceView},
    cli::args::Format,
};

pub fn service_list(list: &ServiceList, format: Format) -> String {
    if list.services.is_empty() {
        return "no services".to_owned();
    }
    let wide = format == Format::Wide;
    let mut headings = vec!["NAME", "LISTEN", "PROTOCOL", "MODE", "SCHEDULER", "USED", ">TIER", ">FLOWS"];
    if wide {
        headings.extend([">ID", "GRANULARITY", "CHECK", "INTERVAL"]);
    }
    table(&headings, list.services.iter().map(|service| row(service, wide)).collect())
}

pub fn service(service: &ServiceView, format: Format) -> String {
    let check = &service.health_check;
    let head = fields(&[
        ("name", service.name.clone()),
        ("listen", format!("{} {}", service.listen, service.protocol)),
        ("mode", service.mode.clone()),
        ("scheduler", format!("{}, per {}", service.scheduler, service.granularity)),
        (
            "check",
            format!(
                "{} every {}, timeout {}, fall {}, rise {}",
                check.check,
                duration(check.interval_millis),
                duration(check.timeout_millis),
                check.fall,
                check.rise,
            ),
        ),
        (
            "serves",
            service
                .active_tier
                .map_or_else(|| "nothing: no backend is ready".to_owned(), |tier| format!("tier {tier}")),
        ),
        ("flows", flows(service)),
    ]);
    format!("{head}\n\n{}", backend_table(&service.backends, format))
}

fn flows(service: &ServiceView) -> String {
    let Some(tracking) = &service.tracking else { return service.live_flows.to_string() };
    let slots = format!("{} of {} slots are unsettled", tracking.unsettled, tracking.slots);
    let left = tracking.settles_in_millis.filter(|left| *left > 0);
    let left = left.map(|left| format!(", flows may be left where they were for {}", duration(left)));
    format!(
        "{} with an entry; others go by their hash and are not counted ({slots}{})",
        service.live_flows,
        left.unwrap_or_default()
    )
}

/// `2 of 3`, red when it is none.
pub fn used_of(used: usize, all: usize) -> Cell {
    let shown = format!("{used} of {all}");
    match used {
        0 => bad(shown),
        _ if used == all => good(shown),
        _ => text(shown),
    }
}

fn row(service: &ServiceView, wide: bool) -> Vec<Cell> {
    let used = service.backends.iter().filter(|backend| backend.effective.used).count();
    let mut cells = vec![
        text(&service.name),
        text(service.listen),
        text(&service.protocol),
        text(&service.mode),
        text(&service.scheduler),
        used_of(used, service.backends.len()),
        or_dash(service.active_tier),
        text(service.live_flows),
    ];
    if wide {
        cells.extend([
            or_dash(service.id),
            text(&service.granularity),
            text(&service.health_check.check),
            text(duration(service.health_check.interval_millis)),
        ]);
    }
    cells
}
