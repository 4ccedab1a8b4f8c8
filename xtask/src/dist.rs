//! `cargo xtask dist`: a Debian package, and whether it installs, upgrades and goes away cleanly.

mod booted;
mod image;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::{
    build::{self, Profile},
    shell,
};

#[derive(Args)]
pub struct DistArguments {
    /// Build without optimisation
    #[arg(long)]
    dev: bool,
    /// Then install, upgrade and remove it in a fresh Debian below target/ (needs root and debootstrap)
    #[arg(long = "try")]
    tried: bool,
    /// Then boot a fresh Debian with it in a container, and try the unit under systemd (needs root, debootstrap
    /// and systemd-nspawn)
    #[arg(long = "boot")]
    booted: bool,
    /// Then build the image of deploy/Containerfile upon a fresh Debian (needs root, debootstrap and buildah)
    #[arg(long = "image")]
    image: bool,
}

/// Name of the package, of its program and of its user.
const NAME: &str = "lb";
/// Of packages that are given away, and of those to try.
const SMALL: &[&str] = &["-Zxz"];
const QUICK: &[&str] = &["-Zgzip", "-z1"];
/// Completions: shell, folder, file.
const SHELLS: &[(&str, &str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions", "lb"),
    ("zsh", "usr/share/zsh/vendor-completions", "_lb"),
    ("fish", "usr/share/fish/vendor_completions.d", "lb.fish"),
];

/// Makes the package; with `--try` also a Debian to try it in.
///
/// # Errors
/// It does not build, or does not do what a package should.
pub fn dist(arguments: &DistArguments) -> Result<()> {
    let lb = build::lb(if arguments.dev { Profile::Dev } else { Profile::Release })?;
    let folder = shell::root().join("target/dist");
    fs::create_dir_all(&folder)?;
    let compression = if arguments.dev { QUICK } else { SMALL };
    let package = package(&lb, &folder, env!("CARGO_PKG_VERSION"), compression)?;
    fs::copy(&package, folder.join("lb.deb")).context("the copy for deploy/Containerfile")?;
    println!("{}", package.display());
    if arguments.tried || arguments.booted || arguments.image {
        let first = fs::read(&package)?;
        ensure!(
            first == fs::read(self::package(&lb, &folder, env!("CARGO_PKG_VERSION"), compression)?)?,
            "the same program made two packages"
        );
        let next = self::package(&lb, &folder, concat!(env!("CARGO_PKG_VERSION"), "+next"), QUICK)?;
        ensure!(rustix::process::geteuid().is_root(), "trying a package needs root: sudo -E cargo xtask dist --try");
        if arguments.tried {
            try_out(&folder, &package, &next)?;
        }
        if arguments.booted {
            boot(&folder, &package, &next)?;
        }
        if arguments.image {
            let chroot = chroot(&folder, "image", "adduser", &package, &next)?;
            println!("{}", image::image(&chroot.0, &folder)?.display());
        }
    }
    Ok(())
}

fn package(lb: &Path, folder: &Path, version: &str, compression: &[&str]) -> Result<PathBuf> {
    let tree = folder.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    let root = shell::root();
    install(lb, &tree.join("usr/bin/lb"), 0o755)?;
    // Names of functions for a look at a crash need the build's own copy.
    drop(Command::new("strip").arg("--strip-debug").arg(tree.join("usr/bin/lb")).status());
    install(&root.join("deploy/lb.service"), &tree.join("usr/lib/systemd/system/lb.service"), 0o644)?;
    let documents = tree.join("usr/share/doc/lb");
    for name in ["README.md", "LICENSE-APACHE", "LICENSE-MIT"] {
        install(&root.join(name), &documents.join(name), 0o644)?;
    }
    for entry in fs::read_dir(root.join("docs"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            install(&path, &documents.join(path.file_name().context("a name")?), 0o644)?;
        }
    }
    fs::write(documents.join("copyright"), COPYRIGHT)?;
    let example = root.join("lb-userspace/src/config/example.toml");
    install(&example, &documents.join("examples/lb.toml"), 0o644)?;
    made_by(lb, &tree)?;
    control(&root, &tree, version)?;
    let package = folder.join(format!("{NAME}_{version}_{}.deb", architecture()?));
    // Times of files are that of the sources, so that the same sources make the same package.
    let mut command = shell::tool("dpkg-deb");
    command.env("SOURCE_DATE_EPOCH", source_date()?).arg("--root-owner-group").args(compression);
    shell::run(command.arg("--build").arg(&tree).arg(&package))?;
    Ok(package)
}

const COPYRIGHT: &str = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n\
    Files: *\nLicense: MIT or Apache-2.0\n\nLicense: MIT or Apache-2.0\n See LICENSE-MIT and LICENSE-APACHE beside this file.\n";

/// Man pages and completions, which the program makes itself.
fn made_by(lb: &Path, tree: &Path) -> Result<()> {
    let pages = tree.join("usr/share/man/man8");
    fs::create_dir_all(&pages)?;
    shell::run(Command::new(lb).arg("manual").arg(&pages))?;
    for entry in fs::read_dir(&pages)? {
        // -n: the same package from the same sources, whatever the hour.
        shell::run(shell::tool("gzip").args(["-9n"]).arg(entry?.path()))?;
    }
    for (name, folder, file) in SHELLS {
        let output = Command::new(lb).args(["completions", name]).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "lb completions {name} ended with {}", output.status);
        fs::create_dir_all(tree.join(folder))?;
        fs::write(tree.join(folder).join(file), output.stdout)?;
    }
    Ok(())
}

