//! A host with one interface, in a network namespace that ends with the thread: routes and neighbours
//! for the kernel's own lookups, and nobody who would send anything.
//!
//! ```text
//! clients -- gateway 10.0.0.254 --+-- eth0 [lb] 10.0.0.1
//!                                 +-- backends 10.0.1.1 to 10.0.1.100
//! ```

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Stdio,
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::shell;

/// Where the program under test believes to be attached.
pub const INTERFACE: &str = "eth0";
/// The other end of its wire.
pub const FAR: &str = "far";
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
/// Backends of every service together.
pub const BACKENDS: u32 = 100;

/// The balancer's address towards backends.
pub const fn source(v4: bool) -> IpAddr {
    if v4 { IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)) } else { v6(0x10, 1) }
}

/// Backend `number`, from 0.
pub const fn backend(v4: bool, number: u32) -> IpAddr {
    if v4 { IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0101 + number)) } else { v6(0x10, 0x0001_0001 + number) }
}

/// Address of service `number`, from 0.
pub const fn service(v4: bool, number: u32) -> IpAddr {
    if v4 { IpAddr::V4(Ipv4Addr::from_bits(0xac10_0001 + number)) } else { v6(0x20, 1 + number) }
}

/// The client whose address ends in these four bytes; for IPv4 that is all of it.
pub const fn client(v4: bool, last: u32) -> IpAddr {
    if v4 { IpAddr::V4(Ipv4Addr::from_bits(last)) } else { v6(0x30, last) }
}

/// `fd00:NET::LAST`
const fn v6(net: u16, last: u32) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, (last >> 16) as u16, last as u16))
}

/// The last four bytes, in host order.
pub const fn last_word(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => address.to_bits() as u32,
    }
}

/// Runs the work on a thread of its own, pinned to one CPU, in a namespace of its own.
///
/// # Errors
/// Not root, or the namespace cannot be made; else what the work returns.
pub fn inside<T: Send>(cpu: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    ensure!(shell::is_root(), "the bench loads eBPF programs: run it as root");
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // SAFETY: concerns this thread only, which ends with the work.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(std::io::Error::last_os_error()).context("making a network namespace");
            }
            build()?;
            pin_to(cpu)?;
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// There is no such CPU for us.
pub fn pin_to(cpu: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("staying on CPU {cpu}"))
}

fn build() -> Result<()> {
    let mac = |n: u32| format!("02:00:00:01:{:02x}:{:02x}", n >> 8, n & 0xff);
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("link add {INTERFACE} address 02:00:00:00:00:01 type veth peer name {FAR}"),
        // Or it would solicit and report.
        format!("link set {FAR} addrgenmode none"),
        format!("addr add 10.0.0.1/16 dev {INTERFACE}"),
        format!("addr add fd00:10::1/64 dev {INTERFACE} nodad"),
        format!("link set {INTERFACE} up"),
        format!("link set {FAR} up"),
        "route add default via 10.0.0.254".to_owned(),
        "route add default via fd00:10::fe".to_owned(),
        format!("neigh add 10.0.0.254 lladdr 02:00:00:00:00:fe dev {INTERFACE} nud permanent"),
        format!("neigh add fd00:10::fe lladdr 02:00:00:00:00:fe dev {INTERFACE} nud permanent"),
    ];
    for number in 0..BACKENDS {
        for v4 in [true, false] {
            let (address, mac) = (backend(v4, number), mac(number));
            lines.push(format!("neigh add {address} lladdr {mac} dev {INTERFACE} nud permanent"));
        }
    }
    ip_batch(&lines)?;
    for family in ["ipv4", "ipv6"] {
        let path = format!("/proc/sys/net/{family}/conf/{INTERFACE}/forwarding");
        std::fs::write(&path, "1").with_context(|| format!("writing {path}"))?;
    }
    Ok(())
}

/// Lines of `ip -batch`, in this thread's namespace.
pub(super) fn ip_batch(lines: &[String]) -> Result<()> {
    let mut command = shell::tool("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start ip: is iproute2 installed?")?;
    child.stdin.take().context("a pipe")?.write_all((lines.join("\n") + "\n").as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
