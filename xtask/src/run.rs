//! `cargo xtask run`: builds, then runs the balancer on an interface of this machine, or in a small
//! world of its own.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build::{self, Profile},
    demo,
    setup::{self, Level},
    shell,
    world::config::Checks,
};

#[derive(Args, Debug)]
pub struct RunArguments {
    /// Attach to this interface of the machine instead of making a small world
    #[arg(long, value_name = "IF", requires = "config")]
    pub iface: Option<String>,
    /// The configuration, with --iface
    #[arg(long, value_name = "FILE", requires = "iface")]
    pub config: Option<PathBuf>,
    /// End the small world by itself after this time, such as 15s; exit 0 when everything was seen
    #[arg(long = "for", value_name = "TIME", value_parser = seconds, conflicts_with = "iface")]
    pub duration: Option<Duration>,
    /// How often the small world checks its backends; failovers take a few times as long
    #[arg(long, value_name = "TIME", value_parser = seconds, conflicts_with = "iface")]
    pub check_interval: Option<Duration>,
    /// Passed on to `lb run`, with --iface
    #[arg(last = true, value_name = "LB ARGUMENTS")]
    pub rest: Vec<OsString>,
}

impl RunArguments {
    /// Our own options are also taken after `--`: `run -- --iface eth0 --config lb.toml`, as cargo's
    /// own `cargo run -- ...` makes one write.
    pub fn normalize(words: Vec<OsString>) -> Vec<OsString> {
        let ours = ["--iface", "--config", "--for", "--check-interval"];
        let is_ours = |word: &OsString| {
            let word = word.to_string_lossy();
            ours.iter().any(|option| word == *option || word.starts_with(&format!("{option}=")))
        };
        let Some(position) = words.iter().position(|word| word == "--") else { return words };
        let (front, back) = words.split_at(position);
        let (mut front, mut rest) = (front.to_vec(), Vec::new());
        let mut back = back.iter().skip(1);
        while let Some(word) = back.next() {
            if is_ours(word) {
                front.push(word.clone());
                if !word.to_string_lossy().contains('=') {
                    front.extend(back.next().cloned());
                }
            } else {
                rest.push(word.clone());
            }
        }
        if !rest.is_empty() {
            front.push("--".into());
            front.append(&mut rest);
        }
        front
    }
}

/// Set-up and build as whoever types; sudo only for what then runs.
///
/// # Errors
/// Something is missing, does not build or does not run.
pub fn run(arguments: &RunArguments) -> Result<ExitCode> {
    if arguments.iface.is_none() && !arguments.rest.is_empty() {
        bail!("{:?} would go to `lb run`: that needs --iface IF --config FILE", arguments.rest);
    }
    if env::var_os(build::PROGRAM_VARIABLE).is_none() {
        setup::setup(Level::Run, false)?;
    }
    // The world is a matter of minutes from a fresh clone; what serves for real is worth the wait.
    let profile = if arguments.iface.is_some() { Profile::Release } else { Profile::Dev };
    let program = build::lb(profile)?;
    match (&arguments.iface, &arguments.config) {
        (Some(iface), Some(config)) => on_interface(&program, iface, config, &arguments.rest),
        _ if shell::is_root() => {
            let checks = arguments.check_interval.map_or(Checks::QUICK, |interval| Checks { interval });
            demo::demo(&program, arguments.duration, checks)
        }
        _ => demo_by_sudo(&program),
    }
}

/// Becomes `lb run`.
fn on_interface(program: &Path, iface: &str, config: &Path, rest: &[OsString]) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt as _;
    // cargo stays in the folder where it was typed, and the file is meant from there.
    let config = config.canonicalize().with_context(|| format!("configuration {}", config.display()))?;
    let kept: Vec<_> =
        ["LB_SOCKET", "LB_PIN_DIR", "LB_STATE_DIR"].iter().filter_map(|&key| Some((key, env::var_os(key)?))).collect();
    let kept: Vec<_> = kept.iter().map(|(key, value)| (*key, value.as_os_str())).collect();
    let mut command = shell::as_root(program, &kept)?;
    command.args(["run", "--iface", iface, "--config"]).arg(config).args(rest);
    Err(command.exec()).with_context(|| format!("cannot start `{}`", shell::line(&command)))
}

/// Only the world is made as root; everything has been built as the user by now.
fn demo_by_sudo(program: &Path) -> Result<ExitCode> {
    println!("network namespaces and XDP need root: asking sudo");
    let mut command = shell::as_root(env::current_exe()?, &[(build::PROGRAM_VARIABLE, program.as_os_str())])?;
    let status = command.args(env::args_os().skip(1)).status().context("cannot start sudo")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// `15s`, `2m`, `1h` or plain seconds.
///
/// # Errors
/// What is allowed.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(end) => text.split_at(end),
        None => (text, "s"),
    };
    let number: u64 = number.parse().map_err(|_| "a whole number with s, m or h, such as 15s".to_owned())?;
    let seconds = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let seconds = seconds.and_then(|unit: u64| number.checked_mul(unit));
    seconds.map(Duration::from_secs).ok_or_else(|| "a whole number with s, m or h, such as 15s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalized(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        RunArguments::normalize(words).iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn options_are_understood_on_both_sides_of_the_dashes() {
        assert_eq!(normalized("xtask run --iface eth0 --config f"), "xtask run --iface eth0 --config f");
        assert_eq!(normalized("xtask run -- --iface eth0 --config f"), "xtask run --iface eth0 --config f");
        assert_eq!(normalized("xtask run -- --for 15s"), "xtask run --for 15s");
        assert_eq!(normalized("xtask run -- --for=15s"), "xtask run --for=15s");
        assert_eq!(
            normalized("xtask run --iface a -- --config f --log debug"),
            "xtask run --iface a --config f -- --log debug"
        );
    }

    #[test]
    fn times_have_a_unit_or_are_seconds() {
        assert_eq!(seconds("15s"), Ok(Duration::from_secs(15)));
        assert_eq!(seconds("15"), Ok(Duration::from_secs(15)));
        assert_eq!(seconds("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "s", "1x", "-1s", "1.5s", "99999999999999999999h"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