fn control(root: &Path, tree: &Path, version: &str) -> Result<()> {
    let debian = tree.join("DEBIAN");
    for script in ["postinst", "prerm", "postrm"] {
        install(&root.join("deploy/debian").join(script), &debian.join(script), 0o755)?;
    }
    let text = format!(
        "Package: {NAME}\nVersion: {version}\nArchitecture: {}\nMaintainer: the lb project <lb@localhost>\n\
         Section: net\nPriority: optional\nDepends: libc6 (>= {}), adduser\nRecommends: iproute2, ethtool\n\
         Installed-Size: {}\nDescription: layer-4 load balancer in the kernel's fast path\n \
         An XDP program forwards every packet to a healthy backend; an agent checks the\n \
         backends and tells it where packets may go. See lb(8).\n",
        architecture()?,
        c_library()?,
        kibibytes(tree)?
    );
    fs::write(debian.join("control"), text)?;
    Ok(())
}

fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(to.parent().context("a folder")?)?;
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn kibibytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let data = entry.metadata()?;
        sum += if data.is_dir() { kibibytes(&entry.path())? } else { data.len().div_ceil(1024) };
    }
    Ok(sum)
}

/// Seconds since 1970: what `SOURCE_DATE_EPOCH` says, or the last commit.
fn source_date() -> Result<String> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(told) if !told.is_empty() => Ok(told),
        _ => said(shell::tool("git").arg("-C").arg(shell::root()).args(["log", "-1", "--format=%ct"])),
    }
}

fn architecture() -> Result<String> {
    said(shell::tool("dpkg").arg("--print-architecture"))
}

/// The version that the program was linked against, without Debian's revision.
fn c_library() -> Result<String> {
    let version = said(shell::tool("dpkg-query").args(["-W", "-f", "${Version}", "libc6"]))?;
    Ok(version.split('-').next().unwrap_or_default().to_owned())
}

