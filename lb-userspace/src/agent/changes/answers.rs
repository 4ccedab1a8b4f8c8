//! From what the core and the agent know to what is answered, and to whom.

use super::{Candidate, Changes, command, task::Job};
use crate::{
    agent::engine::Engine,
    api::{
        Task,
        model::{Applied, BackendImpactView, FlowImpactView, ImpactView, ServiceDone, ServiceImpactView},
    },
    core::{BackendImpact, FlowImpact, Impact, Presence, ServiceImpact},
    dataplane::Dataplane,
};

/// Answers.
impl Changes {
    pub(super) fn answer<D: Dataplane>(&mut self, engine: &mut Engine<D>, job: Job, candidate: Option<Box<Candidate>>) {
        let (by, published) = (job.author.name(), engine.in_step());
        match (job.task, candidate) {
            (Task::Command { request, reply }, _) => {
                let done = command::done(engine, &request, job.author, &mut self.state);
                drop(reply.send(Ok(done)));
            }
            (Task::Service { name, request, reply }, Some(candidate)) => {
                self.state.take_files(&candidate.effective);
                let text = command::service_text(&name, &request, &candidate.impact);
                tracing::info!(target: "audit", user = by, service = name, "{text}");
                engine.notices.info(format!("{name} {text} (by {by})"));
                let revision = self.state.revision(engine);
                let impact = candidate.impact;
                drop(reply.send(Ok(ServiceDone { service: name, text, dry_run: false, impact, published, revision })));
            }
            (Task::Apply { request, reply }, Some(candidate)) => {
                let Candidate { effective, impact, warnings, .. } = *candidate;
                let confirm_until = self.state.take_over(&effective, &by, request.confirm_seconds);
                tracing::info!(target: "audit", user = by, source = effective.source, "a configuration was taken over");
                engine.taken_over(&effective.source, &by);
                let source = effective.source;
                let needs_restart = Vec::new();
                let revision = self.state.revision(engine);
                let done = Applied {
                    applied: true,
                    source,
                    needs_restart,
                    impact,
                    warnings,
                    confirm_until,
                    published,
                    revision,
                };
                drop(reply.send(Ok(done)));
            }
            (Task::Reload, Some(candidate)) => {
                self.state.take_over(&candidate.effective, &by, None);
                engine.taken_over(&candidate.effective.source, &by);
            }
            (Task::RollBack { reply }, Some(candidate)) => {
                self.state.rolled_back(&candidate.effective);
                let why = if reply.is_some() { format!("by {by}") } else { "nobody confirmed it".to_owned() };
                engine.rolled_back(&candidate.effective.source, &why);
                drop(reply.map(|reply| reply.send(Ok(self.state.settled(engine, "rolled back", false)))));
            }
            (Task::Confirm { reply }, _) => {
                self.state.confirmed();
                engine.notices.info(format!("the last change of the configuration was confirmed (by {by})"));
                drop(reply.send(Ok(self.state.settled(engine, "confirmed", false))));
            }
            (Task::Expire, candidate) => {
                if let Some(candidate) = candidate {
                    self.state.take_files(&candidate.effective);
                }
                tracing::info!("decisions of operators have ended");
            }
            // A task that needs a candidate never comes here without one.
            (task, None) => drop(task),
        }
    }

    pub(super) fn answer_dry_run<D: Dataplane>(
        &self,
        engine: &Engine<D>,
        job: Job,
        candidate: Candidate,
        needs_restart: Vec<&'static str>,
    ) {
        let Candidate { effective, impact, warnings, .. } = candidate;
        let (revision, published) = (self.state.revision(engine), engine.in_step());
        match job.task {
            Task::Apply { reply, .. } => {
                let needs_restart = needs_restart.into_iter().map(str::to_owned).collect();
                let (source, confirm_until) = (effective.source, None);
                let told = Applied {
                    applied: false,
                    source,
                    needs_restart,
                    impact,
                    warnings,
                    confirm_until,
                    published,
                    revision,
                };
                drop(reply.send(Ok(told)));
            }
            Task::Service { name, request, reply } => {
                let text = command::service_text(&name, &request, &impact);
                let text = format!("dry run: {text}");
                drop(reply.send(Ok(ServiceDone { service: name, text, dry_run: true, impact, published, revision })));
            }
            task => drop(task),
        }
    }

    pub(super) fn answer_nothing_done<D: Dataplane>(&mut self, engine: &Engine<D>, job: Job) {
        match job.task {
            Task::Command { request, reply } => {
                drop(reply.send(Ok(command::would_be_done(engine, &request, self.state.revision(engine)))));
            }
            Task::Confirm { reply } => drop(reply.send(Ok(self.state.settled(engine, "would be confirmed", true)))),
            Task::RollBack { reply: Some(reply) } => {
                drop(reply.send(Ok(self.state.settled(engine, "would be rolled back", true))));
            }
            Task::Expire => self.state.follow_ends(engine.layer()),
            task => drop(task),
        }
    }
}

pub(super) fn impact_view(impact: &Impact) -> ImpactView {
    ImpactView { services: impact.services.iter().map(service_view).collect(), flows: flows_view(impact.flows) }
}

/// Why a change that cuts so many flows is not made; `None`: it may cut as many.
pub(super) fn over_budget(flows: &FlowImpactView, budget: u64) -> Option<String> {
    (flows.reset > budget).then(|| format!("{} live flows would be reset, {budget} may be", flows.reset))
}

fn service_view(service: &ServiceImpact) -> ServiceImpactView {
    let ServiceImpact { name, presence, changes, backends, moved, flows } = service;
    ServiceImpactView {
        name: name.clone(),
        presence: presence_name(*presence).to_owned(),
        changes: changes.clone(),
        backends: backends.iter().map(backend_view).collect(),
        moved: *moved,
        flows: flows_view(*flows),
    }
}

fn backend_view(backend: &BackendImpact) -> BackendImpactView {
    let BackendImpact { address, presence, changes, share, flows } = backend;
    BackendImpactView {
        address: *address,
        presence: presence_name(*presence).to_owned(),
        changes: changes.clone(),
        share_before: share.0,
        share_after: share.1,
        flows: flows_view(*flows),
    }
}

fn flows_view(flows: FlowImpact) -> FlowImpactView {
    let FlowImpact { kept, drained, rehomed, reset } = flows;
    FlowImpactView { kept, drained, rehomed, reset }
}

fn presence_name(presence: Presence) -> &'static str {
    match presence {
        Presence::Added => "added",
        Presence::Removed => "removed",
        Presence::Changed => "changed",
        Presence::Same => "same",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_may_be_used_up_and_not_passed() {
        let flows = FlowImpactView { kept: 3, drained: 4, rehomed: 0, reset: 12 };
        assert_eq!(over_budget(&flows, 11).as_deref(), Some("12 live flows would be reset, 11 may be"));
        assert_eq!(over_budget(&flows, 12), None);
    }
}
