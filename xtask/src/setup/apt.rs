//! Packages by apt: never a question, never a started service, never a removed package.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::Report;
use crate::shell;

/// Asked by Debian's packages before they start a service; 101 means no.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Packages whose service must not listen on this machine, and its unit.
const SERVICES: &[(&str, &str)] = &[
    ("nginx-light", "nginx.service"),
    ("haproxy", "haproxy.service"),
    ("nftables", "nftables.service"),
    ("postgresql", "postgresql.service"),
    ("redis-server", "redis-server.service"),
];

pub(crate) struct Apt {
    updated: bool,
}

impl Apt {
    pub(crate) const fn new() -> Self {
        Self { updated: false }
    }

    pub(crate) fn is_here() -> bool {
        Path::new("/etc/debian_version").exists() && shell::find("apt-get").is_some()
    }

    /// Whether the package can be installed; looks at fresh lists before it says no.
    pub(crate) fn offers(&mut self, package: &str, report: &Report) -> Result<bool> {
        if !Self::is_here() {
            return Ok(false);
        }
        if Self::has_candidate(package)? {
            return Ok(true);
        }
        self.update(report)?;
        Self::has_candidate(package)
    }

    /// Whether the lists as they are offer the package.
    pub(crate) fn has_candidate(package: &str) -> Result<bool> {
        let policy = shell::output(shell::tool("apt-cache").env("LC_ALL", "C").args(["policy", package]))?;
        Ok(policy.lines().any(|line| line.trim().starts_with("Candidate:") && !line.contains("(none)")))
    }

    pub(crate) fn install(&mut self, packages: &[&str], report: &Report) -> Result<()> {
        self.update(report)?;
        report.doing(&format!("apt-get install {}", packages.join(" ")));
        let quiet = ServicesKeptDown::begin()?;
        let mut command = apt_get()?;
        command.args(["install", "--yes", "--quiet", "--quiet", "--no-remove", "--no-install-recommends"]);
        let installed = shell::output(command.args(packages)).map(drop);
        drop(quiet);
        for (package, unit) in SERVICES {
            if packages.contains(package) && Path::new("/run/systemd/system").exists() {
                shell::output(shell::as_root("systemctl", &[])?.args(["disable", "--quiet", "--now", unit]))?;
                report.note(&format!("{unit} stays off: only its program is needed"));
            }
        }
        installed
    }

    /// Fetches fresh package lists, once.
    pub(crate) fn update(&mut self, report: &Report) -> Result<()> {
        if !self.updated {
            report.doing("apt-get update");
            shell::output(apt_get()?.args(["update", "--quiet", "--quiet"]))?;
            self.updated = true;
        }
        Ok(())
    }
}

fn apt_get() -> Result<std::process::Command> {
    let mut command = shell::as_root("apt-get", &[("DEBIAN_FRONTEND", "noninteractive".as_ref())])?;
    command.args(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Options::=--force-confold", "-o", "Dpkg::Use-Pty=0"]);
    Ok(command)
}

/// While this lives, packages do not start their services. A policy that is there already stays.
struct ServicesKeptDown {
    ours: bool,
}

impl ServicesKeptDown {
    fn begin() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        let script = std::env::temp_dir().join(format!("policy-rc.d-{}", std::process::id()));
        fs::write(&script, "#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {}", script.display()))?;
        let copied = shell::as_root("install", &[])
            .and_then(|mut command| shell::output(command.args(["-m", "755"]).arg(&script).arg(POLICY)));
        let removed = fs::remove_file(&script);
        copied?;
        removed.with_context(|| format!("cannot remove {}", script.display()))?;
        Ok(Self { ours: true })
    }
}

impl Drop for ServicesKeptDown {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        let removed = shell::as_root("rm", &[]).and_then(|mut command| shell::output(command.args(["-f", POLICY])));
        if let Err(error) = removed {
            eprintln!("{POLICY} is left behind and keeps services from starting: remove it ({error:#})");
        }
    }
}
