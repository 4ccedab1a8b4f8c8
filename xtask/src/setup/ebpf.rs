//! The toolchain for the eBPF program. Two ways lead to one:
//!
//! - nightly Rust with its library's source (`rust-src`), the usual way;
//! - Debian's own Rust, whose library comes built for BPF, linked into rustup as `bpf`.
//!
//! Both need `bpf-linker`, built against the LLVM of the compiler. A toolchain counts as there only
//! when it has really compiled and linked a program.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{Report, apt::Apt};
use crate::shell;

const LINKER_VERSION: &str = "0.13.0";
/// Debian's compiler, its library for BPF, and the LLVM it was built with.
const DEBIAN: &[&str] = &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "rust-web-llvm"];
/// The first that is there is taken, as lb-userspace's build script does.
const ORDER: [Toolchain; 2] = [Toolchain::Debian, Toolchain::Nightly];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Toolchain {
    /// rustup's nightly with rust-src.
    Nightly,
    /// Debian's prebuilt one, linked into rustup.
    Debian,
}

impl Toolchain {
    /// Its name in rustup.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nightly => "nightly",
            Self::Debian => "bpf",
        }
    }

    pub const fn describe(self) -> &'static str {
        match self {
            Self::Nightly => "rustup's nightly with rust-src",
            Self::Debian => "Debian's Rust, prebuilt for BPF, as rustup's `bpf`",
        }
    }

    /// The toolchain that [`setup`] last proved on this machine, if nothing has changed since.
    pub fn proven() -> Option<Self> {
        ORDER.into_iter().find(|toolchain| toolchain.is_proven())
    }

    /// The program that proved it: an XDP program in section `xdp` that lets every packet pass.
    pub fn proof(self) -> PathBuf {
        proof_folder().join("target").join(self.name()).join("bpfel-unknown-none/release/proof")
    }

    /// Whether the compiler and a library for BPF are there; the linker is another matter.
    fn is_present(self) -> bool {
        let Ok(sysroot) = shell::output(shell::rustup_run(self.name(), "rustc").args(["--print", "sysroot"])) else {
            return false;
        };
        let rustlib = PathBuf::from(sysroot.trim()).join("lib/rustlib");
        match self {
            Self::Nightly => rustlib.join("src/rust/library/core/Cargo.toml").exists(),
            Self::Debian => rustlib.join("bpfel-unknown-none/lib").exists(),
        }
    }

    fn is_proven(self) -> bool {
        let Ok(fingerprint) = self.fingerprint() else { return false };
        self.proof().exists() && fs::read_to_string(self.stamp()).is_ok_and(|stamp| stamp == fingerprint)
    }

    /// Compiles and links a program that uses a little of `core`.
    fn prove(self) -> Result<()> {
        let folder = proof_folder();
        fs::create_dir_all(folder.join("src"))?;
        fs::write(folder.join("Cargo.toml"), PROOF_MANIFEST)?;
        fs::write(folder.join("src/main.rs"), PROOF_SOURCE)?;
        let mut command = shell::rustup_run(self.name(), "cargo");
        command.current_dir(&folder).env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\x1f-Clink-arg=--btf");
        command.args(["build", "--quiet", "--release", "--target", "bpfel-unknown-none"]);
        command.arg("--target-dir").arg(folder.join("target").join(self.name()));
        if self == Self::Nightly {
            command.args(["-Z", "build-std=core"]);
        }
        shell::output(&mut command)?;
        let program = self.proof();
        let bytes = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
        if !is_bpf_object(&bytes) {
            bail!("{} is not an eBPF object", program.display());
        }
        fs::write(self.stamp(), self.fingerprint()?)?;
        Ok(())
    }

    fn stamp(self) -> PathBuf {
        shell::root().join("target/xtask").join(format!("ebpf-{}.stamp", self.name()))
    }

    /// Changes when the compiler or the linker does.
    fn fingerprint(self) -> Result<String> {
        let compiler = shell::output(shell::rustup_run(self.name(), "rustc").arg("-vV"))?;
        let linker = shell::find("bpf-linker").context("there is no bpf-linker")?;
        let about = fs::metadata(&linker)?;
        Ok(format!("{compiler}{} {} {:?}\n", linker.display(), about.len(), about.modified()?))
    }
}

fn proof_folder() -> PathBuf {
    shell::root().join("target/xtask/proof")
}

/// Finds or brings a toolchain that works.
pub(crate) fn setup(apt: &mut Apt, report: &mut Report) -> Result<Toolchain> {
    if let Some(toolchain) = Toolchain::proven() {
        report.had("eBPF toolchain", &format!("{} and bpf-linker, proven", toolchain.describe()));
        return Ok(toolchain);
    }
    if shell::find("rustup").is_none() {
        bail!("there is no rustup: install it from https://rustup.rs, then try again");
    }
    let toolchain = compiler(apt, report)?;
    linker(toolchain, apt, report)?;
    Ok(toolchain)
}

