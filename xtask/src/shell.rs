//! Running other programs: found also in the sbin folders, errors with the command line and the
//! program's own words, root by sudo only where it is asked for.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Folders that an ordinary user's `PATH` often lacks.
const SYSTEM_FOLDERS: &[&str] = &["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The workspace's root folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

/// Where a program is, on the [`search_path`].
pub fn find(program: &str) -> Option<PathBuf> {
    let path = search_path();
    env::split_paths(&path).map(|folder| folder.join(program)).find(|candidate| is_executable(candidate))
}

/// `PATH`, cargo's bin folder, then the sbin folders.
pub fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(cargo_bin()).chain(SYSTEM_FOLDERS.iter().map(PathBuf::from));
    env::join_paths(folders).unwrap_or(path.clone())
}

/// A command for a program that [`find`] finds; otherwise the bare name, so that the error names it.
pub fn tool(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| program.into()))
}

/// The cargo that runs this, or the one in `PATH`, freed of what the running one has said of this package: build
/// scripts that look at such variables (ring's does) would run again, and all that follows from them, whenever
/// cargo is called with this program and without it in turn.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (key, _) in env::vars_os() {
        let is_of_package = |key: &str| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of| key.starts_with(of));
        if key.to_str().is_some_and(is_of_package) {
            command.env_remove(key);
        }
    }
    command.current_dir(root());
    command
}

/// A command of another rustup toolchain, freed of what the running one put into the environment.
pub fn rustup_run(toolchain: &str, program: &str) -> Command {
    let mut command = tool("rustup");
    command.args(["run", toolchain, program]);
    for key in ["RUSTC", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN", "CARGO", "RUSTFLAGS"] {
        command.env_remove(key);
    }
    command
}

/// Runs with this process's terminal.
///
/// # Errors
/// The program could not be started or ended with another status than 0.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs without input and returns what it wrote to standard output.
///
/// # Errors
/// The program could not be started or ended with another status than 0; what it wrote to standard
/// error is part of the error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` ended with {}: {}", line(command), output.status, words.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The command, by sudo when this is not root. Variables in `keep` reach it.
///
/// # Errors
/// Root is needed and there is no sudo.
pub fn as_root(program: impl AsRef<OsStr>, keep: &[(&str, &OsStr)]) -> Result<Command> {
    let program = program.as_ref();
    if is_root() {
        let mut command = Command::new(program);
        command.envs(keep.iter().copied());
        return Ok(command);
    }
    let Some(sudo) = find("sudo") else {
        bail!("`{}` needs root, and there is no sudo: run this again as root", program.display());
    };
    let mut command = Command::new(sudo);
    command.arg("env");
    for (key, value) in keep {
        let mut pair = OsString::from(key);
        pair.push("=");
        pair.push(value);
        command.arg(pair);
    }
    command.arg(program);
    Ok(command)
}

/// The command as one would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"))).map(|folder| folder.join("bin"))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_tells_its_own_words() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo no such luck >&2; exit 3"]);
        let error = output(&mut command).unwrap_err().to_string();
        assert!(error.contains("exit status: 3: no such luck"), "{error}");
    }

    #[test]
    fn a_program_that_is_nowhere_is_named_in_the_error() {
        assert_eq!(find("surely-not-a-program"), None);
        let error = output(&mut tool("surely-not-a-program")).unwrap_err().to_string();
        assert!(error.contains("surely-not-a-program"), "{error}");
    }
}
