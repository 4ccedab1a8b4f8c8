//! New connections at a fixed pace from many clients, and how they fared; the receipts of what happened
//! meanwhile.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket_with};
use serde_json::Value;
use xtask::world::{Balancer, Namespace, config::Service};

use super::{PATIENCE, Stage};

/// From one connection to the next.
const PACE: Duration = Duration::from_millis(5);
/// How many addresses the clients have.
pub const CLIENTS: u8 = 16;
/// What a client takes for a failure: it gives up, or complains.
pub const TOO_LATE: Duration = Duration::from_millis(1000);

/// One connection with one request.
#[derive(Debug)]
pub struct Attempt {
    pub from: IpAddr,
    pub begun: Instant,
    pub took: Duration,
    pub outcome: Result<(), String>,
}

/// The clients' addresses.
pub fn give_addresses(stage: &Stage) {
    for n in 0..CLIENTS {
        stage.world.client.ip(&[&format!("addr add {}/24 dev eth0", address(n))]).unwrap();
    }
}

/// The client of this number, below [`CLIENTS`].
pub fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 71, 1, 20 + number])
}

/// Connections at a fixed pace, each on a thread of its own, from [`CLIENTS`] addresses in turn. `fault` happens
/// after a second; then three more pass.
pub fn under_load(client: &Namespace, service: SocketAddr, fault: impl FnOnce()) -> Vec<Attempt> {
    let attempts = Mutex::new(Vec::new());
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0u32..800 {
                let due = begun + PACE * number;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let from = address((number % u32::from(CLIENTS)) as u8);
                let attempts = &attempts;
                scope.spawn(move || {
                    client.join_thread();
                    let begun = Instant::now();
                    let outcome = request(from, service).map_err(|error| error.to_string());
                    attempts.lock().unwrap().push(Attempt { from, begun, took: begun.elapsed(), outcome });
                });
            }
        });
        thread::sleep(Duration::from_secs(1));
        fault();
    });
    attempts.into_inner().unwrap()
}

fn request(from: IpAddr, service: SocketAddr) -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, rustix::net::SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddr::new(from, 0))?;
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Send, Some(5 * TOO_LATE))?;
    connect(&socket, &service)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(5 * TOO_LATE))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: world\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(io::Error::other(answer)) }
}

/// Nobody failed. Gives the slowest.
pub fn assert_unnoticed(what: &str, attempts: &[Attempt]) -> Duration {
    let failed = |attempt: &&Attempt| attempt.outcome.is_err() || attempt.took > TOO_LATE;
    let failed: Vec<_> = attempts.iter().filter(failed).collect();
    let slow = attempts.iter().filter(|attempt| attempt.took > Duration::from_millis(50)).count();
    let worst = attempts.iter().map(|attempt| attempt.took).max().unwrap();
    println!("{what}: {} of {} failed, {slow} took over 50 ms, the longest {worst:?}", failed.len(), attempts.len());
    assert!(attempts.len() >= 798, "{what}: {}", attempts.len());
    assert!(failed.is_empty(), "{what}: {failed:#?}");
    worst
}

/// Work, and by how much the scheduler kept a thread waiting meanwhile that wanted to run every few
/// milliseconds, as the agent's do: the longest time.
pub fn with_stalls<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    const EVERY: Duration = Duration::from_millis(2);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(EVERY);
                longest = longest.max(began.elapsed().saturating_sub(EVERY));
            }
            longest
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        (done, watch.join().unwrap())
    })
}

/// A service's counter.
pub fn counter(lb: &Balancer<'_>, service: &Service, name: &str) -> u64 {
    lb.json(&["stats", &service.name]).unwrap()["services"][0][name].as_u64().unwrap()
}

/// The receipts of the backend of this index, oldest first, once there are some.
pub fn receipts(lb: &Balancer<'_>, service: &Service, index: u8) -> Vec<Value> {
    let backend = service.backend_address(index);
    let of_backend = |lb: &Balancer<'_>| {
        let events = lb.json(&["events"])?["events"].as_array().cloned().unwrap_or_default();
        let own: Vec<Value> = events.into_iter().filter(|event| event["backend"] == backend.as_str()).collect();
        if own.is_empty() {
            anyhow::bail!("no receipt of {backend}")
        }
        Ok(own)
    };
    lb.until("a receipt", PATIENCE, of_backend).unwrap()
}
