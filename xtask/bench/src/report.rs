//! `docs/performance.md` and its plots, from results: `cargo xtask bench --report FILE`.

use std::{fmt::Write as _, fs, io::ErrorKind, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    failover,
    plot::{Bar, Kind, Plot},
    result::{Results, RowResult},
};

/// Writes `performance.md` and `performance/*.svg` into a folder.
///
/// # Errors
/// A file cannot be written.
pub fn report(results: &Results, folder: &Path) -> Result<()> {
    let plots = folder.join("performance");
    fs::create_dir_all(&plots).with_context(|| format!("making {}", plots.display()))?;
    for (name, svg) in plots_of(results) {
        let path = plots.join(name);
        fs::write(&path, svg).with_context(|| format!("writing {}", path.display()))?;
    }
    let path = folder.join("performance.md");
    let text = markdown(results) + &written(&plots)?;
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

const WRITTEN: &str = "tried.md";
const RATIOS: &str = "ratios.svg";
const DRIVER: &str = "driver.svg";
const USERS: &str = "users.svg";

fn plots_of(results: &Results) -> Vec<(&'static str, String)> {
    let mut plots = Vec::new();
    let bars: Vec<Bar> = results.rows.iter().filter(|row| is_in_plot(row)).filter_map(ratio_bar).collect();
    if !bars.is_empty() {
        let title = "Cost of a packet, times the textbook balancer's (TCP over IPv4)";
        plots.push((RATIOS, Plot { title, unit: "x", reference: Some(1.0), bars: &bars }.svg()));
    }
    let bars: Vec<Bar> = results
        .driver
        .iter()
        .map(|row| bar(&row.name, row.median_ns, !row.name.starts_with("floor") && !row.name.starts_with("textbook")))
        .collect();
    if !bars.is_empty() {
        let title = "Through the driver, on one CPU";
        plots.push((DRIVER, Plot { title, unit: "ns", reference: None, bars: &bars }.svg()));
    }
    let bars: Vec<Bar> = results
        .users
        .iter()
        .filter(|row| row.load == CONNECTIONS && row.balancer != "direct")
        .map(|row| bar(&row.balancer, row.over_direct_us.max(0.0), is_ours(&row.balancer)))
        .collect();
    if !bars.is_empty() {
        let title = "Processor time of a new connection over having no balancer";
        plots.push((USERS, Plot { title, unit: "\u{b5}s", reference: None, bars: &bars }.svg()));
    }
    plots.extend(failover::page::plot(&results.failover));
    plots
}

/// The load that compares balancers best.
const CONNECTIONS: &str = "connections";

/// Ours go by the names of modes.
fn is_ours(balancer: &str) -> bool {
    lb_common::abi::Mode::ALL.iter().any(|mode| balancer == mode.name())
}

fn is_in_plot(row: &RowResult) -> bool {
    row.family.as_deref() == Some("ipv4") && row.protocol.as_deref() == Some("tcp")
}

fn ratio_bar(row: &RowResult) -> Option<Bar> {
    let bound = row.target.as_deref().and_then(|target| target.strip_prefix("<= ")?.strip_suffix(" x textbook"));
    let bound = bound.and_then(|ratio| ratio.parse().ok());
    Some(Bar { label: row.name.clone(), value: row.textbook_ratio?, bound, kind: Kind::Ours })
}

fn bar(label: &str, value: f64, ours: bool) -> Bar {
    Bar { label: label.to_owned(), value, bound: None, kind: if ours { Kind::Ours } else { Kind::Other } }
}

fn markdown(results: &Results) -> String {
    let mut text = String::from(INTRODUCTION);
    let machine = &results.machine;
    let _ = write!(
        text,
        "\n## The run\n\n{}, {} CPUs, Linux {}, {}{}. Load of the machine when it began: {:.1}.\n",
        machine.cpu,
        machine.cpus,
        machine.kernel,
        results.date,
        if results.quick { ", the quick selection" } else { "" },
        machine.load
    );
    if let Some(size) = results.program {
        let _ = write!(
            text,
            "\nThe program has {} instructions, {} bytes of machine code; the verifier walked {} instructions.\n",
            size.xlated_bytes / 8,
            size.jited_bytes,
            size.verified
        );
    }
    packets(&mut text, results);
    steps(&mut text, results);
    driver(&mut text, results);
    users(&mut text, results);
    failover::page::section(&mut text, &results.failover);
    control(&mut text, results);
    text
}

/// What a person has written for the page, in a file of its own beside the plots; it comes last.
fn written(folder: &Path) -> Result<String> {
    let path = folder.join(WRITTEN);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(format!("\n{}", text.trim_start())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn packets(text: &mut String, results: &Results) {
    if results.rows.is_empty() {
        return;
    }
    let (met, missed) = (count(results, true), count(results, false));
    let _ = write!(
        text,
        "\n## A packet in the kernel\n\n{PACKETS}\n![Ratios to the textbook balancer](performance/{RATIOS})\n\n\
         Of {} targets {met} are met.\n\n\
         | row | net ns | median | least | most | floor | textbook net | ratio | target | |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |\n",
        met + missed
    );
    for row in &results.rows {
        let optional = |value: Option<f64>, digits: usize| value.map_or_else(String::new, |v| format!("{v:.digits$}"));
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {} | {} | {} |",
            row.name,
            row.net_ns,
            row.median_ns,
            row.min_ns,
            row.max_ns,
            row.floor_ns,
            optional(row.textbook_net_ns, 1),
            optional(row.textbook_ratio, 2),
            row.target.as_deref().unwrap_or(""),
            verdict(row.met)
        );
    }
}

fn steps(text: &mut String, results: &Results) {
    for (number, way) in results.steps.chunk_by(|a, b| a.way == b.way).enumerate() {
        if number == 0 {
            let _ = write!(text, "\n## Where the time goes\n\n{WHERE_TIME_GOES}");
        }
        let _ = write!(
            text,
            "\n| {} | step ns | up to here | least |\n| --- | ---: | ---: | ---: |\n",
            way.first().map_or("", |step| &step.way)
        );
        for step in way {
            let _ =
                writeln!(text, "| {} | {:+.1} | {:.1} | {:.1} |", step.step, step.step_ns, step.net_ns, step.min_ns);
        }
    }
}

fn driver(text: &mut String, results: &Results) {
    if results.driver.is_empty() {
        return;
    }
    let _ = write!(
        text,
        "\n## Through the driver\n\n{THROUGH_DRIVER}\n![Through the driver](performance/{DRIVER})\n\n\
         | row | median ns | least | most | over the floor | Mpps | delivered |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    );
    for row in &results.driver {
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.1} | {:.1} | {:+.1} | {:.2} | {:.2} % |",
            row.name, row.median_ns, row.min_ns, row.max_ns, row.over_floor_ns, row.mpps, row.delivered_percent
        );
    }
}

fn users(text: &mut String, results: &Results) {
    if results.users.is_empty() {
        return;
    }
    let _ = write!(
        text,
        "\n## What users see\n\n{WHAT_USERS_SEE}\n![Processor time of a connection](performance/{USERS})\n\n\
         | balancer | load | per second | p50 \u{b5}s | p99 \u{b5}s | CPU \u{b5}s each | over direct | process | CPU s/GB | failed | target | |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |\n"
    );
    for row in &results.users {
        let optional = |value: Option<f64>, digits: usize| value.map_or_else(String::new, |v| format!("{v:.digits$}"));
        let _ = writeln!(
            text,
            "| {} | {} | {:.0} | {} | {} | {:.2} | {:+.2} | {} | {} | {} | {} | {} |",
            row.balancer,
            row.load,
            row.per_second,
            optional(row.p50_us, 0),
            optional(row.p99_us, 0),
            row.cpu_us,
            row.over_direct_us,
            optional(row.own_us, 2),
            optional(row.cpu_s_per_gb, 2),
            row.failed,
            row.target.as_deref().unwrap_or(""),
            verdict(row.met)
        );
    }
}

fn control(text: &mut String, results: &Results) {
    if results.control.is_empty() {
        return;
    }
    let _ = write!(
        text,
        "\n## What changes cost\n\n{WHAT_CHANGES_COST}\n\
         | change | median ms | least | most | CPU ms | system calls | memory MiB | target | |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |\n"
    );
    for row in &results.control {
        let _ = writeln!(
            text,
            "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {:.1} | {} | {} |",
            row.name,
            row.median_ms,
            row.min_ms,
            row.max_ms,
            row.cpu_ms,
            row.syscalls,
            row.memory_mib,
            row.target.as_deref().unwrap_or(""),
            verdict(row.met)
        );
    }
}

fn count(results: &Results, met: bool) -> usize {
    results.rows.iter().filter(|row| row.met == Some(met)).count()
}

const fn verdict(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "met",
        Some(false) => "**missed**",
        None => "",
    }
}

