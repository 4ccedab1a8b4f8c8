//! The operator's layer on disk: what was decided at runtime outlives the agent.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::state_file::{self, Beside, StateError};
use crate::core::{Admin, Aspect, Mark, OperatorLayer, Override};

const FILE: &str = "operator.json";
/// Of the file's format.
const VERSION: u32 = 2;
const ADVICE: &str = "move the file away to begin without runtime changes";

/// `operator.json` in the state directory.
#[derive(Clone, Debug)]
pub struct LayerFile {
    path: PathBuf,
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
    layer: serde_json::Value,
}

#[derive(Serialize)]
struct Content<'a> {
    version: u32,
    layer: &'a OperatorLayer,
}

impl LayerFile {
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(FILE) }
    }

    /// What was stored last; the empty layer when nothing was.
    ///
    /// # Errors
    /// The file is there but cannot be read or understood: to go on without it would undo what an
    /// operator decided.
    pub fn load(&self) -> Result<OperatorLayer, StateError> {
        let Some(Versioned { version, layer }) = state_file::read(&self.path, ADVICE)? else {
            return Ok(OperatorLayer::default());
        };
        let unreadable = |why| StateError::Unreadable { path: self.path.clone(), why, advice: ADVICE };
        match version {
            VERSION => serde_json::from_value(layer).map_err(|e| unreadable(e.to_string())),
            1 => serde_json::from_value(layer).map(First::now).map_err(|e| unreadable(e.to_string())),
            _ => Err(unreadable(format!("version {version} is not {VERSION}"))),
        }
    }

    /// Replaces the file: after a crash it holds the old layer or the new one. Blocks on the disk.
    ///
    /// # Errors
    /// The layer is not stored; the file is as it was.
    pub fn store(&self, layer: &OperatorLayer) -> Result<(), StateError> {
        self.write_beside(layer)?.put()
    }

    /// Writes a layer that is to take the file's place. Does not wait for the disk.
    ///
    /// # Errors
    /// The layer is not stored; the file is as it was.
    pub fn write_beside(&self, layer: &OperatorLayer) -> Result<Beside, StateError> {
        state_file::write_beside(&self.path, &Content { version: VERSION, layer })
    }
}

/// Version 1: one mark for everything that was decided about a backend.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    services: BTreeMap<String, BTreeMap<SocketAddr, FirstOverride>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FirstOverride {
    #[serde(default)]
    added_tier: Option<u8>,
    #[serde(default)]
    removed: bool,
    #[serde(default)]
    admin: Option<Admin>,
    #[serde(default)]
    weight: Option<u16>,
    by: String,
    at: String,
}

impl First {
    fn now(self) -> OperatorLayer {
        let of_service = |backends: BTreeMap<SocketAddr, FirstOverride>| {
            backends.into_iter().map(|(address, decided)| (address, decided.now())).collect()
        };
        let services = self.services.into_iter().map(|(name, backends)| (name, of_service(backends))).collect();
        OperatorLayer { services, ..OperatorLayer::default() }
    }
}

impl FirstOverride {
    fn now(self) -> Override {
        let Self { added_tier, removed, admin, weight, by, at } = self;
        let decided = [
            (Aspect::Added, added_tier.is_some()),
            (Aspect::Removed, removed),
            (Aspect::Admin, admin.is_some()),
            (Aspect::Weight, weight.is_some()),
        ];
        let marked = decided.into_iter().filter(|(_, decided)| *decided);
        let marks = marked.map(|(aspect, _)| (aspect, Mark::new(&by, &at))).collect();
        Override { added_tier, removed, admin, drain_over: false, weight, marks }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn layer() -> OperatorLayer {
        let marks = [(Aspect::Admin, Mark::new("anna", "2026-01-01T00:00:00Z"))];
        let decided = Override { admin: Some(Admin::Drain), marks: marks.into(), ..Override::default() };
        let backends = [("10.0.0.1:80".parse().unwrap(), decided)].into();
        OperatorLayer { services: [("web".to_owned(), backends)].into(), ..OperatorLayer::default() }
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let file = LayerFile::new(dir.path());
        assert_eq!(file.load().unwrap(), OperatorLayer::default());
        file.store(&layer()).unwrap();
        assert_eq!(file.load().unwrap(), layer());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else stays behind");
    }

    #[test]
    fn a_file_of_the_first_version_is_read_on() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"version":1,"layer":{"services":{"web":{"10.0.0.1:80":
            {"admin":"drain","by":"anna","at":"2026-01-01T00:00:00Z"}}}}}"#;
        fs::write(dir.path().join(FILE), text).unwrap();
        assert_eq!(LayerFile::new(dir.path()).load().unwrap(), layer());
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_an_empty_layer() {
        let dir = tempfile::tempdir().unwrap();
        let file = LayerFile::new(dir.path());
        fs::write(dir.path().join(FILE), r#"{"version":2,"layer":{"serv"#).unwrap();
        assert!(file.load().unwrap_err().to_string().contains("move the file away"));
        fs::write(dir.path().join(FILE), r#"{"version":2,"layer":{"servers":{}}}"#).unwrap();
        assert!(file.load().unwrap_err().to_string().contains("move the file away"));
    }

    #[test]
    fn a_file_of_another_version_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), r#"{"version":3,"layer":{"services":{}}}"#).unwrap();
        assert!(matches!(LayerFile::new(dir.path()).load(), Err(StateError::Unreadable { .. })));
    }

    #[test]
    fn a_failed_store_leaves_the_old_layer() {
        let dir = tempfile::tempdir().unwrap();
        let file = LayerFile::new(dir.path());
        file.store(&layer()).unwrap();
        // A directory in the way of the new file.
        fs::create_dir(dir.path().join("operator.json.new")).unwrap();
        assert!(file.store(&OperatorLayer::default()).is_err());
        assert_eq!(file.load().unwrap(), layer());
    }
}
