//! What probes cost the agent, and whether they stay on schedule: a thousand targets, half of which never
//! answer.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Socket, Type};
use xtask::{
    build::{self, Profile},
    world::{Balancer, Launch, Process, Topology, World, process},
};

use crate::{
    control::syscalls::{self, Syscalls},
    result::ProbesRow,
    statistics::quantile,
    users::cpu,
};

const INTERVAL: Duration = Duration::from_millis(100);
/// Over before the next one is due: a probe that is not makes its target miss that turn.
const TIMEOUT: Duration = Duration::from_millis(80);
const TARGETS: u32 = 1000;
/// Backends of one service.
const OF_SERVICE: u32 = 250;
/// Until the agent knows who is up, and beats evenly.
const SETTLES: Duration = Duration::from_secs(3);
/// Where somebody answers, and where nobody does.
const OPEN: u16 = 7001;
const HANGING: u16 = 7002;

/// Measures with all targets healthy, then with half of them hanging.
///
/// # Errors
/// The world cannot be made, or the agent does not start.
pub fn probes(watched: Duration) -> Result<Vec<ProbesRow>> {
    let world = World::new(Topology::OneArm, 0)?;
    // Every address of the targets is this host itself: no wire is in what is measured.
    world.lb.ip(&["route add local 10.72.0.0/16 dev lo"])?;
    world.lb.output(
        "nft",
        &[&format!(
            "add table ip hang; add chain ip hang in {{ type filter hook input priority 0; }}; \
             add rule ip hang in tcp dport {HANGING} drop"
        )],
    )?;
    let listener = world.lb.enter(accept_everybody)?;
    let tracepoint = syscalls::tracepoint(&world.subfolder("probes")?)?;
    let rows = [0, TARGETS / 2].into_iter().map(|hanging| measure(&world, hanging, watched, tracepoint)).collect();
    drop(listener);
    rows
}

fn measure(world: &World, hanging: u32, watched: Duration, tracepoint: u64) -> Result<ProbesRow> {
    let lb = build::lb(Profile::Dev)?;
    let log = world.folder().join("probes.log");
    let config = config(hanging);
    let launch = Launch { program: &lb, config: &config, arguments: &[], log: &log };
    let mut balancer = Balancer::start(world, &launch)?;
    balancer.until("the agent is there", Duration::from_secs(30), |lb| lb.json(&["status"]).map(drop))?;
    thread::sleep(SETTLES);
    let capture = world.folder().join(format!("probes-{hanging}.pcap"));
    let mut tcpdump = tcpdump(world, &capture)?;
    let folder = format!("/proc/{}", balancer.agent().pid());
    let mut counter = Syscalls::of(balancer.agent().pid(), tracepoint)?;
    let (cpu_before, begun) = (cpu::process(&folder), Instant::now());
    thread::sleep(watched);
    let (cpu_used, syscalls, took) = (cpu::process(&folder) - cpu_before, counter.count()?, begun.elapsed());
    tcpdump.terminate(Duration::from_secs(10))?;
    balancer.stop()?;
    balancer.done(&["detach"])?;
    let times = syns(&fs::read(&capture).with_context(|| format!("reading {}", capture.display()))?)?;
    ensure!(times.len() == TARGETS as usize, "{} of {TARGETS} targets were probed", times.len());
    let errors: Vec<f64> = times.values().flat_map(|times| times.windows(2).map(error_ms)).collect();
    let at = |share| quantile(&errors, share).map(|ms| (ms * 100.0).round() / 100.0).context("no probes");
    let (due, counts) = in_turns(times.values());
    let probes: usize = times.values().map(Vec::len).sum();
    Ok(ProbesRow {
        targets: TARGETS,
        hanging,
        interval_ms: INTERVAL.as_millis() as u64,
        per_second: (probes as f64 / took.as_secs_f64()).round(),
        cpu_percent: (cpu_used as f64 / took.as_nanos() as f64 * 1000.0).round() / 10.0,
        error_p50_ms: at(0.5)?,
        error_p99_ms: at(0.99)?,
        error_worst_ms: at(1.0)?,
        due,
        fewest: *counts.iter().min().context("no targets")?,
        most: *counts.iter().max().context("no targets")?,
        syscalls_per_second: (syscalls as f64 / took.as_secs_f64()).round(),
    })
}

/// Whole turns that the times of all targets lie in, and how many each target has of them.
fn in_turns<'t>(times: impl Iterator<Item = &'t Vec<u64>> + Clone) -> (u32, Vec<u32>) {
    let all = || times.clone().flatten().copied();
    let (first, last) = (all().min().unwrap_or(0), all().max().unwrap_or(0));
    let turns = (last - first) / INTERVAL.as_micros() as u64;
    let end = first + turns * INTERVAL.as_micros() as u64;
    (turns as u32, times.clone().map(|times| times.iter().filter(|&&time| time < end).count() as u32).collect())
}

fn error_ms(two: &[u64]) -> f64 {
    let apart = Duration::from_micros(two[1].saturating_sub(two[0]));
    apart.abs_diff(INTERVAL).as_secs_f64() * 1000.0
}

