//! The first file system of a virtual machine: all there is in it, made without root.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{
    cpio::Archive,
    modules::Module,
    packages::{Machine, cache},
    suites::Suite,
};
use crate::shell;

/// What the tests call; nothing else of this system is inside.
const TOOLS: &[&str] = &["ip", "tc", "ethtool", "bpftool"];
/// Begins every line that is not a program's.
pub(super) const MARK: &str = "@lb-vm ";

/// Writes the archive and says where it is.
///
/// # Errors
/// A program is missing or the disk is full.
pub(super) fn build(name: &str, machine: &Machine, modules: &[Module], suites: &[Suite]) -> Result<PathBuf> {
    let folder = cache().join("images");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{name}.cpio"));
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    // Without it the first program has nothing to write to.
    archive.character_device(Path::new("/dev/console"), 5, 1)?;
    for folder in ["/proc", "/sys", "/run", "/tmp", "/root", "/var"] {
        archive.folder(Path::new(folder))?;
    }
    archive.file(Path::new("/bin/busybox"), &read(&machine.busybox())?)?;
    for module in modules {
        archive.file(&module_path(module), &module.bytes)?;
    }
    archive.file(Path::new("/init"), script(modules, suites).as_bytes())?;
    add_programs(&mut archive, suites)?;
    archive.finish().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The programs of the suites and the tools at the places they have here, with their libraries.
fn add_programs(archive: &mut Archive<BufWriter<File>>, suites: &[Suite]) -> Result<()> {
    let mut libraries = BTreeSet::new();
    for tool in TOOLS {
        let path = shell::find(tool).with_context(|| format!("there is no `{tool}`: run `cargo xtask setup --vm`"))?;
        libraries.extend(libraries_of(&path)?);
        archive.file(&path, &read(&path)?)?;
    }
    let programs: BTreeSet<&PathBuf> = suites.iter().flat_map(|suite| &suite.files).collect();
    for program in programs {
        libraries.extend(libraries_of(program)?);
        archive.file(program, &stripped(program)?)?;
    }
    for library in libraries {
        archive.file(&library, &read(&library)?)?;
    }
    Ok(())
}

/// The program without what only a debugger reads: nine tenths of it.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let copy = cache().join("images").join("stripped");
    shell::output(shell::tool("strip").arg("--strip-debug").arg("-o").arg(&copy).arg(program))?;
    let bytes = read(&copy)?;
    fs::remove_file(&copy).with_context(|| format!("cannot remove {}", copy.display()))?;
    Ok(bytes)
}

/// What the program loads, the loader included.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = shell::output(shell::tool("ldd").env("LC_ALL", "C").arg(program))?;
    listed.lines().filter_map(|line| library(line.trim()).transpose()).collect()
}

/// `libm.so.6 => /lib/libm.so.6 (0x...)`, `/lib64/ld.so.2 (0x...)`, or the kernel's `linux-vdso.so.1 (0x...)`.
fn library(line: &str) -> Result<Option<PathBuf>> {
    let place = line.split_once(" => ").map_or(line, |(_, place)| place);
    if place.starts_with("not found") {
        bail!("{line}");
    }
    Ok(place.strip_prefix('/').and_then(|rest| rest.split(' ').next()).map(|rest| Path::new("/").join(rest)))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn module_path(module: &Module) -> PathBuf {
    PathBuf::from(format!("/modules/{}.ko", module.name))
}

/// The first program: brings up what a system has, then runs the suites one after the other.
/// Results go to the second serial line, so that no word of the kernel is in them.
fn script(modules: &[Module], suites: &[Suite]) -> String {
    let mut script = String::from(PREPARE);
    script.insert_str("#!/bin/busybox sh\n".len(), &format!("say() {{ echo \"{MARK}$*\"; }}\n"));
    for module in modules {
        script.push_str(&format!("$b insmod {}\n", quoted(&module_path(module).display().to_string())));
    }
    script.push_str("ip link set lo up\nsay kernel \"$($b uname -r)\"\nset +e\n");
    for suite in suites {
        let words: Vec<_> = suite.command().iter().map(|word| quoted(word)).collect();
        let name = &suite.name;
        script.push_str(&format!("say begin {name}\n{}\nsay end {name} $?\n", words.join(" ")));
    }
    script.push_str("say done\ntrap - EXIT\n$b poweroff -f\n");
    script
}

const PREPARE: &str = r#"#!/bin/busybox sh
b=/bin/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root CI=true RUST_BACKTRACE=1
set -e
trap 'say stopped; $b poweroff -f' EXIT
$b mount -t devtmpfs dev /dev
$b stty -F /dev/ttyS1 raw
exec </dev/null >/dev/ttyS1 2>&1
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t bpf bpf /sys/fs/bpf
$b mount -t cgroup2 cgroup /sys/fs/cgroup
$b mount -t tmpfs -o mode=755 run /run
$b mount -t tmpfs -o mode=1777 tmp /tmp
$b ln -s /run /var/run
$b hostname lb-vm
"#;

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_off_what_the_loader_says() {
        let place = |line| library(line).unwrap().map(|path| path.display().to_string());
        assert_eq!(place("libm.so.6 => /lib/libm.so.6 (0x00007f)").as_deref(), Some("/lib/libm.so.6"));
        assert_eq!(place("/lib64/ld.so.2 (0x00007f)").as_deref(), Some("/lib64/ld.so.2"));
        assert_eq!(place("linux-vdso.so.1 (0x00007f)"), None);
        assert!(library("libx.so.1 => not found").is_err());
    }

    #[test]
    fn words_reach_a_program_as_they_are() {
        let told = shell::output(std::process::Command::new("sh").args(["-c", &format!("echo {}", quoted("it's $1"))]));
        assert_eq!(told.unwrap(), "it's $1\n");
    }
}
