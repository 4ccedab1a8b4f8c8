//! Probes to the address of a service: whether their sockets are told so, and what follows where their packets
//! went elsewhere.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::BorrowedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use lb_common::abi::{Mode, Port, probe::Way as Entry};
use lb_userspace::{
    config::Check,
    core::{ProbeKey, ProbeOutcome, Way, WayTunnel},
    health::{KnownWays, Prober, Sockets, Ways},
};
use tokio::{
    net::UdpSocket,
    sync::{Notify, mpsc, watch},
    time::timeout,
};

use crate::servers::{V4, http, key, serve};

/// Sends nothing anywhere else, and says what it is told to.
#[derive(Debug, Default)]
struct Fake {
    hung: Mutex<Vec<Entry>>,
    sent: AtomicU32,
    refuses: bool,
}

impl Sockets for Fake {
    fn hang_on(&self, _socket: BorrowedFd<'_>, way: &Entry) -> io::Result<()> {
        if self.refuses {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        self.hung.lock().unwrap().push(*way);
        Ok(())
    }

    fn sent(&self, _socket: BorrowedFd<'_>) -> io::Result<u32> {
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

struct World {
    fake: Arc<Fake>,
    known: watch::Sender<Ways>,
    missed: Arc<Notify>,
    prober: Prober,
    results: mpsc::Receiver<(ProbeKey, ProbeOutcome)>,
}

impl World {
    fn new(sent: u32, refuses: bool) -> Self {
        let fake = Arc::new(Fake { sent: sent.into(), refuses, ..Fake::default() });
        let (known, receiver) = watch::channel(Ways::default());
        let missed = Arc::new(Notify::new());
        let (tx, results) = mpsc::channel(16);
        let prober = Prober::new(tx).with_ways(KnownWays { known: receiver, missed: Arc::clone(&missed) });
        Self { fake, known, missed, prober, results }
    }

    fn find(&self, target: SocketAddr, way: Result<(), String>) {
        let sockets: Arc<dyn Sockets> = Arc::clone(&self.fake) as _;
        self.known.send_replace(Ways { sockets: Some(sockets), backends: BTreeMap::from([(target.ip(), way)]) });
    }

    async fn outcome(&mut self) -> ProbeOutcome {
        timeout(Duration::from_secs(10), self.results.recv()).await.expect("an outcome").unwrap().1
    }
}

fn through(target: SocketAddr, check: Check, tunnel: Option<WayTunnel>) -> ProbeKey {
    let service = "203.0.113.10:80".parse().unwrap();
    ProbeKey { way: Some(Way { service, tunnel }), ..key(target, check) }
}

async fn listener() -> SocketAddr {
    serve(V4, |stream| async move { drop(stream) }).await
}

#[tokio::test]
async fn a_probe_waits_for_its_way_and_its_socket_is_told() {
    let target = listener().await;
    let mut world = World::new(1, false);
    let mode = Mode::DsrGue;
    let tunnel = WayTunnel { mode, gue_port: Some(6080), source: None, source_bits: 0, dont_fragment: 0 };
    world.prober.set(vec![through(target, Check::Tcp, Some(tunnel))]);
    assert!(timeout(Duration::from_millis(100), world.results.recv()).await.is_err(), "nobody knows the way yet");
    world.find(target, Ok(()));
    let outcome = world.outcome().await;
    assert_eq!((outcome.up, outcome.result.as_str(), outcome.own_address), (true, "L4OK", None));
    let hung = world.fake.hung.lock().unwrap().clone();
    let expected =
        ("203.0.113.10".parse().unwrap(), Port::new(80), Port::new(target.port()), Port::new(6080), mode as u8);
    let found = hung
        .iter()
        .map(|way| (std::net::IpAddr::from(way.service), way.service_port, way.backend_port, way.gue_port, way.tunnel));
    assert_eq!(found.collect::<Vec<_>>(), [expected]);
}

#[tokio::test]
async fn where_there_is_no_way_the_own_address_is_asked_and_the_reason_told() {
    let target = listener().await;
    let mut world = World::new(0, false);
    world.find(target, Err("no Ethernet".to_owned()));
    world.prober.set(vec![through(target, Check::Tcp, None)]);
    let outcome = world.outcome().await;
    assert_eq!((outcome.up, outcome.own_address.as_deref()), (true, Some("no Ethernet")));
    assert!(world.fake.hung.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_answer_to_packets_that_went_elsewhere_is_noticed() {
    let target = listener().await;
    let echo = UdpSocket::bind(V4).await.unwrap();
    let datagrams = echo.local_addr().unwrap();
    tokio::spawn(async move {
        let mut bytes = [0; 64];
        while let Ok((len, from)) = echo.recv_from(&mut bytes).await {
            drop(echo.send_to(&bytes[..len], from).await);
        }
    });
    let ping = Check::Udp(lb_userspace::config::UdpCheck { send: b"ping".to_vec(), receive: None });
    for (target, check) in [(target, Check::Tcp), (datagrams, ping)] {
        let mut world = World::new(0, false);
        world.find(target, Ok(()));
        world.prober.set(vec![through(target, check, None)]);
        let outcome = world.outcome().await;
        assert!(outcome.up);
        let why = "its packets left by an interface that has no program for it";
        assert_eq!(outcome.own_address.as_deref(), Some(why));
        timeout(Duration::from_secs(5), world.missed.notified()).await.expect("the keeper of ways is told");
    }
}

#[tokio::test]
async fn a_server_is_asked_as_its_clients_ask_it() {
    let (tx, mut heads) = mpsc::channel(1);
    let target = serve(V4, move |mut stream| {
        let tx = tx.clone();
        async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut bytes = [0; 1024];
            let len = stream.read(&mut bytes).await.unwrap();
            drop(tx.send(String::from_utf8_lossy(&bytes[..len]).into_owned()).await);
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await);
        }
    })
    .await;
    let mut world = World::new(1, false);
    world.find(target, Ok(()));
    world.prober.set(vec![through(target, http(), None)]);
    assert!(world.outcome().await.up);
    let head = heads.recv().await.unwrap().to_lowercase();
    assert!(head.contains("\r\nhost: 203.0.113.10\r\n"), "{head}");
}

#[tokio::test]
async fn a_socket_that_cannot_be_told_says_nothing_about_the_backend() {
    let target = listener().await;
    let mut world = World::new(1, true);
    world.find(target, Ok(()));
    world.prober.set(vec![through(target, Check::Tcp, None)]);
    assert!(timeout(Duration::from_millis(300), world.results.recv()).await.is_err());
    assert_eq!(world.prober.local_failures(), 1);
}
