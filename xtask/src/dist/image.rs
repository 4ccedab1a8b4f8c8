//! The image of deploy/Containerfile, built by buildah upon a base of Debian's own packages: no registry is asked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::shell;

const BASE: &str = "localhost/lb-base";
const IMAGE: &str = "localhost/lb";

/// Builds it upon the system in `base`, tries its program, and writes it as an OCI archive; its path.
///
/// # Errors
/// buildah failed, or the program in it does not run.
pub(super) fn image(base: &Path, folder: &Path) -> Result<PathBuf> {
    let store = Store::new(folder.join(format!("store-{}", std::process::id())))?;
    let container = store.ask(&["from", "scratch"])?;
    let content = base.with_extension("tar");
    shell::run(
        shell::tool("tar").arg("--exclude=./dev").arg("--directory").arg(base).arg("-cf").arg(&content).arg("."),
    )?;
    let added = store.ask(&["add", "--quiet", &container, &content.display().to_string(), "/"]);
    fs::remove_file(&content)?;
    added?;
    store.ask(&["commit", "--quiet", &container, BASE])?;
    let root = shell::root();
    shell::run(
        store
            .command(&["build", "--isolation", "chroot", "--build-arg", &format!("BASE={BASE}"), "--tag", IMAGE])
            .args(["--file", "deploy/Containerfile", "."])
            .current_dir(&root),
    )?;
    let container = store.ask(&["from", "--pull-never", IMAGE])?;
    for arguments in [&["lb", "--version"][..], &["lb", "config", "check", "/usr/share/doc/lb/examples/lb.toml"]] {
        let said = store.ask(&[&["run", "--isolation", "chroot", &container, "--"], arguments].concat())?;
        ensure!(!said.is_empty(), "`{}` says nothing in the image", arguments.join(" "));
    }
    let archive = folder.join("lb.oci.tar");
    if archive.exists() {
        fs::remove_file(&archive)?;
    }
    store.ask(&["push", "--quiet", IMAGE, &format!("oci-archive:{}", archive.display())])?;
    Ok(archive)
}

/// Images and containers, beside those of the machine; removed when dropped.
struct Store(PathBuf);

impl Store {
    fn new(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self(folder))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = shell::tool("buildah");
        command.arg("--root").arg(self.0.join("images")).arg("--runroot").arg(self.0.join("run"));
        command.args(["--storage-driver", "vfs"]).args(arguments);
        command
    }

    fn ask(&self, arguments: &[&str]) -> Result<String> {
        Ok(shell::output(&mut self.command(arguments))?.trim().to_owned())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Containers first: their parts may be mounted.
        let _ = self.ask(&["rm", "--all"]);
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}
