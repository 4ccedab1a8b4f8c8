//! The API over a real unix socket: routes, refusals, limits, and who may write.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use axum::http::StatusCode;
use lb_userspace::api::{
    ApiSocket, Handle, Peer, Refusal, Request, Task,
    client::{self, ClientError},
    model::{
        AdminView, BackendList, BackendView, Change, CommandDone, CommandRequest, EffectiveView, HealthCheckView,
        HealthView, ServiceList, ServiceView, Stopping,
    },
    serve,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

fn backend(service: &str, address: &str) -> BackendView {
    BackendView {
        service: service.to_owned(),
        address: address.parse().unwrap(),
        id: Some(1),
        weight: 1,
        tier: 0,
        admin: AdminView { state: "ready".to_owned(), by: None, at: None, reason: None, until: None },
        health: HealthView {
            state: "up".to_owned(),
            reason: "L4OK".to_owned(),
            for_millis: 1500,
            last_probe: None,
            asked_at: None,
            asked_at_reason: None,
        },
        role: None,
        role_detail: None,
        agent: None,
        effective: EffectiveView { used: true, reason: "tier 0 serves".to_owned() },
        leaving: false,
        live_flows: 312,
        refusals: 0,
        unanswered: 0,
        rescued: 0,
    }
}

fn service(name: &str, backend_address: &str) -> ServiceView {
    ServiceView {
        name: name.to_owned(),
        listen: "203.0.113.10:80".parse().unwrap(),
        protocol: "tcp".to_owned(),
        mode: "full-nat".to_owned(),
        scheduler: "round-robin".to_owned(),
        granularity: "flow".to_owned(),
        health_check: HealthCheckView {
            check: "tcp".to_owned(),
            interval_millis: 500,
            fast_interval_millis: None,
            timeout_millis: 300,
            fall: 2,
            rise: 2,
        },
        id: Some(0),
        active_tier: Some(0),
        live_flows: 312,
        tracking: None,
        frozen_millis: None,
        backends: vec![backend(name, backend_address)],
    }
}

/// Stands for the loop: two services; a drain is done, everything else conflicts.
async fn answer(mut requests: mpsc::Receiver<Request>, seen: mpsc::UnboundedSender<Peer>) {
    while let Some(request) = requests.recv().await {
        match request {
            Request::Services(reply) => {
                drop(reply.send(vec![service("web", "10.0.0.11:8080"), service("api", "10.0.0.21:8080")]));
            }
            // Never answered: what a client sees of an agent that is stuck.
            Request::Status(reply) => std::mem::forget(reply),
            Request::Change { task: Task::Command { request, reply }, peer, .. } => {
                seen.send(peer).unwrap();
                drop(reply.send(match request.change {
                    Change::Drain => Ok(CommandDone {
                        service: request.service.clone(),
                        address: request.address,
                        text: "drains: 312 flows left".to_owned(),
                        backend: Some(backend(&request.service, "10.0.0.11:8080")),
                        others: Vec::new(),
                        published: true,
                        dry_run: false,
                        revision: "1-7".to_owned(),
                    }),
                    _ => Err(Refusal::new(StatusCode::CONFLICT, "not done", "it is the last one", "add --force")),
                }));
            }
            Request::Change { task, .. } => panic!("{task:?}"),
            Request::Events(_) | Request::Freeze { .. } => panic!("nobody asks for that here"),
            Request::Config(_) => panic!("nobody asks for the configuration here"),
            Request::Stop { peer, reply } => {
                seen.send(peer).unwrap();
                drop(reply.send(Stopping { pid: 7 }));
            }
        }
    }
}

struct Server {
    path: PathBuf,
    stop: CancellationToken,
    task: JoinHandle<()>,
    seen: mpsc::UnboundedReceiver<Peer>,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.sock");
        let (requests, inbox) = mpsc::channel(16);
        let (saw, seen) = mpsc::unbounded_channel();
        tokio::spawn(answer(inbox, saw));
        let stop = CancellationToken::new();
        let socket = ApiSocket::bind(&path).unwrap();
        let task = tokio::spawn(serve(socket, Handle::new(requests), stop.clone()));
        Self { path, stop, task, seen, _dir: dir }
    }

    /// Sends bytes as they are and returns everything that comes back until the server closes.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }
}

