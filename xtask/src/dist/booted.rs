//! The package under a real systemd: a Debian with the package in it is booted in a container of its own, with a
//! client and a server at the ends of two cables, and everything that the unit promises is asked for while
//! requests run.

use std::{
    fs,
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    shell,
    world::{Namespace, Process, process::until},
};

/// Debian packages that the container has besides.
pub(super) const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2";
const PATIENCE: Duration = Duration::from_secs(90);
/// The unit's `WatchdogSec` and the time that a killed agent takes to be ready again, with some room.
const RESTARTED: Duration = Duration::from_secs(90);
/// Requests that are answered after something was done.
const MORE: u64 = 10;
/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_BPF (linux/capability.h).
const CAPABILITIES: u64 = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;
/// What `systemd-analyze security` may say at most; above 3 it is no more "OK".
const EXPOSURE: f64 = 2.9;

const SETTINGS: &str = "\
interfaces = [\"lbc\", \"lbs\"]

[[service]]
name = \"web\"
listen = \"10.98.0.100:80\"
mode = \"full-nat\"

[service.health]
type = \"tcp\"
interval = \"200ms\"
timeout = \"190ms\"

[[service.backend]]
address = \"10.97.0.11:8080\"
";

/// Something that is tried, with the name of the package's next version.
type Step = fn(&Machine, &Plugs, &str) -> Result<()>;

/// Boots the system in `root`, where the package `first` is installed, and tries it; `next` is an upgrade
/// that lies in `/tmp` there.
///
/// # Errors
/// What the unit does not do.
pub(super) fn try_booted(root: &Path, next: &str) -> Result<()> {
    let machine = Machine::boot(root)?;
    let plugs = Plugs::connect(&machine)?;
    let steps: [(&str, Step); 9] = [
        ("without a configuration nothing runs, and nothing fails", unconfigured),
        ("it starts, and is ready when it forwards", starts),
        ("it runs as an ordinary user with four capabilities", rights),
        ("a file with an error is refused, and what runs stays", bad_reload),
        ("a changed file is taken over", good_reload),
        ("an agent that hangs is killed and started again, and requests go on", watchdog),
        ("the package is upgraded while requests go on", upgraded),
        ("stopped, the data path goes on", stopped),
        ("removed, nothing is left on the interfaces", removed),
    ];
    for (what, step) in steps {
        println!("trying under systemd: {what}");
        step(&machine, &plugs, next).with_context(|| format!("under systemd: {what}\n{}", machine.log()))?;
    }
    Ok(())
}

/// A booted system; stopped when dropped.
struct Machine {
    container: Process,
    /// Its process 1, as this system counts.
    init: i32,
}

impl Machine {
    fn boot(root: &Path) -> Result<Self> {
        let name = format!("lbd-{}", std::process::id());
        let log = root.with_extension("console.log");
        let mut command = shell::tool("systemd-nspawn");
        command
            .args(["--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe", "--boot"])
            .args(["--capability=CAP_BPF,CAP_PERFMON,CAP_NET_ADMIN,CAP_NET_RAW", "--system-call-filter=bpf"])
            .arg(format!("--machine={name}"))
            .arg("--directory")
            .arg(root)
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "yes");
        let container = Process::start("systemd-nspawn", &mut command, &log)?;
        let mut machine = Self { container, init: 0 };
        let pid = machine.container.pid();
        until("systemd to be up", PATIENCE, || {
            // First it is a helper's, then that of systemd.
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
            machine.init = children.split_whitespace().next().context("no process yet")?.parse().context("a pid")?;
            let state = machine.ask("systemctl is-system-running || true")?;
            ensure!(["running", "degraded"].contains(&state.trim()), "systemd is {}", state.trim());
            Ok(())
        })?;
        machine.ask("mkdir -p /sys/fs/bpf && { mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf; }")?;
        Ok(machine)
    }

    /// What a line of shell says in there; it must succeed.
    fn ask(&self, script: &str) -> Result<String> {
        let mut command = shell::tool("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup"]);
        command.args(["--root", "--wd", "/bin/sh", "-euc", script]).env_clear();
        command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        shell::output(&mut command)
    }

    /// A property of the unit.
    fn property(&self, name: &str) -> Result<String> {
        Ok(self.ask(&format!("systemctl show lb --property {name} --value"))?.trim().to_owned())
    }

    fn active(&self, wanted: &str) -> Result<()> {
        let state = self.property("ActiveState")?;
        ensure!(state == wanted, "the unit is {state}, not {wanted}");
        Ok(())
    }

    /// The end of the unit's journal.
    fn log(&self) -> String {
        self.ask("journalctl --unit lb --no-pager --lines 30").unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.container.terminate(Duration::from_secs(30)) {
            eprintln!("the container was killed: {error:#}");
        }
    }
}

