//! `cargo xtask vm`: the tests that need the kernel, on Debian's kernels in virtual machines. They
//! are emulated, so that this runs wherever its programs do; root is not needed.

mod cpio;
mod emulator;
mod image;
mod modules;
mod packages;
mod results;
mod suites;

use std::{
    panic::resume_unwind,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;

use self::{
    emulator::{Emulator, End},
    packages::{KernelPackage, Machine},
    results::Results,
    suites::{Choice, Suite},
};
use crate::{
    setup::{self, Apt, Level, Report},
    world::process::tail,
};

/// The oldest that is promised, and the newest that Debian 12 has.
const KERNELS: [&str; 2] = ["6.1", "6.12"];
/// For one kernel; it takes about a fifth of this when nothing else runs.
const PATIENCE: Duration = Duration::from_secs(1800);

#[derive(Args, Debug)]
pub struct VmArguments {
    /// A series of which apt offers the newest, such as 6.1; again for more. Without it: 6.1 and 6.12
    #[arg(long = "kernel", value_name = "SERIES", value_parser = series)]
    pub kernels: Vec<String>,
    /// Only this suite; again for more. Without it: all that there are
    #[arg(long = "suite", value_name = "NAME")]
    pub suites: Vec<String>,
    /// Also the tests that take long under emulation
    #[arg(long)]
    pub all: bool,
    /// Only tests whose name contains this
    pub filter: Option<String>,
}

/// Brings what [`vm`] needs and says so.
///
/// # Errors
/// Something is missing and cannot be fetched from here.
pub fn setup() -> Result<()> {
    setup::setup(Level::Vm, true)?;
    let kernels: Vec<_> = KERNELS.map(str::to_owned).into();
    fetch(&kernels, &mut Report::new(true)).map(drop)
}

/// Runs the tests on every kernel; the exit code says whether all passed on all.
///
/// # Errors
/// Something is missing, cannot be fetched or does not build.
pub fn vm(arguments: &VmArguments) -> Result<ExitCode> {
    let begun = Instant::now();
    setup::setup(Level::Vm, false)?;
    let default = KERNELS.map(str::to_owned);
    let series = if arguments.kernels.is_empty() { &default[..] } else { &arguments.kernels };
    let (machine, kernels) = fetch(series, &mut Report::new(false))?;
    let VmArguments { suites, all, filter, .. } = arguments;
    let suites = suites::suites(&Choice { suites, filter: filter.as_deref(), all: *all })?;
    let all = run_at_once(&machine, &kernels, &suites)?;
    println!();
    for results in &all {
        print!("{}", results.tell());
    }
    println!("took {} s", begun.elapsed().as_secs());
    Ok(if all.iter().all(Results::are_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn fetch(series: &[String], report: &mut Report) -> Result<(Machine, Vec<KernelPackage>)> {
    let mut apt = Apt::new();
    let machine = packages::machine(&mut apt, report)?;
    let kernels = series.iter().map(|series| packages::kernel(series, &mut apt, report)).collect::<Result<_>>()?;
    Ok((machine, kernels))
}

/// Every kernel at the same time: each machine has work for about one processor.
fn run_at_once(machine: &Machine, kernels: &[KernelPackage], suites: &[Suite]) -> Result<Vec<Results>> {
    let mut images = Vec::new();
    for kernel in kernels {
        images.push(image::build(&kernel.release, machine, &modules::modules(kernel)?, suites)?);
    }
    thread::scope(|scope| {
        let kernels = kernels.iter().zip(&images);
        let start = kernels.map(|(kernel, image)| scope.spawn(move || run(machine, kernel, image, suites)));
        let running: Vec<_> = start.collect();
        let joined = running.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.collect()
    })
}

fn run(machine: &Machine, kernel: &KernelPackage, image: &Path, suites: &[Suite]) -> Result<Results> {
    let console = image.with_extension("console.log");
    println!("\n     Booting Linux {} (its console: {})", kernel.release, console.display());
    let mut results = Results::new(suites);
    let emulator = Emulator::start(machine, kernel, image, console, PATIENCE)?;
    let end = loop {
        match emulator.line() {
            Ok(line) => {
                println!("{} | {line}", kernel.release);
                results.read(&line);
                results.cost = emulator.processor_time().unwrap_or(results.cost);
            }
            Err(end) => break end,
        }
    };
    if end == End::TooLate {
        results.trouble = Some(format!("it did not end within {} s", PATIENCE.as_secs()));
    }
    if !results.are_good() {
        println!("the console of Linux {} ends:\n{}", kernel.release, tail(&emulator.console, 40));
    }
    Ok(results)
}

/// `6.1`: two numbers.
fn series(text: &str) -> Result<String, String> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    match text.split_once('.') {
        Some((major, minor)) if is_number(major) && is_number(minor) => Ok(text.to_owned()),
        _ => Err("two numbers, such as 6.1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_two_numbers() {
        assert_eq!(series("6.12"), Ok("6.12".to_owned()));
        for wrong in ["6", "6.", "6.1.2", "v6.1", ""] {
            assert!(series(wrong).is_err(), "{wrong}");
        }
    }
}
