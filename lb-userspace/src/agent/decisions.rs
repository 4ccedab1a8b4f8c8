//! What operators decided, as it is shown: every decision with its mark, and why it has no effect
//! where it has none. Nothing that was decided is ever dropped because the file changed.

use std::{collections::BTreeSet, net::SocketAddr};

use crate::{
    api::model::DecisionView,
    config::{AddedBackend, BackendNotes, Config, Notes, Service},
    core::{Admin, Aspect, Mark, OperatorLayer, Override},
};

/// All decisions of `layer` over the effective `config`, whose files have the services `in_files`.
pub fn decisions(layer: &OperatorLayer, config: &Config, in_files: &BTreeSet<String>) -> Vec<DecisionView> {
    let mut views = Vec::new();
    for (name, added) in &layer.added_services {
        let no_effect = in_files.contains(name).then(|| "the file has a service of this name".to_owned());
        views.push(view(name, None, "added".to_owned(), &added.mark, no_effect));
    }
    for (name, mark) in &layer.removed_services {
        let no_effect = (!in_files.contains(name)).then(|| "the file has no such service".to_owned());
        views.push(view(name, None, "removed".to_owned(), mark, no_effect));
    }
    for (name, backends) in &layer.services {
        let service = config.services.iter().find(|service| service.name == *name);
        let nobody = layer.removed_services.contains_key(name);
        for (address, decided) in backends {
            for (aspect, mark) in &decided.marks {
                let no_effect = match service {
                    Some(service) => why_no_effect(service, *address, decided, *aspect),
                    None if nobody => Some("the service is removed".to_owned()),
                    None => Some(format!("there is no service `{name}`")),
                };
                views.push(view(name, Some(*address), what(decided, *aspect), mark, no_effect));
            }
        }
    }
    views
}

/// The same, as remarks over the configuration's text.
pub fn notes(layer: &OperatorLayer, in_files: &BTreeSet<String>) -> Notes {
    let mut notes = Notes::new();
    for (name, added) in layer.added_services.iter().filter(|(name, _)| !in_files.contains(*name)) {
        notes.entry(name.clone()).or_default().comments.push(format!("added {}", added.mark.in_words()));
    }
    for (name, mark) in &layer.removed_services {
        let note = notes.entry(name.clone()).or_default();
        note.removed = true;
        note.comments.push(format!("removed {}", mark.in_words()));
    }
    for (name, backends) in &layer.services {
        let note = notes.entry(name.clone()).or_default();
        for (address, decided) in backends {
            let told =
                decided.marks.iter().map(|(aspect, mark)| format!("{} {}", what(decided, *aspect), mark.in_words()));
            let comments: Vec<String> = told.collect();
            if let Some(tier) = decided.added_tier {
                let weight = decided.weight.unwrap_or(1);
                note.added.push(AddedBackend { address: *address, weight, tier, comments: comments.clone() });
            }
            let backend = BackendNotes { comments, removed: decided.removed, weight: decided.weight };
            note.backends.insert(*address, backend);
        }
    }
    notes
}

fn why_no_effect(service: &Service, address: SocketAddr, decided: &Override, aspect: Aspect) -> Option<String> {
    let in_file = service.backends.iter().any(|backend| backend.address == address);
    match aspect {
        Aspect::Added if in_file => Some("the file has this backend".to_owned()),
        Aspect::Added => None,
        _ if in_file || decided.added_tier.is_some() => None,
        _ => Some(format!("the file has no backend {address} in `{}`", service.name)),
    }
}

fn what(decided: &Override, aspect: Aspect) -> String {
    match aspect {
        Aspect::Added => format!("added, tier {}", decided.added_tier.unwrap_or(0)),
        Aspect::Removed => "removed".to_owned(),
        Aspect::Admin => decided.admin.unwrap_or(Admin::Ready).to_string(),
        Aspect::Weight => format!("weight {}", decided.weight.unwrap_or(1)),
    }
}

fn view(
    service: &str,
    backend: Option<SocketAddr>,
    what: String,
    mark: &Mark,
    no_effect: Option<String>,
) -> DecisionView {
    let Mark { by, at, reason, until, .. } = mark.clone();
    DecisionView { service: service.to_owned(), backend, what, by, at, reason, until, no_effect }
}
