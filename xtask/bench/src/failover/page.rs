//! Failovers on the terminal and on `docs/performance.md`.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use super::{
    Fault,
    figures::Trial,
    peers::{Peer, Told},
};
use crate::{
    plot::{Bar, Kind, Plot},
    result::{FailoverResults, FailoverRow, ProbesRow},
};

const PLOT: &str = "failover.svg";

/// One trial, as it ends.
pub(super) fn line(peer: &str, fault: &str, trial: &Trial, told: Option<Told>) -> String {
    let seconds =
        |time: Option<std::time::Duration>| time.map_or_else(|| "-".to_owned(), |t| format!("{:.3}", t.as_secs_f64()));
    let told = told.map_or_else(String::new, |told| {
        format!("  {} rescued{}", told.rescued, if told.receipt { ", receipt" } else { "" })
    });
    let noise = if trial.noise > 0 { format!("  ({} bad before the fault)", trial.noise) } else { String::new() };
    format!(
        "  {fault:<16} {peer:<14} {:>3} failed {:>3} slow  worst {:>7.1} ms  last bad {:>6} s  back {:>6} s{told}{noise}",
        trial.failed,
        trial.slow,
        trial.worst.as_secs_f64() * 1000.0,
        seconds(trial.last_bad),
        seconds(trial.back)
    )
}

/// All rows.
pub fn table(results: &FailoverResults) -> String {
    let mut text = String::new();
    if !results.rows.is_empty() {
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header([
            "FAULT",
            "BALANCER",
            "FAILED",
            "OVER 50 MS",
            "WORST MS",
            "LAST BAD S",
            "BACK S",
            "RESCUED",
            "RECEIPT",
            "TARGET",
            "",
        ]);
        for row in &results.rows {
            table.add_row(cells(row, "-").into_iter().chain([verdict(row.met).to_owned()]).collect::<Vec<_>>());
        }
        for column in 2..=7 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let _ = writeln!(text, "{table}");
    }
    for row in &results.probes {
        let _ = writeln!(text, "{}", probes_line(row));
    }
    text
}

/// One line of the terminal.
pub fn probes_line(row: &ProbesRow) -> String {
    format!(
        "  probes: {} targets every {} ms, {} of them hanging: {:.0} a second, {:.1} % of a CPU, {:.0} system calls a second, {} to {} probes of each in {} turns, off schedule by {:.1} ms (p50), {:.1} ms (p99), {:.1} ms at worst",
        row.targets,
        row.interval_ms,
        row.hanging,
        row.per_second,
        row.cpu_percent,
        row.syscalls_per_second,
        row.fewest,
        row.most,
        row.due,
        row.error_p50_ms,
        row.error_p99_ms,
        row.error_worst_ms
    )
}

/// The section of the page; nothing where nothing was measured.
pub fn section(text: &mut String, results: &FailoverResults) {
    if !results.rows.is_empty() {
        let (met, missed) = (count(results, true), count(results, false));
        let _ = write!(
            text,
            "\n## When a backend is lost\n\n{WHEN_LOST}\n![Connections that failed](performance/{PLOT})\n\n\
             {} of each{}. Load of the machine when it began: {:.1}; {} connections were slow or failed before there was \
             any fault.\n\nOf {} targets {met} are met.\n\n\
             | fault | balancer | failed | over 50 ms | worst ms | last bad s | back s | rescued | receipt | target | |\n\
             | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- | --- |\n",
            if results.trials == 1 { "One trial".to_owned() } else { format!("{} trials", results.trials) },
            results.date.as_ref().map_or_else(String::new, |date| format!(", {date}")),
            results.load,
            results.rows.iter().map(|row| row.noise).sum::<u32>(),
            met + missed
        );
        for row in &results.rows {
            let verdict = if row.met == Some(false) { "**missed**" } else { verdict(row.met) };
            let _ = writeln!(text, "| {} | {verdict} |", cells(row, "").join(" | "));
        }
    }
    if results.probes.is_empty() {
        return;
    }
    let _ = write!(
        text,
        "\n### What probes cost\n\n{PROBES}\n\
         | targets | of them hanging | every | probes a second | CPU of the agent | system calls a second | turns | probes \
         of a target | off schedule p50 | p99 | at worst |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    );
    for row in &results.probes {
        let _ = writeln!(
            text,
            "| {} | {} | {} ms | {:.0} | {:.1} % of one | {:.0} | {} | {} to {} | {:.1} ms | {:.1} ms | {:.1} ms |",
            row.targets,
            row.hanging,
            row.interval_ms,
            row.per_second,
            row.cpu_percent,
            row.syscalls_per_second,
            row.due,
            row.fewest,
            row.most,
            row.error_p50_ms,
            row.error_p99_ms,
            row.error_worst_ms
        );
    }
}

/// Connections that failed, by fault and balancer. A slow backend fails none: it is not in it.
pub fn plot(results: &FailoverResults) -> Option<(&'static str, String)> {
    let shown = |row: &&FailoverRow| row.fault != Fault::Slow.name();
    let bars: Vec<Bar> = results.rows.iter().filter(shown).map(bar).collect();
    let title = "Connections that failed when one of four backends was lost (200 a second)";
    (!bars.is_empty()).then(|| (PLOT, Plot { title, unit: "", reference: None, bars: &bars }.svg()))
}

fn bar(row: &FailoverRow) -> Bar {
    let ours = Peer::ALL.iter().any(|peer| peer.is_ours() && peer.name() == row.peer);
    Bar {
        label: format!("{}: {}", row.fault, row.peer),
        value: f64::from(row.failed),
        bound: None,
        kind: if ours { Kind::Ours } else { Kind::Other },
    }
}

fn cells(row: &FailoverRow, nothing: &str) -> Vec<String> {
    let seconds = |time: Option<f64>| time.map_or_else(|| nothing.to_owned(), |time| format!("{time:.2}"));
    let receipt = row.receipt.map_or("", |receipt| if receipt { "yes" } else { "no" });
    vec![
        row.fault.clone(),
        row.peer.clone(),
        row.failed.to_string(),
        row.slow_over_50ms.to_string(),
        format!("{:.1}", row.worst_ms),
        seconds(row.last_bad_s),
        row.back_s.map_or_else(|| "not seen".to_owned(), |time| format!("{time:.2}")),
        row.rescued.map_or_else(|| nothing.to_owned(), |rescued| rescued.to_string()),
        receipt.to_owned(),
        row.target.clone().unwrap_or_default(),
    ]
}

fn count(results: &FailoverResults, met: bool) -> usize {
    results.rows.iter().filter(|row| row.met == Some(met)).count()
}

const fn verdict(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "",
    }
}

