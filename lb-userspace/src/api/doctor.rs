//! What `lb doctor` prints.

use serde::{Deserialize, Serialize};

use super::model::Kind;

/// A list of checks, in an order to be read in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What was looked at, in a word or two.
    pub name: String,
    pub result: CheckResult,
    /// What was seen, and what follows from it.
    pub evidence: String,
    /// What to type; absent where nothing has to be mended.
    pub fix: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckResult {
    /// Not needed here, or nothing could be seen.
    Skip,
    Ok,
    /// It may work; somebody has to judge.
    Warn,
    /// It cannot work.
    Fail,
}

impl CheckResult {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl Check {
    pub fn new(name: impl Into<String>, result: CheckResult, evidence: impl Into<String>) -> Self {
        Self { name: name.into(), result, evidence: evidence.into(), fix: None }
    }

    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

impl Diagnosis {
    /// Whether something cannot work.
    pub fn failed(&self) -> bool {
        self.checks.iter().any(|check| check.result == CheckResult::Fail)
    }
}

impl Kind for Diagnosis {
    const KIND: &'static str = "Diagnosis";
}
