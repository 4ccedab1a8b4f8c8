//! Builds a binary of this package for the BPF target and leaves its object in `OUT_DIR`, from where
//! the including crate embeds it. Part of the build scripts of those crates: of the agent, and of the
//! bench.
//!
//! Two toolchains can do it: one that brings `core` prebuilt for BPF (linked in rustup under the
//! name `bpf`), or nightly with rust-src, which builds `core` itself. `LB_BPF_TOOLCHAIN` names
//! another one. `AYA_BUILD_SKIP=1` embeds nothing: enough for lints, useless to run.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// Name under which the toolchain with a prebuilt `core` is linked in rustup.
const PREBUILT: &str = "bpf";
/// What a released compiler must let these crates use: inline BPF assembly.
const BOOTSTRAP: &str = "aya_ebpf,lb,decap,probe,lb_bench";

/// Builds this binary of the package, with these of its features (`""`: none), into `OUT_DIR` under
/// the binary's name.
///
/// # Errors
/// No toolchain can build it, or it does not compile.
pub(crate) fn embed(binary: &str, features: &str) -> Result<()> {
    embed_as(binary, binary, features, "bpf")
}

/// The same under a name of its own, built in a folder of its own beside the others': a build of one binary
/// with other features would otherwise come between a build and the copy that is made of it.
///
/// # Errors
/// As [`embed`].
#[allow(dead_code, reason = "most build scripts need one build of each binary")]
pub(crate) fn embed_variant(name: &str, binary: &str, features: &str) -> Result<()> {
    embed_as(name, binary, features, &format!("bpf-{name}"))
}

fn embed_as(name: &str, binary: &str, features: &str, folder: &str) -> Result<()> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?);
    let root = manifest.ancestors().find(|folder| folder.join("lb-ebpf").is_dir()).context("there is no lb-ebpf")?;
    println!("cargo:rerun-if-changed=build.rs");
    for part in ["lb-ebpf", "lb-common/src", "lb-common/Cargo.toml", "Cargo.toml"] {
        println!("cargo:rerun-if-changed={}", root.join(part).display());
    }
    for variable in ["LB_BPF_TOOLCHAIN", "AYA_BUILD_SKIP"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let object = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?).join(name);
    if skipped() {
        return fs::write(&object, []).with_context(|| format!("writing {}", object.display()));
    }
    build(&root.join("lb-ebpf"), binary, features, &object, folder).with_context(|| {
        format!(
            "the eBPF program `{binary}` (lb-ebpf) could not be built; `cargo xtask setup` installs what that needs"
        )
    })
}

fn skipped() -> bool {
    env::var("AYA_BUILD_SKIP").is_ok_and(|value| value == "1" || value.eq_ignore_ascii_case("true"))
}

/// Runs cargo for the BPF target. Not through aya-build, which fixes the compiler's flags: with
/// `target-cpu=v3` LLVM has all instructions of that version, where a choice of single features
/// (32-bit arithmetic without 32-bit comparisons) makes it compare wrongly.
fn build(package: &Path, binary: &str, features: &str, object: &Path, folder: &str) -> Result<()> {
    let toolchain = toolchain()?;
    // <profile>/build/<package>/out/<object>: one folder for all packages and for each time one of them
    // changes its dependencies, or the procedural macros would be built again and again.
    let target_dir = object.ancestors().nth(4).context("OUT_DIR is no build script's")?.join(folder);
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").context("CARGO_CFG_TARGET_ARCH is not set")?;
    let target = match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
        Ok("big") => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let flags = [
        "-Ctarget-cpu=v3",
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        // Packet fields lie at odd places; every JIT this runs on loads them in one instruction.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
        &format!("--cfg=bpf_target_arch=\"{architecture}\""),
        // The same sources make the same object, in whichever folder they are.
        &format!("--remap-path-prefix={}=.", package.parent().unwrap_or(package).display()),
        &format!("--remap-path-prefix={}=/cargo", cargo_home().display()),
    ];
    let mut cargo = Command::new("rustup");
    cargo.args(["run", &toolchain, "cargo", "build", "--quiet", "--release", "--package", "lb-ebpf"]);
    cargo.args(["--bin", binary, "--features", features]);
    cargo.args(["--target", target, "--target-dir"]).arg(&target_dir).current_dir(package);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    if toolchain.starts_with("nightly") {
        cargo.args(["-Z", "build-std=core"]);
    } else {
        cargo.env("RUSTC_BOOTSTRAP", BOOTSTRAP);
    }
    // Cargo set these for the compiler of the agent; the program is built by another.
    for variable in ["RUSTC", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER", "RUSTFLAGS", "CARGO_TARGET_DIR"] {
        cargo.env_remove(variable);
    }
    let output = cargo.output().context("running rustup")?;
    if !output.status.success() {
        bail!("the Rust toolchain `{toolchain}`: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let built = target_dir.join(target).join("release").join(binary);
    fs::copy(&built, object).with_context(|| format!("copying {}", built.display()))?;
    Ok(())
}

/// Where cargo keeps the sources of other packages.
fn cargo_home() -> PathBuf {
    let told = env::var_os("CARGO_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    told.unwrap_or_else(|| PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo"))
}

/// The first toolchain that can build for BPF.
fn toolchain() -> Result<String> {
    if let Ok(name) = env::var("LB_BPF_TOOLCHAIN")
        && !name.is_empty()
    {
        return Ok(name);
    }
    let listed = output("rustup", &["toolchain", "list"])
        .context("asking rustup for its toolchains; set LB_BPF_TOOLCHAIN where there is no rustup")?;
    // A line is a name, followed by marks such as "(active, default)".
    let mut names = listed.lines().filter_map(|line| line.split_whitespace().next());
    if names.clone().any(|name| name == PREBUILT) {
        return Ok(PREBUILT.into());
    }
    if let Some(nightly) = names.find(|name| name.starts_with("nightly") && has_rust_src(name)) {
        return Ok(nightly.into());
    }
    bail!("no Rust toolchain here can build for BPF: neither one named `{PREBUILT}` nor a nightly with rust-src")
}

fn has_rust_src(toolchain: &str) -> bool {
    output("rustup", &["run", toolchain, "rustc", "--print", "sysroot"])
        .is_ok_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir())
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
