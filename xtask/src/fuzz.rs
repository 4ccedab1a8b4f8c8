//! `cargo xtask fuzz`: random packets into the parser, into `lb decap` and through the whole data path, with
//! cargo-fuzz.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::shell;

const FOLDER: &str = "lb-common/fuzz";

/// Runs every fuzz target, each for an equal part of the time.
///
/// # Errors
/// A tool is missing, or a target found an input that breaks an invariant.
pub fn fuzz(duration: Duration) -> Result<ExitCode> {
    if shell::output(shell::rustup_run("nightly", "rustc").arg("-V")).is_err() {
        bail!("fuzzing needs nightly Rust: `rustup toolchain install nightly --profile minimal`");
    }
    if shell::find("cargo-fuzz").is_none() {
        bail!("fuzzing needs cargo-fuzz: `cargo install cargo-fuzz --locked`");
    }
    let cargo_fuzz = |arguments: &[&str]| {
        let mut command = shell::rustup_run("nightly", "cargo");
        command.current_dir(shell::root().join("lb-common")).arg("fuzz").args(arguments);
        command
    };
    let list = shell::output(&mut cargo_fuzz(&["list"])).with_context(|| format!("listing the targets of {FOLDER}"))?;
    let targets: Vec<_> = list.lines().map(str::trim).filter(|target| !target.is_empty()).collect();
    if targets.is_empty() {
        bail!("{FOLDER} has no fuzz targets");
    }
    let each = (duration.as_secs() / targets.len() as u64).max(1);
    for target in &targets {
        println!("== {target} for {each} s");
        shell::run(&mut cargo_fuzz(&["run", target, "--", &format!("-max_total_time={each}")]))?;
    }
    println!("{} targets, {each} s each: nothing found", targets.len());
    Ok(ExitCode::SUCCESS)
}
