//! What takes its time before a configuration can be taken over: reading, checking, and finding out
//! what it would do. On a thread of its own.

use std::sync::Arc;

use axum::http::StatusCode;

use super::{
    super::effective::{Effective, OwnFile, effective},
    answers,
};
use crate::{
    api::{
        Refusal,
        model::{ImpactView, ServiceChange, ServiceRequest},
    },
    config::{self, ConfigError, FileText, ReportStyle, TEXT_MAX},
    core::{AddedService, Core, Impact, Mark, Now, OperatorLayer},
};

/// Where the texts come from.
#[derive(Clone, Debug)]
pub(super) enum Texts {
    Own,
    Given { source: String, files: Arc<Vec<FileText>> },
}

/// An edit of the layer that needs the configuration's reader.
#[derive(Clone, Debug)]
pub(super) struct ServiceEdit {
    pub name: String,
    pub request: ServiceRequest,
    pub mark: Mark,
    /// Whether a backend of it takes flows now.
    pub serves: bool,
    pub exists: bool,
}

/// What to find out.
pub(super) struct Work {
    pub texts: Texts,
    pub own: OwnFile,
    pub layer: OperatorLayer,
    pub edit: Option<ServiceEdit>,
    /// A copy of the core to try it on; `None`: nobody asks what it would do.
    pub core: Option<(Box<Core>, Now)>,
}

/// What was found.
#[derive(Debug)]
pub struct Candidate {
    pub(super) effective: Effective,
    pub(super) layer: OperatorLayer,
    pub(super) impact: ImpactView,
    pub(super) warnings: Vec<String>,
}

impl Work {
    pub fn run(self) -> Result<Candidate, Refusal> {
        let Self { texts, own, layer, edit, core } = self;
        let (source, files) = match texts {
            Texts::Own => (own.name(), Arc::new(own.read().map_err(|error| unusable(&error))?)),
            Texts::Given { source, files } => (source, files),
        };
        let size: usize = files.iter().map(|file| file.text.len()).sum();
        if files.is_empty() || size > TEXT_MAX {
            let why = format!("{} files with {size} bytes: at least one, at most {} MiB", files.len(), TEXT_MAX >> 20);
            let next = "check what was sent: lb config check FILE";
            return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "the configuration stays as it was", why, next));
        }
        let layer = match &edit {
            Some(edit) => edit.apply(layer, &source, &files)?,
            None => layer,
        };
        let effective = effective(&source, files, &layer, &own.interfaces).map_err(|error| unusable(&error))?;
        let impact = core
            .map_or_else(Impact::default, |(core, now)| core.impact(Arc::clone(&effective.config), layer.clone(), now));
        let warnings = effective.warnings.iter().map(one_warning).collect();
        Ok(Candidate { effective, layer, impact: answers::impact_view(&impact), warnings })
    }
}

impl ServiceEdit {
    fn apply(&self, mut layer: OperatorLayer, source: &str, files: &[FileText]) -> Result<OperatorLayer, Refusal> {
        let Self { name, request, mark, serves, exists } = self;
        let in_files = config::parse_files(source, files).map_err(|error| unusable(&error))?;
        let in_files = in_files.config.services.iter().any(|service| service.name == *name);
        match &request.change {
            ServiceChange::Remove if !exists => {
                return Err(self.refuse(StatusCode::NOT_FOUND, "there is no such service"));
            }
            ServiceChange::Remove if *serves && !request.force => {
                let why = "it has ready backends: new flows to it would be refused; repeat the command with --force";
                return Err(self.refuse(StatusCode::CONFLICT, why));
            }
            ServiceChange::Remove if in_files => _ = layer.removed_services.insert(name.clone(), mark.clone()),
            ServiceChange::Remove => {
                layer.added_services.remove(name);
                // What was decided about it was decided about what is no more.
                layer.services.remove(name);
            }
            ServiceChange::Add { toml: None } => {
                if layer.removed_services.remove(name).is_none() {
                    let why = "it was not removed; a new service needs at least --listen";
                    return Err(self.refuse(StatusCode::CONFLICT, why));
                }
            }
            ServiceChange::Add { toml: Some(_) } if *exists || in_files => {
                return Err(self.refuse(StatusCode::CONFLICT, "there is a service of this name"));
            }
            ServiceChange::Add { toml: Some(toml) } => {
                self.check_fragment(toml)?;
                layer.added_services.insert(name.clone(), AddedService { toml: toml.clone(), mark: mark.clone() });
            }
        }
        Ok(layer)
    }

    /// Exactly one service of this name, and nothing else; its settings are judged with the rest.
    fn check_fragment(&self, toml: &str) -> Result<(), Refusal> {
        let bad = |why: &str| self.refuse(StatusCode::UNPROCESSABLE_ENTITY, why);
        let table: toml::Table = toml.parse().map_err(|error: toml::de::Error| bad(error.message()))?;
        let services = table.get("service").and_then(toml::Value::as_array).filter(|_| table.len() == 1);
        match services.map(Vec::as_slice) {
            Some([service]) if service.get("name").and_then(toml::Value::as_str) == Some(&self.name) => Ok(()),
            _ => Err(bad("its text must be one [[service]] table with this name, and nothing else")),
        }
    }

    fn refuse(&self, status: StatusCode, why: &str) -> Refusal {
        let what = format!("not done: the change of service `{}`", self.name);
        Refusal::new(status, what, why, "lb service list")
    }
}

fn unusable(error: &ConfigError) -> Refusal {
    let next = format!("lb config check {}", error.file());
    Refusal {
        report: Some(error.report(ReportStyle::Plain)),
        ..Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "the configuration stays as it was", error.in_short(), next)
    }
}

fn one_warning(warning: &config::Diagnostic) -> String {
    let file = warning.file.as_ref().map(|file| format!("{file}, ")).unwrap_or_default();
    let line = warning.line.map(|line| format!("line {line}: ")).unwrap_or_default();
    format!("{file}{line}{}", warning.message)
}