fn request(change: Change) -> CommandRequest {
    CommandRequest {
        service: "web".to_owned(),
        address: "10.0.0.11:8080".parse().unwrap(),
        addresses: Vec::new(),
        change,
        force: false,
        reason: None,
        for_seconds: None,
        drain_seconds: None,
    }
}

#[tokio::test]
async fn services_and_backends_are_read_by_name() {
    let server = Server::start();
    let all: ServiceList = client::get(&server.path, "/v1/services").await.unwrap();
    assert_eq!(all.services.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["web", "api"]);
    let one: ServiceView = client::get(&server.path, "/v1/services/api").await.unwrap();
    assert_eq!(one, service("api", "10.0.0.21:8080"));
    let backends: BackendList = client::get(&server.path, "/v1/backends?service=api").await.unwrap();
    assert_eq!(backends.backends, [backend("api", "10.0.0.21:8080")]);
    let backends: BackendList = client::get(&server.path, "/v1/backends").await.unwrap();
    assert_eq!(backends.backends.len(), 2);
}

#[tokio::test]
async fn an_unknown_service_is_refused_with_the_names_there_are() {
    let server = Server::start();
    for path in ["/v1/services/wbe", "/v1/backends?service=wbe"] {
        let refused = client::get::<ServiceView>(&server.path, path).await.unwrap_err();
        let ClientError::Refused(error) = refused else { panic!("{refused}") };
        assert_eq!(error.what, "no service is named `wbe`");
        assert_eq!(error.why, "there are: api, web");
        assert_eq!(error.next, "lb service list");
    }
}

#[tokio::test]
async fn a_command_carries_the_credentials_that_the_kernel_vouches_for() {
    let mut server = Server::start();
    let done: CommandDone = client::post(&server.path, "/v1/commands", &request(Change::Drain)).await.unwrap();
    assert_eq!(done.text, "drains: 312 flows left");
    let peer = server.seen.recv().await.unwrap();
    assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
    assert_eq!(peer.pid, Some(std::process::id().try_into().unwrap()));
}

