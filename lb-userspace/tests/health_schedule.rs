//! A thousand targets at ten probes a second, half of them hanging: nothing piles up. Alone in its
//! process, whose descriptors and CPU time it counts.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use lb_userspace::{
    config::Check,
    core::ProbeKey,
    health::{Prober, Punctuality},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, timeout_at},
};

const INTERVAL: Duration = Duration::from_millis(100);
const TARGETS: u32 = 500;
/// Of the healthy ones: what a busy machine needs to answer is not looked at here.
const PATIENCE: Duration = Duration::from_secs(2);
const WATCHED: Duration = Duration::from_secs(4);

/// A listener on every loopback address whose queue is full: the kernel drops what comes.
struct Silent {
    listener: Socket,
    _fillers: Vec<Socket>,
}

impl Silent {
    fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let port = listener.local_addr().unwrap().as_socket().unwrap().port();
        let fillers = (0..4).map(|_| {
            let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            filler.set_nonblocking(true).unwrap();
            // In progress for ever once the queue is full.
            let _ = filler.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into());
            filler
        });
        Self { _fillers: fillers.collect(), listener }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().as_socket().unwrap().port()
    }
}

/// As many addresses of 127.0.0.0/8, with this port.
fn targets(second: u8, port: u16, timeout: Duration) -> impl Iterator<Item = ProbeKey> {
    (1..=TARGETS).map(move |n| ProbeKey {
        target: SocketAddr::from((Ipv4Addr::new(127, second, (n / 250) as u8, (n % 250 + 1) as u8), port)),
        check: Check::Tcp,
        interval: INTERVAL,
        fast: None,
        timeout,
        jitter_percent: 10,
    })
}

/// Results by target and what the prober says of itself, over the watched time.
async fn watch(keys: Vec<ProbeKey>) -> (HashMap<SocketAddr, u32>, Punctuality) {
    let (tx, mut rx) = mpsc::channel(4096);
    let mut prober = Prober::new(tx);
    prober.set(keys);
    let end = Instant::now() + WATCHED;
    let mut counts = HashMap::new();
    while let Ok(Some((key, outcome))) = timeout_at(end, rx.recv()).await {
        let hangs = key.target.ip().to_string().starts_with("127.2.");
        assert_eq!(outcome.result, if hangs { "L4TOUT" } else { "L4OK" }, "{}", key.target);
        *counts.entry(key.target).or_default() += 1;
    }
    assert_eq!(prober.local_failures(), 0);
    (counts, prober.punctuality())
}

/// User and system time of this process.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split(' ').collect();
    let ticks: u64 = fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_targets_stay_on_schedule_while_half_of_them_hang() {
    // As a service is started: 1024 descriptors, with leave to have more.
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum: hard }).unwrap();
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let silent = Silent::new();
    let healthy: Vec<ProbeKey> = targets(1, port, PATIENCE).collect();

    let (alone, before) = watch(healthy.clone()).await;
    let cpu = cpu_time();
    let (with_others, after) =
        watch(healthy.iter().cloned().chain(targets(2, silent.port(), INTERVAL)).collect()).await;
    let cpu = cpu_time() - cpu;

    let ratio = |p: &Punctuality| p.delay.as_secs_f64() / p.probes.max(1) as f64 / INTERVAL.as_secs_f64();
    println!("500 healthy targets alone: {before:?}, mean delay {:.3} intervals", ratio(&before));
    println!(
        "with 500 hanging ones: {after:?}, mean delay {:.3} intervals, {:.1} % of a CPU (server included)",
        ratio(&after),
        cpu.as_secs_f64() / WATCHED.as_secs_f64() * 100.0
    );
    let ticks = WATCHED.as_millis() / INTERVAL.as_millis();
    let made = |counts: &HashMap<SocketAddr, u32>| -> u32 {
        healthy.iter().map(|key| counts.get(&key.target).copied().unwrap_or(0)).sum()
    };
    let (apart, together) = (made(&alone), made(&with_others));
    println!("probes of healthy targets: {apart} alone, {together} with the others");
    // The rest is for what twice as many probes cost a busy machine.
    assert!(together * 10 >= apart * 6, "hanging targets take the turns of healthy ones");
    for key in &healthy {
        let count = with_others.get(&key.target).copied().unwrap_or(0);
        // A quarter of what it gets alone: what the busiest machine cannot do is left out by that.
        assert!(count * TARGETS * 4 >= apart, "{} was asked {count} times in {ticks} intervals", key.target);
        assert!(
            u128::from(count) <= ticks + 2,
            "{} was asked {count} times: missed ticks were made up for",
            key.target
        );
    }
    for key in targets(2, silent.port(), INTERVAL) {
        let count = with_others.get(&key.target).copied().unwrap_or(0);
        assert!(count * TARGETS * 8 >= apart, "{} hangs and was asked {count} times only", key.target);
        assert!(u128::from(count) <= ticks + 1, "{} had more than one probe at a time: {count}", key.target);
    }
    assert!(ratio(&after) < 0.5, "probes begin half an interval late on average");
}