/// Client and server, each in a namespace of its own, and their cables.
struct Plugs {
    client: Namespace,
    _server: Process,
    _servers: Namespace,
}

impl Plugs {
    fn connect(machine: &Machine) -> Result<Self> {
        let own = std::process::id();
        let client = Namespace::create(&format!("lbd-{own}-c"))?;
        let servers = Namespace::create(&format!("lbd-{own}-s"))?;
        let ends = [(&client, "c0", "lbc", "10.98.0.2/24"), (&servers, "s0", "lbs", "10.97.0.11/24")];
        for (namespace, end, near, address) in ends {
            namespace.ip(&[
                format!("link add {end} type veth peer name {near} netns {}", machine.init),
                format!("addr add {address} dev {end}"),
                format!("link set {end} up"),
            ])?;
            // As in every world: what XDP sends on veth must be whole, and its far end must poll.
            namespace.output("ethtool", &["-K", end, "tx", "off", "gro", "on"])?;
        }
        machine.ask("ip address add 10.98.0.1/24 dev lbc; ip address add 10.97.0.1/24 dev lbs; ip link set lbc up; ip link set lbs up")?;
        for near in ["lbc", "lbs"] {
            let mut command = shell::tool("nsenter");
            command.args([
                "--target",
                &machine.init.to_string(),
                "--net",
                "ethtool",
                "-K",
                near,
                "tx",
                "off",
                "gro",
                "on",
            ]);
            shell::output(command.stdin(Stdio::null()))?;
        }
        let mut serve = servers.command(std::env::current_exe()?);
        serve.args(["serve", "--name", "one", "--port", "8080"]);
        let log = std::env::temp_dir().join(format!("lbd-{own}-server.log"));
        let server = Process::start("the web server", &mut serve, &log)?;
        let _ = fs::remove_file(&log);
        Ok(Self { client, _server: server, _servers: servers })
    }

    fn get(&self) -> Result<String> {
        self.client.output("curl", &["--silent", "--fail", "--max-time", "5", "http://10.98.0.100/"])
    }

    /// Does the work while one request after the other is answered.
    fn while_answered<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let requests = scope.spawn(|| -> Result<()> {
                while !stop.load(Ordering::SeqCst) {
                    self.get().context("a request was not answered")?;
                    answered.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            });
            let result = work();
            // Some more, also where the work took no time.
            let enough = answered.load(Ordering::SeqCst) + MORE;
            while result.is_ok() && !requests.is_finished() && answered.load(Ordering::SeqCst) < enough {
                thread::sleep(Duration::from_millis(10));
            }
            stop.store(true, Ordering::SeqCst);
            let asked = requests.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let result = result?;
            asked?;
            let answered = answered.load(Ordering::SeqCst);
            println!("  {answered} requests, each answered");
            Ok(result)
        })
    }
}

fn unconfigured(machine: &Machine, _: &Plugs, _: &str) -> Result<()> {
    machine.ask("test ! -e /etc/lb/lb.toml; systemctl start lb")?;
    machine.active("inactive")?;
    let failed = machine.ask("systemctl --failed --no-legend --plain")?;
    ensure!(!failed.contains("lb.service"), "it failed");
    machine.ask("test ! -e /sys/fs/bpf/lb").map(drop)
}

fn starts(machine: &Machine, plugs: &Plugs, _: &str) -> Result<()> {
    configure(machine, SETTINGS)?;
    machine.ask("systemctl start lb")?;
    // `start` waits for READY=1, and that comes when packets are forwarded.
    machine.active("active")?;
    let links = machine.ask("ip -details link show lbc; ip -details link show lbs")?;
    ensure!(links.matches("prog/xdp").count() == 2, "no program on both interfaces:\n{links}");
    until("the first answer", PATIENCE, || plugs.get()).map(drop)
}

fn configure(machine: &Machine, text: &str) -> Result<()> {
    machine
        .ask(&format!(
            "cat > /etc/lb/lb.toml <<'END'\n{text}\nEND\nchown root:lb /etc/lb/lb.toml; chmod 640 /etc/lb/lb.toml"
        ))
        .map(drop)
}

