//! `cargo xtask setup`: what building, running and testing need. Looks first, installs only what is
//! missing, and says one line per item.

mod apt;
pub mod ebpf;

use anyhow::{Result, bail};

pub(crate) use self::apt::Apt;
use crate::shell;

/// How much is needed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// To build and run, the embedded world included.
    Run,
    /// To run every test and lint too.
    Test,
    /// To run tests on other kernels too.
    Vm,
}

/// A program that a Debian package brings.
struct Tool {
    program: &'static str,
    package: &'static str,
    why: &'static str,
    level: Level,
}

const TOOLS: &[Tool] = &[
    Tool { program: "cc", package: "build-essential", why: "links what cargo builds", level: Level::Run },
    Tool { program: "ip", package: "iproute2", why: "namespaces, links and addresses", level: Level::Run },
    Tool { program: "ethtool", package: "ethtool", why: "offload settings of veth", level: Level::Run },
    Tool { program: "nginx", package: "nginx-light", why: "web servers of the embedded world", level: Level::Run },
    Tool { program: "curl", package: "curl", why: "a real HTTP client", level: Level::Test },
    Tool { program: "iperf3", package: "iperf3", why: "long TCP and UDP streams", level: Level::Test },
    Tool { program: "dig", package: "bind9-dnsutils", why: "a real DNS client", level: Level::Test },
    Tool { program: "dnsmasq", package: "dnsmasq-base", why: "a real DNS server", level: Level::Test },
    Tool { program: "mariadbd", package: "mariadb-server-core", why: "a real MariaDB", level: Level::Test },
    Tool { program: "mariadb", package: "mariadb-client-core", why: "sets up MariaDB", level: Level::Test },
    Tool { program: "pg_ctlcluster", package: "postgresql", why: "a real PostgreSQL", level: Level::Test },
    Tool { program: "redis-server", package: "redis-server", why: "a real Redis", level: Level::Test },
    Tool { program: "redis-cli", package: "redis-tools", why: "sets up Redis", level: Level::Test },
    Tool { program: "ping", package: "iputils-ping", why: "the host still answers for itself", level: Level::Test },
    Tool { program: "tcpdump", package: "tcpdump", why: "a failing test leaves its packets", level: Level::Test },
    Tool { program: "bpftool", package: "bpftool", why: "reads maps and programs from outside", level: Level::Test },
    Tool { program: "haproxy", package: "haproxy", why: "a balancer to compare with", level: Level::Test },
    Tool { program: "nft", package: "nftables", why: "the kernel's own NAT to compare with", level: Level::Test },
    Tool { program: "debootstrap", package: "debootstrap", why: "a Debian to try the package in", level: Level::Test },
    Tool {
        program: "systemd-nspawn",
        package: "systemd-container",
        why: "a system to boot with it",
        level: Level::Test,
    },
    Tool { program: "buildah", package: "buildah", why: "an image of the package", level: Level::Test },
    Tool { program: "setpriv", package: "util-linux", why: "runs without rights", level: Level::Test },
    Tool { program: "setcap", package: "libcap2-bin", why: "runs with single capabilities", level: Level::Test },
    Tool { program: "dpkg-deb", package: "dpkg", why: "unpacks kernels without installing them", level: Level::Vm },
    Tool { program: "xz", package: "xz-utils", why: "decompresses kernel modules", level: Level::Vm },
    Tool {
        program: "strip",
        package: "binutils",
        why: "makes programs small for a machine's memory",
        level: Level::Vm,
    },
];

/// Prints what was found and done.
pub struct Report {
    /// Items that were there already get a line.
    verbose: bool,
    /// Something was installed or changed.
    pub changed: bool,
}

impl Report {
    pub const fn new(verbose: bool) -> Self {
        Self { verbose, changed: false }
    }

    /// Was there.
    pub fn had(&self, item: &str, detail: &str) {
        if self.verbose {
            println!("  had        {item}: {detail}");
        }
    }

    /// Is about to be done; it may take a while.
    pub fn doing(&self, what: &str) {
        println!("  ...        {what}");
    }

    /// Was missing and is there now.
    pub fn installed(&mut self, item: &str, why: &str) {
        self.changed = true;
        println!("  installed  {item}: {why}");
    }

    pub fn note(&self, text: &str) {
        println!("  note       {text}");
    }
}

/// Brings everything of the level.
///
/// # Errors
/// Something is missing and cannot be installed from here; the error says what to install.
pub fn setup(level: Level, verbose: bool) -> Result<ebpf::Toolchain> {
    let mut report = Report::new(verbose);
    let mut apt = Apt::new();
    tools(level, &mut apt, &mut report)?;
    let toolchain = ebpf::setup(&mut apt, &mut report)?;
    if level >= Level::Test && toolchain == ebpf::Toolchain::Debian {
        clippy(&mut apt, &mut report)?;
    }
    if level >= Level::Test {
        nginx_stream(&mut apt, &mut report)?;
    }
    if verbose && !report.changed {
        println!("nothing to do");
    }
    Ok(toolchain)
}

fn tools(level: Level, apt: &mut Apt, report: &mut Report) -> Result<()> {
    let (mut packages, mut missing) = (Vec::new(), Vec::new());
    for tool in TOOLS.iter().filter(|tool| tool.level <= level) {
        match shell::find(tool.program) {
            Some(path) => report.had(tool.program, &path.display().to_string()),
            None => {
                packages.push(tool.package);
                missing.push(tool);
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    if !Apt::is_here() {
        for tool in &missing {
            eprintln!("  missing    {}: {} (Debian's package is {})", tool.program, tool.why, tool.package);
        }
        bail!("this is not a Debian-like machine: install the programs above with its package manager, then try again");
    }
    apt.install(&packages, report)?;
    for tool in missing {
        if shell::find(tool.program).is_none() {
            bail!("{} was installed and still there is no program `{}`", tool.package, tool.program);
        }
        report.installed(tool.package, tool.why);
    }
    Ok(())
}

/// Where Debian's package puts nginx's module for TCP and UDP.
pub const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

fn nginx_stream(apt: &mut Apt, report: &mut Report) -> Result<()> {
    if std::path::Path::new(NGINX_STREAM).exists() {
        report.had("nginx's stream module", NGINX_STREAM);
        return Ok(());
    }
    apt.install(&["libnginx-mod-stream"], report)?;
    report.installed("libnginx-mod-stream", "a balancer to compare with");
    Ok(())
}

/// Debian's toolchain has its clippy in a package of its own.
fn clippy(apt: &mut Apt, report: &mut Report) -> Result<()> {
    if std::path::Path::new("/usr/bin/clippy-driver").exists() {
        report.had("clippy of the eBPF toolchain", "/usr/bin/clippy-driver");
        return Ok(());
    }
    apt.install(&["rust-web-clippy"], report)?;
    report.installed("rust-web-clippy", "lints the eBPF program");
    Ok(())
}
