//! Debian packages, unpacked beside the system: kernels and the machine that runs them. Nothing of
//! them is installed, and only fresh package lists need root.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    setup::{Apt, Report},
    shell,
};

/// What a program needs from the packages of the emulator and of the shell inside.
const MACHINE: &[&str] = &["qemu-system-x86", "busybox-static"];

/// A kernel on disk.
pub(super) struct KernelPackage {
    /// As `uname -r` says: `6.1.0-9-amd64`.
    pub(super) release: String,
    pub(super) image: PathBuf,
    /// With `kernel/` in it.
    pub(super) modules: PathBuf,
}

/// The emulator and the shell.
pub(super) struct Machine {
    root: PathBuf,
}

impl Machine {
    /// A command for the unpacked emulator; it finds its firmware by where it lies.
    pub(super) fn qemu(&self) -> std::process::Command {
        let mut command = std::process::Command::new(self.root.join("usr/bin/qemu-system-x86_64"));
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|folder| self.root.join(folder));
        command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).expect("no colon in target/"));
        command
    }

    pub(super) fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }
}

/// The newest kernel of a series, such as `6.1`, that apt offers.
///
/// # Errors
/// apt offers none or it cannot be fetched.
pub(super) fn kernel(series: &str, apt: &mut Apt, report: &mut Report) -> Result<KernelPackage> {
    require_debian()?;
    let package = match newest(series)? {
        Some(package) => package,
        None => {
            apt.update(report)?;
            newest(series)?.with_context(|| {
                format!("apt offers no package linux-image-{series}.*-amd64: name another series with --kernel")
            })?
        }
    };
    let release = package.strip_prefix("linux-image-").context("a kernel's package")?.to_owned();
    let root = unpacked(&release, std::slice::from_ref(&package), apt, report)?;
    let image = root.join("boot").join(format!("vmlinuz-{release}"));
    // Where /lib is a link to /usr/lib, packages have come to say so.
    let mut places = ["lib", "usr/lib"].iter().map(|lib| root.join(lib).join("modules").join(&release));
    let modules = places.find(|folder| folder.join("kernel").is_dir());
    let modules = modules.with_context(|| format!("{package} has no modules"))?;
    if !image.is_file() {
        bail!("{package} has no {}", image.display());
    }
    Ok(KernelPackage { release, image, modules })
}

/// The emulator with all that it needs and this system lacks.
///
/// # Errors
/// It cannot be fetched or does not start.
pub(super) fn machine(apt: &mut Apt, report: &mut Report) -> Result<Machine> {
    require_debian()?;
    let folder = cache().join("machine");
    let packages = if folder.is_dir() { Vec::new() } else { with_dependencies(apt, report)? };
    let machine = Machine { root: unpacked("machine", &packages, apt, report)? };
    shell::output(machine.qemu().arg("--version"))
        .with_context(|| format!("the emulator does not start; remove {} to have it fetched anew", folder.display()))?;
    Ok(machine)
}

/// Where all of this lies, and what was made from it.
pub(super) fn cache() -> PathBuf {
    shell::root().join("target/xtask/vm")
}

fn require_debian() -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the virtual machines run x86-64 kernels and the test programs of this machine: run this on x86-64");
    }
    if !Apt::is_here() || shell::find("dpkg-deb").is_none() {
        bail!("the kernels are Debian's packages, fetched with apt and dpkg-deb: run this on Debian");
    }
    Ok(())
}

/// `linux-image-<version>-amd64` of the series with the highest version.
fn newest(series: &str) -> Result<Option<String>> {
    let names = shell::output(shell::tool("apt-cache").args(["pkgnames", &format!("linux-image-{series}.")]))?;
    let mut names: Vec<_> = names.lines().filter(|name| is_plain_kernel(name)).collect();
    names.sort_by_key(|name| std::cmp::Reverse(numbers(name)));
    for name in names {
        if Apt::has_candidate(name)? {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

/// Neither `-rt` nor `-cloud`, neither `-unsigned` nor `-dbg`.
fn is_plain_kernel(package: &str) -> bool {
    let version = package.strip_prefix("linux-image-").and_then(|rest| rest.strip_suffix("-amd64"));
    version.is_some_and(|version| {
        let abi = version.split_once('-').map_or("0", |(_, abi)| abi);
        abi.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// All numbers in a name, in order: compares versions as people do.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// What apt would install for the machine, itself included.
fn with_dependencies(apt: &mut Apt, report: &Report) -> Result<Vec<String>> {
    apt.update(report)?;
    let mut command = shell::tool("apt-get");
    command.env("LC_ALL", "C").args(["install", "--simulate", "--reinstall", "--no-install-recommends"]);
    let plan = shell::output(command.args(MACHINE))?;
    let packages = plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    let packages: Vec<_> = packages.map(str::to_owned).collect();
    for wanted in MACHINE {
        if !packages.iter().any(|package| package == wanted) {
            bail!("apt would not install {wanted}; it says:\n{}", plan.trim());
        }
    }
    Ok(packages)
}

/// Downloads and unpacks packages into a folder of the cache, unless it is there.
fn unpacked(name: &str, packages: &[String], apt: &mut Apt, report: &mut Report) -> Result<PathBuf> {
    let root = cache().join(name);
    if root.is_dir() {
        report.had(name, &root.display().to_string());
        return Ok(root);
    }
    // Lists that are a little old name files that are gone.
    apt.update(report)?;
    report.doing(&format!("apt-get download for {name}: {}", packages.join(" ")));
    let part = cache().join(format!("{name}.part"));
    remove(&part)?;
    let downloads = part.join("packages");
    fs::create_dir_all(&downloads).with_context(|| format!("cannot make {}", downloads.display()))?;
    shell::output(shell::tool("apt-get").current_dir(&downloads).arg("download").args(packages))?;
    for package in fs::read_dir(&downloads)? {
        shell::output(shell::tool("dpkg-deb").arg("--extract").arg(package?.path()).arg(&part))?;
    }
    remove(&downloads)?;
    fs::rename(&part, &root).with_context(|| format!("cannot make {}", root.display()))?;
    report.installed(name, &format!("unpacked in {}, not installed", root.display()));
    Ok(root)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_builds_are_no_plain_kernels() {
        assert!(is_plain_kernel("linux-image-6.1.0-9-amd64"));
        assert!(is_plain_kernel("linux-image-6.12.9+deb12-amd64"));
        for other in [
            "linux-image-6.1.0-9-rt-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-9-amd64-unsigned",
            "linux-image-6.1.0-9-amd64-dbg",
        ] {
            assert!(!is_plain_kernel(other), "{other}");
        }
    }

    #[test]
    fn versions_compare_by_their_numbers() {
        assert!(numbers("linux-image-6.1.0-10-amd64") > numbers("linux-image-6.1.0-9-amd64"));
        assert!(numbers("linux-image-6.12.100+deb12-amd64") > numbers("linux-image-6.12.99+deb12-amd64"));
    }
}
