//! What runs: the configuration's files, and the services that operators added and removed over them.
//! Backends are for the core, which knows their health.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use crate::{
    config::{self, Config, ConfigError, Diagnostic, FileText, parse_files},
    core::OperatorLayer,
};

/// As messages name the services that operators added.
const ADDED: &str = "services added by operators";

/// The file or directory that the agent was started with.
#[derive(Clone, Debug)]
pub struct OwnFile {
    pub path: PathBuf,
    /// Instead of the file's `interfaces`; empty: the file decides.
    pub interfaces: Vec<String>,
}

impl OwnFile {
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// # Errors
    /// A file cannot be read.
    pub fn read(&self) -> Result<Vec<FileText>, ConfigError> {
        config::read_files(&self.path)
    }
}

/// A configuration that can run.
#[derive(Clone, Debug)]
pub struct Effective {
    /// Where its files come from.
    pub source: String,
    pub files: Arc<Vec<FileText>>,
    /// Names of the services in the files.
    pub in_files: Arc<BTreeSet<String>>,
    pub config: Arc<Config>,
    pub warnings: Vec<Diagnostic>,
}

/// Reads `files`, and what `layer` says about services over them; `interfaces` go before the files',
/// unless there are none.
///
/// # Errors
/// The files are no valid configuration, alone or with what operators added.
pub fn effective(
    source: &str,
    files: Arc<Vec<FileText>>,
    layer: &OperatorLayer,
    interfaces: &[String],
) -> Result<Effective, ConfigError> {
    let mut loaded = parse_files(source, &files)?;
    let in_files: BTreeSet<String> = loaded.config.services.iter().map(|service| service.name.clone()).collect();
    if let Some(added) = added_text(layer, &in_files) {
        let all: Vec<FileText> = files.iter().cloned().chain([added]).collect();
        loaded = parse_files(source, &all)?;
    }
    let mut config = loaded.config;
    config.services.retain(|service| !layer.removed_services.contains_key(&service.name));
    if !interfaces.is_empty() {
        config.interfaces = interfaces.to_vec();
    }
    let (in_files, config) = (Arc::new(in_files), Arc::new(config));
    Ok(Effective { source: source.to_owned(), files, in_files, config, warnings: loaded.warnings })
}

/// The services that operators added, as one more file; `None`: there are none. What the files have
/// goes before.
pub fn added_text(layer: &OperatorLayer, in_files: &BTreeSet<String>) -> Option<FileText> {
    let added = layer.added_services.iter().filter(|(name, _)| !in_files.contains(*name));
    let text: String = added.map(|(_, added)| format!("{}\n", added.toml.trim_end())).collect();
    (!text.is_empty()).then(|| FileText { name: ADDED.to_owned(), text })
}