const INTRODUCTION: &str = "\
# Performance

Made by `cargo xtask bench --report FILE` from what `cargo xtask bench --json FILE` has measured; not
written by hand. `cargo xtask bench --compare FILE` tells what has changed since an earlier run.

How to read it: a time by itself says as much about the machine as about the balancer. What counts is
a ratio to something that was measured in the same moments. Each row is measured in rounds; in each
round every program has its turn, and the row shows the median of the rounds with the least and the
most. Where least and most are far apart, the machine had other things to do, which hits rows with many
flows most: they wait for memory that everybody shares.
";

const PACKETS: &str = "\
One CPU, frames of 96 bytes, no driver: BPF_PROG_TEST_RUN with a harness that restores the frame and
gives it the next flow's addresses and ports. *Net* is without the harness (an outer header that it has to
take back included). *Floor* is the least that a program of the kind does, with the harness: pass the
frame, turn it round, or put a constant header before it.

The *textbook balancer* is what everybody writes first and what well-known balancers do: the kernel's LRU
hash keyed by the 5-tuple, a Maglev table for new flows, IP in IP, counters per CPU; for `nat` and
`full-nat` its twin with an entry for each direction and incremental checksums. It uses this project's own
parser and headers, so the ratio compares designs. A dashed line marks its cost, an orange one the target.

