//! `lb upgrade`: what a new version would meet, and the way back. The upgrade itself is the new version's
//! `lb run`, which replaces the program on the live interfaces.

use clap::Args;

use super::{Exit, Failure, args::Global, detach, output::Printer, render};
use crate::{
    api::doctor::{Check, CheckResult, Diagnosis},
    api::model::Detached,
    dataplane::kernel::{
        Change, Fit,
        upgrade::{self, Outlook, ProgramOutlook, RolledBack},
    },
};

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct UpgradeAction {
    /// Load this version's program beside the one that runs, give both the same packets, and compare the
    /// layout of every map. Changes nothing.
    #[arg(long)]
    check: bool,
    /// Put the program from before the last upgrade back on every interface, at once; flows stay. Then
    /// start the version before.
    #[arg(long)]
    rollback: bool,
}

#[derive(Debug, Args)]
pub struct UpgradeArgs {
    #[command(flatten)]
    action: UpgradeAction,
    /// With --check: packets that both versions do not make the same of are told, and accepted. With --rollback:
    /// stop a running agent first, instead of refusing.
    #[arg(long)]
    force: bool,
}

pub fn upgrade(global: &Global, printer: &Printer, arguments: UpgradeArgs) -> Result<Exit, Failure> {
    if arguments.action.check {
        check(global, printer, arguments.force)
    } else {
        rollback(global, printer, arguments.force)
    }
}

fn check(global: &Global, printer: &Printer, force: bool) -> Result<Exit, Failure> {
    let outlook = upgrade::outlook(&global.pin_dir).map_err(|e| {
        Failure::new(
            "an upgrade cannot be tried out",
            format!("{e:#}"),
            "mend that, then repeat it; sudo may be missing",
        )
    })?;
    let diagnosis = Diagnosis { checks: checks(&outlook, force) };
    let exit = if diagnosis.failed() { Exit::Failed } else { Exit::Done };
    printer.print(diagnosis, render::diagnosis)?;
    Ok(exit)
}

fn checks(outlook: &Outlook, force: bool) -> Vec<Check> {
    let map = |(name, fit): &(&'static str, Result<Fit, String>)| {
        let name = format!("map {name}");
        match fit {
            Ok(Fit::Same) => Check::new(name, CheckResult::Ok, "the same layout: it is taken over as it is"),
            Ok(Fit::New) => Check::new(name, CheckResult::Ok, "new in this version: it is made"),
            Ok(Fit::Changes(change)) => Check::new(name, CheckResult::Ok, told(change)),
            Err(why) => {
                Check::new(name, CheckResult::Fail, why.as_str()).fix("stay with the version before, or: lb detach")
            }
        }
    };
    let mut checks: Vec<Check> = outlook.maps.iter().map(map).collect();
    let Some(ProgramOutlook { verified, compared, differences, same }) = &outlook.program else {
        checks.push(Check::new("program", CheckResult::Skip, "not loaded: a map does not fit"));
        return checks;
    };
    let walked: Vec<String> = verified
        .iter()
        .map(|(name, walked)| format!("{name} {}", walked.map_or("?".to_owned(), |n| n.to_string())))
        .collect();
    let state = if *same { "the one that runs" } else { "another than the one that runs" };
    checks.push(Check::new(
        "program",
        CheckResult::Ok,
        format!("{state}; instructions verified: {}", walked.join(", ")),
    ));
    if differences.is_empty() {
        checks.push(Check::new("packets", CheckResult::Ok, format!("both make the same of {compared} packets")));
    }
    let result = if force { CheckResult::Warn } else { CheckResult::Fail };
    checks.extend(differences.iter().map(|difference| {
        Check::new("packets", result, difference.as_str())
            .fix("look whether the release notes tell of it; then: lb upgrade --check --force")
    }));
    checks
}

/// What becomes of a map that is made anew.
fn told(Change { value, elements }: &Change) -> String {
    let mut changes = Vec::new();
    if value.0 != value.1 {
        changes.push(format!("from {} to {} bytes a value", value.0, value.1));
    }
    if elements.0 != elements.1 {
        changes.push(format!("from {} to {} elements", elements.0, elements.1));
    }
    if changes.is_empty() {
        changes.push("made anew with the flow table".to_owned());
    }
    format!("{}: its content is taken over", changes.join(", "))
}

fn rollback(global: &Global, printer: &Printer, force: bool) -> Result<Exit, Failure> {
    let stopped_pid = detach::nobody_runs(global, force, "rolled back", "lb upgrade --rollback")?;
    let RolledBack { interfaces, program_id, maps } = upgrade::rollback(&global.pin_dir).map_err(|e| {
        Failure::new("nothing was rolled back", format!("{e:#}"), "lb run --config FILE goes on with what is there")
    })?;
    let mut done: Vec<String> = stopped_pid.map(|pid| format!("stopped the agent, pid {pid}")).into_iter().collect();
    done.extend(
        interfaces
            .iter()
            .map(|name| format!("put the program from before (id {program_id}) back on {name}, without a gap")),
    );
    done.extend(maps.iter().map(|name| format!("put the map {name} from before back")));
    done.push("now install the version before and start it: until then packets go on as last decided".to_owned());
    printer.print(Detached { stopped_pid, interfaces, done }, render::detached)?;
    Ok(Exit::Done)
}
