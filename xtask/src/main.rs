use std::{ffi::OsString, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use xtask::{
    bench::{self, BenchArguments},
    build::{self, Profile},
    dist::{self, DistArguments},
    fuzz, interop, lint,
    run::{self, RunArguments},
    setup::{self, Level},
    suite,
    vm::{self, VmArguments},
    world::http,
};

/// What a developer or first user types, from set-up to tests
#[derive(Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find out what the machine has, install what building and running need, and say so
    Setup {
        /// Also what testing and linting need
        #[arg(long)]
        test: bool,
        /// Also what testing on other kernels needs
        #[arg(long)]
        vm: bool,
    },
    /// Build and run: in a small world of network namespaces, or on an interface
    Run(RunArguments),
    /// Run every test: on the host, in the kernel, end to end
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Run the tests that need the kernel on Debian's kernels, in virtual machines
    Vm(VmArguments),
    /// Measure: packets, what users see, failovers, and changes
    Bench(BenchArguments),
    /// Make a Debian package; `--try` installs, upgrades and removes it in a Debian of its own
    Dist(DistArguments),
    /// Check format, lints, licences, sources of dependencies and the tidiness of the tree
    Lint,
    /// Feed random packets to the parser
    Fuzz {
        /// How long
        #[arg(long = "for", value_name = "SECONDS", default_value = "60s", value_parser = run::seconds)]
        duration: Duration,
    },
    /// Tunnels into the kernel's own tunnel devices; `vm` runs it where there are such
    #[command(hide = true)]
    Interop,
    /// A small web server: stands in where nginx is not installed
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        name: String,
        #[arg(long)]
        port: u16,
        /// Connections that may wait to be accepted
        #[arg(long, default_value_t = 128)]
        backlog: i32,
        /// Milliseconds before each is
        #[arg(long, default_value_t = 0)]
        pause: u64,
    },
}

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let is_run = words.get(1).is_some_and(|word| word == "run");
    let cli = Cli::parse_from(if is_run { RunArguments::normalize(words.clone()) } else { words.clone() });
    let outcome = match cli.command {
        Task::Setup { vm: true, .. } => vm::setup().map(|()| ExitCode::SUCCESS),
        Task::Setup { test, .. } => {
            let level = if test { Level::Test } else { Level::Run };
            setup::setup(level, true).map(|_| ExitCode::SUCCESS)
        }
        Task::Run(arguments) => run::run(&arguments),
        Task::Test { filter } => suite::test(filter.as_deref()),
        Task::Vm(arguments) => vm::vm(&arguments),
        Task::Bench(arguments) => bench::bench(&arguments, words.get(2..).unwrap_or_default()),
        Task::Dist(arguments) => dist::dist(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Lint => lint::lint(),
        Task::Fuzz { duration } => fuzz::fuzz(duration),
        Task::Interop => build::lb(Profile::Dev).and_then(|lb| interop::interop(&lb)).map(|()| ExitCode::SUCCESS),
        Task::Serve { name, port, backlog, pause } => {
            let served = http::serve_slowly(&name, port, backlog, Duration::from_millis(pause));
            served.map(|()| ExitCode::SUCCESS).map_err(Into::into)
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
