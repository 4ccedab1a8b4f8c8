//! `cargo xtask test`: every test of the workspace. All is built as whoever types; tests that need
//! the kernel or namespaces run as root, by sudo where that is needed.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, Artifact, Profile},
    setup::{self, Level},
    shell,
};

/// Test files with one of these in their names need root.
const ROOT_TESTS: &[&str] = &["kernel", "golden", "e2e", "namespaces"];

/// Runs all tests whose name contains the filter; the exit code says whether all passed.
///
/// # Errors
/// Something is missing or does not build.
pub fn test(filter: Option<&str>) -> Result<ExitCode> {
    let begun = Instant::now();
    setup::setup(Level::Test, false)?;
    if !shell::is_root() && shell::find("sudo").is_none() {
        bail!("tests in the kernel and in namespaces need root, and there is no sudo: run this as root");
    }
    let lb = build::lb(Profile::Dev)?;
    let all = build::artifacts(&["test", "--no-run", "--workspace", "--exclude", "lb-ebpf"])?;
    // The packages' own programs, which their tests use, are in the list as well.
    let mut programs: Vec<_> = all.into_iter().filter(|artifact| artifact.is_test).collect();
    programs.sort_by_key(|program| (needs_root(program), program.manifest.clone(), program.name.clone()));
    if programs.is_empty() {
        bail!("cargo built no tests");
    }
    let mut sum = Sum::default();
    for program in &programs {
        let (counted, good) = run_program(program, &lb, filter)?;
        sum.add(&counted);
        if !good {
            sum.broken.push(title(program));
        }
    }
    let (counted, good) = doc_tests(filter)?;
    sum.add(&counted);
    if !good {
        sum.broken.push("documentation tests".to_owned());
    }
    Ok(sum.conclude(begun.elapsed()))
}

/// What `test result:` lines add up to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    /// Programs that ended with another status than 0.
    pub(crate) broken: Vec<String>,
}

impl Sum {
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Takes in one line of a test program.
    pub(crate) fn read(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        for part in result.split(['.', ';']).map(str::trim) {
            let Some((number, word)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    fn conclude(&self, took: Duration) -> ExitCode {
        println!();
        for program in &self.broken {
            println!("failed: {program}");
        }
        if self.ignored > 0 {
            println!("{} ignored", self.ignored);
        }
        println!("took {} s", took.as_secs());
        // A program that dies counts as a failure even where it could not say which test it was.
        let failed = self.failed.max(self.broken.len() as u64);
        println!("{} passed, {failed} failed", self.passed);
        if failed == 0 && self.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn needs_root(program: &Artifact) -> bool {
    program.kind == "test" && ROOT_TESTS.iter().any(|part| program.name.contains(part))
}

fn title(program: &Artifact) -> String {
    let root = shell::root();
    program.source.strip_prefix(&root).unwrap_or(&program.source).display().to_string()
}

fn run_program(program: &Artifact, lb: &Path, filter: Option<&str>) -> Result<(Sum, bool)> {
    let folder = program.manifest.parent().context("a manifest lies in a folder")?;
    let ci = env::var_os("CI").unwrap_or_default();
    let home = env::var_os("HOME").unwrap_or_default();
    let path = shell::search_path();
    let variables: &[(&str, &OsStr)] = &[
        (build::PROGRAM_VARIABLE, lb.as_os_str()),
        ("CARGO_MANIFEST_DIR", folder.as_os_str()),
        ("CI", &ci),
        ("HOME", &home),
        ("PATH", &path),
        ("RUST_BACKTRACE", "1".as_ref()),
        ("INSTA_UPDATE", "no".as_ref()),
    ];
    let mut command = if needs_root(program) {
        shell::as_root(&program.executable, variables)?
    } else {
        let mut command = Command::new(&program.executable);
        command.envs(variables.iter().copied());
        command
    };
    command.current_dir(folder).args(filter);
    println!("\n     Running {} ({})", title(program), program.executable.display());
    counted(&mut command)
}

fn doc_tests(filter: Option<&str>) -> Result<(Sum, bool)> {
    let mut command = shell::cargo();
    command.args(["test", "--doc", "--quiet", "--workspace", "--exclude", "lb-ebpf"]);
    if let Some(filter) = filter {
        command.args(["--", filter]);
    }
    println!("\n     Running documentation tests");
    counted(&mut command)
}

/// Runs a program, passes on what it prints, and counts the results in it.
fn counted(command: &mut Command) -> Result<(Sum, bool)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shell::line(command)))?;
    let mut sum = Sum::default();
    let mut reader = BufReader::new(child.stdout.take().context("stdout is piped")?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        std::io::stdout().write_all(&line)?;
        sum.read(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    Ok((sum, child.wait()?.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_add_up() {
        let mut sum = Sum::default();
        sum.read("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s");
        sum.read("test a ... ok");
        sum.read("test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s");
        assert_eq!((sum.passed, sum.failed, sum.ignored), (14, 3, 1));
    }

    #[test]
    fn a_program_that_died_without_a_result_is_a_failure() {
        let sum = Sum { passed: 5, broken: vec!["x".to_owned()], ..Sum::default() };
        assert_eq!(format!("{:?}", sum.conclude(Duration::ZERO)), format!("{:?}", ExitCode::FAILURE));
    }

    #[test]
    fn no_test_at_all_is_not_a_success() {
        let code = Sum::default().conclude(Duration::ZERO);
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::FAILURE));
    }
}