fn compiler(apt: &mut Apt, report: &mut Report) -> Result<Toolchain> {
    for toolchain in ORDER {
        if toolchain.is_present() {
            report.had("eBPF compiler", toolchain.describe());
            return Ok(toolchain);
        }
    }
    if apt.offers("libstd-rust-web-dev-bpf", report)? {
        return debian_compiler(apt, report);
    }
    report.doing("rustup toolchain install nightly with rust-src");
    let mut install = shell::tool("rustup");
    install.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
    shell::output(&mut install).context(
        "no eBPF toolchain: neither does apt offer libstd-rust-web-dev-bpf, nor can rustup install nightly \
         with rust-src; install one of the two by hand",
    )?;
    report.installed("nightly with rust-src", "compiles the eBPF program; apt has no Rust prebuilt for BPF");
    Ok(Toolchain::Nightly)
}

fn debian_compiler(apt: &mut Apt, report: &mut Report) -> Result<Toolchain> {
    if !PathBuf::from("/usr/lib/rustlib/bpfel-unknown-none/lib").exists() {
        apt.install(DEBIAN, report)
            .context("Debian's Rust for BPF takes the place of its other rustc: remove that one, or use nightly")?;
        report.installed("rustc-web with its library for BPF", "compiles the eBPF program without nightly's rust-src");
    }
    shell::output(shell::tool("rustup").args(["toolchain", "link", Toolchain::Debian.name(), "/usr"]))?;
    report.installed("rustup toolchain `bpf`", "a name for Debian's compiler in /usr");
    Ok(Toolchain::Debian)
}

fn linker(toolchain: Toolchain, apt: &mut Apt, report: &mut Report) -> Result<()> {
    if shell::find("bpf-linker").is_some() {
        match toolchain.prove() {
            Ok(()) => {
                report.had("bpf-linker", "links what this compiler makes");
                return Ok(());
            }
            Err(error) => report.note(&format!("the bpf-linker here does not fit the compiler: {error:#}")),
        }
    }
    let why = match toolchain {
        Toolchain::Nightly => {
            report.doing(&format!("cargo install bpf-linker {LINKER_VERSION}"));
            shell::output(shell::cargo().args([
                "install",
                "--force",
                "--quiet",
                "bpf-linker",
                "--version",
                LINKER_VERSION,
            ]))?;
            "links the eBPF program".to_owned()
        }
        Toolchain::Debian => debian_linker(apt, report)?,
    };
    toolchain.prove().context("the eBPF toolchain was installed and still cannot build a program")?;
    report.installed(&format!("bpf-linker {LINKER_VERSION}"), &why);
    Ok(())
}

/// Debian's LLVM moves with its compiler: its number is read off, never assumed.
fn debian_linker(apt: &mut Apt, report: &Report) -> Result<String> {
    let about = shell::output(std::process::Command::new(DEBIAN_RUSTC).arg("-vV"))?;
    let llvm = llvm_major(&about).with_context(|| format!("{DEBIAN_RUSTC} -vV names no LLVM version"))?;
    let prefix = format!("/usr/lib/llvm-{llvm}");
    // Each from another package of which only one may be there.
    if ["bin/llvm-config", "lib/libLLVM.so"].iter().any(|part| !PathBuf::from(&prefix).join(part).exists()) {
        apt.install(&[&format!("llvm-{llvm}-dev"), &format!("libclang-{llvm}-dev")], report)?;
    }
    report.doing(&format!("cargo install bpf-linker {LINKER_VERSION} against {prefix}"));
    let mut install = shell::cargo();
    install.env("LLVM_PREFIX", &prefix).args([
        "install",
        "--force",
        "--quiet",
        "bpf-linker",
        "--version",
        LINKER_VERSION,
    ]);
    install.args(["--no-default-features", "--features", &format!("llvm-{llvm}")]);
    shell::output(&mut install)?;
    Ok(format!("links the eBPF program; built against the compiler's LLVM {llvm}"))
}

fn llvm_major(about: &str) -> Option<u32> {
    let version = about.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// ELF, 64 bits, little endian, machine 247 (`EM_BPF`).
fn is_bpf_object(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01") && bytes.get(18..20) == Some(&[247, 0])
}

const PROOF_MANIFEST: &str = r#"[package]
name = "proof"
version = "0.0.0"
edition = "2024"
[workspace]
"#;

const PROOF_SOURCE: &str = r#"#![no_std]
#![no_main]
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
pub extern "C" fn proof(context: *const u32) -> u32 {
    // SAFETY: the fourth word of `struct xdp_md` is the index of the interface.
    let interface = unsafe { *context.add(3) };
    // XDP_PASS, for every interface there can be.
    u32::try_from(u64::from(interface) << 1).map_or(1, |value| value.clamp(2, 2))
}
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_number_is_read_off_the_compiler() {
        assert_eq!(llvm_major("rustc 1.96.0\nhost: x\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }

    #[test]
    fn only_an_elf_file_for_bpf_counts_as_an_ebpf_object() {
        let mut elf = [0; 20];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        assert!(!is_bpf_object(&elf));
        elf[18] = 247;
        assert!(is_bpf_object(&elf));
        assert!(!is_bpf_object(&elf[..10]));
    }
}
