//! Which configuration the agent starts with: its own file; where that is bad, the last good copy.

use std::sync::Arc;

use super::{
    changes::{Places, Running},
    clock::timestamp,
    effective::{Effective, effective},
    last_good::Copy,
    state_file::StateError,
};
use crate::{api::model::Failed, config::ConfigError, core::OperatorLayer};

/// What to start with.
#[derive(Debug)]
pub struct First {
    pub effective: Effective,
    pub layer: OperatorLayer,
    pub running: Running,
}

/// Reads everything that there is to choose from.
///
/// # Errors
/// The operator's layer cannot be read; or the own file is bad and there is no good copy, then as
/// [`ConfigError`].
pub fn choose(places: &Places) -> anyhow::Result<First> {
    let layer = places.layer.load()?;
    let own = places.own.read().and_then(|files| read(places, &places.own.name(), files, &layer));
    let unconfirmed = known(places.keeper.unconfirmed());
    let why = match &own {
        Err(error) => error.in_short(),
        Ok(effective) => match unconfirmed.filter(|copy| copy.says(&effective.files)) {
            Some(Copy { by, at, .. }) => format!(
                "what it says was taken over by {by} at {at} until confirmed, and was not; to use it all the same: lb config apply"
            ),
            None => return Ok(of_own(own?, layer)),
        },
    };
    let good = known(places.keeper.good());
    let copy = good.and_then(|copy| read(places, &copy.source, copy.files, &layer).ok());
    let Some(effective) = copy else {
        // Nothing better is there: unconfirmed is better than nothing, bad is not.
        return Ok(of_own(own?, layer));
    };
    tracing::error!(
        file = places.own.name(),
        "the configuration is not used, the last good copy (from {}) runs instead: {why}",
        effective.source
    );
    let fallback = Failed { at: timestamp(), error: why };
    let running = Running::now(&effective, "start", Some(fallback));
    Ok(First { effective, layer, running })
}

/// What runs is good from now on, unless it is a copy anyway. Blocks on the disk.
///
/// # Errors
/// It is not stored.
pub fn keep(places: &Places, running: &Running) -> Result<(), StateError> {
    let Running { source, files, taken, by, fallback, .. } = running;
    if fallback.is_some() {
        return Ok(());
    }
    places.keeper.store_good(&Copy::new(source, by, taken, files))
}

fn read(
    places: &Places,
    source: &str,
    files: Vec<crate::config::FileText>,
    layer: &OperatorLayer,
) -> Result<Effective, ConfigError> {
    effective(source, Arc::new(files), layer, &places.own.interfaces)
}

fn of_own(effective: Effective, layer: OperatorLayer) -> First {
    let running = Running::now(&effective, "start", None);
    First { effective, layer, running }
}

/// A copy that cannot be read is no reason not to start.
fn known(copy: Result<Option<Copy>, StateError>) -> Option<Copy> {
    copy.unwrap_or_else(|error| {
        tracing::warn!(%error, "a copy of the configuration cannot be read");
        None
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        agent::{effective::OwnFile, last_good::Keeper, layer::LayerFile},
        config::{FileText, ReportStyle},
        core::{AddedService, Mark},
    };

    const WEB: &str = "interfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nlisten = \"203.0.113.1:80\"\n";
    const API: &str = "interfaces = [\"eth0\"]\n[[service]]\nname = \"api\"\nlisten = \"203.0.113.2:80\"\n";

    fn places(dir: &Path, text: &str) -> Places {
        let path = dir.join("lb.toml");
        std::fs::write(&path, text).unwrap();
        let own = OwnFile { path, interfaces: Vec::new() };
        Places { own, layer: LayerFile::new(dir), keeper: Keeper::new(dir) }
    }

    fn name(first: &First) -> &str {
        &first.effective.config.services[0].name
    }

    #[test]
    fn a_bad_file_gives_way_to_the_last_good_copy_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let first = choose(&places(dir.path(), WEB)).unwrap();
        assert!(first.running.fallback.is_none());
        keep(&places(dir.path(), WEB), &first.running).unwrap();
        for bad in ["interfaces = 7", "not toml at all", &format!("{WEB}backend = 1\n")] {
            let first = choose(&places(dir.path(), bad)).unwrap();
            assert_eq!(name(&first), "web");
            let why = first.running.fallback.unwrap().error;
            assert!(why.contains("line ") && why.contains("lb config check"), "{why}");
        }
        let first = choose(&places(dir.path(), API)).unwrap();
        assert_eq!(name(&first), "api", "a good file is used");
        assert!(first.running.fallback.is_none());
    }

    #[test]
    fn without_a_copy_a_bad_file_is_refused_with_its_report() {
        let dir = tempfile::tempdir().unwrap();
        let error = choose(&places(dir.path(), "interfaces = 7")).unwrap_err();
        let report = error.downcast_ref::<ConfigError>().unwrap().report(ReportStyle::Plain);
        assert!(report.contains("`interfaces` cannot be the number 7"), "{report}");
    }

    #[test]
    fn a_copy_that_runs_instead_is_not_kept_as_if_it_were_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let good = places(dir.path(), WEB);
        keep(&good, &choose(&good).unwrap().running).unwrap();
        let bad = places(dir.path(), "bad");
        let first = choose(&bad).unwrap();
        let before = bad.keeper.good().unwrap();
        keep(&bad, &first.running).unwrap();
        assert_eq!(bad.keeper.good().unwrap(), before);
    }

    #[test]
    fn what_nobody_confirmed_does_not_run_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path(), API);
        let file = |text: &str| [FileText { name: "lb.toml".to_owned(), text: text.to_owned() }];
        places.keeper.store_unconfirmed(&Copy::new("lb.toml", "anna", "t", &file(API))).unwrap();
        assert_eq!(name(&choose(&places).unwrap()), "api", "better than nothing");
        places.keeper.store_good(&Copy::new("lb.toml", "start", "t", &file(WEB))).unwrap();
        places.keeper.store_unconfirmed(&Copy::new("lb.toml", "anna", "t", &file(API))).unwrap();
        let first = choose(&places).unwrap();
        assert_eq!(name(&first), "web");
        assert!(first.running.fallback.unwrap().error.contains("taken over by anna at t until confirmed"));
    }

    #[test]
    fn services_that_operators_added_belong_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path(), WEB);
        let toml = "[[service]]\nname = \"x\"\nlisten = \"203.0.113.9:80\"\n".to_owned();
        let mut layer = OperatorLayer::default();
        layer.added_services.insert("x".to_owned(), AddedService { toml, mark: Mark::new("anna", "t") });
        layer.removed_services.insert("web".to_owned(), Mark::new("anna", "t"));
        places.layer.store(&layer).unwrap();
        let first = choose(&places).unwrap();
        let names: Vec<&str> = first.effective.config.services.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["x"]);
        assert_eq!(*first.effective.in_files, ["web".to_owned()].into());
    }
}
