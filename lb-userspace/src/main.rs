//! `lb`: the agent and the command line, one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_userspace::cli::main()
}
