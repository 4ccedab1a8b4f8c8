//! Probes against real sockets on the loopback interface.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_userspace::{
    config::{Check, StatusRange},
    core::{ProbeKey, ProbeOutcome},
    health::Prober,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, timeout},
};

const V4: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const V6: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 0);

fn key(target: SocketAddr, check: Check) -> ProbeKey {
    ProbeKey {
        target,
        check,
        interval: Duration::from_secs(60),
        timeout: Duration::from_millis(500),
        jitter_percent: 0,
    }
}

fn http() -> Check {
    Check::Http { path: "/healthz".to_owned(), host: None, expect: vec![StatusRange { first: 200, last: 299 }] }
}

/// The first outcome of one key.
async fn probe(key: ProbeKey) -> ProbeOutcome {
    let (tx, mut rx) = mpsc::channel(1);
    let mut prober = Prober::new(tx);
    prober.set(vec![key.clone()]);
    let (answered, outcome) = timeout(Duration::from_secs(10), rx.recv()).await.expect("an outcome").unwrap();
    assert_eq!(answered, key);
    outcome
}

/// Accepts for ever; hands each connection to `serve`.
async fn serve<F, Fut>(address: SocketAddr, serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// Reads a request head and returns it.
async fn request(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Answers every request with these bytes and closes.
async fn answer_with(bytes: impl Into<Vec<u8>>) -> SocketAddr {
    let bytes: Arc<[u8]> = bytes.into().into();
    serve(V4, move |mut stream| {
        let bytes = bytes.clone();
        async move {
            request(&mut stream).await;
            // The probe may have hung up already.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
    })
    .await
}

/// A listener whose queue is full: the kernel drops further connection attempts.
struct Silent {
    listener: socket2::Socket,
    _fillers: Vec<socket2::Socket>,
}

impl Silent {
    fn new() -> Self {
        use socket2::{Domain, Socket, Type};
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&V4.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let fillers: Vec<Socket> = (0..4)
            .map(|_| {
                let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                filler.set_nonblocking(true).unwrap();
                // In progress for ever once the queue is full.
                let _ = filler.connect(&address);
                filler
            })
            .collect();
        Self { listener, _fillers: fillers }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap().as_socket().unwrap()
    }
}

#[tokio::test]
async fn an_accepting_server_passes_the_tcp_check_over_ipv4_and_ipv6() {
    for family in [V4, V6] {
        let server = serve(family, |_| async {}).await;
        let outcome = probe(key(server, Check::Tcp)).await;
        assert_eq!((outcome.up, outcome.result.as_str()), (true, "L4OK"), "{server}");
        assert!(outcome.took < Duration::from_millis(500));
    }
}

#[tokio::test]
async fn a_refused_connection_fails_at_once_with_the_kernels_words() {
    for family in [V4, V6] {
        let closed = TcpListener::bind(family).await.unwrap().local_addr().unwrap();
        for check in [Check::Tcp, http()] {
            let outcome = probe(key(closed, check)).await;
            assert_eq!((outcome.up, outcome.result.as_str()), (false, "L4CON: Connection refused"));
            assert!(outcome.took < Duration::from_millis(400), "{:?}", outcome.took);
        }
    }
}

#[tokio::test]
async fn a_target_that_never_answers_the_handshake_times_out_in_layer_4() {
    let silent = Silent::new();
    for check in [Check::Tcp, http()] {
        let outcome = probe(key(silent.address(), check)).await;
        assert_eq!((outcome.up, outcome.result.as_str()), (false, "L4TOUT"));
        assert!(outcome.took >= Duration::from_millis(500) && outcome.took < Duration::from_secs(2));
    }
}

#[tokio::test]
async fn probes_end_with_a_reset_so_that_no_port_rests_in_time_wait() {
    let (tx, mut rx) = mpsc::channel(1);
    let server = serve(V4, move |mut stream| {
        let tx = tx.clone();
        async move {
            let _ = tx.send(stream.read(&mut [0; 1]).await.map_err(|error| error.kind())).await;
        }
    })
    .await;
    assert!(probe(key(server, Check::Tcp)).await.up);
    assert_eq!(rx.recv().await.unwrap(), Err(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn an_expected_status_passes_the_http_check_over_ipv4_and_ipv6() {
    for family in [V4, V6] {
        let server = serve(family, |mut stream| async move {
            request(&mut stream).await;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        })
        .await;
        let outcome = probe(key(server, http())).await;
        assert_eq!((outcome.up, outcome.result.as_str()), (true, "L7OK 204"));
    }
}

#[tokio::test]
async fn the_request_says_who_asks_for_what_and_of_whom() {
    let (tx, mut rx) = mpsc::channel(2);
    let server = serve(V4, move |mut stream| {
        let tx = tx.clone();
        async move {
            tx.send(request(&mut stream).await).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    assert!(probe(key(server, http())).await.up);
    let head = rx.recv().await.unwrap().to_lowercase();
    assert!(head.starts_with("get /healthz http/1.1\r\n"), "{head}");
    for line in [&format!("host: {server}"), "user-agent: lb-health", "connection: close"] {
        assert!(head.contains(&format!("{line}\r\n")), "no `{line}` in {head}");
    }

    let check = Check::Http {
        path: "/a?b=c".to_owned(),
        host: Some("shop.example".to_owned()),
        expect: vec![StatusRange { first: 200, last: 200 }],
    };
    assert!(probe(key(server, check)).await.up);
    let head = rx.recv().await.unwrap().to_lowercase();
    assert!(head.starts_with("get /a?b=c http/1.1\r\n") && head.contains("host: shop.example\r\n"), "{head}");
}

#[tokio::test]
async fn an_unexpected_status_fails_with_that_status() {
    for status in [503, 302, 404] {
        let server = answer_with(format!("HTTP/1.1 {status} Whatever\r\ncontent-length: 0\r\n\r\n")).await;
        let outcome = probe(key(server, http())).await;
        assert_eq!((outcome.up, outcome.result), (false, format!("L7STS {status}")));
    }
}

#[tokio::test]
async fn every_expected_range_counts() {
    let server = answer_with("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n").await;
    let expect = vec![StatusRange { first: 200, last: 299 }, StatusRange { first: 401, last: 401 }];
    let outcome = probe(key(server, Check::Http { path: "/".to_owned(), host: None, expect })).await;
    assert_eq!((outcome.up, outcome.result.as_str()), (true, "L7OK 401"));
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_told_apart() {
    for garbage in [&b"SSH-2.0-OpenSSH_9.2p1\r\n"[..], b"\x00\xff\x16\x03\x01", b"HTTP/1.1 abc OK\r\n\r\n"] {
        let server = answer_with(garbage).await;
        let outcome = probe(key(server, http())).await;
        assert!(!outcome.up && outcome.result.starts_with("L7RSP: "), "{garbage:?}: {}", outcome.result);
        assert!(outcome.took < Duration::from_millis(400), "{garbage:?}: {:?}", outcome.took);
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_before_or_within_the_head_is_told_apart() {
    for part in ["", "HTTP/1.1 200 OK\r\ncontent-le"] {
        let server = answer_with(part).await;
        let outcome = probe(key(server, http())).await;
        assert!(!outcome.up && outcome.result.starts_with("L7RSP: "), "{part:?}: {}", outcome.result);
    }
}

#[tokio::test]
async fn a_server_that_resets_instead_of_answering_is_told_with_the_kernels_words() {
    let server = serve(V4, |mut stream| async move {
        request(&mut stream).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let outcome = probe(key(server, http())).await;
    assert_eq!((outcome.up, outcome.result.as_str()), (false, "L7RSP: Connection reset by peer"));
}

#[tokio::test]
async fn a_server_that_accepts_and_stays_silent_times_out_in_layer_7() {
    let server = serve(V4, |stream| async move {
        let _held = stream;
        std::future::pending().await
    })
    .await;
    assert_eq!(probe(key(server, Check::Tcp)).await.result, "L4OK");
    let outcome = probe(key(server, http())).await;
    assert_eq!((outcome.up, outcome.result.as_str()), (false, "L7TOUT"));
    assert!(outcome.took >= Duration::from_millis(500) && outcome.took < Duration::from_secs(2));
}

#[tokio::test]
async fn a_head_that_trickles_in_does_not_outlast_the_timeout() {
    let server = serve(V4, |mut stream| async move {
        request(&mut stream).await;
        for byte in b"HTTP/1.1 200 OK\r\nx-slow: ".iter().chain(std::iter::repeat(&b'.')) {
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let outcome = probe(key(server, http())).await;
    assert_eq!((outcome.up, outcome.result.as_str()), (false, "L7TOUT"));
    assert!(outcome.took < Duration::from_secs(2), "{:?}", outcome.took);
}

#[tokio::test]
async fn a_head_without_end_is_cut_off() {
    let server = serve(V4, |mut stream| async move {
        request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx-huge: ").await;
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    })
    .await;
    let outcome = probe(key(server, http())).await;
    assert!(!outcome.up && outcome.result.starts_with("L7RSP: "), "{}", outcome.result);
    assert!(outcome.took < Duration::from_millis(450), "{:?}", outcome.took);
}

#[tokio::test]
async fn a_body_without_end_neither_delays_the_result_nor_is_read_for_long() {
    let (tx, mut rx) = mpsc::channel(1);
    let server = serve(V4, move |mut stream| {
        let tx = tx.clone();
        async move {
            request(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
            let _ = tx.send(()).await;
        }
    })
    .await;
    let (results, mut outcomes) = mpsc::channel(1);
    let mut prober = Prober::new(results);
    prober.set(vec![key(server, http())]);
    let (_, outcome) = outcomes.recv().await.unwrap();
    assert_eq!((outcome.up, outcome.result.as_str()), (true, "L7OK 200"));
    timeout(Duration::from_secs(5), rx.recv()).await.expect("the prober hangs up on the endless body");
}

#[tokio::test]
async fn a_server_that_finishes_its_answer_is_not_reset_while_it_writes() {
    let (tx, mut rx) = mpsc::channel(1);
    let server = serve(V4, move |mut stream| {
        let tx = tx.clone();
        async move {
            request(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _ = tx.send(stream.write_all(&[b'x'; 5000]).await.is_ok() && stream.flush().await.is_ok()).await;
        }
    })
    .await;
    let (results, mut outcomes) = mpsc::channel(1);
    let mut prober = Prober::new(results);
    prober.set(vec![key(server, http())]);
    assert!(outcomes.recv().await.unwrap().1.up);
    assert!(rx.recv().await.unwrap(), "the body was taken");
}

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
