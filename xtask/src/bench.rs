//! `cargo xtask bench`: builds the program that measures (`xtask/bench`, which needs the eBPF
//! toolchain and so is a package of its own) and runs it as root.

use std::{env, ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::{
    build::{self, Profile},
    setup::{self, Level},
    shell,
};

#[derive(Args, Clone, Debug, Default)]
pub struct BenchArguments {
    /// What to measure; all of it without a word
    #[arg(value_enum)]
    pub parts: Vec<Part>,
    /// About a minute instead of ten: fewer rows, fewer rounds
    #[arg(long)]
    pub quick: bool,
    /// Only rows with this text in their names, such as "full-nat" or "hit 1M"; of users, the balancer with
    /// this name
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Write the results to a file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Compare packets with an earlier run by their ratio to the floor; exit 1 where one is worse
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// What --compare calls worse: a ratio that has grown by more than this
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0)]
    pub threshold: f64,
    /// Measure nothing: write performance.md and its plots from the results in files, of which later ones
    /// take the place of earlier ones
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["parts", "quick", "filter", "json", "compare"])]
    pub report: Vec<PathBuf>,
    /// Where --report writes; docs without it
    #[arg(long, value_name = "FOLDER", requires = "report")]
    pub into: Option<PathBuf>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// In-kernel cost by packet, beside a floor and a textbook balancer
    Packets,
    /// The same as live frames through the driver
    Driver,
    /// Where the time of a packet goes, step by step
    Steps,
    /// What users see, beside no balancer, nftables, HAProxy and nginx
    Users,
    /// What clients notice when a backend is lost, beside nftables, HAProxy and nginx; and what probes cost
    Failover,
    /// What changes cost among 10,000 services, until the maps are right
    Control,
}

impl BenchArguments {
    pub fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }
}

/// Sets up, builds, and runs with the words that this was called with.
///
/// # Errors
/// Something is missing or does not build, or the program cannot be started.
pub fn bench(arguments: &BenchArguments, words: &[OsString]) -> Result<ExitCode> {
    // The agent's own time is measured with users and changes.
    let released = [Part::Users, Part::Control].into_iter().any(|part| arguments.wants(part));
    setup::setup(Level::Test, false)?;
    let lb = match (arguments.report.is_empty(), released, arguments.wants(Part::Failover)) {
        (true, true, _) => build::lb(Profile::Release)?.into(),
        (true, false, true) => build::lb(Profile::Dev)?.into(),
        _ => OsString::new(),
    };
    let artifacts = build::artifacts(&["build", "--package", "lb-bench", "--bin", "lb-bench"])?;
    let program = artifacts.into_iter().find(|artifact| artifact.name == "lb-bench" && artifact.kind == "bin");
    let program = program.context("cargo built lb-bench and did not say where it is")?.executable;
    let path = shell::search_path();
    let variables = [("HOME", env::var_os("HOME").unwrap_or_default()), ("PATH", path), (build::PROGRAM_VARIABLE, lb)];
    let keep: Vec<_> = variables.iter().map(|(key, value)| (*key, value.as_os_str())).collect();
    let mut command = shell::as_root(&program, &keep)?;
    let status = command.args(words).status().with_context(|| format!("cannot start {}", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
