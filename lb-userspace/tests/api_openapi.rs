//! The API's description of itself, held against a running agent: every path is called as described,
//! every answer is what is described, every write can be tried and keeps to its revision.

mod agent_support;

use std::{path::Path, sync::Arc, time::Duration};

use agent_support::{A, Agent, B, Maps, web};
use lb_userspace::api::{ApiSocket, openapi, serve};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tokio_util::sync::CancellationToken;

struct World {
    agent: Arc<Agent>,
    socket: std::path::PathBuf,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("lb.sock");
        let agent = Arc::new(Agent::start(web(), &Maps::new(), dir.path()));
        agent.all_up(&[A, B]).await;
        let stop = CancellationToken::new();
        tokio::spawn(serve(ApiSocket::bind(&socket).unwrap(), agent.handle(), stop.clone()));
        // The host is ready whenever it is asked to be.
        let (host, stopped) = (Arc::clone(&agent), stop.clone());
        tokio::spawn(async move {
            while !stopped.is_cancelled() {
                host.make_ready().await;
            }
        });
        Self { agent, socket, stop, _dir: dir }
    }

    async fn revision(&self) -> String {
        self.agent.status().await.config.revision
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Status and document.
async fn call(socket: &Path, method: &str, path: &str, headers: &str, body: Option<&Value>) -> (u16, Value) {
    let body = body.map(Value::to_string).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: lb\r\nconnection: close\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {text}")))
}

/// One operation of the document.
struct Operation {
    method: String,
    path: String,
    described: Value,
}

fn operations(document: &Value) -> Vec<Operation> {
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, described) in methods.as_object().unwrap() {
            all.push(Operation { method: method.clone(), path: path.clone(), described: described.clone() });
        }
    }
    all
}

impl Operation {
    fn id(&self) -> &str {
        self.described["operationId"].as_str().unwrap()
    }

    fn is_write(&self) -> bool {
        self.described.get("requestBody").is_some()
    }

    fn url(&self) -> String {
        // A service of its own, so that none of the other calls misses one.
        // The first failover is that of the backend that is drained.
        self.path.replace("{name}", if self.is_write() { "x" } else { "web" }).replace("{id}", "1")
    }

    /// A body as it may be sent; an operation without one here is new, and has to be thought of.
    fn body(&self) -> Option<Value> {
        let toml = "[[service]]\nname = \"x\"\nlisten = \"203.0.113.30:80\"\n";
        let file = json!({ "name": "new.toml", "text": agent_support::text(&web()) });
        match self.id() {
            "post_v1_services_name" => Some(json!({ "command": "add", "toml": toml, "reason": "a test" })),
            "post_v1_commands" => Some(
                json!({ "service": "web", "address": A, "command": "drain", "reason": "a test", "forSeconds": 600 }),
            ),
            "post_v1_config" => Some(json!({ "files": [file], "source": "new.toml", "confirmSeconds": 600 })),
            "post_v1_services_name_freeze" => Some(json!({ "maxMillis": 1000 })),
            "post_v1_config_confirm" | "post_v1_config_rollback" | "post_v1_stop" => Some(json!({})),
            id => {
                assert!(!self.is_write(), "{id} has no example in this test");
                None
            }
        }
    }

    fn pointer(&self, rest: &str) -> String {
        let path = self.path.replace('~', "~0").replace('/', "~1").replace('{', "%7B").replace('}', "%7D");
        format!("openapi.json#/paths/{path}/{}/{rest}/content/application~1json/schema", self.method)
    }
}

/// Judges documents by the schemas of the description.
struct Judge(Value);

impl Judge {
    fn valid(&self, pointer: &str, document: &Value) {
        let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
        compiler.set_default_draft(boon::Draft::V2020_12);
        compiler.add_resource("openapi.json", self.0.clone()).unwrap();
        let index = compiler.compile(pointer, &mut schemas).unwrap_or_else(|e| panic!("{pointer}: {e}"));
        if let Err(error) = schemas.validate(document, index) {
            panic!("{pointer}: {error:#}\n{document:#}");
        }
    }
}

