//! Checks, one line each; what to type below them.

use super::table::{bad, good, table, text, warned};
use crate::{
    api::doctor::{CheckResult, Diagnosis},
    cli::args::Format,
};

pub fn diagnosis(diagnosis: &Diagnosis, _: Format) -> String {
    let rows = diagnosis.checks.iter().map(|check| {
        let word = check.result.name();
        let result = match check.result {
            CheckResult::Skip => text(word),
            CheckResult::Ok => good(word),
            CheckResult::Warn => warned(word),
            CheckResult::Fail => bad(word),
        };
        vec![result, text(&check.name), text(&check.evidence)]
    });
    let mut parts = vec![table(&["RESULT", "CHECK", "EVIDENCE"], rows.collect())];
    let fixes = diagnosis.checks.iter().filter_map(|check| Some(format!("{}: {}", check.name, check.fix.as_ref()?)));
    let fixes: Vec<String> = fixes.collect();
    if !fixes.is_empty() {
        parts.push(format!("To mend:\n  {}", fixes.join("\n  ")));
    }
    parts.join("\n\n")
}