*hit*: packets of so many established flows in turn, in random order. *new*: every packet begins a flow,
and the table is full. *flood*: SYNs from clients that were never seen. *reply*: packets from backends.
";

const WHERE_TIME_GOES: &str = "\
The data path with marks between its steps, loaded once for each of them with packets ending there; all of
these programs take their turns in the same rounds. A step costs what ending behind it takes longer than ending
before it, without the harness. A processor works on many steps at a time: one that waits for nothing
may cost next to nothing, one that everything waits for more than its instructions. *whole* is the product,
which has no marks: its difference to the step before is the price of the marks, and of what they keep the
compiler from moving.
";

const THROUGH_DRIVER: &str = "\
Live frames from a generator in the kernel go through veth into the program and back into a sink, all on
one CPU; the best 5 ms of a run, median of the runs. The figure has generator, driver and sink in it: look at
what is over the floor, a program that only turns frames round. On a network card all of them are
cheaper or dearer by the card; the difference stays.
";

const WHAT_USERS_SEE: &str = "\
Client, balancer and one backend (nginx) in network namespaces on one CPU, the same load through each
balancer in turn, each time between two runs without a balancer. *CPU each* is the processor time of all of
them together for one request or connection: with one CPU it hardly depends on what else the machine does, as
rates do. *Over direct* is what comes on top of the runs without a balancer just before and after: the
balancer's own part, with the wires that lead to its host. *Process*: of that, what its processes take.

*Kernel routes*: the balancer's host is on the way, and its kernel forwards. *Xdp redirect*: the same with a
program that does nothing but send every packet out of the other interface. It is the floor for what stands in
the way of both directions (`nat` and `full-nat`, the proxies too); the DSR modes see one direction only.
";

const WHAT_CHANGES_COST: &str = "\
A real agent with 10,000 services and 100,000 backends, and its maps; one service hashes 65,537 slots over 1,000
backends. The time ends when the maps are right: packets to every service that the change concerns find
just the backends that they should, read off the maps as the data path reads them. It begins with the
agent's start, SIGHUP, the request on the agent's socket, or the answer to the check that tells it.
*CPU* and *system calls* are all of the agent's meanwhile, also for checks and what it does every second anyway.
*Memory* is the agent's own; that of the maps comes on top.
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{DriverResult, UserResult};

    fn results() -> Results {
        let row = RowResult {
            name: "nat maglev tcp4 hit 1".to_owned(),
            family: Some("ipv4".to_owned()),
            protocol: Some("tcp".to_owned()),
            textbook_ratio: Some(0.5),
            target: Some("<= 1.00 x textbook".to_owned()),
            met: Some(true),
            ..RowResult::default()
        };
        let missed = RowResult { met: Some(false), name: "nat maglev tcp4 new".to_owned(), ..row.clone() };
        let user = UserResult { balancer: "full-nat".to_owned(), load: CONNECTIONS.to_owned(), ..Default::default() };
        Results {
            rows: vec![row, missed],
            driver: vec![DriverResult { name: "floor for nat".to_owned(), median_ns: 75.0, ..Default::default() }],
            users: vec![user],
            ..Results::default()
        }
    }

    #[test]
    fn the_page_has_every_row_and_links_only_to_plots_that_are_made() {
        let (text, plots) = (markdown(&results()), plots_of(&results()));
        assert!(text.contains("Of 2 targets 1 are met") && text.contains("**missed**"), "{text}");
        for (name, svg) in &plots {
            assert!(text.contains(&format!("performance/{name}")) && svg.contains("</svg>"), "{name}");
        }
        assert_eq!(text.matches("performance/").count(), plots.len());
    }

    #[test]
    fn the_target_is_drawn_into_the_plot() {
        let bar = ratio_bar(&results().rows[0]).unwrap();
        assert_eq!((bar.value, bar.bound), (0.5, Some(1.0)));
    }

    #[test]
    fn what_was_not_measured_is_not_on_the_page() {
        let text = markdown(&Results::default());
        assert!(!text.contains("performance/") && !text.contains("Through the driver"), "{text}");
    }

    #[test]
    fn all_files_are_written() {
        let folder = std::env::temp_dir().join(format!("lb-bench-report-{}", std::process::id()));
        fs::create_dir_all(folder.join("performance")).unwrap();
        fs::write(folder.join("performance/tried.md"), "## Tried\n\nBy hand.\n").unwrap();
        report(&results(), &folder).unwrap();
        let page = fs::read_to_string(folder.join("performance.md")).unwrap();
        assert!(page.ends_with("\n\n## Tried\n\nBy hand.\n"), "{page}");
        for name in ["performance.md", "performance/ratios.svg", "performance/driver.svg", "performance/users.svg"] {
            assert!(folder.join(name).is_file(), "{name}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
