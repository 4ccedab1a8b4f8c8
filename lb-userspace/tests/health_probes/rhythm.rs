//! When probes run, and how many at a time.

use std::{collections::HashMap, time::Duration};

use lb_userspace::{config::Check, core::ProbeKey, health::Prober};
use tokio::{sync::mpsc, time::Instant};

use crate::servers::{Silent, V4, key, serve};

#[tokio::test]
async fn set_starts_stops_and_leaves_the_rest_alone() {
    let kept_server = serve(V4, |_| async {}).await;
    let dropped_server = serve(V4, |_| async {}).await;
    let kept = key(kept_server, Check::Tcp);
    let fast = |target| ProbeKey { interval: Duration::from_millis(20), ..key(target, Check::Tcp) };
    let dropped = fast(dropped_server);
    let (tx, mut rx) = mpsc::channel(64);
    let mut prober = Prober::new(tx);
    prober.set(vec![kept.clone(), dropped.clone(), key(kept_server, Check::None)]);
    assert_eq!(prober.running(), 2, "a key without a check is never probed");

    let mut seen: HashMap<ProbeKey, u32> = HashMap::new();
    while seen.len() < 2 {
        *seen.entry(rx.recv().await.unwrap().0).or_default() += 1;
    }
    prober.set(vec![kept.clone()]);
    assert_eq!(prober.running(), 1);
    tokio::time::sleep(Duration::from_millis(50)).await;
    while rx.try_recv().is_ok() {}
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(rx.try_recv().is_err(), "the ended key is silent, and the kept one was not started anew");

    drop(prober);
    assert!(rx.recv().await.is_none(), "nothing runs on after the prober is gone");
}

#[tokio::test]
async fn a_bound_of_one_socket_serves_every_key_in_turn() {
    let server = serve(V4, |_| async {}).await;
    let silent = Silent::new();
    let with = |target, millis| ProbeKey {
        interval: Duration::from_millis(10),
        timeout: Duration::from_millis(millis),
        ..key(target, Check::Tcp)
    };
    let keys = vec![with(silent.address(), 40), with(silent.address(), 41), with(server, 500)];
    let (tx, mut rx) = mpsc::channel(64);
    let mut prober = Prober::with_limit(tx, 1);
    prober.set(keys.clone());
    let mut results: HashMap<ProbeKey, u32> = HashMap::new();
    let end = Instant::now() + Duration::from_secs(10);
    while results.len() < 3 || results.values().any(|&count| count < 5) {
        let next = tokio::time::timeout_at(end, rx.recv()).await;
        let (key, outcome) = next.unwrap_or_else(|_| panic!("a key starves: {results:?}")).unwrap();
        assert_eq!(outcome.up, key.target == server, "waiting for a turn does not count as a timeout");
        *results.entry(key).or_default() += 1;
    }
    let most = results.values().max().unwrap();
    assert!(*most <= 20, "turns are shared: {results:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_targets_stay_on_schedule_while_a_third_of_them_hangs() {
    const INTERVAL: Duration = Duration::from_millis(50);
    const HANG: Duration = Duration::from_millis(400);
    let server = serve(V4, |_| async {}).await;
    let silent = Silent::new();
    let numbered = |target, timeout: Duration, number: u64| ProbeKey {
        interval: INTERVAL,
        timeout: timeout + Duration::from_micros(number),
        jitter_percent: 10,
        ..key(target, Check::Tcp)
    };
    let mut keys: Vec<ProbeKey> = (0..200).map(|n| numbered(server, Duration::from_secs(2), n)).collect();
    keys.extend((0..100).map(|n| numbered(silent.address(), HANG, n)));

    let (tx, mut rx) = mpsc::channel(1024);
    let mut prober = Prober::new(tx);
    let began = Instant::now();
    prober.set(keys.clone());
    let mut counts: HashMap<ProbeKey, u128> = HashMap::new();
    while began.elapsed() < Duration::from_secs(3) {
        let (key, outcome) = rx.recv().await.unwrap();
        let expected = if key.target == server { "L4OK" } else { "L4TOUT" };
        assert_eq!(outcome.result, expected, "after {:?}", outcome.took);
        *counts.entry(key).or_default() += 1;
    }
    let elapsed = began.elapsed().as_millis();
    drop(prober);

    let ticks = elapsed / INTERVAL.as_millis();
    for key in &keys {
        let count = counts.get(key).copied().unwrap_or(0);
        if key.target == server {
            assert!(count >= ticks / 2, "{count} probes of {ticks} while others hang");
            assert!(count <= ticks + 2, "{count} probes in {ticks} intervals: missed ticks were made up for");
        } else {
            assert!(count >= 2, "a hanging target is asked again");
            assert!(count <= elapsed / HANG.as_millis() + 1, "{count} probes: more than one in flight");
        }
    }
    assert_eq!(counts.len(), keys.len());
}
