//! Changes by an operator, one after the other: planned by the core, stored on disk, and only then
//! put into effect.

use std::collections::VecDeque;

use axum::http::StatusCode;
use tokio::sync::{mpsc, oneshot};

use super::{
    commands::{backend_of, command_of, in_short, not_done, outcome, refusal},
    engine::Engine,
    layer::{LayerError, LayerFile},
    run_loop::Finding,
};
use crate::{
    api::{
        Peer, Refusal,
        model::{CommandDone, CommandRequest},
    },
    core::OperatorLayer,
    dataplane::Dataplane,
};

type Reply = oneshot::Sender<Result<CommandDone, Refusal>>;

/// The answer of the disk.
#[derive(Debug)]
pub struct Stored {
    operation: Operation,
    layer: OperatorLayer,
    result: Result<(), LayerError>,
}

#[derive(Debug)]
struct Operation {
    request: CommandRequest,
    peer: Peer,
    reply: Reply,
}

#[derive(Debug)]
pub struct Operations {
    file: LayerFile,
    findings: mpsc::Sender<Finding>,
    storing: bool,
    /// Asked while another one is being stored: each is planned on what the one before left.
    waiting: VecDeque<Operation>,
}

impl Operations {
    /// Layers are stored in `file`; that it is done is told to `findings`.
    pub fn new(file: LayerFile, findings: mpsc::Sender<Finding>) -> Self {
        Self { file, findings, storing: false, waiting: VecDeque::new() }
    }

    /// Begins with `request`, or lets it wait for its turn. `reply` is answered in the end.
    pub fn begin<D: Dataplane>(&mut self, engine: &Engine<D>, request: CommandRequest, peer: Peer, reply: Reply) {
        self.waiting.push_back(Operation { request, peer, reply });
        self.next(engine);
    }

    /// The layer is on disk, or it is not: put it into effect, or refuse it.
    pub fn stored<D: Dataplane>(&mut self, engine: &mut Engine<D>, stored: Stored) {
        self.storing = false;
        let Stored { operation, layer, result } = stored;
        let answer = match result {
            Ok(()) => Ok(effect(engine, &operation, layer)),
            Err(error) => {
                tracing::error!(%error, "a change was refused: it could not be stored");
                Err(Refusal::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    not_done(&operation.request),
                    format!("it could not be stored: {error}"),
                    "make room or mend the state directory, then try again",
                ))
            }
        };
        // Whoever asked may be gone; the change stands.
        drop(operation.reply.send(answer));
        self.next(engine);
    }

    fn next<D: Dataplane>(&mut self, engine: &Engine<D>) {
        while !self.storing
            && let Some(operation) = self.waiting.pop_front()
        {
            let Operation { request, peer, .. } = &operation;
            match engine.plan_command(&command_of(request), &peer.name(), request.force) {
                Ok(layer) => self.store(operation, layer),
                Err(error) => {
                    let refused = refusal(request, &error);
                    drop(operation.reply.send(Err(refused)));
                }
            }
        }
    }

    /// Writes to disk on a thread of its own.
    fn store(&mut self, operation: Operation, layer: OperatorLayer) {
        self.storing = true;
        let (file, findings) = (self.file.clone(), self.findings.clone());
        tokio::task::spawn_blocking(move || {
            let result = file.store(&layer);
            // The loop is gone only when the agent stops; the layer is stored all the same.
            drop(findings.blocking_send(Finding::Stored(Stored { operation, layer, result })));
        });
    }
}

fn effect<D: Dataplane>(engine: &mut Engine<D>, operation: &Operation, layer: OperatorLayer) -> CommandDone {
    let Operation { request, peer, .. } = operation;
    let before = backend_of(&engine.services(), request);
    engine.operate(layer);
    let after = backend_of(&engine.services(), request);
    tracing::info!(
        target: "audit",
        uid = peer.uid,
        pid = peer.pid,
        user = peer.name(),
        command = %command_of(request),
        force = request.force,
        before = in_short(before.as_ref()),
        after = in_short(after.as_ref()),
        "a change by an operator"
    );
    CommandDone {
        service: request.service.clone(),
        address: request.address,
        text: outcome(request, before.as_ref(), after.as_ref()),
        backend: after,
        published: engine.in_step(),
    }
}
