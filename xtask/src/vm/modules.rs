//! Kernel modules: which ones, and in which order they load.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::packages::KernelPackage;
use crate::shell;

/// What Debian does not build in and the tests need. SCTP asks for CRC32c by the name of the algorithm, which
/// no module tells.
const WANTED: &[&str] = &[
    "veth",
    "bridge",
    "8021q",
    "tun",
    "ipip",
    "sit",
    "ip6_tunnel",
    "fou",
    "ip_gre",
    "ip6_gre",
    "crc32c_generic",
    "sctp",
    "sch_ingress",
    "cls_bpf",
];

/// A module, ready to be loaded.
pub(super) struct Module {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// The wanted modules and those they need, each after what it needs.
///
/// # Errors
/// The package has no such module.
pub(super) fn modules(kernel: &KernelPackage) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    collect(&kernel.modules.join("kernel"), &mut files)?;
    let built_in = fs::read_to_string(kernel.modules.join("modules.builtin")).context("modules.builtin")?;
    let built_in: Vec<_> = built_in.lines().filter_map(|path| name_of(Path::new(path))).collect();
    let mut loaded = Vec::new();
    for name in WANTED {
        add(name, &files, &built_in, &mut loaded)?;
    }
    Ok(loaded)
}

fn add(name: &str, files: &BTreeMap<String, PathBuf>, built_in: &[String], loaded: &mut Vec<Module>) -> Result<()> {
    if loaded.iter().any(|module| module.name == name) || built_in.iter().any(|known| known == name) {
        return Ok(());
    }
    let Some(path) = files.get(name) else { bail!("this kernel has no module {name}") };
    let bytes = read(path)?;
    for needed in needs(&bytes) {
        add(&needed, files, built_in, loaded)?;
    }
    loaded.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = name_of(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `nf-x` and `nf_x` are one: file names have both, the kernel only the second.
fn name_of(path: &Path) -> Option<String> {
    let (name, _) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => bail!("{}: compressed in an unknown way", path.display()),
    };
    let mut command = shell::tool(program);
    let output = command.args(["--decompress", "--stdout"]).arg(path).output();
    let output = output.with_context(|| format!("cannot start {program}: it decompresses kernel modules"))?;
    if !output.status.success() {
        bail!("`{}`: {}", shell::line(&command), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// What a module says that it needs: `depends=stp,llc` among the strings of its `.modinfo`.
fn needs(module: &[u8]) -> Vec<String> {
    let mut strings = module.split(|byte| *byte == 0);
    let list = strings.find_map(|string| string.strip_prefix(b"depends=")).unwrap_or_default();
    let names = list.split(|byte| *byte == b',').filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8_lossy(name).replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        assert_eq!(needs(b"\x7fELF\0license=GPL\0depends=stp,llc\0retpoline=Y\0"), ["stp", "llc"]);
        assert_eq!(needs(b"\x7fELF\0depends=\0"), Vec::<String>::new());
    }

    #[test]
    fn a_module_has_one_name_however_its_file_is_written() {
        assert_eq!(name_of(Path::new("kernel/net/nf-x.ko.xz")).as_deref(), Some("nf_x"));
        assert_eq!(name_of(Path::new("modules.order")), None);
    }
}
