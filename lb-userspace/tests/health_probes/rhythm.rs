//! When probes run, and how many at a time.

use std::{collections::HashMap, time::Duration};

use lb_userspace::{
    config::Check,
    core::{FastPace, ProbeKey},
    health::Prober,
};
use tokio::{sync::mpsc, time::Instant};

use crate::servers::{Silent, V4, http, key, request, serve};

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

#[tokio::test]
async fn after_a_change_the_pace_is_fast_until_the_state_is_sure() {
    let up = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let status = up.clone();
    let server = serve(V4, move |mut stream| {
        let word = if status.load(std::sync::atomic::Ordering::Relaxed) { "200" } else { "503" };
        async move {
            request(&mut stream).await;
            let answer = format!("HTTP/1.1 {word} X\r\ncontent-length: 0\r\n\r\n");
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await;
        }
    })
    .await;
    let slow = Duration::from_millis(600);
    let fast = Some(FastPace { interval: Duration::from_millis(20), results: 3 });
    let (tx, mut rx) = mpsc::channel(64);
    let mut prober = Prober::new(tx);
    prober.set(vec![ProbeKey { interval: slow, fast, timeout: slow, ..key(server, http()) }]);
    // The first one, and two more that are wanted soon.
    let began = Instant::now();
    for _ in 0..3 {
        assert!(rx.recv().await.unwrap().1.up);
    }
    let first_three = began.elapsed();
    up.store(false, std::sync::atomic::Ordering::Relaxed);
    assert!(!rx.recv().await.unwrap().1.up);
    let changed = Instant::now();
    for _ in 0..2 {
        assert!(!rx.recv().await.unwrap().1.up);
    }
    let next_two = changed.elapsed();
    rx.recv().await.unwrap();
    let after = changed.elapsed() - next_two;
    assert!(first_three < slow && next_two < slow, "{first_three:?}, {next_two:?}");
    assert!(after > next_two, "the pace is slow again: {after:?} after {next_two:?}");
}
