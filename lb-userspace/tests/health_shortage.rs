//! A host that runs out of file descriptors. Alone in its process, whose limit it lowers.

use std::{net::Ipv4Addr, time::Duration};

use lb_userspace::{config::Check, core::ProbeKey, health::Prober};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

#[tokio::test]
async fn a_shortage_of_descriptors_is_not_held_against_the_backend_and_passes() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let key = ProbeKey {
        target: listener.local_addr().unwrap(),
        check: Check::Tcp,
        interval: Duration::from_millis(20),
        fast: None,
        timeout: Duration::from_secs(1),
        jitter_percent: 0,
        way: None,
    };
    let (tx, mut rx) = mpsc::channel(64);
    let mut prober = Prober::new(tx);

    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), maximum: before.maximum }).unwrap();
    prober.set(vec![key]);
    let end = Instant::now() + Duration::from_secs(5);
    while prober.local_failures() < 3 && Instant::now() < end {
        sleep(Duration::from_millis(5)).await;
    }
    setrlimit(Resource::Nofile, before).unwrap();
    assert!(prober.local_failures() >= 3, "the shortage is counted");

    let (_, outcome) = timeout(Duration::from_secs(5), rx.recv()).await.expect("probing goes on").unwrap();
    assert_eq!((outcome.up, outcome.result.as_str()), (true, "L4OK"), "the first outcome is the backend's own");
}