fn rights(machine: &Machine, _: &Plugs, _: &str) -> Result<()> {
    let status = machine.ask(&format!("cat /proc/{}/status", machine.property("MainPID")?))?;
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    for set in ["CapEff:", "CapBnd:", "CapAmb:"] {
        let bits = u64::from_str_radix(&field(set), 16).with_context(|| format!("{set} {}", field(set)))?;
        ensure!(bits == CAPABILITIES, "{set} {bits:x}, not {CAPABILITIES:x}");
    }
    ensure!(!field("Uid:").starts_with('0') && field("NoNewPrivs:") == "1", "{status}");
    let analyzed = machine.ask("systemd-analyze security lb.service --no-pager")?;
    let last = analyzed.lines().last().unwrap_or_default().to_owned();
    println!("  {}", last.trim());
    let figure = last.split_once("lb.service: ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
    ensure!(figure.is_some_and(|figure| figure <= EXPOSURE), "more than {EXPOSURE}: {last}");
    Ok(())
}

fn bad_reload(machine: &Machine, plugs: &Plugs, _: &str) -> Result<()> {
    let pid = machine.property("MainPID")?;
    configure(machine, "interfaces = 7")?;
    ensure!(machine.ask("systemctl reload lb").is_err(), "the file was taken");
    machine.active("active")?;
    ensure!(machine.property("MainPID")? == pid, "another agent runs");
    ensure!(machine.ask("lb service list")?.contains("10.98.0.100:80"), "the service is gone");
    ensure!(machine.log().contains("interfaces"), "the journal does not say why");
    plugs.get().map(drop)
}

fn good_reload(machine: &Machine, plugs: &Plugs, _: &str) -> Result<()> {
    let pid = machine.property("MainPID")?;
    let second = SETTINGS
        .split_once("\n\n")
        .map_or("", |(_, service)| service)
        .replace("web", "more")
        .replace(":80\"\nmode", ":81\"\nmode");
    configure(machine, &format!("{SETTINGS}\n{second}"))?;
    plugs.while_answered(|| {
        machine.ask("systemctl reload lb")?;
        until("the second service", PATIENCE, || {
            let list = machine.ask("lb service list")?;
            ensure!(list.contains("10.98.0.100:81"), "{list}");
            Ok(())
        })
    })?;
    ensure!(machine.property("MainPID")? == pid, "another agent runs");
    Ok(())
}

fn watchdog(machine: &Machine, plugs: &Plugs, _: &str) -> Result<()> {
    let pid = machine.property("MainPID")?;
    plugs.while_answered(|| {
        machine.ask(&format!("kill -STOP {pid}"))?;
        until("the next agent", RESTARTED, || {
            machine.active("active")?;
            ensure!(machine.property("MainPID")? != pid, "the stopped agent is still there");
            Ok(())
        })
    })?;
    ensure!(machine.property("NRestarts")? == "1", "{} restarts", machine.property("NRestarts")?);
    ensure!(machine.ask("journalctl --unit lb --no-pager")?.contains("Watchdog timeout"), "no word of the watchdog");
    Ok(())
}

fn upgraded(machine: &Machine, plugs: &Plugs, next: &str) -> Result<()> {
    let pid = machine.property("MainPID")?;
    plugs.while_answered(|| machine.ask(&format!("dpkg --install {next}")).map(drop))?;
    machine.active("active")?;
    ensure!(machine.property("MainPID")? != pid, "the new version does not run");
    Ok(())
}

fn stopped(machine: &Machine, plugs: &Plugs, _: &str) -> Result<()> {
    plugs.while_answered(|| {
        machine.ask("systemctl stop lb")?;
        machine.active("inactive")?;
        thread::sleep(Duration::from_secs(1));
        Ok(())
    })
}

fn removed(machine: &Machine, _: &Plugs, _: &str) -> Result<()> {
    let said = machine.ask("cat /var/lib/lb/host.json; dpkg --remove lb 2>&1; cat /var/lib/lb/host.json")?;
    let links = machine.ask("ip -details link show lbc; ip -details link show lbs; ip address show dev lbc")?;
    let left = links.contains("prog/xdp") || links.contains("10.98.0.100");
    ensure!(!left, "something is left:\n{links}\nwhat was said:\n{said}");
    machine.ask("test ! -e /sys/fs/bpf/lb; test ! -e /usr/lib/systemd/system/lb.service").map(drop)
}
