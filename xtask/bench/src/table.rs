//! Results for a terminal.

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use crate::result::{ControlResult, DriverResult, RowResult, StepResult, UserResult};

/// One line a row, as it is measured.
pub fn line(row: &RowResult) -> String {
    let ratio = row.textbook_ratio.map_or_else(String::new, |ratio| format!("{ratio:.2} x textbook"));
    format!("  {:<42} {:>7.1} ns  {ratio:<16} {}", row.name, row.net_ns, verdict(row.met))
}

/// One line a step, as its way was measured.
pub fn step(step: &StepResult) -> String {
    let StepResult { way, step, step_ns, net_ns, min_ns } = step;
    format!("  {way:<34} {step:<40} {step_ns:>+6.1} ns  {net_ns:>6.1} in all, least {min_ns:.1}")
}

/// All rows. Times are nanoseconds a packet; `net` is without the harness.
pub fn packets(rows: &[RowResult]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["ROW", "NET", "MEDIAN", "MIN", "MAX", "FLOOR", "TEXTBOOK", "RATIO", "EVICTED", "TARGET", ""]);
    for row in rows {
        let optional = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        table.add_row([
            row.name.clone(),
            format!("{:.1}", row.net_ns),
            format!("{:.1}", row.median_ns),
            format!("{:.1}", row.min_ns),
            format!("{:.1}", row.max_ns),
            format!("{:.1}", row.floor_ns),
            optional(row.textbook_net_ns, 1),
            optional(row.textbook_ratio, 2),
            row.evicted.to_string(),
            row.target.clone().unwrap_or_default(),
            verdict(row.met).to_owned(),
        ]);
    }
    align_right(&mut table, 1..=8);
    table.to_string()
}

/// Live frames through the driver; nanoseconds a frame, of generator, driver, program and sink together.
pub fn driver(rows: &[DriverResult]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["THROUGH THE DRIVER", "MEDIAN", "MIN", "MAX", "OVER FLOOR", "MPPS", "DELIVERED"]);
    for row in rows {
        table.add_row([
            row.name.clone(),
            format!("{:.1}", row.median_ns),
            format!("{:.1}", row.min_ns),
            format!("{:.1}", row.max_ns),
            format!("{:+.1}", row.over_floor_ns),
            format!("{:.2}", row.mpps),
            format!("{:.2} %", row.delivered_percent),
        ]);
    }
    align_right(&mut table, 1..=6);
    table.to_string()
}

/// What changes cost.
pub fn control(rows: &[ControlResult]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["CHANGE", "MEDIAN MS", "MIN", "MAX", "CPU MS", "SYSCALLS", "MEMORY", "TARGET", ""]);
    for row in rows {
        table.add_row([
            row.name.clone(),
            format!("{:.2}", row.median_ms),
            format!("{:.2}", row.min_ms),
            format!("{:.2}", row.max_ms),
            format!("{:.2}", row.cpu_ms),
            row.syscalls.to_string(),
            format!("{:.1} MiB", row.memory_mib),
            row.target.clone().unwrap_or_default(),
            verdict(row.met).to_owned(),
        ]);
    }
    align_right(&mut table, 1..=6);
    table.to_string()
}

/// What users see.
pub fn users(rows: &[UserResult]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "BALANCER",
        "LOAD",
        "PER SECOND",
        "P50 US",
        "P99 US",
        "CPU US",
        "OVER DIRECT",
        "PROCESS",
        "CPU S/GB",
        "FAILED",
        "TARGET",
        "",
    ]);
    for row in rows {
        let optional = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        table.add_row([
            row.balancer.clone(),
            row.load.clone(),
            format!("{:.0}", row.per_second),
            optional(row.p50_us, 0),
            optional(row.p99_us, 0),
            format!("{:.2}", row.cpu_us),
            format!("{:+.2}", row.over_direct_us),
            optional(row.own_us, 2),
            optional(row.cpu_s_per_gb, 2),
            row.failed.to_string(),
            row.target.clone().unwrap_or_default(),
            verdict(row.met).to_owned(),
        ]);
    }
    align_right(&mut table, 2..=9);
    table.to_string()
}

fn align_right(table: &mut Table, columns: std::ops::RangeInclusive<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

const fn verdict(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_target_stands_out() {
        let row = RowResult {
            name: "nat maglev tcp4 hit 1".to_owned(),
            textbook_ratio: Some(1.5),
            target: Some("<= 1.00 x textbook".to_owned()),
            met: Some(false),
            ..RowResult::default()
        };
        assert!(line(&row).ends_with("1.50 x textbook  MISSED"), "{}", line(&row));
        let table = packets(&[row]);
        assert!(table.contains("1.50") && table.contains("<= 1.00 x textbook") && table.contains("MISSED"), "{table}");
    }
}
