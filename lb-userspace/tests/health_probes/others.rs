//! Datagrams, names, programs, agents and Patroni.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket as StdUdpSocket},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lb_userspace::{
    config::{AgentCheck, Check, DnsCheck, DnsResponse, ExecCheck, PatroniCheck, UdpCheck},
    core::{AgentAdmin, AgentReply, Epoch, Phase, ProbeKey, Role},
};
use tokio::{io::AsyncWriteExt, net::UdpSocket};

use crate::servers::{V4, answer_with, key, probe, request, serve};

fn patient(key: ProbeKey) -> ProbeKey {
    ProbeKey { timeout: Duration::from_secs(10), ..key }
}

/// Answers every datagram with these bytes.
async fn echo(answer: &'static [u8]) -> SocketAddr {
    let socket = UdpSocket::bind(V4).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut bytes = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut bytes).await {
            let _ = socket.send_to(answer, from).await;
        }
    });
    address
}

#[tokio::test]
async fn a_datagram_is_answered_with_what_is_expected_or_it_counts_as_lost() {
    let check =
        |receive: Option<&[u8]>| Check::Udp(UdpCheck { send: b"ping".to_vec(), receive: receive.map(<[u8]>::to_vec) });
    let server = echo(b"xx pong\0").await;
    for receive in [None, Some(&b"pong"[..])] {
        let outcome = probe(key(server, check(receive))).await;
        assert_eq!((outcome.up, outcome.result.as_str()), (true, "L7OK 8 bytes"));
        assert_eq!(outcome.phases.iter().map(|(phase, _)| *phase).collect::<Vec<_>>(), [Phase::Send, Phase::FirstByte]);
    }
    assert_eq!(probe(key(server, check(Some(b"other")))).await.result, "L7TOUT");
    let silent = UdpSocket::bind(V4).await.unwrap();
    assert_eq!(probe(key(silent.local_addr().unwrap(), check(None))).await.result, "L7TOUT");
    let closed = StdUdpSocket::bind(V4).unwrap().local_addr().unwrap();
    assert_eq!(probe(key(closed, check(None))).await.result, "L4CON: Connection refused");
}

/// dnsmasq with two names of its own, stopped when it is dropped.
struct Dnsmasq {
    child: std::process::Child,
    address: SocketAddr,
}

