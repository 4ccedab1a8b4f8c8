//! What runs on every kernel.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::build::{self, Artifact, Profile};

/// Test programs of `lb-userspace` that need the kernel.
const TESTS: &[Tests] = &[
    Tests { name: "kernel_dataplane", threads: 2, core: &["verifier::", "native_and_generic", "a_new_agent_replaces"] },
    Tests { name: "golden", threads: 2, core: GOLDEN },
    Tests { name: "host_namespaces", threads: 1, core: &[] },
    Tests { name: "probe_ways", threads: 1, core: &[] },
    Tests {
        name: "agent_namespaces",
        threads: 1,
        core: &["traffic_outlives", "vlan::", "routes::", "sctp::", "direct::the_programs"],
    },
];

/// Of the golden packets those that ask most of a kernel: its helpers that move ends of frames, sum them up and
/// know routes, frames in several buffers, and maps that forget. What the program decides is the same everywhere.
const GOLDEN: &[&str] =
    &["decap::", "dsr::", "forward::", "fragment::", "icmp::", "jumbo::", "mss::", "quic::", "tunnel::", "vlan::"];

/// One of them.
struct Tests {
    name: &'static str,
    /// How many run at once: those that measure time run alone, because under emulation there is none to
    /// spare.
    threads: u8,
    /// What runs unless all is asked for: tests whose names contain one of these; none: all of them. Under
    /// emulation the verifier takes a quarter of a minute for the program, and most of the others load it anew.
    core: &'static [&'static str],
}

/// What is left out unless all is asked for: what takes minutes under emulation and tells of no kernel.
const LONG: [&str; 1] = ["a_flood_of_syns"];

/// What tests go without, and say so, on kernels that do not have it: these kernels do. And how many connections
/// the largest test makes: a packet takes ten times as long here.
const VARIABLES: [&str; 3] = ["LB_TEST_VLAN_DEVICES=yes", "LB_TEST_SCTP=yes", "LB_TEST_CONNECTIONS=250000"];

/// What of the suites is to run.
pub(super) struct Choice<'a> {
    /// Names of suites; none: all of them.
    pub(super) suites: &'a [String],
    /// Only tests whose names contain this.
    pub(super) filter: Option<&'a str>,
    /// Without it, and without a filter: the core of each.
    pub(super) all: bool,
}

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
    /// The words to run it.
    pub(super) fn command(&self) -> Vec<String> {
        let mut words = vec!["/bin/busybox".to_owned(), "env".to_owned()];
        words.extend(self.variables.iter().cloned());
        words.push(self.program.display().to_string());
        words.extend(self.arguments.iter().cloned());
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
/// It does not build, or a suite is not known.
pub(super) fn suites(choice: &Choice<'_>) -> Result<Vec<Suite>> {
    let names = || TESTS.iter().map(|tests| tests.name).chain(PROGRAMS.iter().map(|(name, _)| *name));
    if let Some(unknown) = choice.suites.iter().find(|suite| names().all(|name| name != **suite)) {
        bail!("there is no suite {unknown}: name one of {}", names().collect::<Vec<_>>().join(", "));
    }
    let chosen = |name: &str| choice.suites.is_empty() || choice.suites.iter().any(|suite| suite == name);
    let lb = build::lb(Profile::Dev)?;
    let mut arguments = vec!["test", "--no-run", "--package", "lb-userspace"];
    arguments.extend(TESTS.iter().flat_map(|tests| ["--test", tests.name]));
    let built = build::artifacts(&arguments)?;
    let mut suites = Vec::new();
    for tests in TESTS.iter().filter(|tests| chosen(tests.name)) {
        let is_it = |artifact: &&Artifact| artifact.is_test && artifact.name == tests.name;
        let test = built.iter().find(is_it).with_context(|| format!("cargo built no test {}", tests.name))?;
        // Tests name the program by the path that cargo gave it.
        let started = built.iter().filter(|artifact| !artifact.is_test).map(|program| program.executable.clone());
        suites.push(Suite {
            name: tests.name.to_owned(),
            program: test.executable.clone(),
            is_test: true,
            variables: VARIABLES.map(str::to_owned).into(),
            arguments: tests.arguments(choice),
            files: started.chain([test.executable.clone()]).collect(),
        });
    }
    for (name, arguments) in PROGRAMS.iter().filter(|(name, _)| chosen(name)) {
        if choice.filter.is_none_or(|filter| name.contains(filter)) {
            suites.push(program(name, arguments, lb.clone())?);
        }
    }
    Ok(suites)
}

impl Tests {
    /// What the test program is told.
    fn arguments(&self, choice: &Choice<'_>) -> Vec<String> {
        let mut words = vec!["--show-output".to_owned(), format!("--test-threads={}", self.threads)];
        match choice.filter {
            Some(filter) => words.push(filter.to_owned()),
            None if choice.all => {}
            None => {
                words.extend(self.core.iter().map(|name| (*name).to_owned()));
                words.extend(LONG.iter().flat_map(|name| ["--skip".to_owned(), (*name).to_owned()]));
            }
        }
        words
    }
}

/// Tasks of this program that are one test each: the small world of `cargo xtask run`, with checks that leave an
/// emulated machine time to start a process, and tunnels into the kernel's own devices.
const PROGRAMS: &[(&str, &[&str])] =
    &[("world_with_a_failover", &["run", "--for", "36s", "--check-interval", "1s"]), ("tunnel_devices", &["interop"])];

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