fn config(hanging: u32) -> String {
    let mut text = String::from("interfaces = [\"eth0\"]\n");
    for number in 0..TARGETS {
        if number % OF_SERVICE == 0 {
            let service = number / OF_SERVICE;
            text += &format!(
                "[[service]]\nname = \"probes{service}\"\nlisten = \"10.71.1.100:{}\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
                 [service.health]\ntype = \"tcp\"\ninterval = \"{1}ms\"\ntimeout = \"{2}ms\"\njitter = 0\n",
                9000 + service,
                INTERVAL.as_millis(),
                TIMEOUT.as_millis()
            );
        }
        // Spread over the services, whatever their share.
        let hangs = (number + 1) * hanging / TARGETS > number * hanging / TARGETS;
        let address = Ipv4Addr::new(10, 72, (number / 200) as u8, (number % 200 + 1) as u8);
        let port = if hangs { HANGING } else { OPEN };
        text += &format!("[[service.backend]]\naddress = \"{}\"\n", SocketAddr::from((address, port)));
    }
    text
}

/// A server on every address, with a long queue: a busy machine must not make it drop connections. Ends
/// when what comes back is dropped.
fn accept_everybody() -> Result<Listener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, OPEN)).into())?;
    socket.listen(4096)?;
    let accepting = socket.try_clone()?;
    thread::spawn(move || while accepting.accept().is_ok() {});
    Ok(Listener(socket))
}

struct Listener(Socket);

impl Drop for Listener {
    fn drop(&mut self) {
        // Wakes the thread; a socket that is closed already needs no more.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

fn tcpdump(world: &World, file: &Path) -> Result<Process> {
    let mut command = world.lb.command("tcpdump");
    command.args(["-i", "lo", "-Z", "root", "-s", "64", "-B", "16384", "-w"]).arg(file);
    command.arg("dst net 10.72.0.0/16 and tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn");
    let log = file.with_extension("log");
    let tcpdump = Process::start("tcpdump", &mut command, &log)?;
    process::until("tcpdump listens", Duration::from_secs(10), || {
        ensure!(fs::read_to_string(&log)?.contains("listening on"), "{}", tcpdump.log_tail());
        Ok(())
    })?;
    Ok(tcpdump)
}

/// When SYNs were sent, in microseconds, by address. (pcap's file format: a header of 24 bytes, 16 before
/// each packet; Ethernet, then IPv4.)
fn syns(pcap: &[u8]) -> Result<HashMap<Ipv4Addr, Vec<u64>>> {
    let word = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(pcap.get(at..at + 4)?.try_into().ok()?)) };
    ensure!(word(0) == Some(0xa1b2_c3d4), "no capture of this machine's order with microseconds");
    let (mut times, mut at) = (HashMap::<Ipv4Addr, Vec<u64>>::new(), 24);
    while let (Some(seconds), Some(micros), Some(length)) = (word(at), word(at + 4), word(at + 8)) {
        let packet = at + 16;
        at = packet + length as usize;
        let Some(&[a, b, c, d]) = pcap.get(packet + 30..packet + 34) else { continue };
        let time = u64::from(seconds) * 1_000_000 + u64::from(micros);
        times.entry(Ipv4Addr::new(a, b, c, d)).or_default().push(time);
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_targets_hang_in_every_service() {
        let text = config(TARGETS / 2);
        assert_eq!(text.matches("[[service.backend]]").count(), TARGETS as usize);
        for service in text.split("[[service]]").skip(1) {
            assert_eq!(service.matches(&format!(":{HANGING}\"")).count(), OF_SERVICE as usize / 2);
        }
        assert_eq!(config(0).matches(&format!(":{HANGING}\"")).count(), 0);
    }

    #[test]
    fn a_turn_that_was_left_out_is_missing_in_the_count() {
        let every = |ms: u64, turns: std::ops::Range<u64>| turns.map(|n| ms * 1000 + n * 100_000).collect::<Vec<_>>();
        let mut times = [every(0, 0..10), every(30, 0..10), every(99, 0..10)];
        assert_eq!(in_turns(times.iter()), (9, vec![9, 9, 9]));
        times[1].remove(4);
        assert_eq!(in_turns(times.iter()), (9, vec![9, 8, 9]));
        assert_eq!(in_turns([].iter()), (0, vec![]));
    }

    #[test]
    fn captures_are_read_to_their_end_and_no_further() {
        let mut pcap = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        pcap.resize(24, 0);
        for micros in [5u32, 100_007] {
            for word in [1, micros, 34, 34] {
                pcap.extend_from_slice(&word.to_le_bytes());
            }
            let mut packet = [0; 34];
            packet[30..].copy_from_slice(&[10, 72, 0, 1]);
            pcap.extend_from_slice(&packet);
        }
        // tcpdump was ended in the middle.
        pcap.extend_from_slice(&[1, 2, 3]);
        let times = syns(&pcap).unwrap();
        assert_eq!(times[&Ipv4Addr::new(10, 72, 0, 1)], [1_000_005, 1_100_007]);
        assert!((error_ms(&times[&Ipv4Addr::new(10, 72, 0, 1)]) - 0.002).abs() < 1e-9);
        assert!(syns(b"no capture").is_err());
    }
}