impl Dnsmasq {
    fn start() -> Self {
        let port = StdUdpSocket::bind(V4).unwrap().local_addr().unwrap().port();
        let program = ["/usr/sbin/dnsmasq", "/usr/bin/dnsmasq"].into_iter().find(|path| Path::new(path).exists());
        let child = Command::new(program.expect("dnsmasq: `cargo xtask setup --test` installs it"))
            .args(["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces", "--user="])
            .args(["--pid-file=", "--listen-address=127.0.0.1", "--local=/example/", "--txt-record=long.example"])
            .args(["--address=/www.example/192.0.2.7", &format!("--port={port}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, address: (Ipv4Addr::LOCALHOST, port).into() }
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn names_are_asked_of_a_real_server() {
    let server = Dnsmasq::start();
    let ask = |name: &str, response, answer: Option<&str>| {
        Check::Dns(DnsCheck {
            name: name.to_owned(),
            record_type: "A".to_owned(),
            response,
            answer: answer.map(str::to_owned),
        })
    };
    let begun = Instant::now();
    while !probe(key(server.address, ask("www.example", DnsResponse::NoError, None))).await.up {
        assert!(begun.elapsed() < Duration::from_secs(20), "dnsmasq does not start");
    }
    for (name, response, answer, result) in [
        ("www.example", DnsResponse::NoError, Some("192.0.2.7"), "L7OK NOERROR"),
        ("www.example.", DnsResponse::NoError, Some("192.0.2.8"), "L7RSP: the answer is 192.0.2.7, not 192.0.2.8"),
        ("none.example", DnsResponse::NxDomain, None, "L7OK NXDOMAIN"),
        ("none.example", DnsResponse::NoError, None, "L7STS NXDOMAIN"),
        ("none.example", DnsResponse::Any, None, "L7OK NXDOMAIN"),
        ("elsewhere.test", DnsResponse::Refused, None, "L7OK REFUSED"),
    ] {
        let outcome = probe(patient(key(server.address, ask(name, response, answer)))).await;
        assert_eq!(outcome.result, result, "{name}");
    }
    let garbage = echo(b"no DNS at all").await;
    let outcome = probe(key(garbage, ask("www.example", DnsResponse::Any, None))).await;
    assert!(!outcome.up, "{}", outcome.result);
}

/// A program of a test.
fn script(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("check");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

fn exec(command: PathBuf, arguments: &[&str]) -> Check {
    Check::Exec(ExecCheck { command, arguments: arguments.iter().map(|a| (*a).to_owned()).collect() })
}

#[tokio::test]
async fn a_program_tells_by_its_status_and_knows_only_what_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let target = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 9), 5432));
    let program =
        script(folder.path(), "echo \"$LB_ADDRESS $LB_PORT $LB_TIMEOUT_MS $1 $(env | grep -c CARGO)\"; exit $2");
    let outcome = probe(patient(key(target, exec(program.clone(), &["a b; c", "0"])))).await;
    assert_eq!((outcome.up, outcome.result.as_str()), (true, "L7OK exit 0: 192.0.2.9 5432 10000 a b; c 0"));
    assert_eq!(outcome.phases.iter().map(|(phase, _)| *phase).collect::<Vec<_>>(), [Phase::Run]);
    let outcome = probe(patient(key(target, exec(program, &["x", "3"])))).await;
    assert_eq!((outcome.up, outcome.result.as_str()), (false, "L7STS exit 3: 192.0.2.9 5432 10000 x 0"));
    let killed = script(folder.path(), "kill -9 $$");
    assert_eq!(probe(patient(key(target, exec(killed, &[])))).await.result, "L7RSP: the program was ended by a signal");
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_with_everything_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    let program = script(folder.path(), &format!("sleep 1000 & echo $! > {}; wait", pid.display()));
    let key = ProbeKey { timeout: Duration::from_secs(2), ..key(V4, exec(program, &[])) };
    assert_eq!(probe(key).await.result, "L7TOUT");
    let grandchild = std::fs::read_to_string(&pid).unwrap();
    let state = PathBuf::from("/proc").join(grandchild.trim()).join("stat");
    let begun = Instant::now();
    // Gone, or waiting to be buried.
    while std::fs::read_to_string(&state).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(begun.elapsed() < Duration::from_secs(10), "process {grandchild} lives on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_program_that_talks_without_end_or_leaves_a_child_behind_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let chatty = script(folder.path(), "head -c 3000000 /dev/zero | tr '\\0' x");
    let outcome = probe(patient(key(V4, exec(chatty, &[])))).await;
    assert!(outcome.up && outcome.result.len() < 300, "{}", outcome.result);
    let daemon = script(folder.path(), "sleep 3 & echo started");
    let begun = Instant::now();
    let outcome = probe(patient(key(V4, exec(daemon, &[])))).await;
    assert!(outcome.up && begun.elapsed() < Duration::from_secs(3), "{:?} after {:?}", outcome, begun.elapsed());
}

#[tokio::test]
async fn an_agent_says_in_one_line_how_much_its_backend_can_take() {
    for (line, reply) in [
        (&b"75%\n"[..], AgentReply { percent: Some(75), ..AgentReply::default() }),
        (b"drain\r\nrest", AgentReply { admin: Some(AgentAdmin::Drain), ..AgentReply::default() }),
        (b"down # disk full", AgentReply { state: Some(Err("disk full".to_owned())), ..AgentReply::default() }),
    ] {
        let server = serve(V4, move |mut stream| async move {
            let _ = stream.write_all(line).await;
            let _ = stream.shutdown().await;
        })
        .await;
        let outcome = probe(key(server, Check::Agent(AgentCheck::default()))).await;
        assert_eq!(outcome.agent, Some(reply), "{}", outcome.result);
    }
    let asked = serve(V4, |mut stream| async move {
        let mut word = [0; 4];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut word).await.unwrap();
        let _ = stream.write_all(if &word == b"web\n" { b"ready\n" } else { b"maint\n" }).await;
    })
    .await;
    let outcome = probe(key(asked, Check::Agent(AgentCheck { send: "web\n".to_owned() }))).await;
    assert_eq!(outcome.agent.unwrap().admin, Some(AgentAdmin::Ready));
    let quiet = serve(V4, |_| async {}).await;
    assert!(probe(key(quiet, Check::Agent(AgentCheck::default()))).await.agent.is_none());
}

#[tokio::test]
async fn patroni_is_asked_whether_it_holds_the_lock() {
    let answer = |code: u16, body: &str| format!("HTTP/1.1 {code} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let primary = r#"{"state": "running", "role": "master", "timeline": 3, "xlog": {"location": 500}}"#;
    let replica = r#"{"state": "running", "role": "replica", "timeline": 3, "xlog": {"replayed_location": 400}}"#;
    let check = || Check::Patroni(PatroniCheck::default());
    let outcome = probe(key(answer_with(answer(200, primary)).await, check())).await;
    let role = outcome.role.unwrap();
    assert_eq!((role.role, role.position, role.epoch), (Role::Primary, Some(500), Some(Epoch::of("timeline", 3))));
    let outcome = probe(key(answer_with(answer(503, replica)).await, check())).await;
    assert_eq!((outcome.up, outcome.role.unwrap().role), (true, Role::Replica));
    let stopped = r#"{"state": "stopped", "role": "replica"}"#;
    let outcome = probe(key(answer_with(answer(503, stopped)).await, check())).await;
    assert_eq!((outcome.up, outcome.result.as_str()), (false, "L7STS 503: PostgreSQL is stopped"));
    let outcome = probe(key(answer_with(answer(200, "<html>")).await, check())).await;
    assert!(!outcome.up && outcome.result.starts_with("L7RSP: status 200, and its body is not Patroni's"));
    let (tx, mut rx) = tokio::sync::mpsc::channel(1);
    let server = serve(V4, move |mut stream| {
        let tx = tx.clone();
        async move { drop(tx.send(request(&mut stream).await).await) }
    })
    .await;
    probe(key(server, check())).await;
    assert!(rx.recv().await.unwrap().starts_with("GET /primary HTTP/1.1\r\n"));
}
