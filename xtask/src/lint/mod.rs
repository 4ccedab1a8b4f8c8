//! `cargo xtask lint`: format, lints of both sides, dependencies, tidiness. Runs all of them and
//! tells at the end which failed.

mod dependencies;
mod tidy;

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::{
    setup::{self, Level},
    shell,
};

/// # Errors
/// The set-up failed; findings are not errors but exit code 1.
pub fn lint() -> Result<ExitCode> {
    let toolchain = setup::setup(Level::Test, false)?;
    let steps: [(&str, &dyn Fn() -> Result<()>); 5] = [
        ("format", &format),
        ("lints of the host's side", &clippy_host),
        ("lints of the eBPF program", &|| clippy_ebpf(toolchain)),
        ("licences and sources of dependencies", &dependencies::check),
        ("tidiness", &tidy::check),
    ];
    let mut failed = Vec::new();
    for (name, step) in steps {
        println!("== {name}");
        if let Err(error) = step() {
            eprintln!("{error:#}");
            failed.push(name);
        }
    }
    if failed.is_empty() {
        println!("== all clean");
        return Ok(ExitCode::SUCCESS);
    }
    println!("== failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn format() -> Result<()> {
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))
}

fn clippy_host() -> Result<()> {
    let mut command = shell::cargo();
    command.args(["clippy", "--workspace", "--exclude", "lb-ebpf", "--all-targets", "--", "-D", "warnings"]);
    shell::run(&mut command)
}

/// With the compiler that builds the program; its clippy where it has one, else its own warnings.
fn clippy_ebpf(toolchain: setup::ebpf::Toolchain) -> Result<()> {
    let has_clippy = shell::output(&mut ebpf_cargo(toolchain, &["clippy", "--version"])).is_ok();
    let mut command = if has_clippy {
        ebpf_cargo(toolchain, &["clippy"])
    } else {
        println!("({} has no clippy: only the compiler's warnings)", toolchain.describe());
        ebpf_cargo(toolchain, &["check"])
    };
    command.args(["--package", "lb-ebpf", "--all-features", "--release", "--target", "bpfel-unknown-none"]);
    command.arg("--target-dir").arg(shell::root().join("target/lint-ebpf"));
    if toolchain == setup::ebpf::Toolchain::Nightly {
        command.args(["-Z", "build-std=core"]);
    }
    if has_clippy {
        command.args(["--", "-D", "warnings"]);
    }
    shell::run(&mut command)
}

fn ebpf_cargo(toolchain: setup::ebpf::Toolchain, arguments: &[&str]) -> Command {
    let mut command = shell::rustup_run(toolchain.name(), "cargo");
    command.current_dir(shell::root()).args(arguments);
    if toolchain == setup::ebpf::Toolchain::Debian {
        command.env("RUSTC_BOOTSTRAP", "aya_ebpf,lb,decap,probe,lb_bench");
    }
    let arch = std::env::consts::ARCH;
    let flags = [format!("--cfg=bpf_target_arch=\"{arch}\""), "-Cdebuginfo=2".into(), "-Dwarnings".into()];
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    command
}

/// Fails with everything that was found.
fn none_found(findings: &[String]) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{}", findings.join("\n"))
}
