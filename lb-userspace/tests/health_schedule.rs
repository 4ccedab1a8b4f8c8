//! A thousand targets at ten probes a second, half of them hanging: nothing piles up. Alone in its
//! process, whose descriptors and CPU time it counts.

use std::{
    collections::HashMap,
    fmt,
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
    sync::mpsc,
    time::{Instant, timeout_at},
};

const INTERVAL: Duration = Duration::from_millis(100);
const TARGETS: u32 = 500;
/// Of the healthy ones: what a busy machine needs to answer is not looked at here.
const PATIENCE: Duration = Duration::from_secs(5);
const WATCHED: Duration = Duration::from_millis(1500);
const ROUNDS: u32 = 3;

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

/// A server on every loopback address, in a thread of its own and with a long queue: a busy machine
/// must not make it drop connections.
fn accept_everybody() -> u16 {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into()).unwrap();
    listener.listen(4096).unwrap();
    let port = listener.local_addr().unwrap().as_socket().unwrap().port();
    std::thread::spawn(move || while listener.accept().is_ok() {});
    port
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
        way: None,
    })
}

/// What was seen in the watched time.
#[derive(Default)]
struct Watch {
    counts: HashMap<SocketAddr, u32>,
    punctuality: Punctuality,
    cpu: Duration,
    time: Duration,
}

impl Watch {
    fn add(&mut self, other: Self) {
        for (target, count) in other.counts {
            *self.counts.entry(target).or_default() += count;
        }
        self.punctuality.probes += other.punctuality.probes;
        self.punctuality.late += other.punctuality.late;
        self.punctuality.delay += other.punctuality.delay;
        self.punctuality.worst = self.punctuality.worst.max(other.punctuality.worst);
        self.cpu += other.cpu;
        self.time += other.time;
    }

    fn of(&self, key: &ProbeKey) -> u32 {
        self.counts.get(&key.target).copied().unwrap_or(0)
    }

    /// Between the time when a probe was due and its beginning, on average, in intervals.
    fn delay(&self) -> f64 {
        self.punctuality.delay.as_secs_f64() / self.punctuality.probes.max(1) as f64 / INTERVAL.as_secs_f64()
    }
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Punctuality { probes, late, worst, .. } = self.punctuality;
        let seconds = self.time.as_secs_f64();
        write!(
            f,
            "{:.0} probes a second, {:.3} intervals late on average, {:.2} at worst, {:.1} % more than half of one; {:.0} % of a CPU, server included",
            probes as f64 / seconds,
            self.delay(),
            worst.as_secs_f64() / INTERVAL.as_secs_f64(),
            late as f64 / probes.max(1) as f64 * 100.0,
            self.cpu.as_secs_f64() / seconds * 100.0,
        )
    }
}

async fn watch(keys: Vec<ProbeKey>) -> Watch {
    let (tx, mut rx) = mpsc::channel(4096);
    let mut prober = Prober::new(tx);
    let (cpu, began) = (cpu_time(), Instant::now());
    prober.set(keys);
    let mut counts = HashMap::new();
    while let Ok(Some((key, outcome))) = timeout_at(began + WATCHED, rx.recv()).await {
        let hangs = key.timeout == INTERVAL;
        assert_eq!(outcome.result, if hangs { "L4TOUT" } else { "L4OK" }, "{}", key.target);
        *counts.entry(key.target).or_default() += 1;
    }
    assert_eq!(prober.local_failures(), 0);
    Watch { counts, punctuality: prober.punctuality(), cpu: cpu_time() - cpu, time: began.elapsed() }
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
    let port = accept_everybody();
    let silent = Silent::new();
    let healthy: Vec<ProbeKey> = targets(1, port, PATIENCE).collect();
    // In turn, so that what else the machine does meets both.
    let (mut control, mut trial) = (Watch::default(), Watch::default());
    for _ in 0..ROUNDS {
        let all_healthy = healthy.iter().cloned().chain(targets(3, port, PATIENCE)).collect();
        control.add(watch(all_healthy).await);
        let half_hang = healthy.iter().cloned().chain(targets(2, silent.port(), INTERVAL)).collect();
        trial.add(watch(half_hang).await);
    }
    println!("1,000 healthy targets: {control}");
    println!("500 healthy, 500 hanging: {trial}");

    let made = |watch: &Watch| -> u32 { healthy.iter().map(|key| watch.of(key)).sum() };
    let (apart, together) = (made(&control), made(&trial));
    println!("probes of the first 500: {apart} among healthy ones, {together} among hanging ones");
    assert!(together * 10 >= apart * 6, "hanging targets take the turns of healthy ones");
    assert!(trial.delay() <= control.delay() * 2.0 + 0.25, "hanging targets make the others late");
    let ticks = WATCHED.as_millis() * u128::from(ROUNDS) / INTERVAL.as_millis();
    for key in &healthy {
        let count = trial.of(key);
        assert!(count * TARGETS * 4 >= apart, "{} was asked {count} times in {ticks} intervals", key.target);
        assert!(u128::from(count) <= ticks + 2 * u128::from(ROUNDS), "{}: missed ticks were made up for", key.target);
    }
    for key in targets(2, silent.port(), INTERVAL) {
        let count = trial.of(&key);
        assert!(count * TARGETS * 8 >= apart, "{} hangs and was asked {count} times only", key.target);
        assert!(u128::from(count) <= ticks + u128::from(ROUNDS), "{} had several probes at a time", key.target);
    }
}
