//! What runs on every kernel.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::build::{self, Artifact, Profile};

/// Test programs of `lb-userspace` that need the kernel, and how many tests run at once: those that
/// measure time run alone, because under emulation there is none to spare.
const TESTS: &[(&str, u8)] = &[("golden", 2), ("kernel_dataplane", 2), ("host_namespaces", 1), ("agent_namespaces", 1)];

/// What tests go without, and say so, on kernels that do not have it: these kernels do.
const REQUIRED: [&str; 1] = ["LB_TEST_VLAN_DEVICES=yes"];

/// One program.
pub(super) struct Suite {
    pub(super) name: String,
    pub(super) program: PathBuf,
    /// Takes the names of tests.
    is_test: bool,
    /// Environment as `env` takes it, and further words for the program.
    variables: Vec<String>,
    arguments: Vec<String>,
    /// The program itself and what it starts.
    pub(super) files: Vec<PathBuf>,
}

impl Suite {
    /// The words to run it, tests whose name contains the filter only.
    pub(super) fn command(&self, filter: Option<&str>) -> Vec<String> {
        let mut words = vec!["/bin/busybox".to_owned(), "env".to_owned()];
        words.extend(self.variables.iter().cloned());
        words.push(self.program.display().to_string());
        words.extend(self.arguments.iter().cloned());
        if self.is_test {
            words.extend(filter.map(str::to_owned));
        }
        words
    }

    /// Whether its end counts by itself, since it does not count tests.
    pub(super) const fn is_one_test(&self) -> bool {
        !self.is_test
    }
}

/// Builds everything. Tasks of this program come last.
///
/// # Errors
/// It does not build.
pub(super) fn suites(filter: Option<&str>) -> Result<Vec<Suite>> {
    let lb = build::lb(Profile::Dev)?;
    let mut arguments = vec!["test", "--no-run", "--package", "lb-userspace"];
    arguments.extend(TESTS.iter().flat_map(|(test, _)| ["--test", test]));
    let built = build::artifacts(&arguments)?;
    let mut suites = Vec::new();
    for (name, threads) in TESTS {
        let is_it = |artifact: &&Artifact| artifact.is_test && artifact.name == *name;
        let test = built.iter().find(is_it).with_context(|| format!("cargo built no test {name}"))?;
        // Tests name the program by the path that cargo gave it.
        let started = built.iter().filter(|artifact| !artifact.is_test).map(|program| program.executable.clone());
        suites.push(Suite {
            name: (*name).to_owned(),
            program: test.executable.clone(),
            is_test: true,
            variables: REQUIRED.map(str::to_owned).into(),
            arguments: vec!["--show-output".to_owned(), format!("--test-threads={threads}")],
            files: started.chain([test.executable.clone()]).collect(),
        });
    }
    for (name, arguments) in PROGRAMS {
        if filter.is_none_or(|filter| name.contains(filter)) {
            suites.push(program(name, arguments, lb.clone())?);
        }
    }
    Ok(suites)
}

/// Tasks of this program that are one test each: the small world of `cargo xtask run`, and tunnels
/// into the kernel's own devices.
const PROGRAMS: &[(&str, &[&str])] =
    &[("world_with_a_failover", &["run", "--for", "15s"]), ("tunnel_devices", &["interop"])];

fn program(name: &str, arguments: &[&str], lb: PathBuf) -> Result<Suite> {
    let xtask = std::env::current_exe().context("where this program is")?;
    Ok(Suite {
        name: name.to_owned(),
        program: xtask.clone(),
        is_test: false,
        variables: vec![format!("{}={}", build::PROGRAM_VARIABLE, lb.display())],
        arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
        files: vec![xtask, lb],
    })
}
