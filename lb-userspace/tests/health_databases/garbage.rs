//! Servers that are no databases, or stop in the middle.

use std::{io::Write, net::TcpListener, time::Duration};

use lb_userspace::{
    config::{Check, LoginCheck, PatroniCheck},
    core::ProbeKey,
};

use super::server::{free_port, key, probe};

/// Says these bytes to everybody, then hangs up or keeps quiet.
fn say(bytes: &'static [u8], hang_up: bool) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(bytes);
            if !hang_up {
                kept.push(stream);
            }
        }
    });
    address
}

fn checks() -> [Check; 4] {
    let login = LoginCheck { user: Some("lb".to_owned()), role: true, ..LoginCheck::default() };
    [
        Check::Mysql(login.clone()),
        Check::Postgres(login.clone()),
        Check::Redis(login),
        Check::Patroni(PatroniCheck::default()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_no_database_is_told_apart() {
    for garbage in [
        &b"SSH-2.0-OpenSSH_9.2p1\r\n"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\0\0\0\0\0\0\0\0\0\0\0\0",
        b"*1000000000\r\n",
        b"$99999999999999999999\r\n",
        b"*9999\r\n*9999\r\n*9999\r\n",
        b"\x03\0\0\0\x0a10",
        b"",
    ] {
        for check in checks() {
            let outcome = probe(key(say(garbage, true), check.clone())).await;
            assert!(!outcome.up && outcome.role.is_none(), "{garbage:?} {}: {outcome:?}", check.name());
            assert!(outcome.result.starts_with("L7RSP: "), "{garbage:?} {}: {}", check.name(), outcome.result);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_in_the_middle_runs_into_the_timeout() {
    for half in
        [&b""[..], b"\x4a\0\0\0\x0a8.0", b"R\0\0\0", b"+PO", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"state\""]
    {
        for check in checks() {
            let key = ProbeKey { timeout: Duration::from_millis(300), ..key(say(half, false), check.clone()) };
            let outcome = probe(key).await;
            let told = outcome.result == "L7TOUT" || outcome.result.starts_with("L7RSP: ");
            assert!(!outcome.up && told, "{half:?} {}: {}", check.name(), outcome.result);
            assert!(outcome.took < Duration::from_secs(5), "{:?}", outcome.took);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_without_a_server_is_refused() {
    let nobody = (std::net::Ipv4Addr::LOCALHOST, free_port()).into();
    for check in checks() {
        assert_eq!(probe(key(nobody, check)).await.result, "L4CON: Connection refused");
    }
}