const WHEN_LOST: &str = "\
200 new connections a second with one request each, from 16 addresses, to four backends (nginx) in turn;
one is lost after a second and repaired three seconds later. Client, balancer and backends in network
namespaces, the same world for all, each balancer and fault in turn, medians of the trials. *Failed*:
refused, reset, or not answered within a second, when the client gives up. *Last bad*: from the fault to the
beginning of the last connection that failed or was slow. *Back*: from the repair to the backend's first answer.

The faults: the *process* is *killed* (its kernel refuses); the *host* falls *silent* (takes nothing in); its *link* goes
*down*; its firewall drops what comes for the *port*; it is *slow*: it takes connections and answers each request after
300 ms.

The balancers: ours by its modes, with TCP checks every 100 ms (`fall = 2`, `rise = 2`). *haproxy*: `check inter 100ms fall 2
rise 2`, `timeout connect 2s`. *haproxy tuned*: `option redispatch 1`, `timeout connect 200ms`, `on-marked-down
shutdown-sessions`. *nginx*: its stream module as it comes. *nginx tuned*: `proxy_connect_timeout 200ms`. *nftables*: DNAT in
turn, without checks. Against *slow*, ours and haproxy ask by HTTP with a timeout of 100 ms, since no other question finds
that out; an nginx that is free cannot.

What a *slow* backend is answering when it is found out is reset by ours (`on-down` is `reset` unless it is said
otherwise; `keep` lets it end) and by haproxy's `shutdown-sessions`. With those that never find out, what is under way at the repair fails.

A connection that a server has taken when it is killed dies with it, whoever balances; that hits one in some runs.
With direct server return answers are not seen: what is lost before the checks find out is tried again by
the client's kernel after a second, when the client has given up.
";

const PROBES: &str = "\
The agent with backends that are checked by TCP ten times a second (a timeout of 80 ms, no jitter), those that hang
leave every SYN without an answer. Where the timeout is as long as the interval, a target that hangs misses every second
turn: probes of one target never overlap. *Probes of a target*: of the one that had fewest and of the one that had most,
in so many turns, where the time that is counted may begin or end within a turn's probes: with one less or more none was
left out. *Off schedule*: how far the time between two probes of a target is from the
interval, by the kernel's time stamps on the wire; over all targets.
";

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> FailoverResults {
        let row = |fault: Fault, peer: Peer, met| FailoverRow {
            peer: peer.name().to_owned(),
            fault: fault.name().to_owned(),
            failed: 7,
            met,
            ..FailoverRow::default()
        };
        FailoverResults {
            rows: vec![
                row(Fault::Silent, Peer::Nat, Some(false)),
                row(Fault::Silent, Peer::Nginx, None),
                row(Fault::Slow, Peer::Nginx, None),
            ],
            probes: vec![ProbesRow { targets: 1000, hanging: 500, ..ProbesRow::default() }],
            ..FailoverResults::default()
        }
    }

    #[test]
    fn page_and_terminal_have_every_row_and_what_was_missed() {
        let (mut page, terminal) = (String::new(), table(&results()));
        section(&mut page, &results());
        assert!(page.contains("Of 1 targets 0 are met") && page.contains("**missed**"), "{page}");
        assert!(page.contains(&format!("performance/{PLOT}")) && page.contains("| 1000 | 500 |"), "{page}");
        assert!(terminal.contains("MISSED") && terminal.contains("500 of them hanging"), "{terminal}");
    }

    #[test]
    fn the_plot_shows_whom_connections_failed_at() {
        let (_, svg) = plot(&results()).unwrap();
        assert!(svg.contains("host silent: nat") && svg.contains("host silent: nginx") && !svg.contains("slow"));
        assert_eq!(plot(&FailoverResults::default()), None);
    }

    #[test]
    fn nothing_stands_on_the_page_where_nothing_was_measured() {
        let mut page = String::new();
        section(&mut page, &FailoverResults::default());
        assert_eq!(page, "");
    }
}
