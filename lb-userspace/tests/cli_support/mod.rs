//! An API server in this process that answers like an agent, and the binary that asks it.

mod views;

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use axum::http::StatusCode;
use lb_userspace::api::{
    ApiSocket, Handle, Refusal, Request, Task, WriteOptions,
    model::{
        Applied, BackendDone, BackendImpactView, Change, CommandDone, CommandRequest, FlowImpactView, ImpactView,
        ServiceDone, ServiceFrozen, ServiceImpactView, Settled, Stopping,
    },
    serve,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use self::views::address;
use self::views::{config_view, draining, events, service, status};

pub fn lb(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

pub fn run(arguments: &[&str]) -> Output {
    lb(arguments).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// An agent with one service of three backends; a drain is done, a removal refused.
pub struct Agent {
    pub socket: PathBuf,
    stop: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
    _dir: tempfile::TempDir,
}

impl Agent {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("lb.sock");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let stop = CancellationToken::new();
        let (requests, inbox) = mpsc::channel(16);
        runtime.block_on(async {
            tokio::spawn(answer(inbox));
            tokio::spawn(serve(ApiSocket::bind(&socket).unwrap(), Handle::new(requests), stop.clone()));
        });
        Self { socket, stop, runtime: Some(runtime), _dir: dir }
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        lb(arguments).env("LB_SOCKET", &self.socket).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    pub fn shows(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
        text(&output.stdout)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
        self.runtime.take().unwrap().shutdown_background();
    }
}

async fn answer(mut requests: mpsc::Receiver<Request>) {
    while let Some(request) = requests.recv().await {
        match request {
            Request::Status(reply) => drop(reply.send(status())),
            Request::Services(reply) => drop(reply.send(vec![service()])),
            Request::Stop { reply, .. } => drop(reply.send(Stopping { pid: 4711 })),
            Request::Config(reply) => drop(reply.send(Box::new(|| Ok(config_view())))),
            Request::Events(reply) => drop(reply.send(events())),
            Request::Freeze { name, lasts, reply, options, .. } => {
                let text = format!("{lasts:?}");
                let done = ServiceFrozen {
                    service: name,
                    text,
                    frozen_millis: None,
                    published: true,
                    dry_run: options.dry_run,
                };
                drop(reply.send(Ok(done)));
            }
            Request::Change { task, options, .. } => change(task, &options),
        }
    }
}

fn command(request: CommandRequest) -> Result<CommandDone, Refusal> {
    match request.change {
        Change::Drain => Ok(CommandDone {
            service: request.service,
            address: request.address,
            text: "drains: 312 flows left".to_owned(),
            backend: Some(draining()),
            others: request
                .addresses
                .into_iter()
                .map(|address| BackendDone { address, text: "drains: no flows left".to_owned(), backend: None })
                .collect(),
            published: true,
            dry_run: false,
            revision: "18c-7".to_owned(),
        }),
        _ => Err(Refusal::new(StatusCode::CONFLICT, "not done: remove web", "it is the last one", "add --force")),
    }
}

/// What is sent back says what was asked.
fn change(task: Task, options: &WriteOptions) {
    match task {
        Task::Command { request, reply } => drop(reply.send(command(request))),
        Task::Apply { request, reply } => {
            if request.files.iter().flatten().any(|file| file.text.contains("refuse")) {
                let mut refusal =
                    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "it stays as it was", "line 1", "mend it");
                refusal.report = Some("  error: the whole report\n".to_owned());
                return drop(reply.send(Err(refusal)));
            }
            let confirm_until = request.confirm_seconds.map(|seconds| format!("in {seconds} s"));
            drop(reply.send(Ok(applied(!options.dry_run, request.source, confirm_until))));
        }
        Task::Service { name, request, reply } => {
            let text = format!("{:?} for {:?} because {:?}", request.change, request.for_seconds, request.reason);
            let (dry_run, revision) = (options.dry_run, options.revision.clone().unwrap_or_default());
            let impact = ImpactView::default();
            drop(reply.send(Ok(ServiceDone { service: name, text, dry_run, impact, published: true, revision })));
        }
        Task::Confirm { reply } => drop(reply.send(Ok(settled("confirmed")))),
        Task::RollBack { reply } => drop(reply.unwrap().send(Ok(settled("rolled back")))),
        Task::Reload | Task::Expire => panic!("nobody can ask for that"),
    }
}

fn settled(what: &str) -> Settled {
    let (source, revision) = ("/etc/lb/lb.toml".to_owned(), "18c-8".to_owned());
    Settled { what: what.to_owned(), dry_run: false, source, revision }
}

fn applied(applied: bool, source: Option<String>, confirm_until: Option<String>) -> Applied {
    let backend = |text: &str, presence: &str, (before, after), drained| BackendImpactView {
        address: address(text),
        presence: presence.to_owned(),
        changes: Vec::new(),
        share_before: before,
        share_after: after,
        flows: FlowImpactView { drained, ..FlowImpactView::default() },
    };
    let flows = FlowImpactView { kept: 88, drained: 312, rehomed: 0, reset: 0 };
    let service = ServiceImpactView {
        name: "web".to_owned(),
        presence: "changed".to_owned(),
        changes: vec!["scheduler round-robin -> maglev".to_owned()],
        backends: vec![
            backend("10.0.0.13:8080", "removed", (0.5, 0.0), 312),
            backend("10.0.0.14:8080", "added", (0.0, 0.5), 0),
        ],
        moved: 0.5,
        flows,
    };
    Applied {
        applied,
        source: source.unwrap_or_else(|| "/etc/lb/lb.toml".to_owned()),
        needs_restart: Vec::new(),
        impact: ImpactView { services: vec![service], flows },
        warnings: Vec::new(),
        confirm_until,
        published: true,
        revision: "18c-8".to_owned(),
    }
}
