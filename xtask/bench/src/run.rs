//! What is asked for, in order.

use std::{process::ExitCode, time::SystemTime};

use anyhow::{Result, ensure};
use xtask::{
    bench::{BenchArguments, Part},
    build::{self, Profile},
    shell,
};

use crate::{
    compare,
    control::{self, ControlEffort},
    failover::{self, FailoverEffort},
    packets::{self, DriverEffort, DriverRow, Effort, Row},
    report,
    result::{DriverResult, Machine, Results},
    table,
    users::{self, UserEffort},
};

/// # Errors
/// Something that was to be measured could not be.
pub fn run(arguments: &BenchArguments) -> Result<ExitCode> {
    if let Some((first, others)) = arguments.report.split_first() {
        let folder = arguments.into.clone().unwrap_or_else(|| shell::root().join("docs"));
        let mut results = Results::read(first)?;
        others.iter().try_for_each(|path| Results::read(path).map(|other| results.join(other)))?;
        report::report(&results, &folder)?;
        println!("written: {}", folder.join("performance.md").display());
        return Ok(ExitCode::SUCCESS);
    }
    // Before minutes are spent on measuring.
    let earlier = arguments.compare.as_deref().map(Results::read).transpose()?;
    let mut results = Results {
        machine: Machine::here(),
        date: rfc3339(SystemTime::now()),
        quick: arguments.quick,
        ..Results::default()
    };
    let measured = measure(arguments, &mut results);
    // What was measured before something failed is kept.
    if let Some(path) = &arguments.json {
        results.write(path)?;
        println!("written: {}", path.display());
    }
    measured?;
    let Some(earlier) = earlier else { return Ok(ExitCode::SUCCESS) };
    let comparison = compare::compare(&earlier, &results, arguments.threshold);
    ensure!(!comparison.changes.is_empty(), "the earlier run has none of the rows that were measured now");
    println!("{}", comparison.report());
    Ok(if comparison.is_worse() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn measure(arguments: &BenchArguments, results: &mut Results) -> Result<()> {
    if arguments.wants(Part::Packets) {
        packets(arguments, results)?;
    }
    if arguments.wants(Part::Steps) {
        println!("steps: where the time of a packet goes, nanoseconds without the harness");
        let effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
        let filter = arguments.filter.as_deref().unwrap_or_default();
        results.steps = packets::steps(effort, filter, &|step| println!("{}", table::step(step)))?;
    }
    if arguments.wants(Part::Driver) {
        driver(arguments, results)?;
    }
    if arguments.wants(Part::Users) {
        println!("users: the same load through each balancer in turn, all on one CPU");
        let effort = if arguments.quick { UserEffort::QUICK } else { UserEffort::FULL };
        let filter = arguments.filter.as_deref();
        let wanted = |name: &str| filter.is_none_or(|filter| name == filter || name == users::DIRECT);
        results.users = users::users(&build::lb(Profile::Release)?, effort, &wanted)?;
        println!("\n{}\n", table::users(&results.users));
    }
    if arguments.wants(Part::Failover) {
        failover(arguments, results)?;
    }
    if arguments.wants(Part::Control) {
        println!("control: changes among many services, until the maps are right");
        let effort = if arguments.quick { ControlEffort::QUICK } else { ControlEffort::FULL };
        let tell = |text: &str| println!("  {text}");
        results.control = control::control(effort, &build::lb(Profile::Release)?, &tell)?;
        println!("\n{}\n", table::control(&results.control));
        results.tables = control::tables(effort.changes);
        println!("{}\n", table::tables(&results.tables));
    }
    Ok(())
}

/// What `--filter` calls that part of the failovers.
const PROBES: &str = "probes";

fn failover(arguments: &BenchArguments, results: &mut Results) -> Result<()> {
    let effort = if arguments.quick { FailoverEffort::QUICK } else { FailoverEffort::FULL };
    println!("failover: {} trials of each fault, 200 new connections a second", effort.trials);
    let filter = arguments.filter.as_deref();
    if filter != Some(PROBES) {
        (results.failover.trials, results.failover.load) = (effort.trials, Machine::here().load);
        results.failover.rows = failover::failover(effort, filter, &|line| println!("{line}"))?;
    }
    if filter.is_none_or(|filter| filter == PROBES) {
        results.failover.probes = failover::probes(effort.probes)?;
    }
    println!("\n{}", failover::page::table(&results.failover));
    Ok(())
}

fn packets(arguments: &BenchArguments, results: &mut Results) -> Result<()> {
    let rows = wanted_rows(packets::rows(), arguments);
    ensure!(!rows.is_empty(), "no row has {:?} in its name", arguments.filter);
    println!("packets: {} rows, nanoseconds a packet without the harness", rows.len());
    let effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
    let measured = packets::measure(&rows, effort, &|row| println!("{}", table::line(row)))?;
    println!("\n{}", table::packets(&measured.rows));
    if let Some(size) = measured.program {
        let packets::ProgramSize { verified, xlated_bytes, jited_bytes } = size;
        println!(
            "\nprogram: {} instructions, {jited_bytes} bytes of machine code; the verifier walked {verified}",
            xlated_bytes / 8
        );
    }
    results.rows = measured.rows;
    results.program = measured.program;
    Ok(())
}

/// A filter that is a row's whole name means that row alone: `hit 1` is in `hit 1M` too.
fn wanted_rows(rows: Vec<Row>, arguments: &BenchArguments) -> Vec<Row> {
    let Some(filter) = &arguments.filter else {
        return rows.into_iter().filter(|row| row.quick || !arguments.quick).collect();
    };
    let exact = rows.iter().any(|row| row.name() == *filter);
    let wanted = |row: &Row| if exact { row.name() == *filter } else { row.name().contains(filter.as_str()) };
    rows.into_iter().filter(wanted).collect()
}

fn driver(arguments: &BenchArguments, results: &mut Results) -> Result<()> {
    let wanted = |row: &&DriverRow| {
        let name = format!("{} {} {}", row.0.name(), row.1.name(), row.2.name());
        arguments.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    };
    let rows: Vec<_> = packets::DRIVER_ROWS.iter().filter(wanted).copied().collect();
    println!("driver: {} rows beside their floors and the textbook balancer", rows.len());
    let effort = if arguments.quick { DriverEffort::QUICK } else { DriverEffort::FULL };
    let tell = |row: &DriverResult| println!("  {:<52} {:>7.1} ns  {:>6.2} Mpps", row.name, row.median_ns, row.mpps);
    results.driver = packets::driver(&rows, effort, &tell)?;
    println!("\n{}\n", table::driver(&results.driver));
    Ok(())
}

/// RFC 3339, UTC, by the proleptic Gregorian calendar (H. Hinnant, "chrono-compatible low-level date
/// algorithms").
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_whole_name_means_one_row_and_a_part_of_it_all_that_have_it() {
        let names = |filter: &str| {
            let arguments = BenchArguments { filter: Some(filter.to_owned()), ..BenchArguments::default() };
            wanted_rows(packets::rows(), &arguments).iter().map(Row::name).collect::<Vec<_>>()
        };
        assert_eq!(names("nat maglev tcp4 hit 1"), ["nat maglev tcp4 hit 1"]);
        assert_eq!(names("dsr-l2 maglev tcp4 hit 1M"), ["dsr-l2 maglev tcp4 hit 1M"]);
        assert!(names("dsr-l2 maglev tcp4 hit").len() == 3 && names("no such row").is_empty());
    }

    #[test]
    fn dates_are_right_at_the_ends_of_months_and_years() {
        let at = |seconds| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_798_761_599), "2026-12-31T23:59:59Z");
    }
}