fn said(command: &mut Command) -> Result<String> {
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("starting {}", shell::line(command)))?;
    ensure!(output.status.success(), "`{}` ended with {}", shell::line(command), output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A Debian of its own, which is removed again, also after a failure.
struct Chroot(PathBuf);

impl Drop for Chroot {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn try_out(folder: &Path, first: &Path, next: &Path) -> Result<()> {
    let chroot = chroot(folder, "chroot", "adduser", first, next)?;
    for (what, script) in STEPS {
        println!("trying: {what}");
        let mut command = shell::tool("chroot");
        command
            .arg(&chroot.0)
            .args(["/bin/sh", "-euc", script])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C");
        shell::run(&mut command).with_context(|| format!("the package fails at: {what}"))?;
    }
    Ok(())
}

fn boot(folder: &Path, first: &Path, next: &Path) -> Result<()> {
    let packages = format!("adduser,{}", booted::PACKAGES);
    let chroot = chroot(folder, "system", &packages, first, next)?;
    // Outside /tmp, which systemd covers with one of its own.
    fs::copy(next, chroot.0.join("root/next.deb"))?;
    shell::run(shell::tool("chroot").arg(&chroot.0).args(["dpkg", "--install", "/tmp/first.deb"]))?;
    booted::try_booted(&chroot.0, "/root/next.deb")
}

/// A fresh Debian with both packages in its `/tmp`.
fn chroot(folder: &Path, name: &str, include: &str, first: &Path, next: &Path) -> Result<Chroot> {
    let chroot = Chroot(folder.join(format!("{name}-{}", std::process::id())));
    bootstrap(&chroot.0, include)?;
    for (name, package) in [("first.deb", first), ("next.deb", next)] {
        fs::copy(package, chroot.0.join("tmp").join(name))?;
    }
    Ok(chroot)
}

/// Each must end with 0.
const STEPS: &[(&str, &str)] = &[
    ("it installs", "dpkg --install /tmp/first.deb"),
    (
        "its program, its user and its place are there",
        "lb --version; id lb; test \"$(stat -c %U:%G:%a /etc/lb)\" = root:lb:750",
    ),
    ("its help is there", "test -e /usr/share/man/man8/lb-run.8.gz; test -e /usr/share/bash-completion/completions/lb"),
    ("nothing runs and nothing is configured", "test ! -e /etc/lb/lb.toml; test ! -e /run/lb; ! lb status 2>/dev/null"),
    ("its example is a configuration", "lb config check /usr/share/doc/lb/examples/lb.toml"),
    (
        "it is upgraded, and the operator's files stay",
        "echo '# mine' > /etc/lb/lb.toml; dpkg --install /tmp/next.deb; grep -q mine /etc/lb/lb.toml; dpkg -s lb | grep -q '^Version:.*+next'",
    ),
    ("it is put back to the version before", "dpkg --install /tmp/first.deb; grep -q mine /etc/lb/lb.toml"),
    (
        "it is removed, and the operator's files stay",
        "dpkg --remove lb; ! command -v lb; grep -q mine /etc/lb/lb.toml; test ! -e /usr/lib/systemd/system/lb.service",
    ),
    (
        "it is purged, and what is not its own stays",
        "mkdir -p /var/lib/lb; dpkg --purge lb; test ! -e /var/lib/lb; ! getent passwd lb; test -e /etc/lb/lb.toml; ! dpkg -s lb 2>/dev/null",
    ),
];

/// The release of this machine, from where its packages come from.
fn bootstrap(to: &Path, include: &str) -> Result<()> {
    let targets = said(shell::tool("apt-get").args([
        "indextargets",
        "--format",
        "$(SITE) $(CODENAME) $(COMPONENT)",
        "Created-By: Packages",
    ]))?;
    let wanted = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        // Neither updates nor backports have a base system.
        words.next().is_some_and(|codename| !codename.contains('-')) && words.next() == Some("main")
    };
    let Some(line) = targets.lines().find(wanted) else {
        bail!("apt names no source of a base system: apt-get update first")
    };
    let (site, codename) = line.split_once(' ').context("site and release")?;
    let codename = codename.split(' ').next().unwrap_or_default();
    let mut command = shell::tool("debootstrap");
    command.arg("--variant=minbase").arg(format!("--include={include}"));
    if !Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").exists() {
        command.arg("--no-check-gpg");
    }
    command.arg(codename).arg(to).arg(site).stdout(Stdio::null());
    shell::run(&mut command).context("making a Debian to try the package in (apt install debootstrap)")
}
