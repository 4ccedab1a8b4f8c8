//! Building the product.

use std::{path::PathBuf, process::Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::shell;

/// Names the `lb` program that was already built, for whatever runs it.
pub const PROGRAM_VARIABLE: &str = "LB_BIN";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

/// Builds `lb` with the eBPF program in it, or takes the one that [`PROGRAM_VARIABLE`] names.
///
/// # Errors
/// It does not build.
pub fn lb(profile: Profile) -> Result<PathBuf> {
    if let Some(built) = std::env::var_os(PROGRAM_VARIABLE).filter(|path| !path.is_empty()) {
        return PathBuf::from(&built).canonicalize().with_context(|| format!("{PROGRAM_VARIABLE}={}", built.display()));
    }
    let mut arguments = vec!["build", "--package", "lb-userspace", "--bin", "lb"];
    if profile == Profile::Release {
        arguments.push("--release");
    }
    let artifacts = artifacts(&arguments)?;
    let lb =
        artifacts.into_iter().find(|artifact| artifact.name == "lb" && artifact.kind == "bin" && !artifact.is_test);
    Ok(lb.context("cargo built lb and did not say where it is")?.executable)
}

/// An executable that cargo made.
pub struct Artifact {
    pub name: String,
    /// `bin`, `test`, or `lib` for the unit tests of a library.
    pub kind: String,
    pub executable: PathBuf,
    /// The package's `Cargo.toml`.
    pub manifest: PathBuf,
    /// Its entry point.
    pub source: PathBuf,
    /// Built as a test program.
    pub is_test: bool,
}

/// Runs cargo and collects the executables it made; its words go to the terminal.
///
/// # Errors
/// cargo failed.
pub fn artifacts(arguments: &[&str]) -> Result<Vec<Artifact>> {
    let mut command = shell::cargo();
    command.args(arguments).arg("--message-format=json-render-diagnostics");
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("`{}` ended with {}", shell::line(&command), output.status);
    }
    let text = String::from_utf8(output.stdout).context("cargo's messages")?;
    Ok(text.lines().filter_map(|line| artifact(&serde_json::from_str(line).ok()?)).collect())
}

fn artifact(message: &Value) -> Option<Artifact> {
    let target = &message["target"];
    Some(Artifact {
        executable: message["executable"].as_str()?.into(),
        name: target["name"].as_str()?.to_owned(),
        kind: target["kind"][0].as_str()?.to_owned(),
        manifest: message["manifest_path"].as_str()?.into(),
        source: target["src_path"].as_str()?.into(),
        is_test: message["profile"]["test"].as_bool()?,
    })
}
