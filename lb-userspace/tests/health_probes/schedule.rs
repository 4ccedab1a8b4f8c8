//! A thousand targets, half of which never answer: every one of them is asked at every turn, no matter how the
//! others behave. In virtual time, with real sockets.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use lb_userspace::{config::Check, core::ProbeKey, health::Prober};
use socket2::{Domain, Socket, Type};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use crate::servers::{Silent, V4, key};

const TARGETS: u16 = 1000;
const INTERVAL: Duration = Duration::from_millis(100);
/// A probe that hangs is over before the next one is due.
const TIMEOUT: Duration = Duration::from_millis(80);
const STEP: Duration = Duration::from_millis(5);
/// The first probe is at once; this many turns follow.
const TURNS: u32 = 20;

/// Every address of the loopback network is this host.
fn target(number: u16, port: u16) -> SocketAddr {
    (Ipv4Addr::new(127, 1, (number / 200) as u8, (number % 200 + 1) as u8), port).into()
}

/// A thread of its own that takes connections until the process ends, with a long queue: a busy machine may hold it up.
fn accept_everybody(at: SocketAddr) -> SocketAddr {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&at.into()).unwrap();
    listener.listen(4096).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    std::thread::spawn(move || while listener.accept().is_ok() {});
    address
}

/// Lets virtual time go on in small steps, each with time enough for the kernel to answer. It does not leap to the
/// next timer meanwhile, since a thread is at work.
async fn beat() {
    loop {
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(1))).await.unwrap();
        // Behind everybody who is ready, and whom that makes ready.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        tokio::time::advance(STEP).await;
    }
}

/// How often each target was asked within so many turns.
async fn asked(jitter_percent: u8) -> HashMap<ProbeKey, u32> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, V4.port()));
    let open = accept_everybody(any).port();
    let silent = Silent::at(any);
    let keys = (0..TARGETS).map(|number| {
        let port = if number % 2 == 0 { open } else { silent.address().port() };
        let key = key(target(number, port), Check::Tcp);
        ProbeKey { interval: INTERVAL, timeout: TIMEOUT, jitter_percent, ..key }
    });
    let (tx, mut results) = mpsc::channel(4096);
    let mut prober = Prober::with_limit(tx, TARGETS.into());
    prober.set(keys.collect());
    // All probes of the last turn have ended, and none of the next has begun and ended.
    let end = Instant::now() + INTERVAL * TURNS + TIMEOUT + Duration::from_millis(10);
    let _clock = AbortOnDropHandle::new(tokio::spawn(beat()));
    let mut seen = HashMap::new();
    while let Ok(Some((key, outcome))) = tokio::time::timeout_at(end, results.recv()).await {
        assert_eq!(outcome.up, key.target.port() == open, "{}: {}", key.target, outcome.result);
        *seen.entry(key).or_default() += 1;
    }
    let punctuality = prober.punctuality();
    assert_eq!(punctuality.late, 0, "none begins half an interval after it was due: {punctuality:?}");
    seen
}

#[tokio::test(start_paused = true)]
async fn targets_that_hang_keep_nobody_from_their_turn() {
    for (jitter, spread) in [(0, 0), (10, 1)] {
        let seen = asked(jitter).await;
        assert_eq!(seen.len(), usize::from(TARGETS));
        for (key, count) in &seen {
            let wrong = count.abs_diff(TURNS + 1);
            assert!(wrong <= spread, "{}: {count} times, jitter {jitter} %", key.target);
        }
    }
}