#[tokio::test]
async fn every_path_does_what_its_description_says() {
    let world = World::start().await;
    let (status, document) = call(&world.socket, "GET", "/v1/openapi.json", "", None).await;
    assert_eq!((status, &document), (200, &openapi()));
    assert_eq!(document["openapi"], "3.1.0");
    let judge = Judge(document.clone());
    let mut all = operations(&document);
    assert!(all.len() >= 13, "{}", all.len());
    // Confirmed before it is rolled back, which needs another change; the end comes last.
    all.sort_by_key(|operation| match operation.id() {
        "post_v1_config_confirm" => 1,
        "post_v1_config_rollback" => 3,
        "post_v1_stop" => 4,
        _ => 0,
    });
    for operation in &all {
        let method = operation.method.to_uppercase();
        let body = operation.body();
        if let Some(body) = &body {
            judge.valid(&operation.pointer("requestBody"), body);
        }
        if operation.id() == "post_v1_config_rollback" {
            let apply = all.iter().find(|other| other.id() == "post_v1_config").unwrap();
            call(&world.socket, "POST", "/v1/config", "", apply.body().as_ref()).await;
        }
        if operation.is_write() {
            tried_and_conflicting(&world, operation, &judge).await;
        }
        let (status, answer) = call(&world.socket, &method, &operation.url(), "", body.as_ref()).await;
        assert_eq!(status, 200, "{}: {answer:#}", operation.id());
        judge.valid(&operation.pointer("responses/200"), &answer);
    }
}

/// A write that is only tried changes nothing; one that was meant for another revision is refused.
async fn tried_and_conflicting(world: &World, operation: &Operation, judge: &Judge) {
    let (before, body) = (world.revision().await, operation.body());
    let url = operation.url();
    let (status, answer) = call(&world.socket, "POST", &format!("{url}?dry_run=true"), "", body.as_ref()).await;
    assert_eq!(status, 200, "{}: {answer:#}", operation.id());
    judge.valid(&operation.pointer("responses/200"), &answer);
    for (query, header) in [("?revision=1-1", ""), ("", "if-match: \"1-1\"\r\n")] {
        let (status, answer) = call(&world.socket, "POST", &format!("{url}{query}"), header, body.as_ref()).await;
        assert_eq!(status, 409, "{}: {answer:#}", operation.id());
        assert!(answer["why"].as_str().unwrap().contains("it was meant for revision 1-1"), "{answer:#}");
        judge.valid(&operation.pointer("responses/409"), &answer);
        judge.valid(&operation.pointer("responses/default"), &answer);
    }
    assert_eq!(world.revision().await, before, "{}", operation.id());
    let header = format!("if-match: \"{before}\"\r\n");
    let url = format!("{url}?dry_run=true");
    let (status, answer) = call(&world.socket, "POST", &url, &header, body.as_ref()).await;
    assert_eq!(status, 200, "{}: {answer:#}", operation.id());
}

#[tokio::test]
async fn health_is_told_by_the_status_code() {
    let world = World::start().await;
    let (status, answer) = call(&world.socket, "GET", "/v1/health", "", None).await;
    assert_eq!((status, &answer["healthy"], &answer["kind"]), (200, &true.into(), &"Health".into()));
    let bad = json!({ "files": [{ "name": "new.toml", "text": "interfaces = 7" }] });
    let (status, refused) = call(&world.socket, "POST", "/v1/config", "", Some(&bad)).await;
    assert_eq!(status, 422);
    assert!(refused["report"].as_str().unwrap().contains("`interfaces` cannot be the number 7"), "{refused:#}");
    let (status, answer) = call(&world.socket, "GET", "/v1/health", "", None).await;
    assert_eq!((status, &answer["healthy"]), (503, &false.into()));
    assert!(answer["problems"][0].as_str().unwrap().contains("line 1, column 14"), "{answer:#}");
    Judge(openapi())
        .valid("openapi.json#/paths/~1v1~1health/get/responses/503/content/application~1json/schema", &answer);
}

#[tokio::test]
async fn a_configuration_larger_than_other_bodies_is_taken() {
    let world = World::start().await;
    let mut text = agent_support::text(&web());
    text.push_str(&format!("# {}\n", "x".repeat(200 * 1024)));
    let body = json!({ "files": [{ "name": "new.toml", "text": text }] });
    let (status, answer) = call(&world.socket, "POST", "/v1/config", "", Some(&body)).await;
    assert_eq!(status, 200, "{answer:#}");
    let (status, shown) = call(&world.socket, "GET", "/v1/config", "", None).await;
    assert_eq!((status, shown["files"][0]["text"].as_str().unwrap().len()), (200, text.len()));
}
