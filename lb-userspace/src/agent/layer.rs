//! The operator's layer on disk: what was decided at runtime outlives the agent.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::core::OperatorLayer;

const FILE: &str = "operator.json";
/// Of the file's format.
const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("{}: {source}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: {why}; move the file away to begin without runtime changes", .path.display())]
    Unreadable { path: PathBuf, why: String },
}

/// `operator.json` in the state directory.
#[derive(Clone, Debug)]
pub struct LayerFile {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    layer: OperatorLayer,
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
    pub fn load(&self) -> Result<OperatorLayer, LayerError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(OperatorLayer::default()),
            Err(source) => return Err(LayerError::Io { path: self.path.clone(), source }),
        };
        let unreadable = |why: String| LayerError::Unreadable { path: self.path.clone(), why };
        let content: Content = serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
        if content.version != VERSION {
            return Err(unreadable(format!("version {} is not {VERSION}", content.version)));
        }
        Ok(content.layer)
    }

    /// Replaces the file: after a crash it holds the old layer or the new one. Blocks on the disk.
    ///
    /// # Errors
    /// The layer is not stored; the file is as it was.
    pub fn store(&self, layer: &OperatorLayer) -> Result<(), LayerError> {
        self.replace(layer).map_err(|source| LayerError::Io { path: self.path.clone(), source })
    }

    fn replace(&self, layer: &OperatorLayer) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let beside = self.path.with_extension("json.new");
        let mut file = File::create(&beside)?;
        serde_json::to_writer_pretty(&mut file, &Content { version: VERSION, layer: layer.clone() })?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        // The rename itself is on disk only with its directory.
        File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Admin, Override};

    fn layer() -> OperatorLayer {
        let decided = Override {
            admin: Some(Admin::Drain),
            by: "anna".to_owned(),
            at: "2026-01-01T00:00:00Z".to_owned(),
            ..Override::default()
        };
        let backends = [("10.0.0.1:80".parse().unwrap(), decided)].into();
        OperatorLayer { services: [("web".to_owned(), backends)].into() }
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
    fn a_damaged_file_is_an_error_and_not_an_empty_layer() {
        let dir = tempfile::tempdir().unwrap();
        let file = LayerFile::new(dir.path());
        fs::write(dir.path().join(FILE), r#"{"version":1,"layer":{"serv"#).unwrap();
        assert!(file.load().unwrap_err().to_string().contains("move the file away"));
    }

    #[test]
    fn a_file_of_another_version_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), r#"{"version":2,"layer":{"services":{}}}"#).unwrap();
        assert!(matches!(LayerFile::new(dir.path()).load(), Err(LayerError::Unreadable { .. })));
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
