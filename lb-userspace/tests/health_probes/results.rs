//! What one probe finds.

use std::time::Duration;

use lb_userspace::{
    config::{Check, HttpCheck, StatusRange},
    health::Prober,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    time::timeout,
};

use crate::servers::{Silent, V4, V6, answer_with, http, key, probe, request, serve};

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

    let check = Check::Http(HttpCheck {
        path: "/a?b=c".to_owned(),
        host: Some("shop.example".to_owned()),
        expect: vec![StatusRange { first: 200, last: 200 }],
        ..HttpCheck::default()
    });
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
    let outcome = probe(key(server, Check::Http(HttpCheck { expect, ..HttpCheck::default() }))).await;
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
