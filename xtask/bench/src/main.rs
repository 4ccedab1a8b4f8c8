use std::process::ExitCode;

use clap::Parser;
use xtask::bench::BenchArguments;

/// Measures the balancer; `cargo xtask bench` builds and runs this
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    arguments: BenchArguments,
}

fn main() -> ExitCode {
    lb_bench::run::run(&Cli::parse().arguments).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