#[tokio::test]
async fn a_conflicting_command_comes_back_with_what_why_and_next() {
    let server = Server::start();
    let refused =
        client::post::<CommandDone>(&server.path, "/v1/commands", &request(Change::Remove)).await.unwrap_err();
    let ClientError::Refused(error) = refused else { panic!("{refused}") };
    assert_eq!(
        (error.what.as_str(), error.why.as_str(), error.next.as_str()),
        ("not done", "it is the last one", "add --force")
    );
    let raw = server
        .raw(post_raw("/v1/commands", r#"{"service":"web","address":"10.0.0.11:8080","command":"remove"}"#).as_bytes())
        .await;
    assert!(raw.starts_with("HTTP/1.1 409 "), "{raw}");
}

fn post_raw(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: lb\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn what_cannot_be_understood_is_refused_in_json() {
    let server = Server::start();
    let cases = [
        (post_raw("/v1/commands", r#"{"service":"web"}"#), "422"),
        (post_raw("/v1/commands", "{"), "400"),
        (post_raw("/v1/commands", r#"{"service":"web","address":"example.com:80","command":"drain"}"#), "422"),
        (post_raw("/v1/status", "{}"), "405"),
        ("GET /v2/status HTTP/1.1\r\nhost: lb\r\nconnection: close\r\n\r\n".to_owned(), "404"),
        ("GET /v1/backends?wrong=1 HTTP/1.1\r\nhost: lb\r\nconnection: close\r\n\r\n".to_owned(), "400"),
    ];
    for (sent, status) in cases {
        let raw = server.raw(sent.as_bytes()).await;
        assert!(raw.starts_with(&format!("HTTP/1.1 {status} ")), "{sent}\n{raw}");
        assert!(raw.contains(r#""apiVersion":"lb/v1","kind":"Error""#) && raw.contains(r#""next":"#), "{raw}");
    }
}

#[tokio::test]
async fn bodies_and_heads_are_bounded() {
    let server = Server::start();
    let large = post_raw("/v1/commands", &"x".repeat(65 * 1024));
    assert!(server.raw(large.as_bytes()).await.starts_with("HTTP/1.1 413 "));
    let head = format!("GET /v1/services HTTP/1.1\r\nhost: lb\r\nlong: {}\r\n\r\n", "x".repeat(64 * 1024));
    assert!(server.raw(head.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    // And the next one is served.
    client::get::<ServiceList>(&server.path, "/v1/services").await.unwrap();
}

#[tokio::test]
async fn more_connections_than_places_wait_their_turn() {
    let server = Server::start();
    let mut idle = Vec::new();
    for _ in 0..64 {
        idle.push(UnixStream::connect(&server.path).await.unwrap());
    }
    let path = server.path.clone();
    let waiting = tokio::spawn(async move { client::get::<ServiceList>(&path, "/v1/services").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    idle.pop();
    waiting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_stuck_is_told_from_one_that_is_gone() {
    let server = Server::start();
    let refused = client::get::<ServiceList>(&server.path, "/v1/status").await.unwrap_err();
    let ClientError::Refused(error) = refused else { panic!("{refused}") };
    assert_eq!(error.what, "the agent did not answer");
    let nobody = server.path.with_extension("nobody");
    assert!(matches!(client::get::<ServiceList>(&nobody, "/v1/status").await, Err(ClientError::NotReachable(_))));
}

#[tokio::test]
async fn stopping_ends_idle_connections_and_removes_the_socket() {
    let server = Server::start();
    assert_eq!(std::fs::metadata(&server.path).unwrap().permissions().mode() & 0o777, 0o660);
    let mut idle = UnixStream::connect(&server.path).await.unwrap();
    client::get::<ServiceList>(&server.path, "/v1/services").await.unwrap();
    server.stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), server.task).await.unwrap().unwrap();
    assert!(!server.path.exists());
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
}

/// Needs root to become somebody else: runs itself again as uid 65534.
#[tokio::test]
async fn another_user_may_read_and_not_write() {
    if let Some(path) = std::env::var_os("LB_TEST_SOCKET") {
        return as_another_user(&PathBuf::from(path)).await;
    }
    let mut server = Server::start();
    if !rustix::process::geteuid().is_root() {
        // The own user is the agent's user: it may write. Others cannot be played without root.
        client::post::<CommandDone>(&server.path, "/v1/commands", &request(Change::Drain)).await.unwrap();
        return;
    }
    let directory = server.path.parent().unwrap();
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&server.path, PermissionsExt::from_mode(0o666)).unwrap();
    let binary = directory.join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = tokio::process::Command::new(&binary);
    command.args(["--exact", "another_user_may_read_and_not_write"]).env("LB_TEST_SOCKET", &server.path);
    let ended = command.uid(65534).gid(65534).current_dir("/").output().await.unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
    assert!(server.seen.try_recv().is_err(), "nothing reached the loop");
}

async fn as_another_user(path: &std::path::Path) {
    client::get::<ServiceList>(path, "/v1/services").await.unwrap();
    for refused in [
        client::post::<CommandDone>(path, "/v1/commands", &request(Change::Drain)).await.map(drop).unwrap_err(),
        client::post::<Stopping>(path, "/v1/stop", &()).await.map(drop).unwrap_err(),
    ] {
        let ClientError::Refused(error) = refused else { panic!("{refused}") };
        assert_eq!(error.what, "changes are not allowed for this user");
        assert!(error.why.starts_with("uid 65534 asked"), "{}", error.why);
    }
}
